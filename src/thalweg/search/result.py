"""Trials → the learning rate that is best, the rates that do as well, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.records.learning_rate import LearningRate, Trial
from thalweg.search.candidate import Candidate
from thalweg.search.halving import Halved
from thalweg.search.race import Won
from thalweg.search.range import Bracket

#: Share of the best loss within which another rate does as well: what a search of ours is held to by its bench
#: (`benchmarks/search`). It is no measure of noise: trials share seed and batches, so that noise is not seen in them.
AS_WELL = 0.02


@dataclass(frozen=True, slots=True)
class Searched:
    """What the trials were trials of."""

    method: str
    bracket: tuple[float, float]
    loss_name: str
    """As it is said: validation loss, or training loss."""
    updates: int | None
    """Of one training, where its length is known."""
    options: Mapping[str, Any]
    """What all trials share and the rate is found for: the rule."""
    note: str = ""
    """One more sentence."""


def judged(trials: Sequence[Trial], searched: Searched) -> LearningRate:
    """The best of the trials that ran to their end.

    Raises:
        ValueError: none of them has a finite loss; the message says at which rates, from which update on, and why.
    """
    finite = [trial for trial in trials if trial.state != "diverged" and math.isfinite(trial.loss)]
    complete = [trial for trial in finite if trial.state == "complete"]
    if not complete:
        raise ValueError(_nowhere(trials))
    best = min(complete, key=lambda trial: (trial.loss, trial.learning_rate))
    curve = curve_of(complete)
    interval = as_well(curve, best.learning_rate)
    one = searched.updates or max(trial.steps for trial in complete)
    cost = sum(trial.steps for trial in trials) / max(1, one)
    return LearningRate(
        value=best.learning_rate,
        interval=interval,
        curve=curve,
        cost=cost,
        method=searched.method,
        sentence=_sentence(best, trials, interval, cost, searched),
        options={**searched.options, **best.options},
        trials=tuple(trials),
    )


def raced(won: Won, cost: float, searched: Searched) -> LearningRate:
    """What a race ended with. By itself it is not the beginning of a training, so all its updates are its cost."""
    won_by, tried_of = won.candidate.choice.optimizer, [c.choice.optimizer for c in won.candidates]
    deepest = max(max(candidate.scores, default=0) for candidate in won.candidates)
    several = len(set(tried_of)) > 1
    trials = tuple(_of_race(number, c, deepest, several) for number, c in enumerate(won.candidates))
    own = [trial for trial, rule in zip(trials, tried_of, strict=True) if rule == won_by]
    rate = min(max(won.rate, won.lane.low), won.lane.high)
    low, high = min(won.interval[0], rate), max(won.interval[1], rate)
    tried = sorted(trial.learning_rate for trial in own)
    others = "".join(f", and {tried_of.count(rule)} of {rule}" for rule in dict.fromkeys(tried_of) if rule != won_by)
    sentence = (
        f"{plain(rate)}{f' with {won_by}' if several else ''} came out of a race of {len(own)} rates from "
        f"{plain(tried[0])} to {plain(tried[-1])}{others}; expect rates from {plain(low)} to {plain(high)} to do "
        f"about as well. It cost {cost:.2g} trainings. {searched.note}"
    )
    return LearningRate(
        value=rate,
        interval=(low, high),
        curve=curve_of([trial for trial in own if trial.state == "complete"]),
        cost=cost,
        method="race",
        sentence=sentence.strip(),
        options={**searched.options, "optimizer": won_by},
        trials=trials,
    )


def halved(found: Halved, searched: Searched) -> LearningRate:
    """What successive halving ended with."""
    deepest = max(max(c.scores, default=0) for c in found.candidates)
    trials = tuple(_of_race(number, candidate, deepest) for number, candidate in enumerate(found.candidates))
    low, high = found.interval
    sentence = (
        f"{plain(found.rate)} came out of halving {len(trials)} rates from {plain(trials[0].learning_rate)} to "
        f"{plain(trials[-1].learning_rate)}; rates from {plain(low)} to {plain(high)} were not told apart. It cost "
        f"{found.cost:.2g} trainings{_lost(trials)}. {searched.note}"
    )
    return LearningRate(
        value=found.rate,
        interval=(low, high),
        curve=tuple((t.learning_rate, t.loss) for t in trials if math.isfinite(t.loss)),
        cost=found.cost,
        method=searched.method,
        sentence=sentence.strip(),
        options=searched.options,
        trials=trials,
    )


def bracketed(found: Bracket, cost: float, searched: Searched) -> LearningRate:
    """What a range test ended with."""
    middle = float(f"{math.sqrt(found.low * found.high):.3g}")
    left = [rate for rate in found.diverged_at if math.isfinite(rate)]
    where = f"Training falls apart at about {plain(found.high)}" if left else "Training fell apart at no rate"
    sentence = (
        f"{where}: look between {plain(found.low)} and {plain(found.high)}. A range test only brackets; "
        f"{plain(middle)} is no more than the middle, and method='auto' finds the rate. It cost {cost:.2g} trainings. "
        f"{searched.note}"
    )
    return LearningRate(
        value=middle,
        interval=(found.low, found.high),
        curve=found.curve,
        cost=cost,
        method=searched.method,
        sentence=sentence.strip(),
        options=searched.options,
    )


def _of_race(number: int, candidate: Candidate, deepest: int, with_rule: bool = False) -> Trial:
    """A candidate by the score of its last rung."""
    step = max(candidate.scores, default=0)
    loss = candidate.scores.get(step, math.inf)
    state = "diverged" if not math.isfinite(loss) else "complete" if step == deepest else "dropped"
    options = dict(candidate.choice.options) | ({"optimizer": candidate.choice.optimizer} if with_rule else {})
    return Trial(number, candidate.choice.learning_rate, loss, step, state, options)


def curve_of(trials: Sequence[Trial]) -> tuple[tuple[float, float], ...]:
    """(rate, loss) in the order of rates; of several trials with one rate the best."""
    lowest: dict[float, float] = {}
    for trial in trials:
        lowest[trial.learning_rate] = min(trial.loss, lowest.get(trial.learning_rate, math.inf))
    return tuple(sorted(lowest.items()))


def as_well(curve: Sequence[tuple[float, float]], rate: float) -> tuple[float, float]:
    """The rates around one of a curve, without a gap, whose loss is within `AS_WELL` of its own.

    >>> as_well([(0.1, 1.01), (0.2, 3.0), (0.4, 1.02), (0.8, 1.0), (1.6, 1.05)], 0.8)
    (0.4, 0.8)
    """
    rates = [at for at, _ in curve]
    place = rates.index(rate)
    best = curve[place][1]
    enough = best + AS_WELL * abs(best)
    low = high = place
    while low > 0 and curve[low - 1][1] <= enough:
        low -= 1
    while high < len(curve) - 1 and curve[high + 1][1] <= enough:
        high += 1
    return rates[low], rates[high]


def plain(rate: float) -> str:
    """A rate as it is said, in two digits."""
    return f"{rate:.2g}"


def _option(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _sentence(
    best: Trial, trials: Sequence[Trial], interval: tuple[float, float], cost: float, searched: Searched
) -> str:
    rates = len({trial.learning_rate for trial in trials})
    of = f"{rates} rates" if rates == len(trials) else f"{len(trials)} trials at {rates} rates"
    low, high = (plain(end) for end in searched.bracket)
    chosen = "".join(f" with {name} {_option(value)}" for name, value in best.options.items())
    also = f"; rates from {plain(interval[0])} to {plain(interval[1])} do as well" if interval[0] < interval[1] else ""
    parts = [
        f"{plain(best.learning_rate)}{chosen} was best of {of} from {low} to {high}: "
        f"{searched.loss_name} {best.loss:.4g}{also}.",
        _at_the_end(best.learning_rate, searched.bracket),
        f"It cost {cost:.3g} training{'' if f'{cost:.3g}' == '1' else 's'}{_lost(trials)}.",
        searched.note,
    ]
    return " ".join(part for part in parts if part)


def _at_the_end(rate: float, bracket: tuple[float, float]) -> str:
    """A best rate at the end of the bracket may be the best of a slope."""
    if rate == bracket[0]:
        return "It is the lowest that was tried: give a lower low to see whether the best lies below."
    if rate == bracket[1]:
        return "It is the highest that was tried: give a higher high to see whether the best lies above."
    return ""


def _lost(trials: Sequence[Trial]) -> str:
    """How many did not come to their end."""
    dropped, diverged = (sum(trial.state == state for trial in trials) for state in ("dropped", "diverged"))
    told = [f"{dropped} dropped early"] if dropped else []
    told += [f"{diverged} diverged"] if diverged else []
    return f"; {', '.join(told)}" if told else ""


def _nowhere(trials: Sequence[Trial]) -> str:
    """Why no trial has a finite loss."""
    told = sorted(trials, key=lambda trial: trial.learning_rate)
    rates = [trial.learning_rate for trial in told]
    words = "; ".join(f"at {plain(trial.learning_rate)} {trial.reason}" for trial in _ends(told))
    if all("before the first update" in trial.reason for trial in told):
        advice = "the rate is not to blame: look at the inputs, the targets, the first weights and the loss"
    else:
        advice = "give a lower low, or scale the inputs and targets to about unit size"
    return f"no rate from {plain(rates[0])} to {plain(rates[-1])} gave a finite loss ({words}): {advice}"


def _ends(trials: Sequence[Trial]) -> list[Trial]:
    """The lowest and the highest stand for all between where there are many."""
    return list(trials) if len(trials) <= 3 else [trials[0], trials[len(trials) // 2], trials[-1]]
