"""What was changed in a running training: before, after, kept or undone, why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """One change made at `step`: the settings it touched `before` and `after`, and whether it was `kept`."""

    code: str
    step: int
    before: Mapping[str, float | str]
    after: Mapping[str, float | str]
    kept: bool
    reason: str
