"""Where a search looks: a range of rates, and further dimensions of the rule where the user names some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thalweg.optim import catalogue
from thalweg.search.candidate import Choice
from thalweg.step.losses import unknown

#: What `also` takes, for its errors.
FORMS = "a pair (low, high) for a logarithmic range, or a list of at least two values"


@dataclass(frozen=True, slots=True)
class Range:
    """Positive numbers from low to high, equal factors apart."""

    low: float
    high: float

    def at(self, share: float) -> float:
        """The number that lies at a share of the way, to twelve digits; both ends are exact.

        >>> Range(0.01, 1.0).at(0.5)
        0.1
        """
        if share in (0.0, 1.0):
            return self.high if share else self.low
        return float(f"{self.low * (self.high / self.low) ** share:.12g}")


@dataclass(frozen=True, slots=True)
class Values:
    """One of a few."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value that lies at a share in [0, 1]; all have equal parts of it."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True, slots=True)
class Space:
    """The dimensions of a search, by name; the rule is fixed."""

    optimizer: str
    learning_rate: Range
    also: Mapping[str, Range | Values] = field(default_factory=dict)

    def choice(self, learning_rate: float, options: Mapping[str, Any]) -> Choice:
        """What a candidate is trained with at one point."""
        return Choice(learning_rate, self.optimizer, options=tuple(options.items()))

    def as_words(self) -> dict[str, Any]:
        """What two searches must share to be of one study, as JSON holds it."""
        return {
            "optimizer": self.optimizer,
            "bracket": [self.learning_rate.low, self.learning_rate.high],
            "also": {name: _words(dimension) for name, dimension in self.also.items()},
        }


def space(optimizer: Any, low: float | None, high: float | None, also: Mapping[str, Any] | None) -> Space:
    """The space that was asked for; a bound that was not is the rule's own.

    Raises:
        ValueError: an unknown rule, a bound that is no rate, a bracket upside down, a dimension with one value.
        TypeError: an optimizer object, a dimension that the rule has not or that is of the wrong form.
    """
    if not isinstance(optimizer, str):
        raise TypeError(
            f"a search makes an optimizer for each rate: give a rule's name such as 'adamw', got {_kind(optimizer)}"
        )
    rule = catalogue.AUTO if optimizer == "auto" else optimizer
    if rule not in catalogue.RULES:
        raise ValueError(unknown("optimizer", optimizer, list(catalogue.RULES)))
    bracket = Range(
        *(_bound(word, value, own) for word, value, own in zip(("low", "high"), (low, high), _own(rule), strict=True))
    )
    if bracket.low >= bracket.high:
        whose = "" if None not in (low, high) else f" ({rule}'s own {'low' if low is None else 'high'})"
        raise ValueError(f"low must be below high, got low={bracket.low:g} and high={bracket.high:g}{whose}")
    return Space(rule, bracket, _dimensions(rule, also))


def _own(rule: str) -> tuple[float, float]:
    return catalogue.RULES[rule].range


def _bound(word: str, value: Any, own: float) -> float:
    if value is None:
        return own
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{word} takes a learning rate, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{word} must be a number above 0, got {value}")
    return float(value)


def _dimensions(rule: str, also: Mapping[str, Any] | None) -> dict[str, Range | Values]:
    """Read `also`; sorted, so that the order in which they were written means nothing."""
    if also is not None and not isinstance(also, Mapping):
        raise TypeError(
            f"also takes a dict of options and where to look, as in {{'weight_decay': (1e-4, 0.3)}}: {also!r}"
        )
    known = catalogue.options_of(rule)
    for name in also or {}:
        if name not in known:
            raise TypeError(unknown(f"option of {rule}", name, known))
    return {name: _dimension(name, (also or {})[name]) for name in sorted(also or {})}


def _dimension(name: str, given: Any) -> Range | Values:
    if isinstance(given, tuple) and len(given) == 2 and all(_is_number(end) for end in given):
        if not 0 < given[0] < given[1] < math.inf:
            raise ValueError(f"{name} in also takes a range of numbers above 0, the lower first, got {given}")
        return Range(float(given[0]), float(given[1]))
    if isinstance(given, list) and len(given) >= 2:
        return Values(tuple(given))
    raise TypeError(f"{name} in also takes {FORMS}, got {given!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _words(dimension: Range | Values) -> Any:
    if isinstance(dimension, Range):
        return [dimension.low, dimension.high]
    return {"values": list(dimension.values)}
