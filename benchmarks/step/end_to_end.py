"""Three epochs of the CNN on MNIST, from arrays in memory to a trained model: `fit` and what else people use.

    python benchmarks/step/end_to_end.py --data FOLDER [--images 60000] [--rounds 3] [--only thalweg …] [--quick]
    STEP_DEVICE=cuda python benchmarks/step/end_to_end.py --data FOLDER

FOLDER holds MNIST's four IDX files, gzipped. Every training is a fresh process; a round is one training of each
contender, every second round the other way round. Timed is what a person waits for: making the trainer, planning or
compiling, gathering batches, three epochs at batch 64 with Adam at 1e-3. Not timed: imports, reading files, making the
model. `fit` keeps its history and checkpoints, Lightning its log and checkpoints; nobody shows progress.

Results go to benchmarks/results/step-end-to-end.json (of a GPU: step-end-to-end-cuda.json), a round at a time: rounds
with the same versions and machine are kept and counted, unless --again. Lines: 0.6 × the best of Keras fit, Lightning
and a hand-written loop with a DataLoader; 0.8 × a hand-written loop over tensors. The hand-written loops and Lightning
have the fused rule. On a GPU the tensors of that loop lie there, and a first small product is made before anything is
timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, Contender
from images import Part, read
from load import Others
from pairs import clean, quartiles, undisturbed, versions
from tables import gpu, machine, ours, save
from workloads import LEARNING_RATE

DEVICE = os.environ.get("STEP_DEVICE", "cpu")
RESULTS = Path(__file__).parents[1] / "results" / f"step-end-to-end{'' if DEVICE == 'cpu' else f'-{DEVICE}'}.json"
BATCH, EPOCHS = 64, 3
LIMIT = 1200.0

Train = Callable[[Part], tuple[float, Callable[[np.ndarray], np.ndarray]]]
"""A training: its seconds, and images -> scores."""


def _torch(part: Part) -> tuple[Any, Any, Any, Any]:
    """Model and rule where they train, images and labels as they were read."""
    import torch
    import torch_models

    x, y = (torch.from_numpy(array) for array in part)
    model = torch_models.model("cnn")
    torch.ones(8, 8, device=DEVICE) @ torch.ones(8, 8, device=DEVICE)
    torch_models.wait()
    return model, torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True), x, y


def _scores(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def scores(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([model(rows.to(DEVICE)).cpu() for rows in torch.from_numpy(x).split(1000)]).numpy()

    return scores


def by_fit(part: Part) -> tuple[float, Any]:
    """`thalweg.fit`."""
    import thalweg

    model, _, x, y = _torch(part)
    fit = thalweg.fit  # which imports what it needs when it is first named
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fit(
            model, (x, y), "cross_entropy", optimizer="adam", learning_rate=LEARNING_RATE, batch_size=BATCH,
            epochs=EPOCHS, patience=None, device=DEVICE, run_dir=folder, verbose=False,
        )  # fmt: skip
        return time.perf_counter() - started, _scores(model.eval())


def by_loop_over_tensors(part: Part) -> tuple[float, Any]:
    """The loop of those who know that a DataLoader is slow."""
    import torch
    import torch_models

    model, optimizer, x, y = _torch(part)
    started = time.perf_counter()
    x, y = x.to(DEVICE), y.to(DEVICE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), device=DEVICE).split(BATCH):
            optimizer.zero_grad()
            torch_models.loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
    torch_models.wait()
    return time.perf_counter() - started, _scores(model.eval())


def by_loop_with_loader(part: Part) -> tuple[float, Any]:
    """The loop of the guides."""
    import torch_models
    from torch.utils.data import DataLoader, TensorDataset

    model, optimizer, x, y = _torch(part)
    started = time.perf_counter()
    is_away = DEVICE != "cpu"
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, pin_memory=is_away)
    for _ in range(EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            scores = model(inputs.to(DEVICE, non_blocking=is_away))
            torch_models.loss(scores, labels.to(DEVICE, non_blocking=is_away)).backward()
            optimizer.step()
    torch_models.wait()
    return time.perf_counter() - started, _scores(model.eval())


def by_lightning(part: Part) -> tuple[float, Any]:
    """Lightning's Trainer on a DataLoader."""
    import lightning
    from in_lightning import Module
    from torch.utils.data import DataLoader, TensorDataset

    _, _, x, y = _torch(part)
    module = Module("cnn")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, pin_memory=DEVICE != "cpu")
        trainer = lightning.Trainer(
            max_epochs=EPOCHS, accelerator="gpu" if DEVICE == "cuda" else DEVICE, default_root_dir=folder,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader)
        seconds = time.perf_counter() - started
        return seconds, _scores(module.model.to(DEVICE).eval())


def by_keras(part: Part) -> tuple[float, Any]:
    """Keras `fit` on arrays."""
    import keras_models

    def last(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(x, 1, -1))

    model = keras_models.model("cnn")
    x, y = last(part[0]), part[1]
    started = time.perf_counter()
    model.compile(optimizer=keras_models.optimizer(), loss=keras_models.loss())
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return time.perf_counter() - started, lambda x: model.predict(last(x), batch_size=1000, verbose=0)


TRAININGS: dict[str, tuple[str, Train, Contender]] = {
    "thalweg": ("thalweg.fit", by_fit, CONTENDERS["thalweg"]),
    "tensors": ("hand-written loop over tensors", by_loop_over_tensors, CONTENDERS["torch-eager"]),
    "loader": ("hand-written loop, DataLoader", by_loop_with_loader, CONTENDERS["torch-eager"]),
    "lightning": ("Lightning, DataLoader", by_lightning, CONTENDERS["lightning"]),
    "keras": ("Keras fit (TensorFlow)", by_keras, CONTENDERS["keras-tensorflow"]),
}


def train(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One training in this process."""
    (x, y), (x_test, y_test) = read(options.data)
    seconds, scores = TRAININGS[name][1]((x[: options.images], y[: options.images]))
    accuracy = float((scores(x_test).argmax(-1) == y_test).mean())
    return {"seconds": round(seconds, 3), "test_accuracy": accuracy}


def fresh(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One training in a process of its own, or why there is none."""
    contender = TRAININGS[name][2]
    if not contender.python.exists():
        return {"note": f"absent: no environment {contender.environment} (environments.sh makes it)"}
    with tempfile.TemporaryDirectory() as cache:
        out = Path(cache, "out.json")
        flags = ["--data", str(options.data.resolve()), "--images", str(options.images)]
        command = [contender.python, __file__, "--child", name, str(out), *flags]
        environ = clean(contender, cache)
        try:
            with Others([os.getpid()]) as others:
                done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"note": f"over {LIMIT:.0f} s"}
        if done.returncode:
            return {"note": f"cannot: {(done.stderr.strip().splitlines() or [''])[-1][:160]}"}
        return json.loads(out.read_text()) | {"others_cores": others.cores}


def figures(rounds: list[dict[str, dict[str, Any]]]) -> list[tuple[str, tuple[float, float, float], float]]:
    """Ours ÷ the best of those that gather batches themselves, ours ÷ a loop over tensors; each with its bound."""
    whole = [r for r in rounds if "seconds" in r.get("thalweg", {})]
    others = [n for n in ("keras", "lightning", "loader") if all("seconds" in r.get(n, {}) for r in whole)]
    if not whole or not others:
        return []
    best = min(others, key=lambda n: statistics.median(r[n]["seconds"] for r in whole))
    found = []
    for name, bound in ((best, 0.6), ("tensors", 0.8)):
        ratios = [r["thalweg"]["seconds"] / r[name]["seconds"] for r in whole if "seconds" in r.get(name, {})]
        spread = quartiles(ratios) if len(ratios) > 1 else (ratios[0],) * 3
        found.append((f"thalweg.fit ÷ {TRAININGS[name][0]}", spread, bound))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's four IDX files, gzipped")
    parser.add_argument("--images", type=int, default=60_000, help="images of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in all, those known counted")
    parser.add_argument("--only", nargs="+", choices=TRAININGS, default=list(TRAININGS), metavar="CONTENDER")
    parser.add_argument("--quick", action="store_true", help="2,000 images, one round; the results file is left alone")
    parser.add_argument("--again", action="store_true", help="forget what is known")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, out = options.child
        Path(out).write_text(json.dumps(train(name, options)))
        return
    if options.quick:
        options.images, options.rounds = 2000, 1
    holds = {
        "versions": {name: versions(contender) for name, (_, _, contender) in TRAININGS.items()} | {"package": ours()},
        "machine": machine() if DEVICE == "cpu" else gpu(), "images": options.images, "epochs": EPOCHS, "batch": BATCH,
    }  # fmt: skip
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    same = not (options.again or options.quick) and all(known.get(key) == value for key, value in holds.items())
    table = holds | {"rounds": known["rounds"] if same else []}
    for number in range(len(table["rounds"]), options.rounds):
        order = options.only if number % 2 == 0 else options.only[::-1]
        table["rounds"].append({name: _shown(name, fresh(name, options)) for name in order})
        table["command"] = " ".join(sys.argv).replace(str(options.data), "FOLDER")
        table["ratios"] = _ratios(table["rounds"])
        if not options.quick:
            save(RESULTS, table)
    for what, (low, middle, high), bound in figures(table["rounds"]):
        met = "met" if middle <= bound else "MISSED"
        print(f"{what:60} {middle:6.3f} ({low:.3f} to {high:.3f})  at most {bound:.1f}: {met}")


def _shown(name: str, cell: dict[str, Any]) -> dict[str, Any]:
    words = cell.get("note") or f"{cell['seconds']:8.1f} s, test accuracy {cell['test_accuracy']:.4f}"
    if not undisturbed(cell):
        words += f"  (others took {cell['others_cores']:.1f} cores meanwhile)"
    print(f"{TRAININGS[name][0]:34} {words}", flush=True)
    return cell


def _ratios(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    return {
        what: {"ratio": round(middle, 4), "middle_half": [round(low, 4), round(high, 4)], "target": bound}
        for what, (low, middle, high), bound in figures(rounds)
    }


if __name__ == "__main__":
    main()
