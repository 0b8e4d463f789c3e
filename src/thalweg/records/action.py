"""What was changed in a running training: before, after, kept or undone, why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """One change made at `step`: the settings it touched `before` and `after`, and whether it was `kept`.

    `lines` are the same change in a program of the user's own; `print(action)` shows them.

    >>> print(
    ...     Action(
    ...         "rate",
    ...         120,
    ...         {"learning_rate": 3.0},
    ...         {"learning_rate": 0.1},
    ...         True,
    ...         "The loss goes up and down.",
    ...         ["fit(…, learning_rate=0.1)"],
    ...     )
    ... )
    Step 120, rate, kept: The loss goes up and down.
        fit(…, learning_rate=0.1)
    """

    code: str
    step: int
    before: Mapping[str, float | str]
    after: Mapping[str, float | str]
    kept: bool
    reason: str
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = f"Step {self.step:,}, {self.code}, {'kept' if self.kept else 'undone'}: {self.reason}"
        return "\n    ".join([told, *self.lines])
