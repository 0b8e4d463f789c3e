"""What a training is made of, when it stops, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch.optim import Optimizer

from thalweg.loop.metrics import Metrics
from thalweg.loop.saver import Saver
from thalweg.optim.averages import WeightAverage
from thalweg.optim.schedules import Schedule
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.step import StepRecord
from thalweg.signals.signals import Signals
from thalweg.step.batches import Batches
from thalweg.step.whole import Step


class Events(Protocol):
    """Who is told what happens."""

    def step(self, record: StepRecord) -> None: ...  # noqa: D102
    def validated(self, record: StepRecord) -> None: ...  # noqa: D102
    def event(self, event: Finding | Action) -> None: ...  # noqa: D102


@dataclass(slots=True)
class Setup:
    """The parts of a training, all made for each other; none changes while it runs."""

    step: Step
    signals: Signals
    optimizer: Optimizer
    schedule: Schedule
    batches: Batches
    validation: Batches | None
    metrics: Metrics
    held_out_metrics: Metrics
    average: WeightAverage | None
    history: History
    saver: Saver
    events: Events
    has_norm: bool = False
    anneals: bool = False
    watched: bool = False
    looks: bool = False
    mends: str = ""
    """The level of repair; nothing where nothing is mended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: updates, passes, seconds, a target reached, patience spent; None is no limit."""

    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    patience: int | str | None = "auto"
    save_every: int | str | None = "auto"


_COUNTS = (
    "step", "epoch", "position", "epoch_count", "evaluated_at", "best_step", "treated_at", "mended", "mended_at",
    "tried_steps", "good_step", "num_skipped", "skipped_told",
)  # fmt: skip


@dataclass(slots=True)
class Standing:
    """Where a training stands: what changes with every step, epoch or evaluation, and is saved with it."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    window: list[float] = field(default_factory=list)
    epoch_sum: float = 0.0
    epoch_count: int = 0
    evaluated_at: int = 0
    best_step: int | None = None
    best_value: float | None = None
    treated: list[str] = field(default_factory=list)
    """Codes of the findings that repairs were tried against, one for each time."""
    treated_at: int = 0
    mended: int = 0
    """Repairs that were kept, in the order of the run's record."""
    mended_at: int = 0
    """The update since which the training is another one."""
    tried_steps: int = 0
    """Updates made on trial, which are no part of the training."""
    good_step: int = 0
    """The update after which the state lies that would be gone back to."""
    good_loss: float | None = None
    """The loss that it had, where that is known."""
    num_skipped: int = 0
    """Updates that were left out because their gradient was not finite."""
    skipped_told: int = 0
    """How many of them have been told of."""

    def passes(self, per_epoch: int | None) -> float:
        """Passes over the data so far, of so many batches each; fractional inside one."""
        return self.epoch + (self.position / per_epoch if per_epoch else 0.0)

    def add(self, losses: list[float]) -> None:
        """Count losses of updates; one by one, so that sums do not depend on when they were read."""
        self.window += losses
        self.epoch_count += len(losses)
        for loss in losses:
            self.epoch_sum += loss

    def check(self, step: int, per_epoch: int | None) -> None:
        """Refuse numbers that no training has; types are checked by `require_like`.

        Raises:
            ValueError: the message names the field.
        """
        if self.step != step:
            raise ValueError(f"it stands at step {self.step}")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 0 <= value < 2**53):
                raise ValueError(f"{name} is {value!r:.40}, not a count")
        if per_epoch is not None and self.position > per_epoch:
            raise ValueError(f"it stands at batch {self.position} of an epoch, which has {per_epoch}")
        if not all(isinstance(value, float | int) for value in self.window):
            raise ValueError("a loss since the last report is no number")
