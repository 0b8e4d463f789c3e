"""What a search for the learning rate found: the rate, how sure that is, what was tried, and what it cost."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, whole or in part, with one choice."""

    number: int
    learning_rate: float
    loss: float
    """What it was judged by [units of the loss]; infinite where it diverged."""
    steps: int
    """Updates that it was trained for."""
    state: str = "complete"
    """complete, dropped (another was better) or diverged."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else differs: optimizer, batch_size, weight_decay, momentum."""
    reason: str = ""
    """Why it ended early, for a person."""


@dataclass(frozen=True, slots=True)
class LearningRate:
    """A learning rate that was searched for; `fit(learning_rate=…)` takes it like a number."""

    value: float
    interval: tuple[float, float]
    """Rates that do as well within what could be told apart; of a range test, its bracket."""
    curve: tuple[tuple[float, float], ...]
    """(rate, loss) in the order of rates, the longest trials; those that diverged are left out."""
    cost: float
    """Updates of the search, in trainings of the length it was for."""
    method: str
    sentence: str
    """The result for a person."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What was chosen besides: optimizer, batch_size, weight_decay, momentum."""
    trials: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        assert 0 < self.value < math.inf and self.interval[0] <= self.interval[1], self

    def __float__(self) -> float:
        return self.value

    def picture(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture to a file: a page (.html) that needs nothing else, or an .svg.

        Raises:
            ValueError: a name with another ending, or a file that cannot be written.
        """
        from thalweg.reports.learning_rate_svg import write

        return write(self, Path(path))

    def plot(self) -> Any:
        """Loss against rate, with the interval and what diverged: a plotly figure."""
        from thalweg.reports.learning_rate import figure

        return figure(self)
