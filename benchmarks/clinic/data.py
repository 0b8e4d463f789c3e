"""The data of the clinic: subsets of what the benchmark of searches reads, kept as small arrays in the cache folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "search"))  # for how files are read
import workloads

DATA = workloads.DATA
CACHE = Path(os.environ.get("THALWEG_CLINIC", Path(__file__).parent / "cache"))
LENGTH = 16
"""Characters of an example."""

Part = tuple[Tensor, Tensor]
Data = tuple[Part, Part]


def toy(name: str, folder: Path) -> Data:
    """AutoTrainer's points in the plane, standardised; index targets, of two classes 0 and 1 as `[n, 1]`."""
    with np.load(folder / "tabular" / "autotrainer" / f"{name}.npz") as found:
        x, held = (torch.from_numpy(found[word]).float() for word in ("x", "x_val"))
        y, held_y = (torch.from_numpy(found[word]) for word in ("y", "y_val"))
    mean, deviation = x.mean(0), x.std(0)
    if y.ndim == 2:
        y, held_y = y.argmax(1), held_y.argmax(1)
    else:
        y, held_y = y.float()[:, None], held_y.float()[:, None]
    return ((x - mean) / deviation, y), ((held - mean) / deviation, held_y)


def images(name: str, train: int, validation: int, shape: tuple[int, ...], folder: Path) -> Data:
    """14 × 14: means of four pixels; about their mean, in units of their deviation."""
    parts = workloads.images(name, train, validation, (1, 28, 28))(folder, folder)
    (x, y), (held, held_y) = ((F.avg_pool2d(x, 2), y) for x, y in parts)
    mean, deviation = x.mean(), x.std()
    x, held = (((part - mean) / deviation).reshape(-1, *shape) for part in (x, held))
    return (x, y), (held, held_y)


def pictures(folder: Path) -> Data:
    """MNIST at 14 × 14, each image its own target, grey levels about their mean in units of their deviation."""
    (x, _), (held, _) = images("mnist", 1500, 500, (196,), folder)
    return (x, x.clone()), (held, held.clone())


def speech(folder: Path) -> Data:
    """Spoken digits as `[examples, 16 frames, 16 bands]`: means of 2 × 4 cells of the search's spectra."""
    train, held = workloads.speech(folder, CACHE)
    x, held_x = (F.avg_pool2d(part[0][:, None], (2, 4))[:, 0].transpose(1, 2).contiguous() for part in (train, held))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1000]
    return (x[order], train[1][order]), (held_x, held[1])


def text(folder: Path) -> Data:
    return workloads.characters(LENGTH, 600, 300)(folder, folder)


def housing(folder: Path) -> Data:
    (x, y), (held, held_y) = workloads.housing(folder, folder)
    return (x[:2000].contiguous(), y[:2000].contiguous()), (held[:1000].contiguous(), held_y[:1000].contiguous())


READERS: dict[str, Callable[[Path], Data]] = {
    "blob": lambda folder: toy("blob", folder),
    "circle": lambda folder: toy("circle", folder),
    "fashion": lambda folder: images("fashion-mnist", 2000, 1000, (196,), folder),
    "digits": lambda folder: images("mnist", 1000, 500, (1, 14, 14), folder),
    "clothes": lambda folder: images("fashion-mnist", 1000, 500, (1, 14, 14), folder),
    "speech": speech,
    "text": text,
    "housing": housing,
    "pictures": pictures,
}


@cache
def read(name: str, folder: Path = DATA) -> Data:
    """The arrays of a name, the same each time; what was read once is kept in the cache folder."""
    file = CACHE / "arrays" / f"{name}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        (x, y), (held, held_y) = READERS[name](folder)
        written = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(written, x=x.numpy(), y=y.numpy(), held=held.numpy(), held_y=held_y.numpy())
        written.replace(file)
    with np.load(file) as found:
        x, y, held, held_y = (torch.from_numpy(found[word]) for word in ("x", "y", "held", "held_y"))
    return (x, y), (held, held_y)
