"""What `find_lr` may be asked for, and each of its methods."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from thalweg.optim import catalogue
from thalweg.records.learning_rate import LearningRate
from thalweg.records.settings import plain_number, positive, unknown, whole
from thalweg.run.candidates import Maker
from thalweg.run.race import RULES, Sample, Stage, expected_steps, is_long, lane
from thalweg.run.trainings import Trainings
from thalweg.search import grid, halving, random, tpe
from thalweg.search import range as ranges
from thalweg.search.candidate import Choice
from thalweg.search.race import CAP, Lane
from thalweg.search.result import Searched, bracketed, halved, judged, raced
from thalweg.search.space import Space, space
from thalweg.search.study import opened, share

#: Words that a method has no use for; those that the race has none for count only where a race is run.
REFUSED = {"halving": ("also", "storage"), "range": ("trials", "also", "storage", "budget")}


@dataclass(frozen=True, slots=True)
class Search:
    """What `find_lr` is asked for, in its words.

    Raises:
        ValueError, TypeError: see `find_lr`.
    """

    method: str = "auto"
    optimizer: str = "adamw"
    low: float | None = None
    high: float | None = None
    trials: int | None = None
    budget: float | None = None
    also: Mapping[str, Any] | None = None
    storage: str | os.PathLike[str] | None = None
    seed: int = 0
    space: Space = field(init=False)
    """Where it looks."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise TypeError(f"method takes a word, one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, list(METHODS)))
        for word in ("trials", "budget", "low", "high", "seed"):
            object.__setattr__(self, word, plain_number(getattr(self, word)))
        if self.trials is not None:
            whole("trials", self.trials)
            if self.trials < 2:
                raise ValueError(f"trials must be at least 2, or there is nothing to choose from, got {self.trials}")
        if self.budget is not None:
            positive("budget", self.budget)
        object.__setattr__(self, "space", space(self.optimizer, self.low, self.high, self.also))
        self.refuse(*REFUSED.get(self.method, ()))
        if self.method == "grid":
            grid.points(self.space, self.trials, self.budget)
        elif self.method in ("random", "tpe", "asha"):
            self.num_trials(2)

    def refuse(self, *words: str) -> None:
        """Say that a method does not take some of the words, where they were given.

        Raises:
            ValueError: one was given.
        """
        given = [word for word in words if getattr(self, word) is not None]
        if given:
            raise ValueError(f"method {self.method!r} takes no {given[0]}: give method='grid', 'random' or 'tpe'")

    def num_trials(self, default: int) -> int:
        """Trials of a search whose trials are trainings."""
        found = self.trials if self.trials is not None else default
        if self.budget is None:
            return found
        if self.budget < 2:
            raise ValueError(f"budget is in trainings, and {self.method} needs at least 2, got {self.budget:g}")
        return min(found, int(self.budget))


def _searched(search: Search, trainings: Trainings) -> Searched:
    return Searched(
        method=search.method,
        bracket=(search.space.learning_rate.low, search.space.learning_rate.high),
        loss_name=trainings.loss_name,
        updates=trainings.updates,
        options={"optimizer": search.space.optimizer},
        note=trainings.note,
    )


def _auto(search: Search, trainings: Trainings) -> LearningRate:
    """The race; trainings too short for one are short enough for a grid of them."""
    prepared = trainings.prepared
    if not is_long(prepared.chosen, expected_steps(prepared.chosen)):
        return _grid(replace(search, method="grid"), trainings)
    search.refuse("trials", "also", "storage")
    maker = Maker(prepared.chosen, prepared.forward, prepared.loss, trainings.settings)
    race = Stage(maker, trainings.display.race).begin()
    race.cap = CAP if search.budget is None else search.budget
    won = race.run(*_lanes(search))
    return raced(won, race.spent / race.total, _searched(search, trainings))


def _lanes(search: Search) -> list[Lane]:
    """The rates of a race: about the rule's own, if that is among those to try; a bracket is that of one rule."""
    where = search.space
    if search.optimizer == "auto" and search.low is None and search.high is None:
        return [lane(name) for name in RULES]
    own, bracket = catalogue.RULES[where.optimizer].learning_rate, where.learning_rate
    middle = own if bracket.low <= own <= bracket.high else bracket.at(0.5)
    return [Lane(Choice(middle, where.optimizer), bracket.low, bracket.high)]


def _grid(search: Search, trainings: Trainings) -> LearningRate:
    choices = grid.points(search.space, search.trials, search.budget)
    return _shared(search, trainings, choices, rates=len({choice.learning_rate for choice in choices}))


def _random(search: Search, trainings: Trainings) -> LearningRate:
    count = search.num_trials(random.TRIALS)
    return _shared(search, trainings, [random.point(search.space, search.seed, number) for number in range(count)])


def _shared(search: Search, trainings: Trainings, choices: list[Choice], **words: Any) -> LearningRate:
    """Trials that are known beforehand, shared among all processes that have the storage."""
    told = trainings.display
    told.total = len(choices)
    words = {"method": search.method, **search.space.as_words(), **words}
    with opened(search.storage, trainings.identity(**words)) as study:
        numbers = range(len(choices))
        found = share(study, numbers, lambda number: trainings.run(number, choices[number]), told.waiting)
    return judged(found, _searched(search, trainings))


def _halving(search: Search, trainings: Trainings) -> LearningRate:
    """Successive halving over rates at equal ratios."""
    prepared = trainings.prepared
    total = expected_steps(prepared.chosen)
    sample = Sample(prepared.chosen, prepared.forward, prepared.loss, total, search.seed)
    count = search.trials or halving.RUNGS[0][1]
    choices = [search.space.choice(search.space.learning_rate.at(i / (count - 1)), {}) for i in range(count)]
    trainings.display.total = count
    budget = math.inf if search.budget is None else search.budget
    told = trainings.display.halving
    return halved(
        halving.halve(trainings, sample, choices, total, sample.price, budget, told), _searched(search, trainings)
    )


def _range(search: Search, trainings: Trainings) -> LearningRate:
    """The range test: an interval; the rate is only its middle."""
    prepared = trainings.prepared
    rule = catalogue.RULES[search.space.optimizer]
    low = rule.range[0] / ranges.WIDTH if search.low is None else search.low
    high = rule.range[1] * ranges.WIDTH if search.high is None else search.high
    total = expected_steps(prepared.chosen)

    def sweep(seed: int, rates: Sequence[float]) -> list[float]:
        return trainings(search.space.choice(low, {})).sweep(rates, seed)

    found = ranges.range_test(sweep, low, high, trainings.stability(search.space.optimizer))
    return bracketed(found, found.steps / total, _searched(search, trainings))


def _optuna(search: Search, trainings: Trainings) -> LearningRate:
    count = search.num_trials(tpe.TRIALS)
    trainings.display.total = count
    asked = tpe.Asked(search.space, count, search.seed, search.method == "asha", trainings.evaluations)
    words = {"method": search.method, **search.space.as_words()}
    found = tpe.search(asked, trainings.run, search.storage, trainings.identity(**words))
    return judged(found, _searched(search, trainings))


METHODS: dict[str, Callable[[Search, Trainings], LearningRate]] = {
    "auto": _auto,
    "grid": _grid,
    "random": _random,
    "tpe": _optuna,
    "asha": _optuna,
    "halving": _halving,
    "range": _range,
}
