"""What a resumed run refuses: other data, and objects that its record could not hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import thalweg


def data(rows: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(rows) % 3


@pytest.fixture(autouse=True)
def _run() -> None:
    thalweg.fit(
        nn.Linear(4, 3), data(), "cross_entropy", validation_data=data(30), steps=4, run_dir="run", verbose=False
    )


def test_other_data_is_refused() -> None:
    with pytest.raises(ValueError, match="num_examples was 64, is 40"):
        thalweg.resume(
            "run", model=nn.Linear(4, 3), data=data(40), loss="cross_entropy", validation_data=data(30), verbose=False
        )


def test_an_object_that_was_given_must_be_given_again() -> None:
    with pytest.raises(ValueError, match="validation_data was given as an object.*give validation_data= again"):
        thalweg.resume("run", model=nn.Linear(4, 3), data=data(), loss="cross_entropy", steps=8, verbose=False)
    run = thalweg.resume(
        "run",
        model=nn.Linear(4, 3),
        data=data(),
        loss="cross_entropy",
        validation_data=data(30),
        steps=8,
        verbose=False,
    )
    assert run.steps == 8
