"""The plan of a run: followed, written down, and the same on resuming, to the last bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import thalweg
from thalweg.step import planner
from thalweg.step.compiler import has_compiler
from thalweg.step.planned import PlannedStep
from thalweg.step.program import Program
from thalweg.step.whole import Step

X = torch.randn(200, 1, 10, 10, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (200,), generator=torch.Generator().manual_seed(2))
#: The last batch of an epoch is smaller: it is stepped on eagerly.
COMPILED = thalweg.Plan(layout="channels_last", compiled_after=6, batch=((32, 1, 10, 10), (32,)))

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * 4 * 4, 3),
    )  # fmt: skip


def trained(run_dir: str, **settings: Any) -> tuple[thalweg.Run, dict[str, Tensor]]:
    model = network()
    asked = {"batch_size": 32, "steps": 24, "patience": None, "repair": "off"}  # a mended training is planned anew
    asked |= {"checkpoint_every": 4, "verbose": False, **settings}
    run = thalweg.fit(model, (X, Y), "cross_entropy", run_dir=run_dir, metrics=["accuracy"], **asked)
    return run, dict(model.state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def written(run_dir: str) -> dict[str, Any]:
    return json.loads(Path(run_dir, "run.json").read_text())["decided"]["plan"]


class Interrupt(thalweg.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Any, record: Any) -> None:
        if record.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_eager_plan_is_written_down_and_said() -> None:
    run, _ = trained("runs/a", plan="eager")
    assert run.plan.is_eager and run.plan.is_settled
    assert written("runs/a")["words"] == "eager"


def test_a_short_training_stays_eager_and_says_why() -> None:
    run, _ = trained("runs/a", steps=40)
    assert run.plan.compiled_after is None
    assert any("too short" in note for note in run.plan.notes)


def test_what_the_clock_may_not_decide_is_not_decided() -> None:
    run, _ = trained("runs/a", deterministic=True)
    assert run.plan.is_eager and run.plan.is_settled and not run.plan.notes


def test_a_plan_that_is_none_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="layout is one of as_is, channels_last, got 'sideways'"):
        trained("runs/a", plan={"layout": "sideways"})
    with pytest.raises(ValueError, match="plan takes"):
        trained("runs/a", plan=3)


@needs_compiler
def test_a_plan_is_followed_and_repeats_to_the_last_bit() -> None:
    first, weights = trained("runs/a", plan=COMPILED)
    assert first.plan.compiled_after == 6 and not first.plan.notes
    again, same = trained("runs/b", plan=first.plan)
    assert equal(weights, same)
    assert again.metrics == first.metrics
    assert written("runs/b") == written("runs/a")


@needs_compiler
@pytest.mark.parametrize("step", [5, 10], ids=["before the switch", "after it"])
def test_a_run_resumes_exactly_under_its_plan(step: int) -> None:
    _, weights = trained("runs/a", plan=COMPILED)
    interrupted, _ = trained("runs/b", plan=COMPILED, callbacks=[Interrupt(step)])
    assert interrupted.stopped_because == "interrupted" and interrupted.steps == step
    model = network()
    run = thalweg.resume("runs/b", model=model, data=(X, Y), loss="cross_entropy", verbose=False, callbacks=())
    assert run.plan.compiled_after == 6 and run.steps == 24
    assert equal(weights, dict(model.state_dict()))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """How many updates were made by a program, by their rates."""
    made: Counter[float] = Counter()
    call = Program.__call__

    def counted(self: Program, batch: Any) -> Any:
        made[self._recorded.tensors.optimizer.param_groups[0]["initial_lr"]] += 1
        return call(self, batch)

    monkeypatch.setattr(Program, "__call__", counted)
    return made


def losses(run: thalweg.Run, to: int) -> list[float]:
    steps, values = run.history.series("loss")
    return [float(value) for step, value in zip(steps, values, strict=True) if step <= to]


RACED = {"steps": 400, "learning_rate": "auto", "optimizer": "adamw", "repair": "off"}


@needs_compiler
@pytest.mark.parametrize("after", [1, 6])
def test_candidates_of_a_race_step_by_the_plan(after: int, programs: Counter[float]) -> None:
    plan = replace(COMPILED, compiled_after=after)
    run, _ = trained("runs/a", plan=plan, **RACED)
    search = run.record.decided["search"]
    tried = [c["learning_rate"] for c in search["tried"] if max(map(int, c["losses"])) > after]
    assert len(tried) > 1 and set(tried) <= set(programs), "one program serves them all"
    assert run.plan == replace(plan, is_settled=True)
    won = {"optimizer": search["optimizer"], "learning_rate": search["began_with"]}
    fixed, _ = trained("runs/b", plan=plan, **RACED | won)
    assert losses(run, search["steps"]) == losses(fixed, search["steps"])


class Ready:
    """A compilation that has been made before."""

    was_ready = True
    path = Path("made.so")

    def stop(self) -> None: ...


class Faithful:
    """A program for one kind of rule that does just what the eager step does."""

    has_update = True
    reuses_memory = False
    made: ClassVar[Counter[str]]
    numbers: ClassVar[list[int]]
    """Updates made before each call."""

    def __init__(self, step: PlannedStep) -> None:
        self.step = step
        self.kind = type(step.update.optimizer)
        self.graded = list(step.update.parameters)

    def serve(self, optimizer: Any) -> None:
        """The step knows."""

    def takes(self, batch: Any) -> bool:
        return type(self.step.update.optimizer) is self.kind

    def __call__(self, batch: Any) -> Any:
        self.made[self.kind.__name__] += 1
        self.numbers.append(self.step.number)
        loss = Step.gradients(self.step, batch)
        gradients = [p.grad.clone() for p in self.graded]
        self.step.update()
        return loss, gradients, None


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Whatever is recorded is there at once, and every comparison of times speaks for it."""

    def record(step: PlannedStep, batch: Any) -> None:
        step.compilation = Ready()  # type: ignore[assignment]

    monkeypatch.setattr(PlannedStep, "record", record)
    monkeypatch.setattr(PlannedStep, "load", lambda step, batch: (Faithful(step), {"choices": {}}))
    monkeypatch.setattr(planner.Budget, "allows", lambda *_, **__: True)
    monkeypatch.setattr(planner, "ratio", lambda *_: 2.0)
    monkeypatch.setattr(Faithful, "made", made := Counter(), raising=False)
    monkeypatch.setattr(Faithful, "numbers", [], raising=False)
    return made


def test_the_step_is_planned_before_the_race(ready: Counter[str]) -> None:
    run, weights = trained("runs/a", **RACED)
    assert run.plan.compiled_after == 1 and not run.plan.notes
    assert ready["AdamW"] > run.steps, "by the program, those of the other candidates too"
    again, same = trained("runs/b", plan=run.plan, **RACED)
    assert again.record.decided["search"] == run.record.decided["search"]
    assert equal(weights, same), "a race under a given plan repeats to the last bit"


def test_a_step_is_planned_anew_where_another_rule_wins(ready: Counter[str]) -> None:
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(256, 1, generator=torch.Generator().manual_seed(2))
    given = {"batch_size": 16, "epochs": 80, "patience": None, "verbose": False, "repair": "off"}
    torch.manual_seed(0)
    run = thalweg.fit(nn.Linear(4, 1), (x, 100 * x.sum(1, keepdim=True) + noise), "mse", run_dir="runs/a", **given)
    search = run.record.decided["search"]
    assert search["optimizer"] == "momentum"
    assert run.plan.compiled_after is not None and run.plan.compiled_after >= search["steps"]
    assert ready["AdamW"] > 0 and ready["SGD"] > 0.5 * run.steps


def test_what_is_compiled_beside_a_race_is_taken_after_it(ready: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ready, "was_ready", False)
    monkeypatch.setattr(Ready, "is_done", lambda self: True, raising=False)
    monkeypatch.setattr(planner.Budget, "allows", lambda *_, share=0.0, **__: share != planner.WAITING)
    monkeypatch.setattr(planner.Planner, "_must_wait", lambda self: False)
    run, weights = trained("runs/a", **RACED)
    after, search = run.plan.compiled_after, run.record.decided["search"]
    assert after is not None and search["steps"] <= after <= search["steps"] + planner.LOOK_EVERY
    assert ready["AdamW"] >= run.steps - after
    assert min(Faithful.numbers) >= after, "no candidate had it"
    again, same = trained("runs/b", plan=run.plan, **RACED)
    assert again.record.decided["search"] == search, "nor has one where the plan is given, in no cool-down either"
    assert equal(weights, same)


def test_a_model_that_was_handed_over_in_eval_mode_is_planned_as_it_is_trained(
    ready: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[bool] = []
    record = PlannedStep.record
    monkeypatch.setattr(
        PlannedStep, "record", lambda step, batch: modes.append(step.forward.model.training) or record(step, batch)
    )
    model = network().eval()
    thalweg.fit(model, (X, Y), "cross_entropy", batch_size=32, verbose=False, patience=None, run_dir="runs/a", **RACED)
    assert modes == [True] and not model.training


@pytest.mark.usefixtures("ready")
def test_interrupted_while_the_step_is_planned_nothing_has_happened() -> None:
    told: list[str] = []

    class Stop:
        def on_search(self, run: Any, words: str) -> None:
            told.append(words)
            if len(told) == 1:
                os.kill(os.getpid(), signal.SIGINT)

    run, weights = trained("runs/a", callbacks=[Stop()], **RACED)
    assert (run.stopped_because, run.steps) == ("interrupted", 0)
    assert told == ["finding the fastest step"]
    assert equal(weights, dict(network().state_dict()))


def test_the_clock_counts_no_compiler(ready: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates that there is time for are counted by the time of one, where a given plan has a program made first."""
    slow = PlannedStep.load

    def load(step: PlannedStep, batch: Any) -> Any:
        time.sleep(1)
        return slow(step, batch)

    monkeypatch.setattr(PlannedStep, "load", load)
    plan = thalweg.Plan(compiled_after=1, batch=COMPILED.batch)
    run, _ = trained("runs/a", plan=plan, time_budget=3.0, **RACED | {"steps": 10**6})
    assert run.record.decided["search"]["total_steps"] > 200


@needs_compiler
def test_the_model_is_a_stock_module_afterwards() -> None:
    threads, strides = torch.get_num_threads(), [p.stride() for p in network().parameters()]
    run, _ = trained("runs/a", plan=COMPILED)
    model = run.model
    assert [p.stride() for p in model.parameters()] == strides
    assert torch.get_num_threads() == threads
    assert thalweg.landscape(model, (X, Y), "cross_entropy", picture=False).gradient_norm > 0
