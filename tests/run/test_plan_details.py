"""`fit(plan=…)` in detail: which updates are made by a program, and that each run under a plan is that run again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thalweg
from thalweg.step import compiler, planner
from thalweg.step.kernels import allocator
from thalweg.step.planned import PlannedStep

needs_compiler = pytest.mark.skipif(not compiler.has_compiler(), reason="there is no C++ compiler")

#: Nine updates an epoch, the last one of a smaller batch.
SHAPES = ((10, 6), (10,))


def points() -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(88, 6, generator=drawn)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()


def network() -> nn.Sequential:
    torch.manual_seed(3)
    layers = [nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)]
    return nn.Sequential(*layers)


def asked(**changes: Any) -> dict[str, Any]:
    return {
        "model": network(),
        "data": points(),
        "loss": "cross_entropy",
        "validation_data": points(),
        "optimizer": "adam",
        "learning_rate": 0.02,
        "batch_size": 10,
        "epochs": 3,
        "patience": None,
        "repair": "off",  # a mended training is planned anew
        "metrics": ["accuracy"],
        "verbose": False,
        **changes,
    }


def again() -> dict[str, Any]:
    """What `resume` is given once more."""
    return {"model": network(), "data": points(), "loss": "cross_entropy", "validation_data": points()}


def compiled(after: int = 5, **plan: Any) -> thalweg.Plan:
    return thalweg.Plan(compiled_after=after, batch=SHAPES, **plan)


def outcome(run: thalweg.Run) -> tuple[Any, list[Tensor]]:
    return run.history.to_dict(), [t.clone() for t in run.model.state_dict().values()]


def assert_same(found: thalweg.Run, expected: thalweg.Run) -> None:
    (history, weights), (old_history, old_weights) = outcome(found), outcome(expected)
    assert history == old_history
    assert all(map(torch.equal, weights, old_weights))
    assert found.metrics == expected.metrics


@pytest.fixture
def by_program(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The updates that were made by a compiled step."""
    made: list[int] = []
    whole = PlannedStep.by_program

    def watched(self: PlannedStep, *args: Any) -> Tensor:
        made.append(self.number)
        return whole(self, *args)

    monkeypatch.setattr(PlannedStep, "by_program", watched)
    return made


# ── eager, and given ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_eager_tries_nothing_and_repeats(monkeypatch: pytest.MonkeyPatch, by_program: list[int]) -> None:
    monkeypatch.setattr(planner.Planner, "consider", lambda self, batch: pytest.fail("nothing is to be chosen"))
    first, second = (thalweg.fit(**asked(plan="eager")) for _ in range(2))
    assert first.plan == thalweg.Plan(is_settled=True)
    assert json.loads((first.directory / "run.json").read_text())["decided"]["plan"]["words"] == "eager"
    assert_same(second, first)
    assert not by_program


@needs_compiler
def test_a_plan_is_followed_written_down_and_repeats_bit_by_bit(
    by_program: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = compiled(gain=2.0)
    first = thalweg.fit(**asked(plan=plan, verbose=True))
    steps = list(by_program)
    # From the sixth update on, but those of the smaller batches and one whose layers are listened to.
    assert steps[0] == 6
    assert not {9, 18, 27} & set(steps)
    assert len(steps) >= 17  # step 10 and step 20 are sampled
    assert str(first.plan) == "compiled from step 6 on: 2 times as fast as eager"
    assert first.plan == thalweg.Plan(compiled_after=5, batch=SHAPES, gain=2.0, is_settled=True)
    held = json.loads((first.directory / "run.json").read_text())
    assert held["decided"]["plan"] == first.plan.to_dict()
    assert thalweg.Plan.of(held["asked"]["plan"]) == plan
    said = capsys.readouterr()
    assert "compiled from step 6 on: 2 times as fast as eager" in " ".join((said.out + said.err).split())

    second = thalweg.fit(**asked(plan=first.plan))
    assert_same(second, first)
    assert by_program == 2 * steps
    third = thalweg.fit(**asked(plan=held["decided"]["plan"]))
    assert_same(third, first)

    eager = thalweg.fit(**asked(plan="eager"))
    torch.testing.assert_close(outcome(first)[1], outcome(eager)[1], rtol=1e-3, atol=1e-4)
    ours, theirs = (run.history.series("loss")[1] for run in (first, eager))
    assert ours == pytest.approx(theirs, rel=1e-3)
    names = [set(run.history.names) for run in (first, eager)]
    assert names[0] == names[1], "the same signals are there"


@needs_compiler
@pytest.mark.parametrize("stop", [3, 5, 6, 12, 18])
def test_gone_on_with_before_and_after_the_switch(stop: int, tmp_path: Path, by_program: list[int]) -> None:
    """Stopped by a limit of steps, which is then raised."""
    given = {"plan": compiled(), "schedule": "constant", "epochs": 3, "checkpoint_every": 4}
    whole = thalweg.fit(**asked(**given, steps=27, run_dir=tmp_path / "whole"))
    steps = list(by_program)
    by_program.clear()
    thalweg.fit(**asked(**given, steps=stop, run_dir=tmp_path / "part"))
    found = thalweg.resume(tmp_path / "part", **again(), steps=27)
    assert found.steps == whole.steps == 27
    assert found.plan == whole.plan
    assert by_program == steps
    assert all(map(torch.equal, outcome(found)[1], outcome(whole)[1]))
    for name in ("loss", "gradient_norm"):
        assert found.history.series(name)[1].tolist() == whole.history.series(name)[1].tolist()


class Stop:
    """Presses Ctrl-C, as it were, at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, run: Any, record: Any) -> None:
        import signal

        if record.step == self.at:
            signal.raise_signal(signal.SIGINT)


@needs_compiler
@pytest.mark.parametrize("at", [4, 11])
def test_interrupted_and_gone_on_with(at: int, tmp_path: Path) -> None:
    given = {"plan": compiled(), "weight_average": "ema", "clip_norm": 0.5}
    whole = thalweg.fit(**asked(**given, run_dir=tmp_path / "whole"))
    part = thalweg.fit(**asked(**given, run_dir=tmp_path / "part", callbacks=[Stop(at)]))
    assert (part.stopped_because, part.steps) == ("interrupted", at)
    found = thalweg.resume(tmp_path / "part", **again())
    assert_same(found, whole)


def test_what_was_being_chosen_goes_on_being_chosen(tmp_path: Path) -> None:
    part = thalweg.fit(**asked(run_dir=tmp_path, callbacks=[Stop(4)]))
    assert not part.plan.is_settled
    found = thalweg.resume(tmp_path, **again())
    assert found.plan.is_settled
    assert found.plan.notes == (planner.TOO_SHORT,)


def test_another_plan_for_what_is_left(tmp_path: Path) -> None:
    thalweg.fit(**asked(run_dir=tmp_path, callbacks=[Stop(4)]))
    found = thalweg.resume(
        tmp_path, **again(), plan="eager"
    )  # fmt: skip
    assert found.plan == thalweg.Plan(is_settled=True)


# ── chosen ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_deterministic_decides_nothing_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.Planner, "__init__", lambda self, step: pytest.fail("it has a clock"))
    run = thalweg.fit(**asked(deterministic=True))
    assert run.plan == thalweg.Plan(keep_memory=allocator.is_available(), is_settled=True)


@pytest.mark.parametrize("deterministic", [False, True])
def test_fewer_digits_may_be_asked_for(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "ratio", lambda *_: 2.0)
    run = thalweg.fit(**asked(precision="fast", epochs=6, deterministic=deterministic, metrics=()))
    assert run.plan.arithmetic == "exact" or not deterministic
    assert run.plan.arithmetic == "bfloat16" or any("bfloat16" in note for note in run.plan.notes) or deterministic
    assert run.history.series("loss")[1].tolist()[-1] < 0.8
    assert all(t.dtype != torch.bfloat16 for t in run.model.state_dict().values())
    assert not torch.is_autocast_enabled("cpu")
    if run.plan.arithmetic == "bfloat16":
        both = [thalweg.fit(**asked(plan=run.plan, epochs=6, metrics=())) for _ in range(2)]
        assert_same(*both)


@needs_compiler
def test_a_cnn_is_a_stock_module_again(by_program: list[int]) -> None:
    def convolutions() -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 4, 2), nn.Flatten(), nn.Linear(16, 2)]
        return nn.Sequential(*layers)

    model, stock = convolutions(), convolutions()
    threads = torch.get_num_threads()
    x, y = torch.randn(40, 1, 8, 8), torch.arange(40) % 2
    plan = thalweg.Plan(layout="channels_last", threads=1, compiled_after=2, batch=((10, 1, 8, 8), (10,)))
    run = thalweg.fit(model, (x, y), "cross_entropy", plan=plan, batch_size=10, epochs=3, verbose=False)
    assert by_program[:2] == [3, 4]
    assert run.plan.layout == "channels_last"
    for (name, t), s in zip(model.state_dict().items(), stock.state_dict().values(), strict=True):
        assert (t.stride(), t.dtype) == (s.stride(), s.dtype), name
        assert not torch.equal(t, s), name
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in stock.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.get_num_threads() == threads
    assert thalweg.landscape(model, (x, y), "cross_entropy").largest_eigenvalue > 0
    loaded = thalweg.load(run.directory, "last", model=convolutions())
    assert [t.stride() for t in loaded.state_dict().values()] == [t.stride() for t in stock.state_dict().values()]


# ── what is no plan ──────────────────────────────────────────────────────────────────────────────────────────────────

NONSENSE: dict[str, tuple[Any, str]] = {
    "a word": ("fastest", "unknown plan 'fastest': Known are: auto, eager"),
    "a number": (7, "plan takes .*; got 7"),
    "a field": ({"thread": 1}, "a plan has no 'thread'; it has layout, "),
    "a layout": ({"layout": "sideways"}, "a plan's layout is one of as_is, channels_last, got 'sideways'"),
    "a step": ({"compiled_after": -1}, "a plan's compiled_after is a whole number of at least 1, or None; got -1"),
    "a batch": ({"batch": 32}, "a plan's batch is a shape for each tensor of it; got 32"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_is_no_plan_is_refused_before_anything_is_made(name: str) -> None:
    plan, sentence = NONSENSE[name]
    with pytest.raises(ValueError, match=sentence):
        thalweg.fit(**asked(plan=plan))
    assert not Path("runs").exists()


def test_precision_takes_two_words() -> None:
    with pytest.raises(ValueError, match="precision"):
        thalweg.fit(**asked(precision="double"))
    assert not Path("runs").exists()
