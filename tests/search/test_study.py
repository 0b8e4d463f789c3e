"""A study that several processes share; the workers here run trials without a network, so that they start at once."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from thalweg.records.learning_rate import Trial
from thalweg.search.study import Alone, opened, path_of, record_of, require_same, share, trial_of

#: Runs trials 0 to 5 of the study "s.db"; each leaves a file with the worker's name. `before` is run in each trial.
WORKER = """
import sys, time
from pathlib import Path
from thalweg.records.learning_rate import Trial
from thalweg.search.study import opened, share
name, before = sys.argv[1:]

def wait_for(path):
    while not Path(path).exists():
        time.sleep(0.005)

def run(number):
    Path(f"begun-{number}-{name}").touch()
    exec(before)
    Path(f"ran-{number}-{name}").touch()
    return Trial(number, 0.1 * (number + 1), 1.0 / (number + 1), 10)

with opened("s.db", {"search": "test"}) as study:
    found = share(study, range(6), run, lambda left: Path(f"{name}-waits-for-{left}").touch())
print([trial.number for trial in found])
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[str]]:
    """Starts a worker in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def start(name: str, before: str = "") -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", WORKER, name, before], stdout=subprocess.PIPE, text=True)

    return start


def ended(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0].strip()


def wait_for(path: str) -> None:
    """Until a worker has come so far; a test that hangs is ended by `timeout`."""
    until = time.monotonic() + 60
    while not Path(path).exists():
        assert time.monotonic() < until, path
        time.sleep(0.005)


def ran(pattern: str = "*") -> list[tuple[int, str]]:
    names = [path.name.split("-") for path in Path().glob(f"ran-{pattern}")]
    return sorted((int(number), name) for _, number, name in names)


def test_two_workers_share_the_trials(worker: Callable[..., subprocess.Popen[str]]) -> None:
    # The first trial of each waits until the other has one, too.
    workers = [
        worker(name, f"None if list(Path().glob('ran-*-{name}')) else [wait_for(f'meets-{{n}}') for n in 'ab' "
               f"if Path('meets-{name}').touch() is None]")
        for name in "ab"
    ]  # fmt: skip
    assert [ended(process) for process in workers] == ["[0, 1, 2, 3, 4, 5]"] * 2
    assert [number for number, _ in ran()] == [0, 1, 2, 3, 4, 5]
    assert {name for _, name in ran()} == {"a", "b"}


def test_what_a_killed_worker_was_at_is_taken_over(worker: Callable[..., subprocess.Popen[str]]) -> None:
    first = worker("a", "wait_for('never') if number == 1 else None")
    wait_for("begun-1-a")
    second = worker("b")
    wait_for("b-waits-for-1")
    assert not list(Path().glob("begun-1-b"))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert ended(second) == "[0, 1, 2, 3, 4, 5]"
    assert ran() == [(0, "a"), *((number, "b") for number in range(1, 6))]


def test_a_study_goes_on_where_it_was_killed(worker: Callable[..., subprocess.Popen[str]]) -> None:
    killed = worker("a", "import os; os.kill(os.getpid(), 9) if number == 3 else None")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert ended(worker("b")) == "[0, 1, 2, 3, 4, 5]"
    assert ran() == [(number, "a" if number < 3 else "b") for number in range(6)]


def test_a_worker_that_fails_lets_go(tmp_path: Path) -> None:
    def fails(number: int) -> Trial:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "s.db", {}) as study:
        share(study, range(2), fails)
    with opened(tmp_path / "s.db", {}) as study:
        assert study.claim(range(2)) == 0
        assert study.finished() == {}


def test_in_memory_it_is_the_same() -> None:
    trials = share(Alone(), range(3), lambda number: Trial(number, 0.1, 1.0, 5))
    assert [trial.number for trial in trials] == [0, 1, 2]


def test_a_trial_is_read_as_it_was_written() -> None:
    trial = Trial(3, 0.1, math.inf, 7, "diverged", {"momentum": 0.9}, "the loss was not finite at update 7")
    assert trial_of(json.loads(json.dumps(record_of(trial), allow_nan=False))) == trial


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    begun = {"model": "Linear of 3 numbers", "first weights": "0" * 64, "seed": 0}
    with opened(tmp_path / "s.db", begun):
        pass
    with opened(f"sqlite:///{tmp_path / 's.db'}", begun):
        pass
    now = {**begun, "model": "Linear of 5 numbers", "first weights": "1" * 64}
    sentence = r"\(model: Linear of 3 numbers there, Linear of 5 numbers here, first weights differ\): give another"
    with pytest.raises(ValueError, match=sentence), opened(tmp_path / "s.db", now):
        pass


def test_words_that_only_one_has_differ() -> None:
    require_same({"seed": 0, "also": [1]}, {"seed": 0, "also": (1,)}, "s.db")
    with pytest.raises(ValueError, match="rates: null there, 11 here"):
        require_same({"seed": 0}, {"seed": 0, "rates": 11}, "s.db")


@pytest.mark.parametrize("name", ["nowhere/s.db", "folder", "text"])
def test_a_storage_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database, and longer than the header that SQLite looks at" * 20)
    with pytest.raises(ValueError, match=f"the storage .*{name} cannot be used"), opened(tmp_path / name, {}):
        pass


def test_a_storage_of_another_kind() -> None:
    with pytest.raises(ValueError, match="keep a study in a file: give a path or sqlite:///FILE, got 'mysql://x/y'"):
        path_of("mysql://x/y")
    with pytest.raises(TypeError, match="storage takes the path of a file"):
        path_of(3)  # type: ignore[arg-type]


def test_the_file_holds_text_and_numbers_only(tmp_path: Path) -> None:
    with opened(tmp_path / "s.db", {"seed": 0}) as study:
        share(study, range(2), lambda number: Trial(number, 0.1, math.inf, 5, "diverged"))
    connection = sqlite3.connect(tmp_path / "s.db")
    rows = connection.execute("SELECT record FROM thalweg_trials").fetchall()
    connection.close()
    assert [json.loads(record)["loss"] for (record,) in rows] == [None, None]
