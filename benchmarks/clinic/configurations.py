"""All configurations of the clinic: what is trained, and what was done to it on purpose.

    python benchmarks/clinic/configurations.py

prints how many there are of each kind. A configuration is a family under a rule at its tuned rate, with changes; its
runs differ in the seed alone.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import changes as changing
import data
import families
import recording
from references import rates

KINDS = ("reference", "healthy", "hard_healthy", "sick")
Group = tuple[str, ...]
"""Codes of which each names an injected cause rightly, the plainest first."""


@dataclass(frozen=True)
class Change:
    """A function of changes.py and its numbers."""

    name: str
    numbers: tuple[tuple[str, Any], ...] = ()

    def __call__(self, case: families.Case) -> None:
        getattr(changing, self.name)(case, **dict(self.numbers))


def change(name: str, /, **numbers: Any) -> Change:
    return Change(name, tuple(numbers.items()))


@dataclass(frozen=True)
class Configuration:
    """One training of the clinic, but for the seed."""

    family: str
    rule: str
    kind: str
    title: str
    """Of what was done, in words with hyphens."""
    changes: tuple[Change, ...] = ()
    sickness: int = 0
    """Number on the page of sicknesses, 1 to 17; 0 of what is not sick on purpose."""
    grade: str = ""
    """`mild` or `severe`."""
    causes: tuple[Group, ...] = ()
    symptoms: Group = ()
    is_divergent: bool = False
    """Whether it is of the kind that has to be said early."""
    reach: float | None = None
    """The score that the task allows, where it is not the family's own task."""
    in_time: bool = True
    """Whether to be slow is to be sick."""

    @property
    def name(self) -> str:
        return "/".join(word for word in (self.family, self.rule, self.title, self.grade) if word)

    def case(self, folder: Path = data.DATA) -> families.Case:
        """The training, before the model is built."""
        case = families.case(self.family, self.rule, rates()[self.family][self.rule]["rate"], folder)
        for done in self.changes:
            done(case)
        return case

    def fingerprint(self) -> str:
        """Of everything that its runs follow from, but for the package itself (`recording.VERSION`)."""
        of = families.FAMILIES[self.family]
        parts = [
            repr((recording.VERSION, self.family, self.rule, rates()[self.family][self.rule]["rate"], self.changes)),
            repr((of.words, of.data, of.loss, of.batch_size, of.epochs)),
            *sorted({_source(c.name) for c in self.changes}),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


@cache
def _source(name: str) -> str:
    return inspect.getsource(getattr(changing, name))


@cache
def every() -> tuple[Configuration, ...]:
    """References, healthy and hard-healthy ones and sick ones, in the order in which they are recorded.

    Kinds take turns, so that a recording that is cut off holds some of everything.
    """
    import hard_healthy
    import healthy
    import sicknesses

    found = [*healthy.references(), *_mixed(healthy.variants(), hard_healthy.table(), sicknesses.table())]
    names = [c.name for c in found]
    assert len(set(names)) == len(names), [name for name, count in Counter(names).items() if count > 1]
    return tuple(found)


def _mixed(*lists: list[Configuration]) -> list[Configuration]:
    placed = [(i / len(some), found) for some in lists for i, found in enumerate(some)]
    return [found for _, found in sorted(placed, key=lambda pair: pair[0])]


def by_name() -> dict[str, Configuration]:
    return {c.name: c for c in every()}


def main() -> None:
    print(*Counter(c.kind for c in every()).items(), sep="\n")
    print(*sorted(Counter((c.sickness, c.grade) for c in every() if c.kind == "sick").items()), sep="\n")
    print(*Counter(c.rule for c in every()).items(), *Counter(c.family for c in every()).items(), sep="\n")


__all__ = ["KINDS", "Change", "Configuration", "by_name", "change", "every"]

if __name__ == "__main__":
    main()
