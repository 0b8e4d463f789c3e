"""What only a process of its own shows: what it imports, its pipes, its signals."""

import os
import signal
import subprocess
import sys

import pytest

THALWEG = [sys.executable, "-m", "thalweg"]


@pytest.mark.parametrize("command", ["--help", "--version", "fit --help", "runs", "fti", "fit digits --epochs 0"])
def test_what_needs_no_torch_imports_none(tmp_path, command):
    code = f"""
import sys
from thalweg.cli import main
main({command.split()!r})
heavy = [name for name in ("torch", "rich", "plotly", "sklearn", "safetensors", "yaml") if name in sys.modules]
sys.exit(f"imports {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version():
    import thalweg

    done = subprocess.run([*THALWEG, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"thalweg {thalweg.__version__}\n"


def test_no_command_is_wrong_usage():
    done = subprocess.run(THALWEG, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "doctor" in done.stderr


def test_a_reader_who_leaves_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*THALWEG, "fit", "--help"], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_with_its_code(folder, number, code):
    (folder / "slow.py").write_text(
        "from mine import make as plain\n"
        "class Tell:\n"
        "    def on_step(self, run, record):\n"
        "        print('training', flush=True)\n"
        "def make():\n"
        "    return plain() | {'epochs': 10**9, 'callbacks': [Tell()]}\n"
    )
    process = subprocess.Popen(
        [*THALWEG, "fit", "slow.py:make"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = next((line for line in process.stdout if line == "training\n"), None)
    process.send_signal(number)
    rest = process.communicate()[0]
    assert said == "training\n"
    assert process.returncode == code, rest
    assert "Traceback" not in rest
    assert (folder / "runs" / "slow-1" / "LATEST").exists()
