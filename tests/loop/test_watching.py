"""Diagnosis while a training runs: told once, repeated exactly, without a trace in the training."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import thalweg
from thalweg.loop.watching import is_asked, is_asked_of
from thalweg.run.run import Run


class Ear:
    """A callback that keeps what it is told, and may interrupt."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.told: list[Any] = []
        self.interrupt_at = interrupt_at

    def on_event(self, run: Run, event: Any) -> None:
        self.told.append(event)

    def on_step(self, run: Run, record: thalweg.StepRecord) -> None:
        if record.step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)


def data(count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return x, (x[:, :2].sum(1) > 0).long()


def fit(directory: Path, **words: Any) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    given = {"learning_rate": 0.1, "optimizer": "sgd", "steps": 200, "batch_size": 32, "schedule": "constant"}
    given |= {"patience": None, "verbose": False, "repair": "advise", "run_dir": directory, **words}
    return thalweg.fit(model, data(), "cross_entropy", **given)


def kept(run: Run) -> list[tuple[str, str, int, dict[str, float]]]:
    return [(f.code, f.severity, f.step, dict(f.evidence)) for f in run.history.findings]


def test_a_rate_that_is_too_high_is_told_while_it_trains_and_once(tmp_path: Path) -> None:
    ear = Ear()
    run = fit(tmp_path / "run", learning_rate=1e4, callbacks=ear)
    assert run.findings[0].code == "learning_rate_too_high"
    told = [(finding.code, finding.severity) for finding in ear.told]
    assert ("learning_rate_too_high", "critical") in told
    assert len(told) == len(set(told))


def test_a_healthy_training_is_told_nothing_above_a_note(tmp_path: Path) -> None:
    ear = Ear()
    run = fit(tmp_path / "run", callbacks=ear)
    assert all(finding.severity == "note" for finding in [*ear.told, *run.findings])


def test_off_is_off(tmp_path: Path) -> None:
    ear = Ear()
    run = fit(tmp_path / "run", learning_rate=1e4, repair="off", callbacks=ear)
    assert run.findings == [] and ear.told == []
    assert thalweg.diagnose(run)[0].code == "learning_rate_too_high"  # it can still be asked


@pytest.mark.parametrize("rate", [0.1, 30.0])
def test_the_training_is_the_same_to_the_last_digit(tmp_path: Path, rate: float) -> None:
    off, on = (fit(tmp_path / word, learning_rate=rate, repair=word) for word in ("off", "advise"))
    for a, b in zip(off.model.parameters(), on.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert off.history.to_dict() == on.history.to_dict()


def test_a_run_that_was_interrupted_finds_the_same_in_the_end(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", learning_rate=30.0)
    part = fit(tmp_path / "part", learning_rate=30.0, callbacks=Ear(interrupt_at=70))
    assert part.stopped_because == "interrupted"
    rest = fit(tmp_path / "part", learning_rate=30.0, resume=True)
    assert kept(whole) and kept(rest) == kept(whole)


def test_the_directory_tells_the_same_as_the_run(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", learning_rate=1e4)
    assert thalweg.diagnose(run.directory) == thalweg.diagnose(run) == thalweg.diagnose(run.history) == run.findings
    with pytest.raises(TypeError, match="int"):
        thalweg.diagnose(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        thalweg.diagnose(tmp_path / "none")


def test_it_is_asked_a_few_dozen_times_however_long_a_training_is() -> None:
    assert sum(is_asked(step) for step in range(1, 100_001)) <= 40
    assert sum(is_asked_of(count) for count in range(1, 1001)) <= 30
