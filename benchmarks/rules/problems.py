"""Eleven trainings to a target: network, data, loss, batch size, and how long one may take.

Networks and data are those of benchmarks/search/workloads.py where it has them.
"""

from __future__ import annotations

import io
import math
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "search"))  # for data and networks that both have
from workloads import (
    CACHE,
    DATA,
    Data,
    Recurrent,
    Transformer,
    characters,
    convolutional,
    dense,
    digits,
    housing,
    images,
    pictures,
)

__all__ = ["CACHE", "DATA", "PROBLEMS", "Problem"]


@dataclass(frozen=True)
class Problem:
    """One training."""

    network: Callable[[], nn.Module]
    read: Callable[[Path, Path], Data]
    loss: str
    batch_size: int | None
    """None: all examples."""
    seconds: float = 4.0
    """Of training with AdamW, about; a training may take a quarter more."""
    held_out: bool = True
    """Whether the target is of held-out data; else of the data that are trained on."""
    goal: float | None = None
    """Seconds to the target by the best of ours, beside the best of all others, at most."""
    is_extra: bool = False
    """Run only where it is named."""

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.network()


# ── networks ──


def autoencoder(*widths: int) -> nn.Module:
    """Down and up again through the same widths."""
    return dense(*widths, *reversed(widths[:-1]))


class Residual(nn.Module):
    """A small residual network: three stages of one block each, batch norm."""

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.norms[0](self.one(x)))
            return F.relu(self.norms[1](self.two(h)) + self.short(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.blocks = nn.Sequential(self.Block(16, 16, 1), self.Block(16, 32, 2), self.Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Poisson(nn.Module):
    """−u″ = π² sin πx on (0, 1), u = 0 at both ends: residuals of the equation and of the ends, by points [n, 1].

    The solution is sin πx. The last two points of a batch are the ends; their residuals weigh as much as all others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            u = self.net(x)
            (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        inside = ddu + math.pi**2 * torch.sin(math.pi * x)
        return torch.cat([inside[:-2], u[-2:] * len(x) ** 0.5])


# ── data ──


def points(folder: Path, cache: Path) -> Data:
    """Points of the equation and its two ends; the targets of all residuals are zero."""
    x = torch.cat([torch.linspace(0.005, 0.995, 198), torch.tensor([0.0, 1.0])])[:, None]
    part = x, torch.zeros_like(x)
    return part, part


def own(read: Callable[[Path, Path], Data]) -> Callable[[Path, Path], Data]:
    """Each input is its own target."""

    def again(folder: Path, cache: Path) -> Data:
        (x, _), (held, _) = read(folder, cache)
        return (x, x), (held, held)

    return again


def few(read: Callable[[Path, Path], Data], count: int) -> Callable[[Path, Path], Data]:
    """Of the held-out examples so many, drawn once: an evaluation is to cost little beside the training."""

    def drawn(folder: Path, cache: Path) -> Data:
        part, (x, y) = read(folder, cache)
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count]
        return part, (x[rows], y[rows])

    return drawn


def cifar(folder: Path, cache: Path) -> Data:
    """The CIFAR-10 subset, standardised; decoded once, by Pillow, into the cache folder."""
    file = cache / "cifar10-subset.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(".tmp.npz")
        np.savez(written, **_decoded(folder / "images" / "cifar10-jpeg-subset.tar.gz"))
        written.replace(file)
    with np.load(file) as found:
        parts = {name: torch.from_numpy(found[name]) for name in found.files}
    x, held = (parts[f"{name}_x"].permute(0, 3, 1, 2).float() for name in ("train", "test"))
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return ((x - mean) / deviation, parts["train_y"]), ((held - mean) / deviation, parts["test_y"])


def _decoded(archive: Path) -> dict[str, np.ndarray]:
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimeError("the CIFAR subset is JPEG: run once where Pillow is installed, as in the peers'") from error
    found: dict[str, list[Any]] = {f"{part}_{kind}": [] for part in ("train", "test") for kind in "xy"}
    with tarfile.open(archive) as tar:
        files = sorted((m for m in tar if m.isfile() and m.name.endswith(".jpg")), key=lambda m: m.name)
        names = sorted({Path(m.name).parts[-2] for m in files})
        for member in files:
            part, name = Path(member.name).parts[-3:-1]
            found[f"{part}_x"].append(np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read()))))
            found[f"{part}_y"].append(names.index(name))
    return {name: np.stack(values) for name, values in found.items()}


PROBLEMS = {
    "autoencoder": Problem(lambda: autoencoder(784, 500, 250, 30), pictures(6000, 1000), "mse", 256, 8.0, goal=0.5),
    "digits_autoencoder": Problem(lambda: autoencoder(64, 512, 128, 16), own(digits), "mse", 128, goal=0.5),
    "housing": Problem(lambda: dense(13, 64, 64, 64, 1), housing, "mse", 128, goal=0.5),
    "seed_network": Problem(lambda: dense(784, 10, 10), images("mnist", 10_000, 2000, (784,)), "cross_entropy", 64),
    "mlp": Problem(lambda: dense(784, 512, 512, 10), images("mnist", 10_000, 2000, (784,)), "cross_entropy", 128),
    "cnn": Problem(convolutional, images("fashion-mnist", 6000, 1000, (1, 28, 28)), "cross_entropy", 128, goal=0.8),
    "residual_cnn": Problem(Residual, few(cifar, 500), "cross_entropy", 128, 12.0, goal=0.8),
    "transformer": Problem(Transformer, characters(32, 2000, 100), "cross_entropy", 32, 8.0, goal=0.8),
    "lstm": Problem(Recurrent, characters(32, 2000, 200), "cross_entropy", 32, 8.0, goal=0.8),
    "poisson": Problem(Poisson, points, "mse", None, 4.0, held_out=False, goal=0.5),
    "logistic": Problem(
        lambda: dense(784, 10), images("mnist", 3000, 1000, (784,)), "cross_entropy", None, 4.0, False, 0.5
    ),
    "deep_autoencoder": Problem(
        lambda: autoencoder(784, 1000, 500, 250, 30), pictures(6000, 1000), "mse", 256, 30.0, is_extra=True
    ),
}
