"""Tests of a few numbers against their noise: every judgement of this room goes through one of these.

They are of rank or of sign wherever they can be, so that neither the unit of a loss nor a lone spike decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: How unlikely chance must be before something is said: one training in a hundred would be accused wrongly by one test.
CHANCE = 0.01
#: The same in standard errors, two-sided.
SURE = 2.6

#: Values from which on the binomial is a normal distribution: to a few hundredths of the probability.
MANY = 60

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line through values `[n]` by least squares: `end` is its value at the last one, `rise` what it makes
    over all n, each with its standard error; `noise` is the scatter about it.
    """

    end: float
    end_error: float
    rise: float
    rise_error: float
    noise: float

    @property
    def is_falling(self) -> bool:
        """Whether the fall is more than chance."""
        return self.rise < -SURE * self.rise_error

    @property
    def is_rising(self) -> bool:
        """Whether the rise is more than chance."""
        return self.rise > SURE * self.rise_error


def line(values: Floats) -> Line:
    """Fit values `[n]`, n ≥ 3, that lie the same time apart."""
    count = len(values)
    time = np.arange(count) - (count - 1) / 2
    spread = float(time @ time)
    slope = float(time @ values) / spread
    residuals = values - values.mean() - slope * time
    # Neighbours often err together; the errors are widened by what the residuals share with the ones before.
    noise = math.sqrt(float(residuals @ residuals) / max(1, count - 2))
    wider = math.sqrt(_dependence(residuals))
    slope_error = wider * noise / math.sqrt(spread)
    end_error = wider * noise * math.sqrt(1 / count + time[-1] ** 2 / spread)
    return Line(float(values.mean() + slope * time[-1]), end_error, slope * count, slope_error * count, noise)


def _dependence(residuals: Floats) -> float:
    """(1 + ρ) / (1 − ρ): how many times the variance of a mean is that of independent values, to first order."""
    power = float(residuals @ residuals)
    if len(residuals) < 8 or power <= 0:  # too few to tell ρ from its own error of 1/√n
        return 1.0
    shared = float(residuals[1:] @ residuals[:-1]) / power
    return (1 + shared) / (1 - shared) if 0 < shared < 0.95 else 1.0 if shared <= 0 else 39.0


def scatter(values: Floats) -> float:
    """The standard deviation of values `[n]` about their own course, from the steps between neighbours: a trend adds
    little, a spike nothing. 0.6745 is the quartile of a normal distribution, √2 that a step has two ends.
    """
    if len(values) < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(values)))) / (0.6745 * math.sqrt(2))


def mean_error(values: Floats) -> float:
    """The standard error of the mean of values `[n]` that may drift: from their scatter about their own course."""
    return scatter(values) / math.sqrt(max(1, len(values)))


def chance_of_median(values: Floats, bound: float, below: bool = True) -> float:
    """The sign test: how likely as many values would lie below (or above) the bound if their median lay on the other
    side of it.

    >>> chance_of_median(np.array([0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.2]), 0.5)
    0.0078125
    """
    counted = values[np.isfinite(values)]
    n = len(counted)
    k = int((counted < bound).sum()) if below else int((counted > bound).sum())
    if not n:
        return 1.0
    if n > MANY:
        return 0.5 * math.erfc((2 * k - 1 - n) / math.sqrt(2 * n))
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n


def going_together(values: Floats) -> float:
    """Spearman's rank correlation of values `[n]` with their order, in standard errors of 1/√(n − 1)."""
    n = len(values)
    if n < 3:
        return 0.0
    ranks = np.argsort(np.argsort(values)).astype(np.float64)
    return float(np.corrcoef(ranks, np.arange(n))[0, 1]) * math.sqrt(n - 1) if np.ptp(ranks) else 0.0
