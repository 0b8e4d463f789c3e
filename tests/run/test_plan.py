"""The plan of a run: followed, written down, and the same on resuming, to the last bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thalweg
from thalweg.step.compiler import has_compiler

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
    asked = {"batch_size": 32, "steps": 24, "patience": None, "checkpoint_every": 4, "verbose": False, **settings}
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


@needs_compiler
def test_the_model_is_a_stock_module_afterwards() -> None:
    threads, strides = torch.get_num_threads(), [p.stride() for p in network().parameters()]
    run, _ = trained("runs/a", plan=COMPILED)
    model = run.model
    assert [p.stride() for p in model.parameters()] == strides
    assert torch.get_num_threads() == threads
    assert thalweg.landscape(model, (X, Y), "cross_entropy", picture=False).gradient_norm > 0
