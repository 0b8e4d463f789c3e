"""Images as MNIST and its kin hold them, without any framework: folders of IDX files, gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

Part = tuple[np.ndarray, np.ndarray]


def read(folder: Path) -> tuple[Part, Part]:
    """Training and test part, each `(x [examples, 1, rows, columns] float32, y [examples] int64)`.

    Grey levels come standardised by the mean and deviation of the training part.

    Raises:
        FileNotFoundError: a file is missing from the folder.
    """
    (x, y), (x_test, y_test) = _part(folder, "train"), _part(folder, "t10k")
    mean, deviation = x.mean(), x.std()
    return ((x - mean) / deviation, y), ((x_test - mean) / deviation, y_test)


def _part(folder: Path, name: str) -> Part:
    images, labels = (_idx(folder, f"{name}*-{kind}-idx*.gz") for kind in ("images", "labels"))
    return images[:, None].astype(np.float32) / 255, labels.astype(np.int64)


def _idx(folder: Path, pattern: str) -> np.ndarray:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}: give the folder of MNIST's four files by --data")
    content = gzip.decompress(found[0].read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
