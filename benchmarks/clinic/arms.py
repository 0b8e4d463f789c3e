"""The arms that sick trainings are trained under: let go, our repairs, and what others do.

`default` is what people do without looking, `random` one of our repairs drawn at random, `autotrainer` that tool's
solutions in its order, each a training of its own (`retraining.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import recording
import retraining
import torch
from families import Case, metric
from torch import nn

import thalweg

ARMS = ("off", "safe", "full", "default", "random", "autotrainer")


class Head:
    """Where the border between two classes lies: at zero where the head that moved it is gone."""

    def __init__(self, of: Case) -> None:
        self.of = of

    def on_event(self, run: Any, event: Any) -> None:
        if "drop_head" in getattr(event, "after", {}) and event.kept:
            self.of.threshold = 0.0


def blind(of: Case, model: nn.Module) -> dict[str, Any]:
    """What people do without looking, done to a case; words of `fit` that go before its own."""
    from thalweg.repairs.network import CHANGES

    body = retraining.body_of(of, model)
    for code in ("standardise_inputs", "initialise", "insert_norm"):
        change = CHANGES[code]
        words = change.words(body)
        if words is not None:
            change.apply(body, {**words, **({"method": "he"} if code == "initialise" else {})})
    return {"optimizer": "adam", "learning_rate": 1e-3, "clip_norm": 1.0, "optimizer_options": None}


@contextmanager
def untried(prescribe: Callable[..., list[Any]]) -> Iterator[None]:
    """Inside, the first of what this function prescribes in the place of ours is kept without a trial."""
    from thalweg.run import mending, trials

    before = mending.prescribe, trials.Trials.best_of
    mending.prescribe, trials.Trials.best_of = prescribe, lambda self, *of: 0
    try:
        yield
    finally:
        mending.prescribe, trials.Trials.best_of = before


def at_random(seed: int) -> AbstractContextManager[None]:
    """In place of what answers a finding: one prescription of all there are, drawn at random, and kept."""
    from thalweg.repairs import answers, prescriptions
    from thalweg.repairs.prescriptions import Prescription

    drawn = random.Random(seed)

    def prescribe(findings: Any, body: Any, level: str, goes_back: bool = True) -> list[Prescription]:
        every = [(code, steps) for table in answers.TABLE.values() for code, steps in table.items()]
        drawn.shuffle(every)
        for name, steps in every:
            made = prescriptions._made(name, prescriptions.bound(steps, findings), body, level)
            if made is not None:
                return [made]
        return []

    return untried(prescribe)


def treated(of: Case, seed: int, arm: str, folder: Path) -> dict[str, Any]:
    """One training under an arm, and what became of it."""
    if arm == "autotrainer":
        return retraining.treated(of, seed, lambda change, number: trained(of, seed, arm, folder / str(number), change))
    return trained(of, seed, arm, folder)[1]


def trained(
    of: Case, seed: int, arm: str, folder: Path, change: retraining.Solution | None = None
) -> tuple[thalweg.Run, dict[str, Any]]:
    """The training and its outcome; `change` is made to the model and to words of `fit` before it."""
    torch.manual_seed(seed)
    model = of.model()
    words = dict(of.fit)
    other: dict[str, Any] = {}
    if arm == "default":
        other = blind(of, model)
    elif change is not None:
        model, other = change(of, model)
    words |= other
    if of.optimizer is not None and "optimizer" not in other:
        words["optimizer"] = of.optimizer(model, words.pop("learning_rate"))
    given = of.dataset(of.train) if of.dataset is not None else of.train
    if isinstance(given, list):
        words.pop("batch_size")
    level = {"default": "off", "autotrainer": "off", "random": "full"}.get(arm, arm)
    with at_random(seed) if arm == "random" else nullcontext():
        run = thalweg.fit(
            model, given, of.loss, validation_data=of.validation, metrics=(metric(of),), seed=seed, plan="eager",
            repair=level, patience=None, verbose=False, run_dir=folder / "run", callbacks=(Head(of),), **words,
        )  # fmt: skip
    found = recording.outcome_of(run, of)
    found["tried_steps"] = run.record.decided.get("tried_steps", 0)
    found["actions"] = [[a.code, a.step, a.kept, dict(a.after)] for a in run.actions]
    found["findings"] = [f.code for f in run.findings if f.severity != "note"]
    return run, found
