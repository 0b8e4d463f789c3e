"""Trainings in processes of their own, which may be killed at any instant, and what they end with.

A nursery is one process that has imported everything and forks a child for each training: a fresh process in a few
milliseconds. A child dies by SIGKILL, from outside or at an instant inside a save that it was told beforehand.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLED = -signal.SIGKILL


# ── trainings ────────────────────────────────────────────────────────────────────────────────────────────────────


def _arrays(count: int = 90, seed: int = 0) -> tuple[Any, Any]:
    import torch

    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=drawn)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()


def _model() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 8), nn.Dropout(0.1),
        nn.ReLU(), nn.Linear(8, 2),
    )  # fmt: skip


def _accuracy() -> Any:
    import torchmetrics

    return torchmetrics.classification.MulticlassAccuracy(num_classes=2)


def _confident(output: Any, target: Any) -> Any:
    """A metric of the user's own."""
    return output.softmax(1).amax(1).mean()


def _base(**changes: Any) -> dict[str, Any]:
    """Everything on at once: dropout, batch norm, shuffling, accumulation, schedule, averages, metrics, validation."""
    return {
        "model": _model(),
        "data": _arrays(),
        "loss": "cross_entropy",
        "validation_data": _arrays(40, seed=1),
        "optimizer": "adam",
        "learning_rate": 0.02,
        "schedule": "one_cycle",
        "batch_size": 10,
        "accumulate": 2,
        "epochs": 7,
        "patience": None,
        "weight_average": "ema",
        "metrics": ["accuracy", _accuracy(), _confident],
        "checkpoint_every": 7,
        "verbose": False,
        "device": "cpu",
    } | changes


def _loader(**options: Any) -> Any:
    from torch.utils.data import DataLoader, TensorDataset

    return DataLoader(TensorDataset(*_arrays()), batch_size=10, shuffle=True, **options)


def _map_style() -> Any:
    from torch.utils.data import Dataset

    class Rows(Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.x, self.y = _arrays()

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, i: int) -> Any:
            return self.x[i], self.y[i]

    return Rows()


def _tensor_dataset() -> Any:
    from torch.utils.data import TensorDataset

    return TensorDataset(*_arrays())


def _seeded_loader() -> Any:
    import torch

    return _loader(generator=torch.Generator().manual_seed(11))


def _keras() -> dict[str, Any]:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(5)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, "relu"), layers.BatchNormalization(), layers.Dropout(0.3),
         layers.Dense(8, "relu", kernel_regularizer="l2"), layers.Dropout(0.2), layers.Dense(2)]
    )  # fmt: skip
    return _base(model=model)


def _plateau() -> dict[str, Any]:
    """A rate that depends on what was validated: torch's default waits for ten epochs."""
    from torch.optim.lr_scheduler import ReduceLROnPlateau

    return _base(schedule=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.7, patience=0), clip_norm=0.5)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": _base,
    "swa": lambda: _base(weight_average="swa", schedule="cosine"),
    "plateau": _plateau,
    "plateau by name": lambda: _base(schedule="plateau", epochs=25, batch_size=45),
    "map-style dataset": lambda: _base(data=_map_style()),
    "tensor dataset": lambda: _base(data=_tensor_dataset(), schedule="warm_restarts"),
    "shuffling loader": lambda: _base(data=_loader()),
    "loader with a generator": lambda: _base(data=_seeded_loader()),
    "full batch": lambda: _base(batch_size="full", accumulate=3, epochs=60, checkpoint_every=4),
    "momentum": lambda: _base(optimizer="momentum", schedule="step", clip_value=0.01, validation_data=None),
    "adafactor": lambda: _base(optimizer="adafactor", validation_data=None, validation_split=1 / 3),
    "soap": lambda: _base(optimizer="soap", optimizer_options={"budget": None, "period": 3}),
    "muon": lambda: _base(optimizer="muon", optimizer_options={"arithmetic": "exact"}),
    "patience": lambda: _base(patience=2, epochs=40, weight_average=None, learning_rate=0.1),
    "steps": lambda: _base(epochs=None, steps=63, weight_average=None),
    "target": lambda: _base(epochs=40, target={"loss": 0.45}, schedule="constant", weight_average=None),
    "keras": _keras,
}


# ── one training, in the child ───────────────────────────────────────────────────────────────────────────────────


def train(case: str, run_dir: str, out: str, how: str, **options: Any) -> None:
    """Train a case to its end and write down what it ended with.

    Args:
        case: a name of `CASES`.
        run_dir: where the run is kept.
        out: the file for the outcome.
        how: "fit", "again" (`fit` with resume=True) or "resume".
        options: `die` (an instant of `INSTANTS`), `at` (its how-maniest time), `pace` (seconds a reported step waits),
            `in_place` (write checkpoints as if they were large), `changes` (keywords of `fit`).
    """
    import thalweg
    from thalweg.loop import saver

    saver.PACE_SECONDS = 0.0  # a checkpoint whenever one is due
    if options.get("in_place"):
        saver.COPY_BYTES = 0
    if "die" in options:
        die_inside(options["die"], options["at"])
    arguments = CASES[case]() | options.get("changes", {})
    if options.get("pace"):
        arguments["callbacks"] = [Slow(options["pace"])]
    if how == "resume":
        kept = ("model", "data", "loss", "validation_data", "metrics", "callbacks")
        own = {"schedule"} if callable(arguments["schedule"]) else set()
        given = {word: value for word, value in arguments.items() if word in {*kept, *own, *options.get("changes", {})}}
        run = thalweg.resume(run_dir, **given)
    else:
        run = thalweg.fit(**arguments, run_dir=run_dir, resume=how == "again")
    Path(out).write_text(json.dumps(outcome(run)), encoding="utf-8")


class Slow:
    """A callback that gives whoever kills the time to."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step(self, run: Any, record: Any) -> None:
        time.sleep(self.seconds)


def outcome(run: Any) -> dict[str, Any]:
    """All that two runs must have in common to the last bit, by name: large things as hashes."""
    import hashlib

    from thalweg import History
    from thalweg.loop.tree import pack
    from thalweg.step.forward import Forward

    def fingerprint(tensors: Any) -> dict[str, str]:
        return {
            name: hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest() for name, t in tensors.items()
        }

    found: dict[str, Any] = {"stopped": run.stopped_because, "steps": run.steps, "verdict": str(run.verdict)}
    found["weights"] = fingerprint(Forward(run.model).state())
    plain, tensors = pack(run.optimizer.state_dict())
    found["optimizer"] = [plain, fingerprint(tensors)]
    found["history"] = run.history.to_dict()
    found["history on disk"] = History.open(run.directory / "history.sqlite").to_dict()
    found["metrics"], found["best"] = run.metrics, run.record.best_step
    for pointer in ("LATEST", "BEST"):
        if (run.directory / pointer).exists():
            name = (run.directory / pointer).read_text().strip()
            found[pointer] = [name, *_files(run.directory / "checkpoints" / name)]
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def _files(checkpoint: Path) -> Iterator[Any]:
    """A checkpoint's files as hashes, but for the seconds: averages, random states, sums are all in there."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    yield from (manifest["files"][name]["sha256"] for name in ("model.safetensors", "optimizer.safetensors"))
    state = json.loads((checkpoint / "state.json").read_text())
    del state["state"]["standing"]["seconds"]
    yield state


# ── dying ────────────────────────────────────────────────────────────────────────────────────────────────────────

#: Instants inside a save: the call, what its path ends with or holds, and whether death comes before or after it.
INSTANTS = {
    "inside the weights": ("fsync", "model.safetensors", "before"),
    "before the manifest": ("fsync", "state.json", "after"),
    "inside the manifest": ("fsync", "MANIFEST.json", "before"),
    "before the rename": ("rename", ".tmp", "before"),
    "after the rename": ("rename", ".tmp", "after"),
    "between two of one step": ("rename", ".old", "after"),
    "after LATEST": ("replace", "LATEST", "after"),
    "before BEST": ("replace", "BEST", "before"),
    "after BEST": ("replace", "BEST", "after"),
    "inside the pruning": ("rmtree", "step-", "half"),
    "after the last step": ("rename", "step-00000063.tmp", "after"),
}


def die_inside(instant: str, at: int) -> None:
    """From now on, the `at`-th time that this instant comes, this process is killed."""
    call, part, when = INSTANTS[instant]
    module: Any = shutil if call == "rmtree" else os
    real = getattr(module, call)
    left = [at]

    def path_of(what: Any, further: tuple[Any, ...]) -> str:
        if call == "fsync":
            return os.readlink(f"/proc/self/fd/{what}")
        return " ".join(str(path) for path in (what, *further[:1]))

    def dying(what: Any, *further: Any, **named: Any) -> Any:
        exists = call != "rmtree" or Path(what).is_dir()
        due = exists and part in path_of(what, further)
        left[0] -= due
        if due and left[0] == 0:
            if when == "after":
                real(what, *further, **named)
            if when == "half":
                next(Path(what).iterdir()).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(what, *further, **named)

    setattr(module, call, dying)


# ── the nursery ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Child:
    """A process that the nursery has forked."""

    nursery: Nursery
    pid: int

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> int:
        """How it ended: 0, or minus the signal's number, or what it exited with."""
        return self.nursery.ask({"wait": self.pid})


class Nursery:
    """The process that forks; `start` takes the words of `train`."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "KERAS_BACKEND": "torch"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, words: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, case: str, run_dir: Path, out: Path, how: str = "fit", **options: Any) -> Child:
        return Child(self, self.ask({"case": case, "run_dir": str(run_dir), "out": str(out), "how": how, **options}))

    def run(self, case: str, run_dir: Path, how: str = "fit", **options: Any) -> dict[str, Any]:
        """Train to the end in a child, and what it ended with."""
        out = run_dir.parent / f"{run_dir.name}.json"
        code = self.start(case, run_dir, out, how, **options).wait()
        assert code == 0, f"the child ended with {code}"
        return json.loads(out.read_text())  # type: ignore[no-any-return]

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def _serve() -> None:
    import torch

    import thalweg

    torch.set_num_threads(1)
    for heavy in ("torchmetrics", "keras", "thalweg.loop.tree"):
        with contextlib.suppress(ImportError):
            importlib.import_module(heavy)
    for word in ("fit", "resume", "History"):
        getattr(thalweg, word)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        words = json.loads(line)
        if "wait" in words:
            status = os.waitpid(words["wait"], 0)[1]
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _live(words)
        answers.write(f"{answer}\n")
        answers.flush()


def _live(words: dict[str, Any]) -> None:
    """The whole life of a child."""
    code = 1
    try:
        train(**words)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def kill_at_random(child: Child, run_dir: Path, seed: int, at_most: float) -> None:
    """SIGKILL a while after the child has begun to write down what it does."""
    limit = time.monotonic() + 60
    while not (run_dir / "history.sqlite").exists() and time.monotonic() < limit:
        time.sleep(0.002)
    time.sleep(random.Random(seed).uniform(0.0, at_most))
    child.kill()


if __name__ == "__main__":
    _serve()
