"""What is likely to be said: a model of the next letter (or word) from the last few, counted in a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

#: Begins and ends every sentence.
EDGE = "\n"


class LanguageModel:
    """p(c | the last `order` − 1 units), smoothed as Witten & Bell 1991 (method C) do:

        p(c | h) = (n(h, c) + T(h) · p(c | h′)) / (n(h) + T(h))

    with n counts, T(h) how many different units followed h, h′ the history without its oldest unit, and 1 / (units + 1)
    below the empty history. Units are strings; a sentence is a sequence of them.
    """

    def __init__(self, units: Sequence[str], sentences: Iterable[Sequence[str]], order: int = 6) -> None:
        self.order = order
        self.floor = 1 / (len(units) + 1)
        self.counts: dict[tuple[str, ...], dict[str, int]] = {}
        self._known: dict[tuple[str, ...], dict[str, float]] = {}
        for sentence in sentences:
            line = (*sentence, EDGE)
            for place, unit in enumerate(line):
                past = self._past(line[:place])
                for start in range(len(past) + 1):
                    followers = self.counts.setdefault(past[start:], {})
                    followers[unit] = followers.get(unit, 0) + 1

    def log_probability(self, unit: str, past: Sequence[str]) -> float:
        """The log-probability of a unit (or of `EDGE`, the end) after the units `past`."""
        return self.after(self._past(past), unit)

    def after(self, history: tuple[str, ...], unit: str) -> float:
        """The same for a history that is short enough: what `next` gives."""
        known = self._known.setdefault(history, {})
        if unit not in known:
            known[unit] = math.log(self._probability(unit, history))
        return known[unit]

    def start(self) -> tuple[str, ...]:
        """The history before the first unit."""
        return (EDGE,) if self.order > 1 else ()

    def next(self, history: tuple[str, ...], unit: str) -> tuple[str, ...]:
        """The history after one more unit: no longer than what was ever counted."""
        longer = (*history, unit)[-(self.order - 1) :] if self.order > 1 else ()
        while longer and longer not in self.counts:
            longer = longer[1:]
        return longer

    def perplexity(self, sentences: Iterable[Sequence[str]]) -> float:
        """The exponential of the mean −log p over units and ends of sentences."""
        total, count = 0.0, 0
        for sentence in sentences:
            line = (*sentence, EDGE)
            total -= sum(self.log_probability(unit, line[:place]) for place, unit in enumerate(line))
            count += len(line)
        return math.exp(total / count)

    def _past(self, units: Sequence[str]) -> tuple[str, ...]:
        return (EDGE, *units)[-(self.order - 1) :] if self.order > 1 else ()

    def _probability(self, unit: str, history: tuple[str, ...]) -> float:
        probability = self.floor
        for start in range(len(history), -1, -1):
            followers = self.counts.get(history[start:])
            if followers is not None:
                total, kinds = sum(followers.values()), len(followers)
                probability = (followers.get(unit, 0) + kinds * probability) / (total + kinds)
        return probability
