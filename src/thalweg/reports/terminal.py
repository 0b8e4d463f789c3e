"""A training on the terminal: one live line while it runs, a summary that a person understands when it is done."""

from __future__ import annotations

import math
import os
import sys
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

#: Seconds between two looks of the live line, and between two plain lines where there is no terminal.
LIVE, PLAIN = 0.2, 10.0
#: Seconds over which the speed is taken: long enough to span a validation, short enough to notice a change.
_SPEED_OVER = 20.0
#: Epochs from which their count alone says how far a training is.
_MANY_EPOCHS = 10
#: What the opening line counts.
_SIZES = {"num_parameters": "parameter", "num_examples": "example"}


class Terminal:
    """The callback that shows a training on `stream`, standard error by default.

    On a terminal one line is rewritten at most five times a second; elsewhere a plain line comes at most every ten
    seconds. There is no thread: `on_step` reads the clock and nearly always returns. A stream that has gone away (a
    closed session) silences the display and never stops the training.
    """

    def __init__(self, stream: TextIO | None = None, report: Path | None = None) -> None:
        self.report = report
        self._stream = stream if stream is not None else sys.stderr
        self._live = is_terminal(self._stream)
        self._every = LIVE if self._live else PLAIN
        self._due = 0.0
        self._drawn = False
        self._told: set[tuple[str, str]] = set()
        self._pace: deque[tuple[float, int]] = deque()

    def on_start(self, run: RunView) -> None:
        """Say what is trained, on what and how."""
        self._pace.clear()
        self._due = time.monotonic() + (0.0 if self._live else PLAIN)
        self._say(opening(run.record))

    def on_search(self, run: RunView, words: str) -> None:
        """Show how the choice of what was left open stands, if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._every
        self._show([words])

    def on_step(self, run: RunView, record: StepRecord) -> None:
        """Show progress if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + self._every
        self._pace.append((now, record.step))
        while now - self._pace[0][0] > _SPEED_OVER and len(self._pace) > 2:
            self._pace.popleft()
        self._show(progress(run, record, self._speed()))

    def _show(self, parts: list[str]) -> None:
        """Rewrite the live line; a plain one where there is no terminal."""
        if self._live:
            self._write(f"\r{fitting(parts, self._columns() - 1)}\x1b[K")
            self._drawn = True
        else:
            self._write(f"{', '.join(parts)}\n")

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
        clear = "\r\x1b[K" if self._drawn else ""
        self._write(f"{clear}{text}\n")
        self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # closed: nobody is looking any more
            self._live = False
            self._every = self._due = math.inf

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose lines can be rewritten."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


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


def fitting(parts: Sequence[str], columns: int) -> str:
    """As many of the parts as a line of `columns` takes."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if width_of(longer) > columns:
            break
        line = longer
    return line
