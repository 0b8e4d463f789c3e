"""Whether the verdict of convergence stops a training in time, on full-length recorded runs.

It is asked as `fit` asks it, at evaluations. It stopped well where it stopped no later than 1.3 times the update at
which the whole run is first within 1 % of its best validation loss, and what it had by then is within 1 % of that best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from recording import unpacked

from thalweg.diagnosis.convergence import WINDOW, is_due, judge

LATE = 1.3
NEAR = 0.01
ENDS = ("converged", "stuck", "overfitting", "diverged")


def stop(held: dict[str, Any]) -> tuple[int, int, float] | None:
    """Update of the stop, update first within 1 % of the best, and the loss of stopping as a share of the best.

    None where the run is too short to be judged.
    """
    series = held["series"].get("validation_loss")
    if series is None or len(series[0]) < 2 * WINDOW or not np.isfinite(series[1]).all():
        return None
    steps, values = series[0], np.array(series[1])
    planned = held["facts"].get("planned_steps") or steps[-1]
    anneals = held["facts"].get("schedule") in ("cosine", "one_cycle", "warmup_stable_decay")
    at = len(steps) - 1
    for i in range(WINDOW - 1, len(steps)):
        if not is_due(i + 1):
            continue
        history = unpacked(held, steps[i] / planned)
        rates = history.series("learning_rate")[1]
        annealing = anneals and not rates[-1] <= 0.05 * rates.max()
        remaining = planned - steps[i] if planned > steps[i] else None
        if judge(history, i + 1, "validation_loss", annealing, remaining).state in ENDS:
            at = i
            break
    best = values.min()
    near = int(np.argmax(values <= best + NEAR * abs(best)))
    return steps[at], steps[near], float((values[: at + 1].min() - best) / max(abs(best), 1e-12))


def is_good(found: tuple[int, int, float]) -> bool:
    at, near, lost = found
    return at <= LATE * near and lost <= NEAR
