"""Ctrl-C and SIGTERM, sent to real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import thalweg

SCRIPT = """
import time
import torch
from torch import nn

class Ready:
    def __init__(self, pause):
        self.pause = pause
    def on_step(self, run, record):
        if record.step == 12:
            open(READY, "w").close()
        time.sleep(self.pause)

def make(pause: float = 0.0):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))
    return {"model": model, "data": (x, x.sum(1, keepdim=True)), "loss": "mse", "batch_size": 8, "epochs": 60,
            "optimizer": "adam", "patience": None, "validation_split": 0.25, "callbacks": [Ready(pause)]}
"""

#: The same without the command line: what `fit` does to its caller.
CALLER = """
import sys
sys.path.insert(0, {folder!r})
import script, thalweg
try:
    run = thalweg.fit(**script.make(pause=0.05), run_dir="run", verbose=False)
    print("returned", run.stopped_because, flush=True)
except KeyboardInterrupt:
    print("raised", flush=True)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path):
    (tmp_path / "script.py").write_text(f"READY = {str(tmp_path / 'ready')!r}\n" + SCRIPT)
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _ready(process: subprocess.Popen[str], folder: Path) -> None:
    limit = time.monotonic() + 120
    while not (folder / "ready").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def _weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "checkpoints" / (run_dir / "LATEST").read_text().strip() / "model.safetensors")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_a_last_checkpoint_from_which_the_run_goes_on_exactly(number, code, start, tmp_path):
    process = start("-m", "thalweg", "fit", "script.py:make", "--run-dir", "run", "--pause", "0.05")
    _ready(process, tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["stopped_because"] == "interrupted"
    assert 12 <= record["steps"] < 360
    assert (tmp_path / "run" / "LATEST").read_text().strip() == f"step-{record['steps']:08d}"
    thalweg.recipe(f"{tmp_path / 'script.py'}:make").fit(run_dir=tmp_path / "whole", verbose=False)
    thalweg.resume(tmp_path / "run", callbacks=(), verbose=False)
    for name, value in _weights(tmp_path / "whole").items():
        assert torch.equal(_weights(tmp_path / "run")[name], value)
    found, expected = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "whole"))
    for word in ("stopped_because", "metrics", "verdict", "steps", "best_step"):
        assert found[word] == expected[word]


def test_after_ctrl_c_fit_returns_its_run(start, tmp_path):
    process = start("-c", CALLER.format(folder=str(tmp_path)))
    _ready(process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].split() == ["returned", "interrupted"]
    assert process.returncode == 0


def test_after_sigterm_the_process_dies_by_it_when_all_is_saved(start, tmp_path):
    process = start("-c", CALLER.format(folder=str(tmp_path)))
    _ready(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["steps"]
    assert (tmp_path / "run" / "LATEST").read_text().strip() == f"step-{steps:08d}"


def test_a_second_ctrl_c_raises_at_once(start, tmp_path):
    """A step that takes for ever is not waited for."""
    script = tmp_path / "script.py"
    script.write_text(
        script.read_text().replace('open(READY, "w").close()', 'open(READY, "w").close(); time.sleep(600)')
    )
    process = start("-c", CALLER.format(folder=str(tmp_path)))
    _ready(process, tmp_path)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:  # a sleep goes on after the first
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.communicate(timeout=60)[0].split() == ["raised"]


def test_handlers_are_those_of_before_afterwards(tmp_path):
    x = torch.linspace(-1, 1, 8)[:, None]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    thalweg.fit(torch.nn.Linear(1, 1), (x, x), "mse", epochs=1, run_dir=tmp_path / "run", verbose=False)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
