"""Whether the verdict of convergence stops a training in time, on full-length recorded runs; beside fixed patience.

It is asked as `fit` asks it, at evaluations. A training is stopped well where that is no later than 1.3 times the
update at which the whole run is first within 1 % of its best validation loss, and what it had by then is within 1 % of
that best. What noise leaves possible is measured in benchmarks/convergence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from recording import unpacked

from thalweg.diagnosis.convergence import WINDOW, is_due, judge

LATE = 1.3
NEAR = 0.01
ENDS = ("converged", "stuck", "overfitting", "diverged")
OURS = 'patience="auto"'
PATIENCES = (3, 5, 10)


class Stop(NamedTuple):
    """Where a training was stopped."""

    at: int
    """The update."""
    near: int
    """The update at which the whole run is first within 1 % of its best."""
    lost: float
    """What the best until then is above that best, as a share of it."""
    end: int
    """The whole run's last update."""

    @property
    def is_good(self) -> bool:
        return self.at <= LATE * self.near and self.lost <= NEAR


def stops(held: dict[str, Any]) -> dict[str, Stop] | None:
    """Of each rule; None where the run is too short to be judged."""
    series = held["series"].get("validation_loss")
    if series is None or len(series[0]) < 2 * WINDOW or not np.isfinite(series[1]).all():
        return None
    steps, values = series[0], np.array(series[1])
    best = values.min()
    near = int(np.argmax(values <= best + NEAR * abs(best)))
    ends = {OURS: _verdict(held, steps), "never": len(steps) - 1}
    ends |= {f"patience={n}": _patience(values, n) for n in PATIENCES}
    return {
        rule: Stop(steps[i], steps[near], float((values[: i + 1].min() - best) / max(abs(best), 1e-12)), steps[-1])
        for rule, i in ends.items()
    }


def _verdict(held: dict[str, Any], steps: list[int]) -> int:
    """The evaluation, from 0, at which the verdict is passed."""
    planned = held["facts"].get("planned_steps") or steps[-1]
    anneals = held["facts"].get("schedule") in ("cosine", "one_cycle", "warmup_stable_decay")
    for i in range(WINDOW - 1, len(steps)):
        if not is_due(i + 1):
            continue
        history = unpacked(held, steps[i] / planned)
        rates = history.series("learning_rate")[1]
        annealing = anneals and not rates[-1] <= 0.05 * rates.max()
        remaining = planned - steps[i] if planned > steps[i] else None
        if judge(history, i + 1, "validation_loss", annealing, remaining).state in ENDS:
            return i
    return len(steps) - 1


def _patience(values: npt.NDArray[np.float64], count: int) -> int:
    """The evaluation, from 0, that is the `count`th after the best so far.

    >>> _patience(np.array([3.0, 2.0, 2.5, 2.2, 1.0]), 2), _patience(np.array([3.0, 2.0, 1.0]), 2)
    (3, 2)
    """
    best = np.minimum.accumulate(values)
    since = np.arange(len(values)) - np.maximum.accumulate(
        np.where(np.diff(best, prepend=np.inf) < 0, np.arange(len(values)), 0)
    )
    return int(np.argmax(since >= count)) if (since >= count).any() else len(values) - 1


def summary(halts: dict[str, dict[str, Stop]]) -> dict[str, Any]:
    """File -> stops of each rule: how many are good and lossy, what share of the updates was made, what was lost."""
    rules = {}
    for rule in next(iter(halts.values()), {}):
        of = [found[rule] for found in halts.values()]
        rules[rule] = {
            "good": float(np.mean([stop.is_good for stop in of])),
            "lossy": float(np.mean([stop.lost > NEAR for stop in of])),
            "updates": float(np.mean([stop.at / stop.end for stop in of])),
            "lost": [float(f"{x:.3g}") for x in np.quantile([stop.lost for stop in of], (0.5, 0.9))],
        }
    late = [[file, *found[OURS][:3]] for file, found in halts.items() if not found[OURS].is_good]
    return {"runs": len(halts), "rules": rules, "late": late}
