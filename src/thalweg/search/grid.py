"""Grid search: rates at equal factors from low to high, and every combination with the further dimensions."""

from __future__ import annotations

import itertools
import math

from thalweg.search.candidate import Choice
from thalweg.search.space import Range, Space, Values

#: Rates where nothing was asked: a factor of about two apart over the range of Adam.
RATES = 11
#: Points of a further dimension that is a range: its ends and the middle.
POINTS = 3


def points(space: Space, trials: int | None = None, budget: float | None = None) -> list[Choice]:
    """The choices of a grid with `trials` rates, fewer where all combinations would be more than `budget` trainings.

    Raises:
        ValueError: the budget is not enough for two rates.
    """
    others = [_points(dimension) for dimension in space.also.values()]
    at_each = math.prod(len(values) for values in others)
    num_rates = trials if trials is not None else RATES
    if budget is not None:
        num_rates = min(num_rates, int(budget / at_each))
    if num_rates < 2:
        least = 2 * at_each
        raise ValueError(f"a grid of two rates is {least} trainings: give a budget of at least {least}, got {budget:g}")
    rates = [space.learning_rate.at(number / (num_rates - 1)) for number in range(num_rates)]
    return [
        space.choice(rate, dict(zip(space.also, values, strict=True)))
        for rate in rates
        for values in itertools.product(*others)
    ]


def _points(dimension: Range | Values) -> list[float]:
    if isinstance(dimension, Values):
        return list(dimension.values)
    return [dimension.at(number / (POINTS - 1)) for number in range(POINTS)]
