"""What the loss of a training did: where it began, how low it came, where it stands, and how sure that is.

A finding above a note needs an outcome that is bad. This is where outcomes are read, each against the noise of the loss
itself. The yardstick is the trivial loss: that of the best answer which does not look at its input, or, where it is not
known, the loss at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from thalweg.diagnosis.noise import SURE, Floats, Line, chance_of_median, line, mean_error, scatter

if TYPE_CHECKING:
    from thalweg.diagnosis.case import Case

#: Updates that one value of the course stands for: those between two reports, once a training is under way.
BIN = 10
#: Share of a planned training, or updates, before which nothing is said about what was not learned yet.
BEGUN, MANY = 0.5, 2000
#: Values that the newest level is the mean of: this share of all, at least so many.
NEWEST, AT_LEAST = 6, 4
#: A loss within this share of the trivial one has learned nothing worth having.
NOTHING = 0.05
#: A loss this many times the trivial one, or its own start, has left the ground on which descent works.
LOST = 1.5
#: Times its start that a loss must come to early on to have been thrown off by a step; updates after which one that
#: is thrown and comes back has come back.
THROWN, SETTLED = 3.0, 60
#: A rule has hardly warmed up after so many updates.
FEW_UPDATES = 100
#: What as many updates again would gain, as a share of the trivial loss, from which on it is worth having.
WORTHWHILE = 0.05
#: Share of the trivial loss below which, once gone, most trainings are still near their start.
UNLEARNED = 0.25
#: Part of the middle third's fall that the newest third must still make for a steady fall. A loss that falls as 1/√t
#: makes 0.44 of it, a slower power up to 0.58, an exponential less.
STEADY = 0.6
#: Losses of examples have longer tails than an exponential: a few hold most of it once the others are learned.
TAILS = 6.0
#: A loss that has come back up by this share of what it had gained has lost something.
LOST_AGAIN = 0.2


@dataclass(frozen=True)
class Course:
    """The training loss in steps of about `BIN` updates: `steps`, `losses` `[bins]`, all finite.

    `broken` is the first step whose loss was not finite; `trivial` as above, None where it is not known; `top` the
    yardstick; `start` the loss at the start; `singles` `[reports]` what single batches scatter by; `thrown` the step at
    which the loss was first thrown far above its start, early on.
    """

    steps: Floats
    losses: Floats
    broken: int | None
    trivial: float | None
    top: float
    start: float
    singles: Floats
    batch_size: float | None
    share_done: float | None
    thrown: int | None = None
    begun: float = BEGUN
    """Share of a planned training before which nothing is said about what was not learned yet."""

    @property
    def is_long(self) -> bool:
        """Whether there is enough to judge what was learned by: many trainings stand still at first and learn then."""
        if len(self.losses) < 8:
            return False
        if self.share_done is None:  # nobody knows how long it is to be
            return float(self.steps[-1]) >= 5 * FEW_UPDATES
        return self.share_done >= self.begun or float(self.steps[-1]) >= MANY

    @cached_property
    def newest(self) -> Floats:
        """The last values, over which the level is told."""
        return self.losses[-max(AT_LEAST, len(self.losses) // NEWEST) :]

    @cached_property
    def level(self) -> float:
        """Where the loss stands."""
        return float(np.mean(self.newest)) if len(self.newest) else math.nan

    @cached_property
    def error(self) -> float:
        """The standard error of `level`."""
        return mean_error(self.newest)

    @cached_property
    def learned(self) -> float:
        """The share of the trivial loss that is gone; negative where it is worse than trivial."""
        return 1 - self.level / self.top if self.top > 0 else math.nan

    @cached_property
    def means(self) -> Floats:
        """Running means over as many values as the level is told of."""
        k = len(self.newest)
        return np.convolve(self.losses, np.ones(k) / k, "valid") if k else self.losses

    @cached_property
    def lowest(self) -> float:
        """The lowest running mean."""
        return float(self.means.min()) if len(self.means) else math.nan

    @cached_property
    def lowest_step(self) -> int:
        """The step at which it was reached."""
        place = int(self.means.argmin()) + len(self.newest) - 1 if len(self.means) else 0
        return int(self.steps[place]) if len(self.steps) else 0

    @cached_property
    def late(self) -> Line | None:
        """The line through the newer half."""
        newer = self.losses[len(self.losses) // 2 :]
        return line(newer) if len(newer) >= 4 else None

    @cached_property
    def gain(self) -> float:
        """What as many updates again would gain if the newer half went on, as a share of the trivial loss: at most
        what is left. 0 where the fall may be chance.
        """
        if self.late is None or not self.late.is_falling or not self.top > 0:
            return 0.0
        return min(-2 * self.late.rise, max(self.level, 0.0)) / self.top

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def is_short(self) -> bool:
        """Over after so few updates that nothing else can be said of what was not learned."""
        over = self.share_done is not None and self.share_done >= 1
        return over and len(self.losses) >= 3 and float(self.steps[-1]) < FEW_UPDATES and not self.learned > 0.75

    @cached_property
    def is_lost(self) -> bool:
        """Diverged: no number any more, or blown up."""
        return self.broken is not None or self.is_blown_up

    @cached_property
    def is_blown_up(self) -> bool:
        """Far above where it began and above the trivial loss, and staying there to the end."""
        bound = LOST * max(self.top, self.start)
        if not len(self.losses) or not math.isfinite(bound):
            return False
        if self.broken is not None:  # the last before it broke
            return float(self.losses[-1]) > bound
        newest = self.losses[-max(3, len(self.losses) // 10) :]
        return len(self.losses) >= 3 and float(newest.min()) > bound

    @cached_property
    def is_stuck(self) -> bool:
        """Nothing learned: at the trivial loss or above it, and no fall that leads away from there."""
        is_known = self.thrown is not None and len(self.losses) >= AT_LEAST and float(self.steps[-1]) >= SETTLED
        if not (self.is_long or is_known):
            return False
        if not self.top > 0:
            return self.level > self.start - SURE * max(self.error, scatter(self.losses))
        near = self.level + SURE * self.error > (1 - NOTHING) * self.top
        return near and self.learned < 2 * NOTHING and self.gain < WORTHWHILE

    @cached_property
    def is_slow(self) -> bool:
        """Still falling so that as many updates again would gain what is worth having, with most of it left."""
        if not self.is_long or self.late is None or not self.top > 0:
            return False
        if not (self.late.is_falling and self.gain > WORTHWHILE and self.learned < UNLEARNED):
            return False
        return self.learned < -NOTHING or self.is_steady

    @cached_property
    def is_steady(self) -> bool:
        """Whether the newest third falls nearly as much as the one before: other losses have gained most by then, also
        those that have a high floor.
        """
        third = max(2, len(self.losses) // 3)
        k = max(2, len(self.newest) // 2)
        ends = [float(np.mean(self.losses[max(0, at - k) : at])) for at in (third, 2 * third, len(self.losses))]
        return ends[1] - ends[2] > STEADY * (ends[0] - ends[1])

    @cached_property
    def is_worse(self) -> bool:
        """Clearly above where it had come to, for good."""
        if len(self.losses) < 2 * AT_LEAST or not self.top > 0:
            return False
        gained = max(self.top, self.start) - self.lowest
        rise = self.level - self.lowest
        noise = math.hypot(self.error, scatter(self.losses) / math.sqrt(len(self.newest)))
        return rise > LOST_AGAIN * gained and rise > 2 * SURE * noise and rise > 0.02 * self.top

    @cached_property
    def swing(self) -> float:
        """How many times as much as they would with independent examples whose losses are spread exponentially the
        losses of single batches scatter, of late: by level / √B for a batch of B.
        """
        if not len(self.singles) or not self.batch_size or not self.level > 0:
            return 0.0
        newest = self.singles[-max(AT_LEAST, len(self.singles) // 3) :]
        return float(np.median(newest)) / self.level * math.sqrt(self.batch_size)

    @cached_property
    def is_swinging(self) -> bool:
        """Swings that sampling does not explain, at a level where they cost something."""
        if not self.is_long or not self.level > 0.1 * self.top:
            return False
        if not len(self.singles) or not self.batch_size:
            return False
        newest = self.singles[-max(AT_LEAST, len(self.singles) // 3) :]
        explained = TAILS * self.level / math.sqrt(self.batch_size)
        wide = float(np.median(newest)) > 0.1 * self.top
        return wide and chance_of_median(newest, explained, below=False) < 0.07


def course(case: Case) -> Course:
    """Read the loss of a case."""
    steps, values = case.series("loss")
    broken = np.flatnonzero(~np.isfinite(values))
    sound = np.isfinite(values)
    at, losses = _binned(steps[sound], values[sound])
    _, singles = case.series("loss_spread")
    trivial, start = case.trivial, case.start
    return Course(
        steps=at,
        losses=losses,
        broken=int(steps[broken[0]]) if len(broken) else None,
        trivial=trivial,
        top=case.top,
        start=start,
        singles=singles[np.isfinite(singles)],
        batch_size=case.fact("batch_size"),
        share_done=case.share_done,
        thrown=_thrown(steps[sound], values[sound], max(start, trivial or start)),
        begun=case.begun,
    )


def _thrown(steps: Floats, losses: Floats, usual: float) -> int | None:
    """The step of the first tenth (or 50 updates) at which the loss was thrown far above what it began with."""
    if not len(steps) or not math.isfinite(usual) or not usual > 0:
        return None
    above = np.flatnonzero((steps <= max(50, steps[-1] / 10)) & (losses > THROWN * usual))
    return int(steps[above[0]]) if len(above) else None


def _binned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Reports that come closer than `BIN` updates, told together; of a training too short for that, as they are."""
    if not len(steps) or steps[-1] < 8 * BIN:
        return steps, values
    lengths = np.diff(steps, prepend=0.0)
    group = np.ceil(steps / BIN - 1e-9)
    _, first = np.unique(group, return_index=True)
    weights = np.add.reduceat(lengths, first)
    sums = np.add.reduceat(lengths * values, first)
    last = np.append(first[1:], len(steps)) - 1
    return steps[last], sums / weights
