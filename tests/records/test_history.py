from __future__ import annotations

import math
import sqlite3
import time
from pathlib import Path

import pytest

from thalweg.records import history as module
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.step import StepRecord


def record(step: int, **values: float) -> StepRecord:
    return StepRecord(step, step / 10, step / 100, values or {"loss": 1 / step})


def filled(path: Path | None, steps: int = 20) -> History:
    history = History(path)
    for step in range(1, steps + 1):
        history.append(record(step))
        if step % 10 == 0:
            history.evaluate(record(step, validation_loss=2 / step))
    return history


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    history = filled(tmp_path / "h.sqlite")
    history.found(Finding("plateau", "warning", 3, "Flat.", evidence={"slope": 0.0}), step=12)
    history.acted(Action("lower_rate", 13, {"learning_rate": 1.0}, {"learning_rate": 0.1}, True, "why"))
    history.close()
    again = History.open(tmp_path / "h.sqlite")
    assert again.to_dict() == history.to_dict()
    assert again.findings == history.findings
    assert again.actions == history.actions
    assert again.names == ["loss", "validation_loss"]
    assert again.last("validation_loss") == 0.1


def test_numbers_survive_to_the_last_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-320, -0.0, float("inf"), 1e308]
    with_nan = History(tmp_path / "h.sqlite")
    for step, value in enumerate([*values, float("nan")], 1):
        with_nan.append(record(step, loss=value))
    with_nan.close()
    read = History.open(tmp_path / "h.sqlite").series("loss")[1].tolist()
    assert [value.hex() for value in read[:-1]] == [value.hex() for value in values]
    assert math.isnan(read[-1])


def test_another_reader_sees_it_while_it_is_written(tmp_path: Path) -> None:
    history = filled(tmp_path / "h.sqlite", 5)
    deadline = time.monotonic() + 20 * module.FLUSH_SECONDS
    while time.monotonic() < deadline:
        seen = History.open(tmp_path / "h.sqlite")
        if "loss" in seen.names and len(seen.series("loss")[0]) == 5:
            break
        time.sleep(0.02)
    else:
        pytest.fail("the rows never reached the file")
    history.append(record(6))
    assert len(seen.series("loss")[0]) == 5, "a reader has what was there when it looked"
    history.close()


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    history = filled(tmp_path / "h.sqlite")
    history.found(Finding("plateau", "note", 2, "Seen late, holding since early."), step=18)
    history.close()
    resumed = History(tmp_path / "h.sqlite")
    resumed.truncate(12)
    assert resumed.series("loss")[0].tolist() == list(range(1, 13))
    assert resumed.series("validation_loss")[0].tolist() == [10]
    assert resumed.findings == []
    resumed.append(record(13, loss=7.0))
    resumed.close()
    assert History.open(tmp_path / "h.sqlite").series("loss")[1][-1] == 7.0


def test_a_step_written_again_replaces_the_row(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    history.append(record(1, loss=1.0))
    history.append(record(1, loss=2.0))
    history.close()
    assert History.open(tmp_path / "h.sqlite").series("loss")[1].tolist() == [2.0]


def test_a_disk_that_refuses_makes_rows_wait(tmp_path: Path) -> None:
    said: list[str] = []
    history = History(tmp_path / "h.sqlite", said.append)
    locker = sqlite3.connect(tmp_path / "h.sqlite")
    history._connection.execute("PRAGMA busy_timeout=1")
    locker.execute("BEGIN EXCLUSIVE")
    history.append(record(1))
    assert not history.flush()
    assert not history.flush()
    assert len(said) == 1
    assert "waits in memory" in said[0]
    locker.rollback()
    history.append(record(2))
    assert history.flush()
    history.close()
    assert History.open(tmp_path / "h.sqlite").series("loss")[0].tolist() == [1, 2]


def test_what_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="no history"):
        History.open("nowhere.sqlite")
    with pytest.raises(KeyError, match="recorded are: loss"):
        filled(None).series("los")
    assert History().last("loss") is None


def test_facts_are_read_back_and_replaced_and_outlive_a_truncation(tmp_path: Path) -> None:
    history = filled(tmp_path / "h.sqlite")
    history.note({"loss": "mse", "layers": [{"name": "0", "bias": True}], "planned_steps": None})
    history.note({"loss": "mae"})
    history.truncate(5)
    history.close()
    again = History.open(tmp_path / "h.sqlite")
    expected = {"loss": "mae", "layers": [{"name": "0", "bias": True}], "planned_steps": None}
    assert again.facts == history.facts == expected
    again.facts["loss"] = "other"
    assert again.facts == expected, "what is handed out is a copy"


def test_a_fact_is_what_json_holds() -> None:
    with pytest.raises(TypeError, match="set"):
        History().note({"layers": {1, 2}})


def test_a_file_without_facts_is_read_and_gone_on_with(tmp_path: Path) -> None:
    filled(tmp_path / "h.sqlite").close()
    with sqlite3.connect(tmp_path / "h.sqlite") as connection:
        connection.execute("DROP TABLE facts")
    connection.close()
    assert History.open(tmp_path / "h.sqlite").facts == {}
    again = History(tmp_path / "h.sqlite")
    again.note({"loss": "mse"})
    again.close()
    assert History.open(tmp_path / "h.sqlite").facts == {"loss": "mse"}
