"""One trial of a search: a candidate is trained, to its end or evaluation by evaluation, and judged by its loss."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite

from thalweg.loop.train import EVALUATE_EVERY
from thalweg.records.learning_rate import Trial
from thalweg.search.candidate import Candidate, Choice


class Failed(ValueError):
    """A batch that cannot be trained on at any rate."""


def to_the_end(number: int, candidate: Candidate) -> Trial:
    """Train to the end.

    Raises:
        Failed: a batch cannot be trained on, whatever the rate.
    """
    return attempted(number, candidate, candidate.finish)


def by_evaluations(number: int, candidate: Candidate, goes_on: Callable[[int, float], bool]) -> Trial:
    """Train to the end unless `goes_on(evaluations so far, loss)` is False after one of them.

    Raises:
        Failed: a batch cannot be trained on, whatever the rate.
    """
    every = candidate.training.setup.batches.per_epoch or EVALUATE_EVERY
    dropped = False

    def train() -> None:
        nonlocal dropped
        evaluations = 0
        while candidate.ended is None and not dropped:
            evaluations += 1
            candidate.advance(evaluations * every)
            dropped = candidate.ended is None and not goes_on(evaluations, candidate.loss())
        if not dropped:
            candidate.finish()

    trial = attempted(number, candidate, train)
    if not dropped or trial.state != "complete":
        return trial
    return record(number, candidate.choice, candidate, "dropped", f"others were better after update {trial.steps}")


def attempted(number: int, candidate: Candidate, train: Callable[[], None]) -> Trial:
    """Train in some way, and say how it ended; a rate that makes the model itself fail has diverged."""
    try:
        train()
    except ValueError as error:
        if candidate.fails_from_the_start():
            raise Failed(str(error)) from error
        return record(number, candidate.choice, candidate, "diverged", str(error))
    if isfinite(candidate.loss()):
        return record(number, candidate.choice, candidate, "complete", "")
    return record(number, candidate.choice, candidate, "diverged", _why(candidate))


def record(number: int, choice: Choice, candidate: Candidate, state: str, reason: str) -> Trial:
    """What is written down of a candidate."""
    loss = inf if state == "diverged" else candidate.loss()
    return Trial(number, choice.learning_rate, loss, candidate.step, state, dict(choice.options), reason)


def _why(candidate: Candidate) -> str:
    """Where the loss was first seen not to be finite; before any update that is not the rate's doing."""
    history = candidate.training.setup.history
    names = [name for name in ("loss", "validation_loss", "epoch_loss") if name in history.names]
    series = [history.series(name) for name in names]
    broken = [
        int(at) for steps, values in series for at, value in zip(steps, values, strict=True) if not isfinite(value)
    ]
    first = min(broken, default=candidate.step)
    if first == 1 and "loss" in names and not isfinite(history.series("loss")[1][0]):
        return "the loss was not finite before the first update"
    return f"the loss was not finite at update {first}"
