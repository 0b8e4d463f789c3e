"""One change of a training: what it is made of, in plain words, so that it can be told, repeated and undone.

A change is determined by its words and the body it is applied to: a run that is resumed applies it again to the user's
own model before the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from thalweg.records.settings import Settings
from thalweg.step.data import Data
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss

#: What models and data raise where something does not fit them.
UNFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError)

Words = Mapping[str, float | str]
Undo = Callable[[], None]


@dataclass(slots=True)
class Body:
    """What a change may touch: the model in place, loss and settings by putting others in their stead."""

    forward: Forward
    loss: Loss | None
    settings: Settings
    sample: Any
    """`(x, y)`: examples of the training data, on the model's device."""
    rate: float
    """The learning rate that the schedule multiplies."""
    step: int = 0
    """Updates made so far."""
    restarted_at: int = 0
    """The update from which the schedule counts."""
    is_warm: bool = False
    """Whether the schedule begins after its warm-up."""
    recut_at: tuple[int, int] | None = None
    """Updates and passes that were made when batches came to be cut otherwise."""
    skips: bool = False
    """Whether a batch whose gradient is not finite is left out."""
    data: Data | None = None
    """What is trained on."""
    kept: list[int] | None = None
    """The examples that are left, where some were set aside."""
    forgets: bool = False
    """Whether the rule begins anew, without what it kept of earlier gradients."""
    undos: list[tuple[int, Undo]] = field(default_factory=list)
    """How to undo what was kept, by the update after which it was made."""

    @property
    def model(self) -> nn.Module:
        """The user's own module."""
        return self.forward.model


class Change(Protocol):
    """A kind of change."""

    code: str
    level: str
    """`safe` or `full`: from which level of repair on it is made."""

    def words(self, body: Body) -> Words | None:
        """What it would do here; None where there is nothing for it to do."""

    def apply(self, body: Body, words: Words) -> Undo:
        """Change the body; returns what puts it back exactly as it was."""

    def lines(self, words: Words) -> list[str]:
        """The same in the user's own code."""


def as_count(value: float | str) -> int:
    """A word that is a whole number."""
    return int(value)


def names(value: float | str) -> list[str]:
    """A word that lists modules: their names, parted by spaces.

    >>> names("0 2 layers.4")
    ['0', '2', 'layers.4']
    """
    return str(value).split()
