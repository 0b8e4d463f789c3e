"""A history under two processes: one writes, and may be killed; the other reads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.step import StepRecord

#: Appends a row each millisecond, and prints its number and the moment when that had happened.
WRITER = """
import sys, time
from thalweg.records.history import History
from thalweg.records.step import StepRecord
history = History(sys.argv[1])
for step in range(1, 1_000_000):
    history.append(StepRecord(step, step / 100, step / 1000, {"loss": 1 / step}))
    if step % 50 == 0:
        history.evaluate(StepRecord(step, step / 100, step / 1000, {"validation_loss": 2 / step}))
    print(step, time.monotonic(), flush=True)
    time.sleep(0.001)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", WRITER, str(tmp_path / "history.sqlite")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _appended(process: subprocess.Popen[str], until: int) -> list[tuple[int, float]]:
    """What the writer has appended, up to a number."""
    assert process.stdout is not None
    found: list[tuple[int, float]] = []
    while not found or found[-1][0] < until:
        step, moment = process.stdout.readline().split()
        found.append((int(step), float(moment)))
    return found


def test_another_process_reads_while_it_is_written(writer, tmp_path):
    _appended(writer, until=700)
    earlier = History.open(tmp_path / "history.sqlite")
    appended = _appended(writer, until=1600)
    later = History.open(tmp_path / "history.sqlite")
    assert writer.poll() is None
    steps, values = later.series("loss")
    assert steps.tolist() == list(range(1, len(steps) + 1))
    assert values.tolist() == [1 / step for step in range(1, len(steps) + 1)]
    assert len(earlier.series("loss")[0]) < len(steps)
    assert len(steps) >= sum(1 for _, moment in appended if moment < time.monotonic() - 1)


@pytest.mark.parametrize("until", [1100, pytest.param(2500, marks=pytest.mark.slow)])
def test_a_killed_process_loses_at_most_the_last_second(until, writer, tmp_path):
    appended = _appended(writer, until)
    killed = time.monotonic()
    writer.kill()
    *lines, _ = writer.communicate()[0].split("\n")  # the last one may have been cut off
    appended += [(int(line.split()[0]), float(line.split()[1])) for line in lines]
    due = [step for step, moment in appended if moment < killed - 1]
    assert due, "it was killed too early to tell"
    for history in (History.open(tmp_path / "history.sqlite"), History(tmp_path / "history.sqlite")):
        steps = history.series("loss")[0].tolist()
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= due[-1]
        assert history.series("validation_loss")[0].tolist() == list(range(50, len(steps) + 1, 50))
        history.close()


def test_rows_after_a_step_are_dropped_in_memory_and_on_the_disk(tmp_path):
    history = History(tmp_path / "history.sqlite")
    for step in (10, 20, 30):
        history.append(StepRecord(step, 0.0, 0.0, {"loss": float(step)}))
        history.evaluate(StepRecord(step, 0.0, 0.0, {"validation_loss": float(step)}))
        history.found(Finding("plateau", "note", step, "It is flat.", evidence={"rise": 0.0}), step)
    history.flush()
    history.truncate(20, evaluated=10)
    history.evaluate(StepRecord(20, 0.0, 0.0, {"validation_loss": 21.0}))
    history.flush()
    for found in (history, History.open(tmp_path / "history.sqlite")):
        assert found.to_dict() == {
            "loss": {"steps": [10, 20], "values": [10.0, 20.0]},
            "validation_loss": {"steps": [10, 20], "values": [10.0, 21.0]},
        }
        assert [finding.step for finding in found.findings] == [10, 20]
    history.close()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be taken for one" * 50, b"\x00" * 9999])
def test_what_is_no_history_is_one_sentence(content, tmp_path):
    (tmp_path / "history.sqlite").write_bytes(content)
    with pytest.raises(ValueError, match=r"history"):
        History.open(tmp_path / "history.sqlite")
    with pytest.raises(ValueError, match=r"history"):
        History(tmp_path / "history.sqlite")


def test_forged_rows_are_one_sentence(tmp_path):
    history = History(tmp_path / "history.sqlite")
    history._connection.execute("INSERT INTO findings (step, record) VALUES (1, '{\"evil\": 1}')")
    history._connection.commit()
    history.close()
    with pytest.raises(ValueError, match="cannot be read as the history of a run"):
        History.open(tmp_path / "history.sqlite")
