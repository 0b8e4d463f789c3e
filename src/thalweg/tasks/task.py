"""What the applications share: first weights that a seed decides; bad data refused or skipped, and always named."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch

#: Places of one kind of fault that are named; the rest are counted.
NAMED = 3

CHOICES = ("refuse", "skip")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn inside follows from the seed alone; the user's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach into every device
        yield


class BadData:
    """Keeps count of what cannot be used.

    With "refuse" the first fault ends the reading; with "skip" it is left out, counted and told.

    Raises:
        ValueError: another choice than these.

    >>> bad = BadData("skip")
    >>> bad.add("cats/7.png", "the image is cut short")
    >>> bad.notes()
    ['Skipped 1: the image is cut short (cats/7.png).']
    """

    def __init__(self, choice: str = "refuse") -> None:
        if choice not in CHOICES:
            raise ValueError(f"on_bad_data takes {' or '.join(CHOICES)}, got {choice!r}")
        self.skips = choice == "skip"
        self._places: dict[str, list[str]] = {}

    def add(self, place: object, what: str) -> None:
        """A fault: `place` is a file, or a file and its line; `what` is wrong there, the same words for the same fault.

        Raises:
            ValueError: bad data is refused.
        """
        if not self.skips:
            raise ValueError(f"{place}: {what}; mend it, or leave such out with --on-bad-data skip")
        self._places.setdefault(what, []).append(str(place))

    @property
    def counts(self) -> Counter[str]:
        """How often each fault was met."""
        return Counter({what: len(places) for what, places in self._places.items()})

    def notes(self) -> list[str]:
        """A sentence for each kind of fault, with its first places."""
        found = []
        for what, places in self._places.items():
            more = f" and {len(places) - NAMED:,} more" if len(places) > NAMED else ""
            found.append(f"Skipped {len(places):,}: {what} ({', '.join(places[:NAMED])}{more}).")
        return found
