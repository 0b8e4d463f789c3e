"""Whether a repair is kept: its outcome against a control that went on unchanged, beyond the noise of both.

Both begin from the same state and see the same batches; at the end each is cooled down (its rate falls to zero along a
line), so that a lower rate does not win by its smaller noise alone, and measured on the same examples. A repair is kept
where the mean of the paired differences is SURE standard errors below zero, and by a margin that matters.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Standard errors of the paired difference.
SURE = 2.5
#: The chance that goes with them.
CHANCE = 0.0062
#: Share of the control's loss that a gain must come to, where the control stands still; and where it is getting on, in
#: which case the gain must also be as large as what the control gains by itself.
MARGIN, MARGIN_OF_MOVING = 0.005, 0.05
#: Share of the trivial loss below it that is nothing learned, and of the control's loss by which an arm may end worse.
TOLERATED = 0.05
#: Updates of a trial: a share of the training that is planned, and bounds; of a training of unknown length.
SHARE, FEWEST, LONGEST, UNKNOWN = 1 / 48, 12, 1000, 20
#: Share of the planned training that trials may cost in all, updates that they may in any; of one of unknown length.
BUDGET, BUDGET_OF_SHORT, BUDGET_OF_UNKNOWN = 0.65, 650, 960
#: Repairs that are kept in one training: each may give it its length back, and it is to end.
MOST_KEPT = 4
#: Share of the updates that are added to cool down.
COOL_DOWN = 0.25


@dataclass(frozen=True, slots=True)
class Measured:
    """What an arm of a trial came to: losses of the same groups of examples `[groups]`, infinite where not finite."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over all groups."""
        return statistics.fmean(self.losses) if all(map(math.isfinite, self.losses)) else math.inf


def length(planned: int | None) -> int:
    """Updates of each arm.

    >>> length(None), length(500), length(100_000)
    (20, 12, 1000)
    """
    return UNKNOWN if planned is None else max(FEWEST, min(LONGEST, round(SHARE * planned)))


def is_affordable(spent: int, arms: int, planned: int | None, updates: int | None = None) -> bool:
    """Whether a trial of so many arms is within what trials may cost; in a training of unknown length a few are."""
    of_all = max(BUDGET * planned, BUDGET_OF_SHORT) if planned is not None else BUDGET_OF_UNKNOWN
    return spent + cost(arms, updates or length(planned)) <= of_all


def longest(spent: int, arms: int, planned: int | None, updates: int) -> int:
    """Up to so many updates that as many arms more may have; 0 where they may have none.

    >>> longest(190, 3, 960, 150), longest(190, 2, 960, 150), longest(650, 2, 960, 150)
    (114, 150, 0)
    """
    return next((n for n in range(updates, 0, -1) if is_affordable(spent, arms, planned, n)), 0)


def price(updates: int) -> int:
    """Updates of one arm, its cool-down included."""
    return updates + cool_down(updates)


def cost(arms: int, updates: int) -> int:
    """Updates of a trial: its arms, and the cool-down of where they begin."""
    return arms * price(updates) + cool_down(updates)


def cool_down(updates: int) -> int:
    """Updates of a cool-down."""
    return max(1, round(COOL_DOWN * updates))


def is_better(control: Measured, other: Measured, before: Measured | None = None, trivial: float = math.inf) -> bool:
    """Whether an arm is better than the control beyond noise; `before` is where both began, in the control's terms.

    What a control gains by itself counts below the `trivial` loss, that of one answer for all: to come down to it from
    above is no learning. Nor is it of an arm, where the control is about there.

    >>> start, control = Measured((2.0, 2.1, 1.9)), Measured((1.0, 1.1, 0.9))
    >>> is_better(control, Measured((0.5, 0.55, 0.45)))
    True
    >>> is_better(control, Measured((0.99, 1.1, 0.89)))
    False
    >>> is_better(control, Measured((0.5, 0.55, 0.45)), start)  # it halves the loss by itself
    False
    >>> is_better(control, Measured((0.5, 0.55, 0.45)), start, trivial=1.1)  # it has come down to where one begins
    True
    """
    if not math.isfinite(other.mean):
        return False
    if not math.isfinite(control.mean):
        return True
    margin = MARGIN * abs(control.mean)
    if before is not None and math.isfinite(before.mean) and _is_lower(before, control):
        margin = max(MARGIN_OF_MOVING * abs(control.mean), min(before.mean, trivial) - control.mean)
    is_nothing = trivial < control.mean <= (1 + TOLERATED) * trivial
    level = trivial if is_nothing else control.mean
    return level - other.mean > margin and _is_lower(control, other)


def _is_lower(first: Measured, second: Measured) -> bool:
    """Whether the second is lower, group by group, than chance explains."""
    return _falls(first.losses, second.losses)


def _falls(first: Sequence[float], second: Sequence[float]) -> bool:
    """By the mean of the differences; or, where a few large ones hide it (a network that was thrown out), by their
    signs.
    """
    gains = [a - b for a, b in zip(first, second, strict=True)]
    if len(gains) < 2 or not statistics.fmean(gains) > 0:
        return False
    by_mean = statistics.fmean(gains) > SURE * statistics.stdev(gains) / math.sqrt(len(gains))
    return by_mean or _chance_of_signs(sum(gain > 0 for gain in gains), len(gains)) < CHANCE


def _chance_of_signs(positive: int, count: int) -> float:
    """How likely so many of a count or more are positive, were either sign as likely."""
    return sum(math.comb(count, k) for k in range(positive, count + 1)) / 2.0**count


def best(
    controls: Sequence[Measured],
    others: Sequence[Measured],
    before: Measured | None = None,
    trivial: float = math.inf,
    control: Measured | None = None,
) -> int | None:
    """The number of the arm that is kept, of those that are better; None where none is.

    It is the first that is as good as the one with the greatest gain: arms stand in order of promise, and what is
    within the noise of the greatest gain is as good. Each arm has a control of its own, measured in its terms: a repair
    of the loss changes what is measured; `before` and `trivial` are in the terms of `control` and count for arms that
    are measured against it.
    """
    better = [
        i
        for i, (own, other) in enumerate(zip(controls, others, strict=True))
        if (is_better(own, other, before, trivial) if control is None or own is control else is_better(own, other))
    ]
    return next(iter(as_good(controls, others, better)), None)


def harmless(control: Measured, others: Sequence[Measured], trivial: float) -> list[int]:
    """The arms that are no worse than a control that has learned nothing; none where it has, or may have.

    A network that has learned nothing has nothing to lose, and one that begins anew may take longer than a trial to
    show that it learns.

    >>> still = Measured((0.69, 0.70, 0.70))
    >>> harmless(still, [Measured((1.3, 1.2, 1.4)), Measured((0.70, 0.70, 0.69))], trivial=0.693)
    [1]
    """
    if not (math.isfinite(trivial) and math.isfinite(control.mean)):
        return []
    one_answer = Measured((trivial,) * len(control.losses))
    if control.mean < (1 - TOLERATED) * trivial or _is_lower(one_answer, control):
        return []
    return [i for i, other in enumerate(others) if not _is_worse(control, other)]


def _is_worse(control: Measured, other: Measured) -> bool:
    if not math.isfinite(other.mean):
        return True
    return other.mean - control.mean > TOLERATED * abs(control.mean) and _is_lower(other, control)


def as_good(controls: Sequence[Measured], others: Sequence[Measured], of: Sequence[int] | None = None) -> list[int]:
    """Of some arms (all of them without a word) those that are within the noise of the one with the greatest gain.

    >>> control = Measured((2.0, 2.1, 1.9))
    >>> arms = [Measured((1.5, 1.7, 1.4)), Measured((1.4, 1.7, 1.5)), Measured((1.9, 2.0, 1.8))]
    >>> as_good([control] * 3, arms)
    [0, 1]
    """
    chosen = list(range(len(others)) if of is None else of)
    shares = {i: [_bounded(v) / abs(_bounded(controls[i].mean)) for v in others[i].losses] for i in chosen}
    lowest = min(chosen, key=lambda i: (statistics.fmean(shares[i]), i), default=None)
    if lowest is None:
        return []
    is_noisy = len(shares[lowest]) > 1  # one group alone says nothing of noise
    return [i for i in chosen if i == lowest or (is_noisy and not _falls(shares[i], shares[lowest]))]


def _bounded(loss: float) -> float:
    """A loss that is not finite counts as a very large one; one of nothing can be divided by."""
    return min(loss, 1e30) if loss < 0 or loss > 1e-30 else 1e-30
