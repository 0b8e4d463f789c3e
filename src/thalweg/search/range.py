"""The range test: the rate is raised while training, and where the loss leaves for good lies the end of the bracket.

It brackets and never decides: what is best for a hundred updates says little of what is best for thousands (Wu et al.
2018), but the rate at which training falls apart depends on the model more than on the horizon. So the bracket is
[D/100, D], D being that rate, the median over several orders of the batches.

Rates rise by the same ratio at every update (Smith 2017). The loss is smoothed over three updates to each side in log
rate, a lag of none; NaN and infinity end the test at once, as does a smoothed loss that has risen by more than it had
fallen, and by half of what it began with. It began to leave where it was last near its lowest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Updates of one sweep, and sweeps.
UPDATES, SEEDS = 100, 3
#: The bracket is this wide.
WIDTH = 100.0
#: Updates to each side that the loss is averaged over.
SMOOTH = 3
#: Share of the first loss by which the smoothed one must have risen above its lowest.
RISEN = 0.5
#: Share of what it has fallen by that it may be above its lowest where it has not begun to leave.
TURN = 0.25

Sweep = Callable[[int, Sequence[float]], list[float]]
"""(seed, rate of each update) → loss before each update, ended early where it was not finite."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Where to look for a learning rate."""

    low: float
    high: float
    diverged_at: tuple[float, ...]
    """For each seed, the rate at which the loss left; infinite where it did not."""
    curve: tuple[tuple[float, float], ...]
    """(rate, loss), smoothed, of the first seed."""
    steps: int
    """Updates that it took."""


def range_test(sweep: Sweep, low: float, high: float, bound: float = math.inf, seeds: int = SEEDS) -> Bracket:
    """Raise the rate from `low` to `high`, once for each seed.

    `bound` is a rate above which the first step is known to rise (2/λ_max of plain descent): no reason to look above a
    hundred times it, since curvature falls where the rate is high (Cohen et al. 2021).

    Raises:
        ValueError: the loss was not finite before the first update.
    """
    high = min(high, max(low * WIDTH, bound * WIDTH))
    rates = [low * (high / low) ** (i / (UPDATES - 1)) for i in range(UPDATES)]
    found: list[float] = []
    curve: tuple[tuple[float, float], ...] = ()
    steps = 0
    for seed in range(seeds):
        losses = sweep(seed, rates)
        if not all(map(math.isfinite, losses[:1])):
            raise ValueError(
                "the loss was not finite before the first update: the rate is not to blame; look at the inputs, the "
                "targets, the first weights and the loss"
            )
        steps += len(losses)
        smooth = smoothed(losses)
        place = left(losses, smooth)
        found.append(rates[place] if place is not None else math.inf)
        if seed == 0:
            curve = tuple((rate, loss) for rate, loss in zip(rates, smooth, strict=False) if math.isfinite(loss))
    end = min(high, statistics.median_low(found))
    return Bracket(end / WIDTH, end, tuple(found), curve, steps)


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each loss and its neighbours.

    >>> smoothed([3.0, 3.0, 3.0, 10.0, 3.0])
    [4.75, 4.4, 4.4, 4.4, 4.75]
    """
    windows = (losses[max(0, i - SMOOTH) : i + SMOOTH + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def left(losses: Sequence[float], smooth: Sequence[float]) -> int | None:
    """The update at which the loss began to leave; None where it did not.

    >>> falls = [2.0 - 0.1 * i for i in range(10)]
    >>> left(falls, smoothed(falls)) is None
    True
    >>> left([2.0, 1.9, math.inf], [2.0, 1.9, math.inf])
    1
    """
    lowest = math.inf
    for i, (loss, mean) in enumerate(zip(losses, smooth, strict=True)):
        if math.isfinite(mean):  # else it is one of the updates just before the loss is not finite
            lowest = min(lowest, mean)
        is_high = mean - lowest > max(RISEN * abs(smooth[0]), smooth[0] - lowest)
        if is_high or not math.isfinite(loss):
            level = lowest + TURN * max(0.0, smooth[0] - lowest)
            return max(j for j in range(i) if smooth[j] <= level) if i else 0
    return None
