"""What the updates show: whether steps are too long or too short for the ground they are on, and whether noise rules.

Along one update the loss of the same batch is a parabola to second order. `descent_ratio` is what the loss did over
what the slope promised: 1 − h/2 with h the step's length over that to the bottom. So 1 says that the step was short,
0.5 that it stood at the bottom, below 0 that it climbed the other wall; 0.5 / (1 − ratio) times the step would have
been the best one. `update_cosine` between this update and the last is negative where steps bounce between two walls,
and near zero where each follows its own batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import Floats, chance_of_median

#: Samples of late that steps are judged by.
SAMPLES = 12
#: The bottom of the valley along the step.
BOTTOM = 0.5
#: A step that takes so much of what its slope promised is a twentieth of the best one, or less.
STRAIGHT = 0.975
#: Ratio of update to weights, of the layer that moves most, below which a training of usual length gets nowhere: an
#: update of 1e-4 takes ten thousand steps to change the weights by their own size.
STILL = 1.5e-4
#: What is usual, and what takes a layer apart within ten steps.
USUAL, WILD = 1e-3, 0.1
#: How likely chance may make the little evidence that few samples give: four of four on one side are 0.06.
FEW = 0.07


@dataclass(frozen=True, slots=True)
class Steps:
    """How the updates lie on the ground: medians of late, NaN where nothing was recorded.

    `ratio` is that of update to weights in the layer that moves most; `samples` how many descent ratios there are.
    """

    descent: float
    cosine: float
    ratio: float
    samples: int
    overshoots: bool
    is_straight: bool
    bounces: bool
    since: int

    @property
    def best_factor(self) -> float:
        """By how much a step would have to be longer to reach the bottom of its parabola; NaN where it is not known."""
        return BOTTOM / max(1 - self.descent, 1e-4) if np.isfinite(self.descent) else np.nan


def steps(case: Case) -> Steps:
    """Read the updates of a case."""
    at, descent = sound(*case.series("descent_ratio"))
    _, cosine = sound(*case.series("update_cosine"))
    newest, cosines = descent[-SAMPLES:], cosine[-SAMPLES:]
    overshoots = chance_of_median(newest, BOTTOM) <= FEW
    since = int(at[-SAMPLES:][int(np.argmax(newest < BOTTOM))]) if overshoots else 1
    return Steps(
        descent=_median(newest),
        cosine=_median(cosines),
        ratio=largest_ratio(case, since=min(50, case.step / 4)),
        samples=len(newest),
        overshoots=overshoots,
        is_straight=chance_of_median(newest, STRAIGHT, below=False) <= FEW,
        bounces=chance_of_median(cosines, 0.0) <= FEW and _median(cosines) < -0.2,
        since=since,
    )


def largest_ratio(case: Case, since: float = 2) -> float:
    """The update-to-weight ratio of the layer that moves most: the median over samples from a step on (a first step may
    be a warm-up's).
    """
    matrices = set(case.matrices)
    columns = [series for layer, series in case.by_layer("update_ratio").items() if layer in matrices]
    medians = [_median(values[at >= since] if (at >= since).any() else values) for at, values in columns]
    finite = [value for value in medians if np.isfinite(value)]
    return max(finite, default=float("nan"))


def sound(at: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The finite values of a series, with their steps."""
    finite = np.isfinite(values)
    return at[finite], values[finite]


def _median(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")
