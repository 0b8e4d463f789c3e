"""`thalweg find-lr`."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GRID = ("mine.py:make", "--method", "grid", "--trials", "3", "--low", "0.001", "--high", "0.1")


def test_a_task_is_searched(call: Any) -> None:
    code, out, err = call(
        "find-lr", "digits", "--method", "grid", "--trials", "2", "--epochs", "1", "--low", "1e-4", "--json"
    )
    assert code == 0
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found["learning_rate"] in (1e-4, 0.03)
    assert found["options"] == {"optimizer": "adam"}  # the task's own rule
    assert len(found["curve"]) == len(found["trials"]) == found["cost"] == 2
    assert "validation loss" in found["sentence"]
    assert "Traceback" not in err


def test_a_script_is_searched_with_its_own_options(call: Any) -> None:
    code, out, err = call("find-lr", *GRID, "--width", "5")
    assert code == 0
    assert "was best of 3 rates from 0.001 to 0.1: training loss" in out
    assert "the script speaks" in err  # standard output is for the result


def test_a_study_goes_on(call: Any, folder: Path) -> None:
    words = ("find-lr", *GRID, "--storage", "s.db", "--json")
    first = call(*words)[1]
    connection = sqlite3.connect("s.db")
    connection.execute("DELETE FROM thalweg_trials WHERE number = 1")
    connection.commit()
    connection.close()
    assert json.loads(call(*words)[1]) == json.loads(first)
    code, _, err = call(*words, "--width", "4")
    assert code == 1
    assert "is of another search (model: Sequential of 10 numbers there, Sequential of 13 numbers here" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "range", "--storage", "s.db"), "method 'range' takes no storage"),
        (("--method", "halving", "--also", "weight_decay=[0,0.1]"), "method 'halving' takes no also"),
        (("--method", "grid", "--budget", "1"), "a grid of two rates is 2 trainings"),
        (("--method", "random", "--budget", "1"), "random needs at least 2"),
    ],
)
def test_words_that_do_not_go_together_are_wrong_usage(call: Any, words: tuple[str, ...], sentence: str) -> None:
    code, out, err = call("find-lr", "mine.py:make", *words, "--optimizer", "adamw")
    assert (code, out) == (2, "")
    assert sentence in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["rates.html", "rates.svg"])
def test_the_picture(call: Any, name: str) -> None:
    code, _, err = call("find-lr", *GRID, "--picture", name)
    assert code == 0
    assert f"wrote {name}" in err
    assert "<svg" in Path(name).read_text()


def test_further_dimensions(call: Any) -> None:
    code, out, _ = call(
        "find-lr", *GRID, "--also", "momentum=[0.0,0.9],weight_decay=(1e-4,1e-2)", "--json", "--epochs", "1"
    )
    assert code == 0
    assert len(json.loads(out)["trials"]) == 3 * 2 * 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "gird"), "unknown method 'gird': did you mean 'grid'"),
        (("--low", "0.1", "--high", "0.01"), "low must be below high, got low=0.1 and high=0.01"),
        (("--low", "20"), "got low=20 and high=10 (sgd's own high)"),
        (("--low", "small"), "--low takes a number, got 'small'"),
        (("--trials", "1"), "trials must be at least 2"),
        (("--trials", "many"), "--trials takes a whole number, got 'many'"),
        (("--budget", "0"), "budget must be a number above 0"),
        (("--epochs", "0"), "epochs must be at least 1"),
        (("--also", "momentun=[0.1,0.2]"), "did you mean 'momentum'"),
        (("--also", "momentum"), "--also takes NAME=VALUE"),
        (("--optimizer", "adma"), "unknown optimizer 'adma'"),
        (("--picture", "rates.png"), "--picture takes a file that ends in .html or .svg, got 'rates.png'"),
        (("--epchs", "3"), "unknown flag --epchs: did you mean --epochs?"),
        (("--storage", "nowhere/s.db"), "the storage nowhere/s.db cannot be used"),
    ],
)
def test_a_mistake_is_one_sentence(call: Any, words: tuple[str, ...], sentence: str) -> None:
    code, out, err = call("find-lr", "mine.py:make", "--method", "grid", *words)
    assert code == (1 if "storage" in sentence else 2)
    assert out == ""
    told = [line for line in err.splitlines() if line.startswith("thalweg:")]
    assert len(told) == 1
    assert sentence in told[0]


def test_ctrl_c_leaves_the_storage_whole(call: Any, folder: Path) -> None:
    """The third trial is interrupted; the two before it are kept, and the study goes on."""
    (folder / "slow.py").write_text(
        "import os, signal, sys\n"
        "from mine import make as plain\n"
        "import torch\n"
        "calls = 0\n"
        "def make():\n"
        "    def loss(output, target):\n"
        "        global calls\n"
        "        calls += output.requires_grad\n"
        "        if calls == 10 and os.environ.get('STOP'):\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return torch.nn.functional.mse_loss(output, target)\n"
        "    return plain() | {'loss': loss}\n"
    )
    words = ["find-lr", "slow.py:make", *GRID[1:], "--epochs", "2", "--storage", "s.db"]
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", *words],
        env={**os.environ, "STOP": "1"},
        # A job in the background of a shell is born deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert "thalweg: interrupted" in done.stderr
    connection = sqlite3.connect("s.db")
    kept = [number for (number,) in connection.execute("SELECT number FROM thalweg_trials ORDER BY number")]
    connection.close()
    assert kept == [0, 1]
    assert call(*words)[0] == 0


def test_progress_is_told_on_standard_error(call: Any) -> None:
    code, out, err = call("find-lr", *GRID, "--verbose", "true")
    assert code == 0
    assert "trial 1 of 3, rate 0.001" in err
    assert "trial 1 of 3" not in out
    assert "trial 1" not in call("find-lr", *GRID, "--verbose", "false")[2]
