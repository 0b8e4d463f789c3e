"""IDX, the format of MNIST: a header of big-endian numbers, then the array as it lies in memory.

Two zero bytes, one byte for the type, one for the number of axes, four bytes for the length of each axis
(yann.lecun.com/exdb/mnist). Everything that the header promises is held against the file's size before memory is
asked for, so that a damaged or hostile file costs nothing.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import numpy.typing as npt

#: The third byte of a file → the type of its numbers.
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: Deflate packs at most 1,032 bytes into one (zlib.net/zlib_tech.html).
LARGEST_RATIO = 1032

GZIP = b"\x1f\x8b"


def is_idx(path: Path | str) -> bool:
    """Whether a file begins as IDX does, gzipped or not."""
    with open(path, "rb") as file:
        gzipped = file.read(2) == GZIP
    try:
        with _open(path, gzipped) as file:
            start = file.read(4)
    except (EOFError, OSError, zlib.error):
        return False
    return len(start) == 4 and start[:2] == b"\0\0" and start[2] in TYPES and start[3] > 0


def read_idx(path: Path | str) -> npt.NDArray[np.generic]:
    """Read an IDX file, gzipped or not (its first bytes say which, not its name).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not IDX, is cut short, or holds more than its header says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: an IDX file was expected")
    with open(path, "rb") as file:
        gzipped = file.read(2) == GZIP
    try:
        with _open(path, gzipped) as file:
            return _read(file, path, path.stat().st_size * (LARGEST_RATIO if gzipped else 1))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged or cut-off gzip file: fetch it again") from error


def _open(path: Path | str, gzipped: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path)) if gzipped else open(path, "rb")


def _read(file: IO[bytes], path: Path, most: int) -> npt.NDArray[np.generic]:
    """The array in an open file that can hold at most this many bytes."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES:
        found = start.hex(" ") or "nothing"
        raise ValueError(f"{path} is not an IDX file: 00 00 08 or the like was expected at its start, got {found}")
    lengths = file.read(4 * start[3])
    if len(lengths) < 4 * start[3]:
        raise ValueError(f"{path} is cut short: its header promises {start[3]} axes, and it ends before them")
    shape = tuple(int.from_bytes(lengths[i : i + 4], "big") for i in range(0, len(lengths), 4))
    dtype = np.dtype(TYPES[start[2]])
    size = math.prod(shape) * dtype.itemsize
    if size > most:
        raise ValueError(f"{path} is cut short: its header promises {size} bytes ({_times(shape)} numbers)")
    content = file.read(size + 1)
    if len(content) != size:
        found = f"{len(content)}" if len(content) < size else "more"
        promised = f"{size} bytes ({_times(shape)} numbers)"
        raise ValueError(f"{path} should hold {promised} after its header, but holds {found}")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in shape)
