"""What precision="fast" does to what is learned: final validation metrics beside those of exact arithmetic.

    python benchmarks/step/fast_quality.py --images FOLDER --text FILE [--only mlp …] [--seeds 5] [--quick]

FOLDER holds the IDX files of Fashion-MNIST (or its kin), gzipped; FILE is a text (tiny Shakespeare). Every seed trains
each network twice through `fit`, once with each precision: the same first weights, the same order of batches, Adam at
1e-3, a fixed number of epochs on a part of the data. The question is what rounding does, not how good a network gets.

A metric is within seed noise where its mean over the seeds is not worse than the exact one's by more than two standard
errors of their difference, from the spread of each over the seeds. Results go to
benchmarks/results/step-fast-quality.json, training by training: those known on the same version and machine are kept
unless --again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_models
from contenders import CONTENDERS
from images import read
from pairs import versions
from tables import machine, ours, save
from torch import Tensor
from workloads import LEARNING_RATE, WORKLOADS

RESULTS = Path(__file__).parents[1] / "results" / "step-fast-quality.json"
PRECISIONS = ("exact", "fast")
BETTER = {"validation_loss": -1, "validation_accuracy": 1}
"""Metrics, and which way is better."""
Data = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def images(options: argparse.Namespace, examples: int, flat: bool) -> Data:
    parts = read(options.images)
    if flat:
        parts = tuple((x.reshape(len(x), -1), y) for x, y in parts)
    (x, y), (x_test, y_test) = (tuple(map(torch.from_numpy, part)) for part in parts)
    return (x[:examples], y[:examples]), (x_test[:5000], y_test[:5000])


def text(options: argparse.Namespace, examples: int, flat: bool) -> Data:
    """Windows that do not overlap, each beside itself one character later; the validation windows are the last."""
    (length,) = WORKLOADS["transformer"].shape
    characters = np.frombuffer(options.text.read_bytes(), np.uint8)
    _, codes = np.unique(characters, return_inverse=True)
    count = (len(codes) - 1) // length
    x, y = (torch.from_numpy(codes[i : i + count * length]).reshape(count, length).long() for i in (0, 1))
    return (x[:examples], y[:examples]), (x[-400:], y[-400:])


@dataclass(frozen=True)
class Task:
    """A network, what it is trained on, and for how long."""

    data: Callable[[argparse.Namespace, int, bool], Data]
    examples: int
    epochs: int
    batch: int
    flat: bool = False


TASKS = {
    "mlp": Task(images, 10_000, 8, 128, flat=True),
    "cnn": Task(images, 5_000, 5, 64),
    "transformer": Task(text, 4_000, 1, 16),
}


def train(name: str, precision: str, seed: int, data: Data, options: argparse.Namespace) -> dict[str, float]:
    """The final metrics of one training, and its seconds."""
    import thalweg

    task, model = TASKS[name], torch_models.model(name, seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = thalweg.fit(
            model, data[0], "cross_entropy", validation_data=data[1], metrics=("accuracy",), optimizer="adam",
            learning_rate=LEARNING_RATE, schedule="constant", batch_size=task.batch,
            epochs=1 if options.quick else task.epochs, patience=None, precision=precision, repair="off", seed=seed,
            device="cpu", run_dir=folder, verbose=False,
        )  # fmt: skip
        seconds = round(time.perf_counter() - started, 2)
        return {metric: run.metrics[metric] for metric in BETTER} | {"seconds": seconds, "plan": str(run.plan)}


def beside(exact: list[float], fast: list[float], better: int) -> dict[str, Any]:
    """How much worse the fast mean is, in standard errors of the difference."""
    (e, f), (se, sf) = (tuple(map(what, (exact, fast))) for what in (statistics.mean, statistics.stdev))
    error = ((se**2 + sf**2) / len(exact)) ** 0.5
    worse = better * (e - f)
    within = worse <= 2 * error
    return {"exact": e, "exact_deviation": se, "fast": f, "fast_deviation": sf, "error": error, "within": within}


def compare(trainings: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """The metrics of a task over the seeds that both precisions have."""
    seeds = [s for s in trainings["exact"] if s in trainings["fast"]]
    if len(seeds) < 2:
        return {}
    values = {metric: [[trainings[p][s][metric] for s in seeds] for p in PRECISIONS] for metric in BETTER}
    return {metric: beside(*values[metric], better) for metric, better in BETTER.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of Fashion-MNIST's IDX files, gzipped")
    parser.add_argument("--text", type=Path, required=True, help="a text of 65 different characters at most")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one short epoch, two seeds; the results are left alone")
    parser.add_argument("--again", action="store_true", help="forget what is known")
    options = parser.parse_args()
    holds = {"versions": versions(CONTENDERS["thalweg"]) | {"package": ours()}, "machine": machine()}
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    same = not (options.again or options.quick) and all(known.get(key) == value for key, value in holds.items())
    table = known if same else holds | {"trainings": {}, "compared": {}}
    for name in options.only:
        task = TASKS[name]
        data = task.data(options, 512 if options.quick else task.examples, task.flat)
        done = table["trainings"].setdefault(name, {precision: {} for precision in PRECISIONS})
        for seed in map(str, range(2 if options.quick else options.seeds)):
            for precision in (p for p in PRECISIONS if seed not in done[p]):
                done[precision][seed] = train(name, precision, int(seed), data, options)
                table["compared"][name] = compare(done)
                table["command"] = _command(options)
                if not options.quick:
                    save(RESULTS, table)
        for metric, row in table["compared"][name].items():
            words = "within seed noise" if row["within"] else "OUTSIDE seed noise"
            exact, fast = (f"{row[p]:.4f} ± {row[p + '_deviation']:.4f}" for p in PRECISIONS)
            print(f"{name:12} {metric:20} exact {exact}   fast {fast}   {words}", flush=True)


def _command(options: argparse.Namespace) -> str:
    return " ".join(sys.argv).replace(str(options.images), "FOLDER").replace(str(options.text), "FILE")


if __name__ == "__main__":
    main()
