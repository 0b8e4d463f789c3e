from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import thalweg
from thalweg.run import directory

#: Holds a run directory and says so, then waits for ever.
HOLDER = """
import sys
from pathlib import Path
from thalweg.run.directory import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def _fit(run_dir: Path | None) -> thalweg.Run:
    x = torch.linspace(-1, 1, 8)[:, None]
    return thalweg.fit(nn.Linear(1, 1), (x, x), "mse", epochs=1, run_dir=run_dir, verbose=False)


@pytest.fixture
def holder(tmp_path):
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_directory_is_one_training_s_at_a_time_until_it_is_killed(holder, tmp_path):
    with pytest.raises(ValueError, match="is in use by another training") as error:
        _fit(tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "run.json").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert _fit(tmp_path / "run").steps > 0


def test_a_run_is_resumed_by_one_process_at_a_time(tmp_path):
    _fit(tmp_path / "run")
    x = torch.linspace(-1, 1, 8)[:, None]
    with directory.locked(tmp_path / "run"), pytest.raises(ValueError, match="is in use by another training"):
        thalweg.resume(tmp_path / "run", model=nn.Linear(1, 1), data=(x, x), loss="mse")


def test_a_used_directory_is_refused(tmp_path):
    _fit(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a run already; give resume=True"):
        _fit(tmp_path / "run")


def test_a_failed_training_lets_go(tmp_path):
    x = torch.linspace(-1, 1, 8)[:, None]

    class Fails:
        def on_step(self, run, record):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        thalweg.fit(nn.Linear(1, 1), (x, x), "mse", callbacks=[Fails()], run_dir=tmp_path / "run", verbose=False)
    with directory.locked(tmp_path / "run"):
        pass


def test_runs_are_numbered_after_the_last_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert directory.make(None, "digits") == Path("runs/digits-1")
    assert directory.make(None, "digits") == Path("runs/digits-2")
    Path("runs/digits-7").mkdir()
    Path("runs/digits-x").mkdir()
    Path("runs/digits-2-9").mkdir()
    assert directory.make(None, "digits") == Path("runs/digits-8")
    assert directory.make(None, "other") == Path("runs/other-1")
    assert directory.make("here/there", "digits") == Path("here/there")
    assert Path("here/there").is_dir()


def test_a_run_is_named_after_its_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class MyBigNet(nn.Linear):
        pass

    x = torch.linspace(-1, 1, 8)[:, None]
    run = thalweg.fit(MyBigNet(1, 1), (x, x), "mse", epochs=1, verbose=False)
    assert run.directory == Path("runs/my-big-net-1")


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be made"):
        _fit(tmp_path / "file" / "run")


def test_what_is_written_of_the_machine_does_not_name_it():
    text = str(directory.machine()) + str(directory.versions())
    assert directory.machine()["cores"] == os.cpu_count()
    assert os.uname().nodename not in text
