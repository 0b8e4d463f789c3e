import json

import pytest

from thalweg.cli import main

SCRIPT = """
import torch
print("the script speaks")

def make(width: int = 3, bad: bool = False, seed: int = 0, loss: str = "mse"):
    print("make speaks")
    torch.manual_seed(seed)
    x = torch.linspace(-1, 1, 64)[:, None]
    y = x * float("nan") if bad else 2 * x
    if loss == "cross_entropy":
        y = (x[:, 0] > 0).long()
    columns = 2 if loss == "cross_entropy" else 1
    model = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.ReLU(), torch.nn.Linear(width, columns))
    return {"model": model, "data": (x, y), "loss": loss, "epochs": 2, "patience": None, "optimizer": "sgd"}

def explodes():
    return make() | {"learning_rate": 1e30, "epochs": 50}

def fails():
    raise RuntimeError("the user's own")

def interrupted():
    class Stop:
        def on_step(self, run, record):
            import os, signal
            if record.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
    return make() | {"epochs": 1000, "callbacks": [Stop()]}

def terminated():
    class Stop:
        def on_step(self, run, record):
            import os, signal
            if record.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
    return make() | {"epochs": 1000, "callbacks": [Stop()]}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a script in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SCRIPT)
    return tmp_path


@pytest.fixture
def call(folder, capsys):
    """Run a command in this process: exit code, standard output, standard error."""

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def fitted(call):
    """Train and return the one JSON object on standard output."""

    def fitted(*words, code=0):
        found, out, _ = call("fit", *words, "--json")
        assert found == code
        assert out.count("\n") == 1
        return json.loads(out)

    return fitted
