from __future__ import annotations

from typing import Any

import torch
from torch import nn

import thalweg


def _given(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    # Without a momentum, batch norm weighs each batch by the number of those before it.
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.ReLU(), nn.Linear(4, 1))
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=drawn)
    data = (x, x.sum(1, keepdim=True))
    return {
        "model": model, "data": data, "loss": "mse", "batch_size": 8, "epochs": 8, "patience": None,
        "weight_average": "swa", "verbose": False,
    } | changes  # fmt: skip


def test_to_validate_an_average_changes_nothing_in_the_training(tmp_path):
    held_out = _given()["data"]
    plain = thalweg.fit(**_given(run_dir=tmp_path / "plain"))
    validated = thalweg.fit(**_given(run_dir=tmp_path / "validated", validation_data=held_out))
    assert validated.history.series("loss")[1].tolist() == plain.history.series("loss")[1].tolist()
    last = [thalweg.load(tmp_path / name, "last", _given()["model"]).state_dict() for name in ("plain", "validated")]
    for name, value in last[0].items():
        assert torch.equal(last[1][name], value)


def test_an_average_is_loaded_as_it_was_handed_over_with_its_norms_measured(tmp_path):
    run = thalweg.fit(**_given(run_dir=tmp_path / "run"))
    loaded = thalweg.load(tmp_path / "run", model=_given()["model"])
    for name, value in run.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    x = _given()["data"][0]
    hidden = loaded[0](x)
    torch.testing.assert_close(loaded[1].running_mean, hidden.mean(0), rtol=1e-4, atol=1e-5)
