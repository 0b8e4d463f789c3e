"""The race: trainings that differ in their rate begin together, losers are dropped, the winner goes on as it is.

Rates lie on a lattice of steps of 10^0.4 about the rule's own rate. Of a training of T updates

    0.01 T    every second rate is trained to here, from far above the rule's own rate downwards while it gets better
    0.03 T    the best, and the two below it
    0.075 T   the best of these and its two neighbours; the bottom of the parabola through their losses over log rate
              is the rate that would be best for a training of this length

Each is judged by its held-out loss after a cool-down of a quarter of its updates, as short trainings are judged fairly.
The rate that is best for a short training is above the one that is best for a long one: it falls as T^−0.32 (Bjorck et
al. 2025, "Scaling optimal LR across token horizons", section 3; found here too, docs/decisions/0013-race.md). So the
rate for the whole training is the bottom of the parabola times 0.075^0.32, and the candidate whose rate is nearest to
it wins: it goes on with it.

All is decided by counted updates and by numbers that were measured, so a race repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from thalweg.search.candidate import Candidate, Choice

#: Ratio of neighbouring rates.
STEP = 10**0.4
#: Where candidates are compared, in shares of the training that is served.
DEPTHS = (0.01, 0.03, 0.075)
#: The last rung is never deeper than this many updates, the others in proportion: a race of a long training is short.
DEEPEST = 5000
#: Length of the cool-down before a candidate is judged, in shares of its updates.
COOL_DOWN = 0.25
#: The best rate falls with this power of the training's length.
HORIZON = 0.32
#: What the race may cost beside the winner's own updates, as a share of the training.
CAP = 0.3
#: Trainings of fewer updates are not raced: their rungs would be a handful of updates.
FEWEST = 300
#: Lattice points about a rule's own rate that the first rung begins with.
FIRST = (4, 2, 0, -2)

Make = Callable[[Choice], Candidate]
Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Lane:
    """One rule's (or batch size's) rates."""

    choice: Choice
    """With the rate at point 0."""
    low: float
    high: float
    """Rates outside are not tried."""

    def at(self, point: int) -> Choice:
        """The choice at a point of the lattice."""
        return replace(self.choice, learning_rate=float(f"{self.choice.learning_rate * STEP**point:.4g}"))

    def holds(self, point: int) -> bool:
        """Whether its rate is to be tried; half a step beyond the range still is."""
        return self.low / STEP**0.5 <= self.at(point).learning_rate <= self.high * STEP**0.5


@dataclass(slots=True)
class Won:
    """Who won, with what it goes on, and what that cost."""

    candidate: Candidate
    choice: Choice
    """With the rate that it goes on with."""
    interval: tuple[float, float]
    """The rates of its neighbours."""
    cost: float
    """Updates beside the winner's own, in trainings."""
    candidates: list[Candidate] = field(default_factory=list)
    """All of them, with their scores."""


class Race:
    """Chooses among lanes; `interrupt` may be set at any time, by a signal's handler."""

    def __init__(
        self,
        make: Make,
        measure: Measure,
        total: int,
        price: float = 0.0,
        cap: float = CAP,
        tell: Callable[[Race], None] = lambda race: None,
    ) -> None:
        """`price` is what `measure` costs, in updates; `tell` is called after each turn of a candidate."""
        self.make = make
        self.measure = measure
        self.total = total
        self.price = price
        self.cap = cap
        self.tell = tell
        self.lanes: list[Lane] = []
        self.field: dict[tuple[int, int], Candidate] = {}
        """(lane, point) → candidate."""
        self.num_measured = 0
        self.running: Candidate | None = None
        self._interrupt = False

    # ── what may be asked from outside ───────────────────────────────────────────────────────────────────────────

    @property
    def interrupt(self) -> bool:
        """Whether it is to end."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value
        if self.running is not None:
            self.running.training.interrupt = value

    @property
    def spent(self) -> float:
        """Updates so far, with what the measurements cost."""
        return sum(c.spent for c in self.field.values()) + self.price * self.num_measured

    # ── the race ─────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, lanes: Sequence[Lane]) -> Won:
        """Race.

        Raises:
            NothingFinite: no rate gave a finite loss.
            Interrupted: `interrupt` was set.
        """
        self.lanes = list(lanes)
        try:
            return self._raced()
        except _Ended as reached:  # its training needs no more: a target is reached
            candidate = reached.candidate
            return self._winner(candidate, candidate.choice.learning_rate)

    def _raced(self) -> Won:
        most = min(self.total, DEEPEST / DEPTHS[-1])
        depths = [max(2 + i, round(depth * most)) for i, depth in enumerate(DEPTHS)]
        lane, point = self._first(depths[0])
        point = self._among(lane, point, (-2, -1, 0), depths[1])
        point = self._among(lane, point, (-1, 0, 1), depths[2])
        return self._won(lane, point, depths[2])

    def _first(self, depth: int) -> tuple[int, int]:
        """Every second rate of each lane: the best one."""
        best: tuple[float, int, int] = (math.inf, 0, 0)
        for number, lane in enumerate(self.lanes):
            points = [point for point in FIRST if lane.holds(point)]
            scores = {point: self._score(number, point, depth) for point in points}
            for step in (-2, 2):  # on, while the best lies at an end
                end = min(points) if step < 0 else max(points)
                while min(scores, key=lambda p: scores[p]) == end and lane.holds(end + step):
                    end += step
                    scores[end] = self._score(number, end, depth)
            best = min(best, *((score, number, point) for point, score in scores.items()))
        if not math.isfinite(best[0]):
            raise NothingFinite(self._nothing_finite())
        return best[1:]

    def _among(self, lane: int, point: int, offsets: Iterable[int], depth: int) -> int:
        """The best of some neighbours at a depth; walks on where the best lies at the lower end."""
        points = [p for p in (point + offset for offset in offsets) if p == point or self._is_open(lane, p, depth)]
        scores = {p: self._score(lane, p, depth) for p in self._affordable(lane, points, point, depth)}
        best = min(scores, key=lambda p: scores[p])
        while best == min(scores) and self._is_open(lane, best - 1, depth):
            scores[best - 1] = self._score(lane, best - 1, depth)
            if scores[best - 1] >= scores[best]:
                break
            best -= 1
        if not math.isfinite(scores[best]):
            raise NothingFinite(self._nothing_finite())
        self._drop(lane, best, depth)
        return best

    def _affordable(self, lane: int, points: list[int], point: int, depth: int) -> list[int]:
        """The point itself, and those nearest to it that the cap leaves room for."""
        kept = [point]
        for p in sorted((p for p in points if p != point), key=lambda p: (abs(p - point), p)):
            if self._affords(lane, p, depth, besides=[q for q in kept if self._steps_to(lane, q, depth)]):
                kept.append(p)
        return sorted(kept)

    def _is_open(self, lane: int, point: int, depth: int) -> bool:
        """Whether a candidate can be trained to a depth: in the range, within the cap, not dropped before."""
        candidate = self.field.get((lane, point))
        is_gone = candidate is not None and candidate.ended == "dropped"
        return self.lanes[lane].holds(point) and not is_gone and self._affords(lane, point, depth)

    def _affords(self, lane: int, point: int, depth: int, besides: Iterable[int] = ()) -> bool:
        judging = cool_down(depth) + self.price
        to_come = sum(self._steps_to(lane, p, depth) + judging for p in (*besides, point))
        return self.spent + to_come - depth <= self.cap * self.total

    def _steps_to(self, lane: int, point: int, depth: int) -> int:
        """Updates that a candidate lacks to a depth."""
        candidate = self.field.get((lane, point))
        return depth - (candidate.step if candidate is not None else 0)

    def _score(self, lane: int, point: int, depth: int) -> float:
        """A candidate's loss at a depth; it begins now if it has not."""
        if (lane, point) not in self.field:
            self.field[lane, point] = self.make(self.lanes[lane].at(point))
        candidate = self.field[lane, point]
        if candidate.step >= depth and depth in candidate.scores:
            return candidate.scores[depth]
        self.running = candidate
        candidate.advance(depth)
        self.running = None
        if self._interrupt:
            raise Interrupted
        if candidate.ended not in (None, "diverged"):
            raise _Ended(candidate)
        score = candidate.judge(cool_down(depth), self.measure)
        candidate.scores[depth] = score
        self.num_measured += 1
        self.tell(self)
        return score

    def _drop(self, lane: int, best: int, depth: int) -> None:
        """Free what those hold that can no longer win: all but the best and its neighbours."""
        for (number, point), candidate in self.field.items():
            if number != lane or abs(point - best) > 2:
                candidate.drop()

    # ── its end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _won(self, lane: int, point: int, depth: int) -> Won:
        """The candidate whose rate is nearest to the one that is best for the whole training goes on with that."""
        losses = [self._loss(lane, point + offset, depth) for offset in (-1, 0, 1)]
        best = self.lanes[lane].at(point).learning_rate * STEP ** bottom(losses[0], losses[1], losses[2])
        rate = float(f"{best * (depth / self.total) ** HORIZON:.3g}")
        standing = [c for (n, _), c in self.field.items() if n == lane and math.isfinite(c.scores.get(depth, math.inf))]
        return self._winner(min(standing, key=lambda c: abs(math.log(c.choice.learning_rate / rate))), rate)

    def _winner(self, candidate: Candidate, rate: float) -> Won:
        cost = (self.spent - candidate.step) / self.total
        ends = (rate / STEP, rate * STEP)
        return Won(candidate, replace(candidate.choice, learning_rate=rate), ends, cost, list(self.field.values()))

    def _loss(self, lane: int, point: int, depth: int) -> float:
        candidate = self.field.get((lane, point))
        return candidate.scores.get(depth, math.inf) if candidate is not None else math.inf

    def _nothing_finite(self) -> str:
        rates = sorted(c.choice.learning_rate for c in self.field.values())
        lowest = min(self.field.values(), key=lambda c: c.choice.learning_rate)
        return (
            f"no learning rate gave a finite loss: {len(rates)} from {rates[0]:g} to {rates[-1]:g} were tried, and "
            f"even the smallest had none after {lowest.step} updates; look at the model's outputs and the loss"
        )


class NothingFinite(ValueError):
    """No rate gave a finite loss."""


class Interrupted(Exception):
    """The race was interrupted; the model is as it was found."""


class _Ended(Exception):
    """A candidate's training is done."""

    def __init__(self, candidate: Candidate) -> None:
        super().__init__(candidate.ended)
        self.candidate = candidate


def cool_down(depth: int) -> int:
    """Updates of the cool-down before a candidate is judged that stands at a depth."""
    return max(1, round(COOL_DOWN * depth))


def bottom(low: float, middle: float, high: float) -> float:
    """Where the parabola through values at −1, 0 and 1 is lowest, the middle being the lowest of them; in [−½, ½].

    >>> bottom(2.0, 1.0, 2.0), bottom(1.0, 1.0, 3.0), bottom(2.0, 1.0, float("inf"))
    (0.0, -0.5, -0.5)
    """
    if not math.isfinite(high):
        return -0.5 if math.isfinite(low) else 0.0
    if not math.isfinite(low):
        return 0.0
    bend = low - 2 * middle + high
    return max(-0.5, min(0.5, (low - high) / (2 * bend))) if bend > 0 else 0.0
