"""Full-length trainings on real data, of a few seconds each on one thread, whose histories a stopping rule is held to.

    python benchmarks/convergence/runs.py [--data ../shared/data] [--cache FOLDER]

records what is missing in the cache folder: a run a file, in numbers only. Families up to `cnn` are for tuning, the
others are held out. Each is trained under three rules, with a constant and a cosine rate, from two seeds; the second
at a third of the rate. Kept are the loss of each evaluation, and rate and loss at each report.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))
import workloads as shared
from workloads import characters, dense, digits, images

import thalweg

CACHE = Path.home() / ".cache" / "thalweg-bench" / "convergence"
RULES = ("sgd", "momentum", "adamw")
SCHEDULES = ("constant", "cosine")
SEEDS = (0, 1)
TUNING = ("blob", "circle", "digits", "fashion_mlp", "fashion_few", "cnn")
HELD_OUT = ("lstm", "transformer", "residual", "housing", "wine")


@dataclass(frozen=True)
class Family:
    """A network and its data, and the rates that suit each rule, in the order of `RULES`."""

    network: object
    read: object
    loss: str
    batch_size: int
    epochs: int
    rates: tuple[float, float, float]


class Recurrent(nn.Module):
    """Characters `[batch, length]` to scores `[batch, length, characters]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(shared.CHARACTERS, 24), nn.LSTM(24, 32, batch_first=True)
        self.head = nn.Linear(32, shared.CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


class Residual(nn.Module):
    """Two residual blocks with batch norm on images of 14 by 14."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(8 * 49, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(nn.functional.avg_pool2d(x, 2).flatten(1))


def plane_points(name: str) -> object:
    """AUTOTRAINER's blob and circle, centred and of deviation 1."""

    def read(folder: Path, cache: Path) -> shared.Data:
        with np.load(folder / "tabular" / "autotrainer" / f"{name}.npz") as found:
            x, held, y, held_y = (torch.from_numpy(found[key]) for key in ("x", "x_val", "y", "y_val"))
        mean, deviation = x.mean(0), x.std(0)
        labels = [part.argmax(1) if part.ndim == 2 else part.long() for part in (y, held_y)]
        return tuple(((part - mean) / deviation).float() for part in (x, held)), labels

    def paired(folder: Path, cache: Path) -> shared.Data:
        (x, held), (y, held_y) = read(folder, cache)
        return (x, y), (held, held_y)

    return paired


def wine(folder: Path, cache: Path) -> shared.Data:
    """White wine, eleven numbers to a mark, everything standardised."""
    rows = np.genfromtxt(folder / "tabular" / "winequality-white.csv", delimiter=",")
    rows = torch.from_numpy((rows - rows.mean(0)) / rows.std(0)).float()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return (rows[:1000, :11], rows[:1000, 11:]), (rows[1000:2000, :11], rows[1000:2000, 11:])


def fewer(read: object, train: int, held_out: int) -> object:
    """The first examples of each part."""

    def cut(folder: Path, cache: Path) -> shared.Data:
        (x, y), (held, held_y) = read(folder, cache)
        return (x[:train], y[:train]), (held[:held_out], held_y[:held_out])

    return cut


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 49, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _fashion(train: int, held_out: int, shape: tuple[int, ...]) -> object:
    return images("fashion-mnist", train, held_out, shape)


FAMILIES = {
    "blob": Family(lambda: dense(2, 16, 16, 3), plane_points("blob"), "cross_entropy", 32, 100, (0.1, 0.02, 3e-3)),
    "circle": Family(lambda: dense(2, 16, 16, 2), plane_points("circle"), "cross_entropy", 32, 100, (0.1, 0.02, 3e-3)),
    "digits": Family(lambda: dense(64, 32, 10), digits, "cross_entropy", 32, 80, (0.2, 0.03, 3e-3)),
    "fashion_mlp": Family(
        lambda: dense(784, 64, 32, 10), _fashion(2000, 1000, (784,)), "cross_entropy", 64, 50, (0.1, 0.02, 1e-3)
    ),
    "fashion_few": Family(
        lambda: dense(784, 128, 10), _fashion(400, 1000, (784,)), "cross_entropy", 32, 80, (0.02, 5e-3, 5e-4)
    ),
    "cnn": Family(
        convolutional, _fashion(800, 500, (1, 28, 28)), "cross_entropy", 32, 40, (0.1, 0.02, 1e-3)
    ),
    "lstm": Family(Recurrent, characters(24, 320, 200), "cross_entropy", 32, 60, (1.0, 0.3, 5e-3)),
    "transformer": Family(
        lambda: shared.Transformer(24, blocks=1), characters(24, 320, 200), "cross_entropy", 32, 40, (0.1, 0.03, 2e-3)
    ),
    "residual": Family(Residual, _fashion(500, 500, (1, 28, 28)), "cross_entropy", 50, 40, (0.1, 0.02, 3e-3)),
    "housing": Family(
        lambda: dense(13, 32, 32, 1), fewer(shared.housing, 2000, 1000), "mse", 64, 80, (0.05, 0.01, 2e-3)
    ),
    "wine": Family(lambda: dense(11, 32, 1), wine, "mse", 32, 100, (0.05, 0.01, 2e-3)),
}  # fmt: skip


def cases(families: tuple[str, ...] = (*TUNING, *HELD_OUT)) -> list[tuple[str, str, str, int]]:
    """Family, rule, schedule and seed of each run."""
    return list(itertools.product(families, RULES, SCHEDULES, SEEDS))


def file_of(case: tuple[str, str, str, int], cache: Path = CACHE) -> Path:
    """Where the history of a run is kept."""
    return cache / ("-".join(str(part) for part in case) + ".npz")


def record(case: tuple[str, str, str, int], folder: Path, cache: Path) -> None:
    """Train one to its full length, and keep its series: those of reports and of evaluations."""
    name, rule, schedule, seed = case
    family = FAMILIES[name]
    train, held_out = family.read(folder, shared.CACHE)
    torch.manual_seed(seed)
    rate = family.rates[RULES.index(rule)] / (1 if seed == 0 else 3)
    with tempfile.TemporaryDirectory() as directory:
        run = thalweg.fit(
            family.network(), train, family.loss, validation_data=held_out, optimizer=rule, learning_rate=rate,
            schedule=schedule, batch_size=family.batch_size, epochs=family.epochs, patience=None, plan="eager",
            checkpoint_every=None, seed=seed, run_dir=Path(directory) / "run", verbose=False,
        )  # fmt: skip
    found = {}
    for series in ("loss", "learning_rate", "gradient_norm", "epoch_loss", "validation_loss"):
        found[f"{series}/steps"], found[f"{series}/values"] = run.history.series(series)
    file = file_of(case, cache)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".tmp.npz")
    np.savez_compressed(written, **found)
    written.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared.DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in cases():
        if not file_of(case, options.cache).exists():
            before = time.perf_counter()
            record(case, options.data, options.cache)
            print(*case, f"{time.perf_counter() - before:.1f} s", flush=True)


if __name__ == "__main__":
    main()
