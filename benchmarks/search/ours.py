"""How Thalweg finds a learning rate."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from cells import rounded
from training import Case

import thalweg

fit, find_lr = thalweg.fit, thalweg.find_lr  # imports what they need before the clock starts

Found = tuple[dict[str, Any], dict[str, Any]]
"""What came of a search, and the clock when it was over."""


class Seen:
    """A callback that notes each validation loss, with the second and the update of its training."""

    def __init__(self, case: Case) -> None:
        self.case, self.losses = case, []

    def on_validate(self, run: Any, record: Any) -> None:
        self.losses.append((record.values["validation_loss"], self.case.trace.now["seconds"], record.step))


def auto(case: Case, plan: str) -> Found:
    """`fit(learning_rate="auto")`: the search is the beginning of the training.

    The updates of all candidates count: its cost, in trainings, comes on top of every update of the winner.
    """
    run = _fit(case, plan, "auto")
    search = run.record.decided["search"]
    clock = {"seconds": search.get("seconds", 0.0), "steps": round(search["cost"] * case.total)}
    return {"rate": rounded(run.learning_rate), "found": search}, clock


def halving(case: Case, plan: str) -> Found:
    """`find_lr(method="halving")`, then `fit` at the rate it found."""
    found = _find(case, "halving")
    clock = {"seconds": case.trace.now["seconds"], "steps": round(found.cost * case.total)}
    _fit(case, plan, found.value, clock["steps"])
    return {"rate": rounded(found.value), "interval": [rounded(end) for end in found.interval]}, clock


def range_test(case: Case, plan: str) -> Found:
    """`find_lr(method="range")`: a bracket, and no training."""
    found = _find(case, "range")
    case.trace.steps = round(found.cost * case.total)
    return {"rate": rounded(found.value), "interval": [rounded(end) for end in found.interval]}, case.trace.now


def _find(case: Case, method: str) -> Any:
    workload = case.workload
    return find_lr(
        case.model(), case.data[0], workload.loss, method=method, optimizer=case.rule, batch_size=workload.batch_size,
        epochs=workload.epochs, validation_data=case.data[1], seed=case.seed,
    )  # fmt: skip


def _fit(case: Case, plan: str, rate: Any, before: int = 0) -> Any:
    """The training that counts; `before` are the updates of the search before it."""
    workload, trace, seen = case.workload, case.trace, Seen(case)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            case.model(), case.data[0], workload.loss, validation_data=case.data[1], optimizer=case.rule,
            learning_rate=rate, batch_size=workload.batch_size, epochs=workload.epochs, patience=None, plan=plan,
            seed=case.seed, run_dir=folder, verbose=False, device="cpu", callbacks=[seen],
        )  # fmt: skip
    if rate == "auto":
        before = round(run.record.decided["search"]["cost"] * case.total)
    for loss, seconds, step in seen.losses:
        trace.saw(loss, counts=True, now={"seconds": seconds, "steps": step + before})
    trace.steps = run.steps + before
    return run


SEARCHES: dict[str, Callable[[Case, str], Found]] = {
    "thalweg": auto,
    "thalweg-halving": halving,
    "thalweg-range": range_test,
}
