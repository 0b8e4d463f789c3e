from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thalweg


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def data(rows: int = 700) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(rows) % 3


def test_the_mean_is_over_examples_and_not_over_batches() -> None:
    model, (x, y) = net(), data()
    y = y.clone()
    y[:400] = -100  # the first batch has nothing that counts, the second nearly nothing
    model.eval()
    expected = F.cross_entropy(model(x), y).item()
    assert thalweg.evaluate(model, (x, y), "cross_entropy")["loss"] == pytest.approx(expected, rel=1e-6)


def test_a_summed_loss_is_told_per_example() -> None:
    model, (x, y) = net().eval(), data()
    expected = F.cross_entropy(model(x), y, reduction="sum").item() / len(x)
    measured = thalweg.evaluate(model, (x, y), nn.CrossEntropyLoss(reduction="sum"))["loss"]
    assert measured == pytest.approx(expected, rel=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = net()
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    thalweg.evaluate(model, data(), "cross_entropy", ["accuracy"])
    thalweg.predict(model, data()[0])
    assert [module.training for module in model] == [True, False, True, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_metrics_alone_need_no_loss() -> None:
    measured = thalweg.evaluate(net(), data(), metrics=["accuracy", "top5"])
    assert set(measured) == {"accuracy", "top5"}
    assert measured["top5"] == 1.0


def test_predictions_do_not_depend_on_the_batch_size() -> None:
    model, (x, _) = net(), data()
    whole = thalweg.predict(model, x, batch_size=700)
    assert whole.shape == (700, 3)
    assert not whole.requires_grad
    torch.testing.assert_close(thalweg.predict(model, x, batch_size=64), whole)
    torch.testing.assert_close(thalweg.predict(model, x.numpy()), whole)
