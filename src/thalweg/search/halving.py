"""Successive halving: short trainings of many rates, longer ones of the better, the survivors going on where they were.

Of a training of T updates, nine rates are trained to T/12, the best four to T/4, the best two to 0.6 T (Jamieson &
Talwalkar 2016, with resumed survivors: 2.9 trainings in all). Each is judged by its loss after a cool-down of a quarter
of its updates, for a short training that ends with a high rate is judged by its noise (Wu et al. 2018). Rungs stop
growing once two of them in turn have the same two rates in front (PASHA, Bohdal et al. 2023). What was best for a
training of the last rung's length is brought to that of the whole by the law the race uses (`search.race.HORIZON`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thalweg.search.candidate import Candidate, Choice, NothingFinite, cool_down, spent
from thalweg.search.race import HORIZON, Make, Measure, bottom

#: (share of the training, how many are trained to it), rung by rung.
RUNGS = ((1 / 12, 9), (1 / 4, 4), (0.6, 2))


@dataclass(frozen=True, slots=True)
class Halved:
    """What halving ended with."""

    rate: float
    best: Candidate
    interval: tuple[float, float]
    """The rates beside the best one."""
    cost: float
    """Updates, in trainings."""
    candidates: tuple[Candidate, ...]


def halve(
    make: Make,
    measure: Measure,
    choices: Sequence[Choice],
    total: int,
    price: float = 0.0,
    budget: float = math.inf,
    tell: Callable[[Sequence[Candidate]], None] = lambda candidates: None,
) -> Halved:
    """Halve.

    Args:
        make: choice → candidate that has not begun.
        measure: the held-out loss of the model as it stands.
        choices: what is tried, the rates at equal ratios; as many as the first rung trains, or any other number.
        total: updates of the training that the rate is for.
        price: what `measure` costs, in updates.
        budget: at most so many trainings; rungs after the first that do not fit in are left out.
        tell: called after each turn with all that were made.

    Raises:
        NothingFinite: no rate gave a finite loss.
    """
    candidates = [make(choice) for choice in sorted(choices, key=lambda c: c.learning_rate)]
    alive, depth = list(candidates), 0
    front: list[Candidate] = []
    for share, count in RUNGS:
        deeper = max(depth + 1, round(share * total))
        kept = alive if depth == 0 else _best(alive, depth, count * len(candidates) // RUNGS[0][1])
        if depth and not _affords(kept, candidates, deeper, price, budget * total):
            break
        for candidate in set(alive) - set(kept):
            candidate.drop()
        alive, depth = kept, deeper
        for candidate in alive:
            candidate.advance(depth)
            candidate.judge(depth, measure)
            tell(candidates)
        ranked, before = _best(alive, depth, 2), front
        if not math.isfinite(ranked[0].scores[depth]):
            raise NothingFinite(candidates)
        front = ranked
        if before and before == ranked:
            break
    return _halved(candidates, front[0], depth, total, price)


def _best(candidates: Sequence[Candidate], depth: int, count: int) -> list[Candidate]:
    return sorted(candidates, key=lambda c: (c.scores[depth], c.choice.learning_rate))[: max(2, count)]


def _affords(
    kept: Sequence[Candidate], candidates: Sequence[Candidate], depth: int, price: float, budget: float
) -> bool:
    to_come = sum(depth - c.step + cool_down(depth) + price for c in kept)
    return spent(candidates, price) + to_come <= budget


def _halved(candidates: list[Candidate], best: Candidate, depth: int, total: int, price: float) -> Halved:
    """The bottom of the parabola through the best and its neighbours, where all three came as far as any did."""
    place = candidates.index(best)
    beside = [candidates[i] if 0 <= i < len(candidates) else None for i in (place - 1, place + 1)]
    known = max((d for d in best.scores if all(c and d in c.scores for c in beside)), default=depth)
    low, high = (c.scores.get(known, math.inf) if c else math.inf for c in beside)
    rate = best.choice.learning_rate
    ratio = next((c.choice.learning_rate / rate for c in beside[::-1] if c), 1.0)
    ratio = max(ratio, 1 / ratio)
    moved = rate * ratio ** bottom(low, best.scores[known], high) * min(1.0, depth / total) ** HORIZON
    moved = float(f"{moved:.3g}")
    ends = [c.choice.learning_rate if c else moved for c in beside]
    interval = (min(ends[0], moved), max(ends[1], moved))
    cost = spent(candidates, price) / total
    return Halved(moved, best, interval, cost, tuple(candidates))
