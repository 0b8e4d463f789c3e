"""The race: trainings that differ in rule and rate begin together, losers are dropped, the winner goes on as it is.

Rates lie on a lattice of steps of 10^0.4 about the rule's own rate. Of a training of T updates

    0.01 T    every second rate is trained to here, from far above the rule's own rate downwards while it gets better
    0.03 T    the best, and the two below it
    0.075 T   the best of these and its two neighbours; the bottom of the parabola through their losses over log rate
              is the rate that would be best for a training of this length

Each is judged by its held-out loss after a cool-down of a quarter of its updates, as short trainings are judged fairly.
The rate that is best for a short training is above the one that is best for a long one: it falls as T^−0.32 (Bjorck et
al. 2025, "Scaling optimal LR across token horizons"; found here too, docs/decisions/0013-race.md). So the
rate for the whole training is the bottom of the parabola times 0.075^0.32, and the candidate whose rate is nearest to
it wins: it goes on with it.

Where rules are raced, the first of them is the one that others must beat: by half of its loss at 0.01 T, by a tenth at
the two depths that follow, else they are dropped there. What leads early often trails in the end, and a rule that is as
good is no reason to leave the known one (docs/decisions/0015-rules-and-sizes.md). Each of the others is tried at one
rate first, in place of one of the first rule's.

All is decided by counted updates and by numbers that were measured, so a race repeats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from thalweg.search.candidate import Candidate, Choice, NothingFinite, cool_down, spent

#: Ratio of neighbouring rates.
STEP = 10**0.4
#: Where candidates are compared, in shares of the training that is served.
DEPTHS = (0.01, 0.03, 0.075)
#: The last rung is never deeper than this many updates, the others in proportion: a race of a long training is short.
DEEPEST = 5000
#: The best rate falls with this power of the training's length.
HORIZON = 0.32
#: What the race may cost beside the winner's own updates, as a share of the training.
CAP = 0.3
#: Trainings of fewer updates are not raced: their rungs would be a handful of updates.
FEWEST = 300
#: Lattice points about a rule's own rate that the first rung begins with, and the one at which another rule is tried.
FIRST, OTHER = (4, 2, 0, -2), 2
#: Shares of the first rule's loss by which another must be ahead of it, rung by rung.
AHEAD = (0.5, 0.1, 0.1)

#: What ends a training that gets no better; it is judged where it stands, for others may.
STALLED = ("converged", "patience")

Make = Callable[[Choice], Candidate]
Measure = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Lane:
    """The rates of one rule."""

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


@dataclass(frozen=True, slots=True)
class Won:
    """Who won, with what it goes on, and what that cost."""

    candidate: Candidate
    lane: Lane
    """Its rule, and the rates that were tried of it."""
    rate: float
    """That it goes on with."""
    cost: float
    """Updates beside the winner's own, in trainings."""
    candidates: tuple[Candidate, ...]
    """All of them, with their scores."""

    @property
    def interval(self) -> tuple[float, float]:
        """A step of the lattice to each side: finer than that nothing was told apart."""
        return self.rate / STEP, self.rate * STEP


class Race:
    """Chooses a rate; `interrupt` may be set at any time, by a signal's handler."""

    def __init__(
        self,
        make: Make,
        measure: Measure,
        total: int,
        price: float = 0.0,
        cap: float = CAP,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """`price` is what `measure` costs, in updates; `tell` is called after each turn of a candidate."""
        self.make = make
        self.measure = measure
        self.total = total
        self.price = price
        self.cap = cap
        self.tell = tell
        self.field: dict[tuple[Lane, int], Candidate] = {}
        """Rule and point of its lattice → candidate."""
        self.depths: list[int] = []
        """Of the rungs, in updates."""
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
        return spent(self.field.values(), self.price)

    # ── the race ─────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self, lane: Lane, *others: Lane) -> Won:
        """Race the rates of a rule, and of others that may take its place.

        Raises:
            NothingFinite: no rate gave a finite loss.
            Interrupted: `interrupt` was set.
        """
        most = min(self.total, DEEPEST / DEPTHS[-1])
        depths = self.depths = [max(2 + i, round(depth * most)) for i, depth in enumerate(DEPTHS)]
        try:
            lane, point = self._rule(lane, others)
            if depths[2] not in self.field[lane, point].scores:  # else rules were compared up to there
                point = self._among(lane, point, (0, -1, -2), depths[1])
            point = self._among(lane, point, (0, -1, 1), depths[2])
        except _Ended as reached:  # its training needs no more: a target is reached
            candidate = reached.candidate
            return self._won(candidate, candidate.choice.learning_rate)
        rate = self._rate(lane, point, depths[2])
        own = [candidate for (each, _), candidate in self.field.items() if each == lane]
        standing = [c for c in own if math.isfinite(c.scores.get(depths[2], math.inf))]
        standing = [c for c in standing if c.ended is None] or standing  # one that has stalled would end there
        return self._won(min(standing, key=lambda c: abs(math.log(c.choice.learning_rate / rate))), rate)

    def _rule(self, lane: Lane, others: Sequence[Lane]) -> tuple[Lane, int]:
        """The rule that goes on, and the best point of its first rung."""
        first = FIRST[: len(FIRST) - len(others)]
        best = {lane: self._first(lane, first, self.depths[0])} | dict.fromkeys(others, OTHER)
        best = {e: p for e, p in best.items() if math.isfinite(self._score(e, p, self.depths[0]))}
        if not best:
            raise NothingFinite(self.field.values())
        lane = next(iter(best))
        for depth, lead in zip(self.depths, AHEAD, strict=True):
            if len(best) == 1 or not self._affords(best.items(), depth):
                break
            bound = to_beat(self._score(lane, best[lane], depth), lead)
            ahead = {each: self._under(bound, each, point, depth) for each, point in best.items() if each != lane}
            best = {lane: best[lane]} | {each: point for each, point in ahead.items() if point is not None}
            self._only(best)
        else:
            lane = min(best, key=lambda each: self._score(each, best[each], self.depths[-1]))
        self._only([lane])
        return lane, best[lane]

    def _under(self, bound: float, lane: Lane, point: int, depth: int) -> int | None:
        """The point of a rule whose loss is under a bound; later on the one below too, as the best rate falls."""
        below = [point - 2] if depth > self.depths[0] else []
        for p in (point, *below):
            if (p == point or self._is_open(lane, p, depth)) and self._score(lane, p, depth) < bound:
                return p
        return None

    def _only(self, lanes: Collection[Lane]) -> None:
        """No other rule can win any more."""
        for (lane, _), candidate in self.field.items():
            if lane not in lanes:
                candidate.drop()

    def _first(self, lane: Lane, points: Sequence[int], depth: int) -> int:
        """Every second rate: the best one."""
        scores = {point: self._score(lane, point, depth) for point in points if lane.holds(point)}
        for step in (-2, 2):  # on, while the best lies at an end
            end = min(scores) if step < 0 else max(scores)
            while min(scores, key=lambda p: scores[p]) == end and lane.holds(end + step):
                end += step
                scores[end] = self._score(lane, end, depth)
        return min(scores, key=lambda p: scores[p])

    def _among(self, lane: Lane, point: int, offsets: Sequence[int], depth: int) -> int:
        """The best of some neighbours at a depth, as far as the cap goes; on where the best lies at the lower end."""
        scores: dict[int, float] = {}
        for p in (point + offset for offset in offsets):
            if p == point or self._is_open(lane, p, depth):
                scores[p] = self._score(lane, p, depth)
        best = self._best(scores)
        while best == min(scores) and self._is_open(lane, best - 1, depth):
            scores[best - 1] = self._score(lane, best - 1, depth)
            best = self._best(scores)
        for (_, p), candidate in self.field.items():
            if abs(p - best) > 2:  # none of these can win any more
                candidate.drop()
        return best

    def _best(self, scores: dict[int, float]) -> int:
        best = min(scores, key=lambda p: scores[p])
        if not math.isfinite(scores[best]):
            raise NothingFinite(self.field.values())
        return best

    def _is_open(self, lane: Lane, point: int, depth: int) -> bool:
        """Whether a candidate can be trained to a depth: in the range, not dropped before, within the cap."""
        candidate = self.field.get((lane, point))
        if not lane.holds(point) or (candidate is not None and candidate.ended == "dropped"):
            return False
        return self._affords([(lane, point)], depth)

    def _affords(self, spots: Iterable[tuple[Lane, int]], depth: int) -> bool:
        """Whether the cap allows to train some to a depth, and one of them, which is to win, to the last."""
        to_come = 0.0 if depth == self.depths[-1] else cool_down(self.depths[-1]) + self.price
        for spot in spots:
            step = self.field[spot].step if spot in self.field else 0
            to_come += depth - step + cool_down(depth) + self.price
        return self.spent + to_come - depth <= self.cap * self.total

    def _score(self, lane: Lane, point: int, depth: int) -> float:
        """A candidate's loss at a depth; it begins now if it has not."""
        if (lane, point) not in self.field:
            self.field[lane, point] = self.make(lane.at(point))
        candidate = self.running = self.field[lane, point]
        if depth in candidate.scores:
            return candidate.scores[depth]
        candidate.advance(depth)
        self.running = None
        if self._interrupt:
            raise Interrupted
        if candidate.ended not in (None, "diverged", *STALLED):
            raise _Ended(candidate)
        score = candidate.judge(depth, self.measure)
        self.tell()
        return score

    # ── its end ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _rate(self, lane: Lane, point: int, depth: int) -> float:
        """What is best at a depth, brought to the length of the whole training."""
        around = [self.field.get((lane, p)) for p in (point - 1, point, point + 1)]
        low, middle, high = (c.scores.get(depth, math.inf) if c is not None else math.inf for c in around)
        best = self.field[lane, point].choice.learning_rate * STEP ** bottom(low, middle, high)
        return float(f"{best * (depth / self.total) ** HORIZON:.3g}")

    def _won(self, candidate: Candidate, rate: float) -> Won:
        lane = next(lane for (lane, _), each in self.field.items() if each is candidate)
        return Won(candidate, lane, rate, (self.spent - candidate.step) / self.total, tuple(self.field.values()))


class Interrupted(Exception):
    """The race was interrupted; the model is as it was found."""


class _Ended(Exception):
    """A candidate's training is done."""

    def __init__(self, candidate: Candidate) -> None:
        super().__init__(candidate.ended)
        self.candidate = candidate


def to_beat(first: float, lead: float) -> float:
    """The loss under which another rule is ahead of the first by a share of its loss.

    >>> to_beat(1.0, 0.1), to_beat(-1.0, 0.1), to_beat(float("inf"), 0.1)
    (0.9, -1.1, inf)
    """
    return first - lead * abs(first) if math.isfinite(first) else first


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
