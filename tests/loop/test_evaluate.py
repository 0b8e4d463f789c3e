from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
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
    assert torch.equal(thalweg.predict(model, x, batch_size=np.int64(64)), thalweg.predict(model, x, batch_size=64))


class Outputs(nn.Module):
    """Returns what a function makes of the inputs."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor) -> Any:
        return self.made(x)


class Pair(NamedTuple):
    mean: Tensor
    spread: Tensor


def test_outputs_with_names_are_joined_by_name() -> None:
    x = data()[0]
    joined = thalweg.predict(Outputs(lambda x: Pair(x, x + 1)), x)
    assert isinstance(joined, Pair)
    assert torch.equal(joined.spread, x + 1)


X, Y = data(20)

MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "width to predict": (lambda: thalweg.predict(net(), X[:, :3]), r"'0' \(Linear\).*\[20, 3\].*\[8, 4\]"),
    "width": (lambda: thalweg.evaluate(net(), (X[:, :3], Y), "cross_entropy"), r"'0' \(Linear\).*\[8, 4\]"),
    "label": (lambda: thalweg.evaluate(net(), (X, Y + 1), "cross_entropy"), "label 3.*labels run from 0 to 2.*of 20"),
    "label of torch's": (lambda: thalweg.evaluate(net(), (X, Y + 1), nn.CrossEntropyLoss()), "label 3.*out of range"),
    "neither loss nor metrics": (lambda: thalweg.evaluate(net(), (X, Y)), "must return its loss.*give loss="),
    "metrics as the loss": (lambda: thalweg.evaluate(net(), (X, Y), ["accuracy"]), r"'accuracy'\]: .*metrics="),
    "a class of metrics": (lambda: thalweg.evaluate(net(), (X, Y), metrics=[dict]), r"class: write dict\(\)"),
    "no targets": (lambda: thalweg.evaluate(net(), X, "cross_entropy"), "no targets"),
    "no targets for a metric": (lambda: thalweg.evaluate(net(), X, metrics=["accuracy"]), "no targets"),
    "three parts": (lambda: thalweg.evaluate(net(), (X, Y, Y), "cross_entropy"), "has 3 parts"),
    "examples": (lambda: thalweg.evaluate(net(), [(X[0], 1), (X[1], 2)], "cross_entropy"), "single examples"),
    "nothing": (lambda: thalweg.predict(net(), X[:0]), "data is empty: there is no example"),
    "a number": (lambda: thalweg.predict(Outputs(lambda x: (x, x.sum())), X), r"^\[1\] of .* single number"),
    "no tensor": (lambda: thalweg.predict(Outputs(lambda x: {"a": None}), X), "'a'.*NoneType.*only tensors"),
    "a metric that fails": (lambda: thalweg.evaluate(net(), (X, Y), metrics=[lambda z, y: z @ z]), "measured: mat1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name: str) -> None:
    call, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=words) as raised:
        call()
    assert "\n" not in str(raised.value)
