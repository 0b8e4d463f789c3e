"""MNIST, and whatever comes in its format: IDX files in a folder (LeCun, Cortes & Burges, 1998)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thalweg.tasks.idx import read_idx
from thalweg.tasks.network import network

#: The beginnings of the file names of each part; Fashion-MNIST and its kin use the same.
PARTS = {"training": "train", "test": "t10k"}


def make(data: Path, seed: int = 0) -> dict[str, Any]:
    """The seed network on the IDX files of the folder `data`, gzipped or not; their test set is the validation data.

    Twenty epochs at batch 128 under one cycle that peaks at 0.005. The rate has to rise to that: from a cold start
    Adam's first steps push half of the ten units out of reach of every input, and they stay dead. Pixels remain bytes
    in memory; the network standardises them.

    Raises:
        FileNotFoundError: no such folder, or a file is missing from it.
        ValueError: a file is damaged, holds something else, or disagrees with its partner.
    """
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one with train-images-idx3-ubyte[.gz] …")
    x, y = idx_part(folder, "training")
    x_test, y_test = idx_part(folder, "test")
    if x.shape[1:] != x_test.shape[1:]:
        sizes = " and ".join("×".join(str(n) for n in part.shape[1:]) for part in (x, x_test))
        raise ValueError(f"the training and test images in {folder} must be of one size, but are {sizes}")
    return {
        "model": network(x, num_classes=max(10, int(y.max()) + 1), seed=seed),
        "data": (x, y),
        "loss": "cross_entropy",
        "validation_data": (x_test, y_test),
        "optimizer": "adam",
        "learning_rate": 0.005,
        "schedule": "one_cycle",
        "batch_size": 128,
        "epochs": 20,
        "metrics": ("accuracy",),
        "seed": seed,
    }


def idx_part(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images `[examples, rows, columns]` in grey levels 0 to 255 as bytes, and labels `[examples]`."""
    image_file, label_file = _find(folder, part, "images", 3), _find(folder, part, "labels", 1)
    images, labels = read_idx(image_file), read_idx(label_file)
    for file, array, axes in ((image_file, images, 3), (label_file, labels, 1)):
        if array.ndim != axes or array.dtype.kind not in "ui":
            found = f"an array of {array.ndim} axes and type {array.dtype}"
            raise ValueError(f"{file} holds {found}, but {axes} and whole numbers were expected")
    if len(images) != len(labels):
        raise ValueError(f"{image_file} holds {len(images)} images but {label_file} holds {len(labels)} labels")
    if not len(images):
        raise ValueError(f"{image_file} holds no images: at least one was expected")
    return torch.from_numpy(images), torch.from_numpy(labels).to(torch.int64)


def _find(folder: Path, part: str, kind: str, axes: int) -> Path:
    """The one file of a part; some mirrors write a dot for the dash, and an unpacked file goes before its archive."""
    found = list(folder.glob(f"{PARTS[part]}*{kind}*idx{axes}*"))
    if not found:
        expected = f"{PARTS[part]}-{kind}-idx{axes}-ubyte[.gz]"
        raise FileNotFoundError(f"{folder} lacks the {part} {kind}: a file {expected} was expected")
    return min(found, key=lambda path: (path.suffix == ".gz", path.name))
