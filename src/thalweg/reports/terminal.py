"""A training on the terminal: one live line while it runs, a summary that a person understands when it is done."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord
from thalweg.reports.line import PLAIN, Line
from thalweg.reports.summary import RunView, rule, summary
from thalweg.reports.words import (
    VALIDATION,
    changed,
    clock,
    counted,
    measured,
    number,
    of_layer,
    plain,
    printable,
    rounded,
    share,
    spoken,
    width_of,
)

#: Seconds over which the speed is taken: long enough to span a validation, short enough to notice a change.
_SPEED_OVER = 20.0
#: Epochs from which their count alone says how far a training is.
_MANY_EPOCHS = 10
#: What the opening line counts.
_SIZES = {"num_parameters": "parameter", "num_examples": "example"}


class Terminal(Line):
    """The callback that shows a training; `on_step` reads the clock and nearly always returns."""

    def __init__(self, stream: TextIO | None = None, report: Path | None = None) -> None:
        super().__init__(stream)
        self.report = report
        self._told: set[tuple[str, str]] = set()
        self._pace: deque[tuple[float, int]] = deque()

    def on_start(self, run: RunView) -> None:
        """Say what is trained, on what and how."""
        self._pace.clear()
        self._due = time.monotonic() + (0.0 if self._live else PLAIN)
        self._say(opening(run.record))

    def on_search(self, run: RunView, words: str) -> None:
        """Show how the choice of what was left open stands, if it is time to."""
        if self._is_due(time.monotonic()):
            self._show([words])

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """Show progress if it is time to."""
        now = time.monotonic()
        if not self._is_due(now):
            return
        self._pace.append((now, record.step))
        while now - self._pace[0][0] > _SPEED_OVER and len(self._pace) > 2:
            self._pace.popleft()
        self._show(progress(run, record, self._speed()))

    def on_validate(self, run: RunView, record: StepRecord) -> None:
        """Validation is shown with the next line: a sixth look a second would not be read."""

    def on_event(self, run: RunView, event: Finding | Action) -> None:
        """Tell a warning, the first time it is raised at its place, and every change to the training."""
        if isinstance(event, Action):
            kept = "" if event.kept else " (undone)"
            change = changed(event.before, event.after)
            self._say(printable(f"step {number(event.step)}: {change}{kept}. {event.reason}"))
        elif event.severity != "note" and (event.code, event.place) not in self._told:
            self._told.add((event.code, event.place))
            self._say(printable(f"{event.severity} since step {number(event.step)}: {event.sentence}"))

    def on_end(self, run: RunView) -> None:
        """Clear the live line and print the summary."""
        colour = self._live and not os.environ.get("NO_COLOR")
        self._say(summary(run, self.report, colour=colour, columns=self._columns()))

    def _speed(self) -> float | None:
        """Steps a second lately."""
        (began, first), (now, step) = self._pace[0], self._pace[-1]
        return (step - first) / (now - began) if now > began and step > first else None

    def _say(self, text: str) -> None:
        """Print lines that stay, above the live one."""
        self._clear()
        self._write(f"{text}\n")


def opening(record: RunRecord) -> str:
    """The line before a training: the model and data, then how it is trained."""
    decided = record.decided
    facts = [counted(decided[key], word) for key, word in _SIZES.items() if decided.get(key)]
    if decided.get("batch_size") is not None:
        facts.append(f"batch {plain(decided['batch_size'])}")
    if how := rule(decided):
        facts.append(how)
    if decided.get("device"):
        facts.append(f"on {decided['device']}")
    return printable(f"{record.name}: {', '.join(facts)}" if facts else record.name)


def progress(run: RunView, record: StepRecord, speed: float | None) -> list[str]:
    """The parts of a live line, the ones to keep in a narrow window first; `speed` in steps a second."""
    decided, history = run.record.decided, run.history
    total = _total_steps(decided)
    epochs = decided.get("total_epochs")
    epoch = f"epoch {max(1, math.ceil(record.epoch))}{f'/{number(epochs)}' if epochs else ''}"
    budget = run.record.asked.get("time_budget")
    done = max(record.step / total if total else 0.0, record.seconds / budget if budget else 0.0)
    parts = [epoch]
    if not (epochs and epochs >= _MANY_EPOCHS):
        parts.append(f"{min(100.0, 100 * done):.0f} %" if total or budget else counted(record.step, "step"))
    parts += _measures(history)
    lefts = [budget - record.seconds] if budget else []
    if speed and total:
        lefts.append((total - record.step) / speed)
    if lefts:
        parts.append(f"{clock(max(0.0, min(lefts)))} left")
    if (rate := history.last("learning_rate")) is not None:
        parts.append(f"rate {rounded(rate, 2)}")
    if speed:
        parts.append(f"{rounded(speed, 3)} steps/s")
    return [printable(part) for part in parts]


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text, numbers to the right, two spaces between.

    >>> print(table(["run", "steps"], [["digits-1", 1350], ["mine", 20]]))
    run       steps
    digits-1  1,350
    mine         20
    """
    cells = [[printable(plain(value)) for value in row] for row in rows]
    widths = [max(map(width_of, column)) for column in zip(headers, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(row[place], int | float) and not isinstance(row[place], bool) for row in rows)
        for place in range(len(headers))
    ]
    lines = []
    for line in [list(headers), *cells]:
        padded = []
        for cell, width, to_right in zip(line, widths, right, strict=True):
            air = " " * (width - width_of(cell))
            padded.append(air + cell if to_right else cell + air)
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _total_steps(decided: Mapping[str, object]) -> int | None:
    total, epochs, length = (decided.get(key) for key in ("total_steps", "total_epochs", "steps_per_epoch"))
    if isinstance(total, int):
        return total
    return epochs * length if isinstance(epochs, int) and isinstance(length, int) else None


def _measures(history: History) -> list[str]:
    """The loss, and what validation said last of it and of the first metric."""
    loss = history.last("loss")
    held_out = [name for name in history.names if name.startswith(VALIDATION) and not of_layer(name)]
    held_out = sorted(held_out, key=lambda name: name != VALIDATION + "loss")[:2]
    parts = [f"loss {rounded(loss, 3)}"] if loss is not None else []
    values = [(name.removeprefix(VALIDATION), history.last(name)) for name in held_out]
    words = [f"{spoken(name)} {_short(name, value)}" for name, value in values if value is not None]
    return parts + ([f"validation {', '.join(words)}"] if words else [])


def _short(name: str, value: float) -> str:
    return measured(name, value) if share(name) else rounded(value, 3)
