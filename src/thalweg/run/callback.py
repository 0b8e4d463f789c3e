"""What a user's own code may do while a training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.step import StepRecord

if TYPE_CHECKING:
    from thalweg.run.run import Run


class Callback:
    """Override what is of interest; any object that has some of these methods will do as well.

    `run` is live: its history, steps and seconds stand where the training stands.
    """

    def on_start(self, run: Run) -> None:
        """Before the first update."""

    def on_step(self, run: Run, record: StepRecord) -> None:
        """After an update that is reported: each of the first twenty, then every tenth."""

    def on_validate(self, run: Run, record: StepRecord) -> None:
        """After an evaluation: at the end of each epoch."""

    def on_event(self, run: Run, event: Finding | Action) -> None:
        """Something was found wrong, or was changed."""

    def on_end(self, run: Run) -> None:
        """After the last update, the verdict reached and the weights in place."""
