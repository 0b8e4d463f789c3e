"""Who is told what happens in a run: its own record, the display, the user's callbacks."""

from __future__ import annotations

import sys
from typing import Any

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings
from thalweg.records.step import StepRecord
from thalweg.run.recipe import listed
from thalweg.run.run import Run


class Telling:
    """Passes events on; the live numbers of the run are brought up to date first."""

    def __init__(self, record: RunRecord, settings: Settings) -> None:
        self.record = record
        self.run: Run | None = None
        self.callbacks = listed(settings.callbacks)
        self.verbose = settings.verbose
        self._started = False

    def start(self) -> None:
        """Before the first update, and before a search for what it is made with; only once."""
        if self._started:
            return
        self._started = True
        if self.verbose:
            from thalweg.reports.terminal import Terminal

            self.callbacks = [*self.callbacks, Terminal()]  # last, to name the report if one of the others wrote it
        self._tell("on_start")

    def search(self, words: str) -> None:
        """While candidates are trained of which one will be the run's own: how it stands."""
        self._tell("on_search", words)

    def step(self, record: StepRecord) -> None:
        """After a reported update."""
        self._stand(record)
        self._tell("on_step", record)

    def validated(self, record: StepRecord) -> None:
        """After an evaluation."""
        self._stand(record)
        self._tell("on_validate", record)

    def event(self, event: Finding | Action) -> None:
        """Something was found or changed."""
        self._tell("on_event", event)

    def end(self) -> None:
        """After the last update."""
        self._tell("on_end")

    def warn(self, sentence: str) -> None:
        """Something the user should read: kept with the run, and said at once."""
        if sentence not in self.record.notes:
            self.record.notes.append(sentence)
            if self.verbose:
                print(f"\nthalweg: {sentence}", file=sys.stderr)

    def _stand(self, record: StepRecord) -> None:
        self.record.steps, self.record.epochs, self.record.seconds = record.step, record.epoch, record.seconds

    def _tell(self, word: str, *what: Any) -> None:
        for callback in self.callbacks:
            if (method := getattr(callback, word, None)) is not None:
                method(self.run, *what)
