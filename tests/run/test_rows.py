"""Rows with NaN or Inf are set aside where everything may be mended, and refused where not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import thalweg


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    return x, (x[:, :1] > 0).float()


class Items(Dataset):  # type: ignore[type-arg]
    """Examples one by one, of which two are broken."""

    def __init__(self) -> None:
        self.x, self.y = data()
        self.x[[70, 333], 2] = torch.nan

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))


def test_arrays_lose_their_bad_rows_before_training(tmp_path: Path) -> None:
    x, y = data()
    x[[5, 9], 0] = torch.inf
    with pytest.raises(ValueError, match="NaN or Inf in 2 rows"):
        thalweg.fit(network(), (x, y), "binary_cross_entropy", steps=5, run_dir=tmp_path / "a", verbose=False)
    run = thalweg.fit(
        network(), (x, y), "binary_cross_entropy", steps=5, repair="full", run_dir=tmp_path / "b", verbose=False
    )
    assert run.record.decided["num_examples"] == 398
    assert "NaN or Inf in 2 rows of the data, the first is row 5: set aside." in run.record.notes


def test_items_are_found_out_while_it_trains(tmp_path: Path) -> None:
    words = {"epochs": 12, "patience": None, "batch_size": 20, "optimizer": "adam", "learning_rate": 3e-3}
    words |= {"verbose": False}
    off = thalweg.fit(network(), Items(), "binary_cross_entropy", repair="off", run_dir=tmp_path / "off", **words)
    assert off.stopped_because == "diverged"
    full = thalweg.fit(network(), Items(), "binary_cross_entropy", repair="full", run_dir=tmp_path / "full", **words)
    assert full.stopped_because == "epochs" and full.metrics["loss"] < 0.3
    kept = [action for action in full.actions if action.kept]
    assert kept and any("set_rows_aside" in action.after or "skipped" in action.after for action in kept)
    safe = thalweg.fit(network(), Items(), "binary_cross_entropy", repair="safe", run_dir=tmp_path / "safe", **words)
    assert safe.stopped_because != "diverged" and safe.metrics["loss"] < 0.6
