"""Arrays in plain files: what a trained model is asked to predict from."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.tasks.idx import is_idx, read_idx

FORMATS = ".npy, .npz, .csv or IDX"


def read_array(path: Path | str) -> np.ndarray[Any, Any]:
    """The numbers of a file, one example a row: `[examples, …]`.

    `.npy`; `.npz` (its only array, or the one called x); `.csv` (numbers, with or without a line of column names); IDX,
    gzipped or not. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, is damaged, or holds anything but numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give one in {FORMATS}")
    if path.suffix in (".npy", ".npz"):
        array = _numpy(path)
    elif path.suffix == ".csv":
        array = _csv(path)
    elif is_idx(path):
        array = read_idx(path)
    else:
        raise ValueError(f"{path} is in no format that is known here: give {FORMATS}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{path} holds {array.dtype}, but numbers were expected")
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{path} holds no rows: at least one was expected")
    return array


def _numpy(path: Path) -> np.ndarray[Any, Any]:
    """A file of numpy's; a lone array is mapped first, which holds its header against the file's size."""
    try:
        if path.suffix == ".npy":
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            if len(names) == 1 or "x" in names:
                return np.asarray(arrays["x" if "x" in names else names[0]])
    except Exception as error:  # a damaged header can fail in any way: it is parsed as Python
        raise ValueError(f"{path} cannot be read as an array of numbers: {error}") from error
    raise ValueError(f"{path} holds {', '.join(names) or 'no arrays'}: one array, or one called x, was expected")


def _csv(path: Path) -> np.ndarray[Any, Any]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = [(number, cells) for number, cells in enumerate(csv.reader(file), start=1) if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as comma-separated text: {error}") from error
    rows: list[list[float]] = []
    for number, cells in lines:
        try:
            row = [float(cell) for cell in cells]
        except ValueError as error:
            if number == 1:  # the names of the columns
                continue
            raise ValueError(f"{path}, line {number}: numbers were expected ({error})") from error
        if rows and len(row) != len(rows[0]):
            raise ValueError(f"{path}, line {number}: {len(rows[0])} numbers were expected as before, got {len(row)}")
        rows.append(row)
    return np.array(rows, dtype=np.float32)
