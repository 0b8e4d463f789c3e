"""All steps of a run: appended while it trains, read while it trains.

In memory a series is two flat arrays, 16 bytes a number. On disk it is one SQLite file in WAL mode, written by a
thread of its own at most `FLUSH_SECONDS` behind, so that another process can read it and a killed run loses nothing
older than that. A disk that is full makes rows wait in memory until there is room again.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.step import StepRecord

FLUSH_SECONDS = 0.5

_TABLES = """
CREATE TABLE IF NOT EXISTS steps (step INTEGER PRIMARY KEY, epoch REAL, seconds REAL, "values" TEXT);
CREATE TABLE IF NOT EXISTS evaluations (step INTEGER PRIMARY KEY, epoch REAL, seconds REAL, "values" TEXT);
CREATE TABLE IF NOT EXISTS findings (number INTEGER PRIMARY KEY, step INTEGER, record TEXT);
CREATE TABLE IF NOT EXISTS actions (number INTEGER PRIMARY KEY, step INTEGER, record TEXT);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT);
"""
_INSERT = {
    "steps": "INSERT OR REPLACE INTO steps VALUES (?, ?, ?, ?)",
    "evaluations": "INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)",
    "findings": "INSERT INTO findings (step, record) VALUES (?, ?)",
    "actions": "INSERT INTO actions (step, record) VALUES (?, ?)",
    "facts": "INSERT OR REPLACE INTO facts VALUES (?, ?)",
}

#: Facts that are counted in updates from the first one on.
_COUNTED = frozenset({"planned_steps", "ended_at", "landscape_step"})

_Record = StepRecord | Finding | Action
#: A table, the step or name of a row that is to be written to it, and what it holds.
_Waiting = tuple[str, int | str, _Record | str]
Series = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class History:
    """Everything that a run reported, by name of series.

    >>> history = History()
    >>> history.append(StepRecord(1, 0.5, 0.01, {"loss": 2.5}))
    >>> history.append(StepRecord(2, 1.0, 0.02, {"loss": 1.5}))
    >>> history.series("loss")
    (array([1, 2]), array([2.5, 1.5]))
    """

    def __init__(self, path: Path | str | None = None, warn: Callable[[str], None] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self._found: list[tuple[int, Finding]] = []
        self._acted: list[tuple[int, Action]] = []
        self._facts: dict[str, Any] = {}
        self._columns: dict[str, tuple[array[int], array[float]]] = {}
        self._evaluated: set[str] = set()
        self._pending: list[_Waiting] = []
        self._warn = warn
        self._warned = False
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        if self.path is not None:
            self._connection = _connect(self.path)
            self._load()
            self._thread = threading.Thread(target=self._write_behind, name="thalweg-history", daemon=True)
            self._thread.start()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    @classmethod
    def open(cls, path: Path | str) -> History:
        """Read the file of a run, which may still be training; later rows are not seen.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no history.
        """
        history = cls()
        history.path = Path(path)
        if not history.path.exists():
            raise FileNotFoundError(f"no history at {path}: give a run directory that `fit` has made")
        history._connection = sqlite3.connect(f"{history.path.absolute().as_uri()}?mode=ro", uri=True)
        history._load()
        history._connection.close()
        return history

    @property
    def names(self) -> list[str]:
        """The series that have at least one value."""
        return list(self._columns)

    @property
    def findings(self) -> list[Finding]:
        """What was found wrong, in the order it was seen."""
        return [finding for _, finding in self._found]

    @property
    def actions(self) -> list[Action]:
        """What was changed, in the order it was done."""
        return [action for _, action in self._acted]

    @property
    def facts(self) -> dict[str, Any]:
        """What holds for the whole run, by name: its rule, its network, its data, its first batch; as JSON has it."""
        return dict(self._facts)

    def series(self, name: str) -> Series:
        """Steps and values of one series, both `[rows]`, in the order of steps.

        Raises:
            KeyError: nothing by that name was recorded.
        """
        if name not in self._columns:
            raise KeyError(f"no series {name!r}; recorded are: {', '.join(self._columns) or 'none'}")
        steps, values = self._columns[name]
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def to_dict(self) -> dict[str, dict[str, list[float]]]:
        """Every series as plain lists: `{name: {"steps": [...], "values": [...]}}`."""
        return {name: {"steps": list(s), "values": list(v)} for name, (s, v) in self._columns.items()}

    def last(self, name: str) -> float | None:
        """The newest value of a series, or None."""
        column = self._columns.get(name)
        return column[1][-1] if column else None

    def count(self, name: str) -> int:
        """How many values a series has."""
        column = self._columns.get(name)
        return len(column[1]) if column else 0

    def since(self, step: int) -> History:
        """What was reported after a step, in memory, as of a training that began there."""
        part = History()
        part._evaluated = set(self._evaluated)
        for name, (steps, values) in self._columns.items():
            first = next((i for i, s in enumerate(steps) if s > step), len(steps))
            if first < len(steps):
                part._columns[name] = array("q", (s - step for s in steps[first:])), values[first:]
        part._found = [(seen - step, finding) for seen, finding in self._found if seen > step]
        part._facts = {
            name: value - step if name in _COUNTED and isinstance(value, int | float) else value
            for name, value in self._facts.items()
        }
        return part

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, record: StepRecord) -> None:
        """Add the report of a step. Costs a few microseconds; the disk is reached by another thread."""
        self._add(record)
        self._queue("steps", record.step, record)

    def evaluate(self, record: StepRecord) -> None:
        """Add what an evaluation measured after a step."""
        self._evaluated.update(record.values)
        self._add(record)
        self._queue("evaluations", record.step, record)

    def found(self, finding: Finding, step: int) -> None:
        """Add a finding, seen at `step` (it may hold since earlier)."""
        self._found.append((step, finding))
        self._queue("findings", step, finding)

    def settle(self, findings: Iterable[Finding], step: int) -> None:
        """At the end of a training, after `step`: these findings take the place of all that were added before."""
        self._found = [(step, finding) for finding in findings]
        if self.path is not None:
            self.flush()
            with self._lock:  # of a disk that is full: what still waits is left out
                self._pending = [waiting for waiting in self._pending if waiting[0] != "findings"]
            with contextlib.suppress(sqlite3.Error), self._writing, self._connection:
                self._connection.execute("DELETE FROM findings")
        for _, finding in self._found:
            self._queue("findings", step, finding)

    def acted(self, action: Action) -> None:
        """Add an action."""
        self._acted.append((action.step, action))
        self._queue("actions", action.step, action)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Add facts about the run; one of a name that is there already takes its place.

        Raises:
            TypeError: a value that JSON does not hold.
        """
        for name, value in facts.items():
            text = json.dumps(value)
            self._facts[name] = json.loads(text)
            self._queue("facts", name, text)

    def flush(self) -> bool:
        """Write what waits, now; False if the disk did not take it (it waits on, nothing is lost)."""
        with self._writing:
            with self._lock:
                rows, self._pending = self._pending, []
            if not rows:
                return True
            try:
                with self._connection:
                    for table, key, value in rows:
                        self._connection.execute(_INSERT[table], _row(key, value))
            except sqlite3.Error as error:
                with self._lock:
                    self._pending = rows + self._pending
                if self._warn is not None and not self._warned:
                    self._warned = True
                    self._warn(f"The history cannot be written ({error}); it waits in memory and training goes on.")
                return False
            self._warned = False
            return True

    def truncate(self, step: int, evaluated: int | None = None) -> None:
        """Drop everything after a step: what a resumed run will report again; of evaluations, all after `evaluated`."""
        last = {"steps": step, "evaluations": step if evaluated is None else evaluated}
        self._columns = {
            name: (steps[:kept], values[:kept])
            for name, (steps, values) in self._columns.items()
            if (kept := sum(1 for s in steps if s <= last["evaluations" if name in self._evaluated else "steps"]))
        }
        self._found = [(seen, finding) for seen, finding in self._found if seen <= step]
        self._acted = [(done, action) for done, action in self._acted if done <= step]
        if self.path is not None:
            with self._writing, self._connection:
                for table in ("steps", "evaluations", "findings", "actions"):
                    self._connection.execute(f"DELETE FROM {table} WHERE step > ?", (last.get(table, step),))

    def close(self) -> None:
        """Write what waits and let the file go; the numbers stay readable in memory."""
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            self._thread = None
            self.flush()
            with contextlib.suppress(sqlite3.Error):  # a full disk may refuse the last merge of the log; rows are safe
                self._connection.close()

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _add(self, record: StepRecord) -> None:
        for name, value in record.values.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns.setdefault(name, (array("q"), array("d")))
            column[0].append(record.step)
            column[1].append(value)

    def _queue(self, table: str, key: int | str, value: _Record | str) -> None:
        if self.path is not None:
            with self._lock:
                self._pending.append((table, key, value))

    def _write_behind(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self.flush()

    def _load(self) -> None:
        try:
            self._read()
        except (sqlite3.Error, ValueError, TypeError, AttributeError, RecursionError) as error:
            self._connection.close()
            raise ValueError(f"{self.path} cannot be read as the history of a run: {error}") from error

    def _read(self) -> None:
        for table in ("steps", "evaluations"):
            for row in self._connection.execute(f'SELECT step, epoch, seconds, "values" FROM {table} ORDER BY step'):
                record = StepRecord(row[0], row[1], row[2], json.loads(row[3]))
                self._add(record)
                if table == "evaluations":
                    self._evaluated.update(record.values)
        self._found = [(step, Finding(**record)) for step, record in self._records("findings")]
        self._acted = [
            (step, Action(**{**record, "lines": tuple(record.get("lines", ()))}))
            for step, record in self._records("actions")
        ]
        if self._connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'facts'"
        ).fetchone():  # not in older files
            facts = self._connection.execute("SELECT name, value FROM facts ORDER BY rowid")
            self._facts = {str(name): json.loads(value) for name, value in facts}

    def _records(self, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for step, record in self._connection.execute(f"SELECT step, record FROM {table} ORDER BY number"):
            yield step, json.loads(record)


def _row(key: int | str, value: _Record | str) -> tuple[object, ...]:
    """The columns of one row, by its step or its name; numbers become text here, off the training's thread."""
    if isinstance(value, str):
        return key, value
    if isinstance(value, StepRecord):
        return key, value.epoch, value.seconds, json.dumps(dict(value.values))
    return key, json.dumps(asdict(value))


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, check_same_thread=False)
    except sqlite3.Error as error:
        raise ValueError(f"the history {path} cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(_TABLES)
    except sqlite3.Error as error:
        connection.close()
        raise ValueError(f"the history {path} cannot be opened: {error}") from error
    return connection
