"""The trials of a search, in memory or in one file that several processes of a machine share.

The file is SQLite: a row says what is searched, and a row holds each finished trial. Who runs trial n holds byte n of
`<storage>.claims` by a POSIX lock, which the system frees when the process ends, however it ends: a worker that is
killed leaves nothing behind that anyone must clear away. Nothing in the file is ever unpickled or run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from thalweg.records.learning_rate import Trial

#: Seconds between two looks at what others have finished or dropped.
WAIT = 0.1
#: Seconds that a writer waits for another.
BUSY = 30.0

#: Names that an Optuna storage in the same file does not use.
_TABLES = """
CREATE TABLE IF NOT EXISTS thalweg_search (number INTEGER PRIMARY KEY CHECK (number = 1), identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS thalweg_trials (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
"""


class Study(Protocol):
    """Finished trials by number, and who runs which."""

    def finished(self) -> dict[int, Trial]:
        """All trials that are done, by anyone."""

    def claim(self, numbers: Iterable[int]) -> int | None:
        """Take the first of these trials that nobody runs or has run; None if there is none."""

    def finish(self, trial: Trial) -> None:
        """Write down a trial that was claimed, and let go of it."""


class Alone:
    """A study in memory, of one process."""

    def __init__(self) -> None:
        self._trials: dict[int, Trial] = {}

    def finished(self) -> dict[int, Trial]:
        """All trials that are done."""
        return dict(self._trials)

    def claim(self, numbers: Iterable[int]) -> int | None:
        """The first that is not done."""
        return next((number for number in numbers if number not in self._trials), None)

    def finish(self, trial: Trial) -> None:
        """Keep it."""
        self._trials[trial.number] = trial


class Shared:
    """A study in a file, of any number of processes on one machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _said(path):
            self._connection = sqlite3.connect(path, timeout=BUSY)
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = NORMAL")
                self._connection.executescript(_TABLES)
                self._claims = os.open(f"{path}.claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except BaseException:
                self._connection.close()
                raise

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Say what is searched, or make sure that it is what the study was begun with.

        Raises:
            ValueError: it is of another search; the message names what differs.
        """
        first = (1, json.dumps(identity))
        with _said(self.path), self._connection:
            self._connection.execute("INSERT OR IGNORE INTO thalweg_search VALUES (?, ?)", first)
            (found,) = self._connection.execute("SELECT identity FROM thalweg_search").fetchone()
        require_same(json.loads(found), identity, str(self.path))

    def finished(self) -> dict[int, Trial]:
        """All rows."""
        with _said(self.path):
            rows = self._connection.execute("SELECT number, record FROM thalweg_trials ORDER BY number").fetchall()
        return {number: trial_of(json.loads(record)) for number, record in rows}

    def claim(self, numbers: Iterable[int]) -> int | None:
        """Lock the first byte that is free."""
        for number in numbers:
            try:
                fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):  # by POSIX it may be either
                continue
            except OSError as error:
                sentence = f"the storage {self.path} lies where files cannot be locked ({error.strerror})"
                raise ValueError(f"{sentence}: give a file on a disk of this machine") from error
            if number not in self.finished():
                return number
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, number)  # done between the caller's look and the lock
        return None

    def finish(self, trial: Trial) -> None:
        """Write its row; only then is the lock let go, or another would run it again."""
        row = (trial.number, json.dumps(record_of(trial)))
        with _said(self.path), self._connection:
            self._connection.execute("INSERT OR IGNORE INTO thalweg_trials VALUES (?, ?)", row)
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, trial.number)

    def close(self) -> None:
        """Let go of the file and of what was claimed in it."""
        os.close(self._claims)
        self._connection.close()


@contextlib.contextmanager
def opened(storage: str | os.PathLike[str] | None, identity: Mapping[str, Any]) -> Iterator[Study]:
    """The study of a search: in memory, or in a file that is made if it is not there.

    Raises:
        ValueError: the file cannot be used, or is of another search.
    """
    if storage is None:
        yield Alone()
        return
    study = Shared(path_of(storage))
    try:
        study.identify(identity)
        yield study
    finally:
        study.close()


def share(
    study: Study,
    numbers: Sequence[int],
    run: Callable[[int], Trial],
    waiting: Callable[[int], None] = lambda left: None,
) -> list[Trial]:
    """Run what nobody else runs until all is done, also what others drop; returns every trial, in order.

    `waiting` is told, now and then, how many trials others are at.
    """
    while True:
        done = study.finished()
        left = [number for number in numbers if number not in done]
        if not left:
            return [done[number] for number in numbers]
        number = study.claim(left)
        if number is None:
            waiting(len(left))
            time.sleep(WAIT)
        else:
            study.finish(run(number))


def path_of(storage: str | os.PathLike[str]) -> Path:
    """The file of a storage: a path, or a URL sqlite:///FILE.

    Raises:
        ValueError: a URL of another kind. TypeError: neither text nor path.

    >>> path_of("sqlite:///study.db").name, path_of("runs/study.db").name
    ('study.db', 'study.db')
    """
    if not isinstance(storage, str | os.PathLike):
        raise TypeError(f"storage takes the path of a file, or sqlite:///FILE, got {storage!r}")
    text = os.fspath(storage)
    if text.startswith("sqlite:///"):
        return Path(text.removeprefix("sqlite:///"))
    if "://" in text:
        raise ValueError(
            f"grid and random search keep a study in a file: give a path or sqlite:///FILE, got {text!r} "
            "(the methods tpe and asha take any URL that Optuna takes)"
        )
    return Path(text)


def require_same(found: Mapping[str, Any], identity: Mapping[str, Any], where: str) -> None:
    """Refuse a study of another search.

    Raises:
        ValueError: the message names all that differs, with both values where a person can read them.
    """
    told = json.loads(json.dumps(identity))  # tuples are lists there, too
    differing = [word for word in {**told, **found} if told.get(word) != found.get(word)]
    if not differing:
        return
    words = ", ".join(_difference(word, found.get(word), told.get(word)) for word in differing)
    hint = ""
    if "first weights" in differing:
        hint = "; where only the first weights differ, seed them (torch.manual_seed) before the model is made"
    raise ValueError(f"the study in {where} is of another search ({words}): give another storage{hint}")


def _difference(word: str, there: Any, here: Any) -> str:
    if isinstance(there, str) and len(there) == 64:  # a digest says nothing to a person
        return f"{word} differ"
    return f"{word}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """What SQLite and the system say, in one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise ValueError(
            f"the storage {path} cannot be used ({error}): give a file in a folder that can be written"
        ) from error
    except OSError as error:
        raise ValueError(f"the storage {path} cannot be used ({error.strerror}): give another file") from error


def record_of(trial: Trial) -> dict[str, Any]:
    """A trial as JSON holds it."""
    record = asdict(trial)
    record["loss"] = trial.loss if math.isfinite(trial.loss) else None  # JSON knows no infinity
    return record


def trial_of(record: Mapping[str, Any]) -> Trial:
    """What `record_of` returned, read again."""
    return Trial(**{**record, "loss": math.inf if record["loss"] is None else record["loss"]})
