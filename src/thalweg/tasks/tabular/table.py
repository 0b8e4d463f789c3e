"""A CSV file → its cells by column, with the line that each row came from."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from thalweg.tasks.task import BadData

DELIMITERS = ",;\t|"

#: What stands for a cell that is not there, in small letters.
MISSING = frozenset(("", "na", "n/a", "nan", "null", "none", "?", "-", "missing"))

#: Rows that are looked at to tell whether the first line is a header.
LOOKED_AT = 100


@dataclass(frozen=True)
class Table:
    """The cells of a file, stripped: `columns` by name, each as long as `lines`, the line numbers of the rows."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def part(self, rows: list[int]) -> Table:
        """Some of the rows, in this order."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return Table(self.path, columns, [self.lines[row] for row in rows])

    def place(self, row: int) -> str:
        """Where a row stands, for a person."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(path: Path, bad: BadData, header: str = "auto") -> Table:
    """Read comma-, semicolon-, tab- or bar-separated text, gzipped or not.

    Without a line of names the columns are called 1, 2, …; `header` is "yes", "no", or "auto": a first line is one
    where it has a word above a column of numbers, or where there are no numbers at all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such text, holds no rows, has two columns of one name, or a ragged row that is refused.
    """
    rows = _rows(path)
    if not rows:
        raise ValueError(f"{path} holds no rows: a line of column names and a row for each example were expected")
    first = rows[0][1]
    named = header == "yes" or (header == "auto" and _is_header(rows))
    names = [name.strip() for name in first] if named else [str(1 + i) for i in range(len(first))]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"{path} has more than one column called {', '.join(map(repr, twice))}: give each its own name"
        )
    kept, lines = [], []
    for line, cells in rows[named:]:
        if len(cells) != len(names):
            bad.add(f"{path}, line {line}", f"a row of {len(cells)} cells where {len(names)} were expected")
            continue
        kept.append([cell.strip() for cell in cells])
        lines.append(line)
    if not kept:
        raise ValueError(f"{path} holds no rows of data: at least one was expected below its column names")
    return Table(path, dict(zip(names, map(list, zip(*kept, strict=True)), strict=True)), lines)


def of_hub(name: str, part: Any) -> Table:
    """A part of a data set of the hub, `name`, its rows counted from 1; columns that hold more than words and numbers
    are left out.
    """
    columns = {}
    for column, feature in part.features.items():
        if type(feature).__name__ == "ClassLabel":
            columns[column] = ["" if cell is None else feature.int2str(cell) for cell in part[column]]
        elif type(feature).__name__ == "Value":
            columns[column] = ["" if cell is None else str(cell).strip() for cell in part[column]]
    return Table(Path(name), columns, list(range(1, 1 + len(part))))


def is_missing(cell: str) -> bool:
    """Whether a cell says that there is nothing.

    >>> is_missing("NA"), is_missing("0")
    (True, False)
    """
    return cell.lower() in MISSING


def number(cell: str) -> float | None:
    """The finite number that a cell holds, if it holds one.

    >>> number("1e3"), number("inf"), number("12 kg"), number("1_000")
    (1000.0, None, None, None)
    """
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in cell else None


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a CSV file, gzipped or not")
    try:
        with _open(path) as file:
            start = file.readline()
            delimiter = max(DELIMITERS, key=start.count)
            reader = csv.reader(_again(start, file), delimiter=delimiter, strict=True)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as comma-separated text: {error}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged or cut-off gzip file: fetch it again") from error


def _open(path: Path) -> IO[str]:
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    if gzipped:
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return open(path, encoding="utf-8-sig", newline="")


def _again(start: str, file: IO[str]) -> Iterator[str]:
    """A file from its start, whose first line was read."""
    if start:
        yield start
    yield from file


def _is_header(rows: list[tuple[int, list[str]]]) -> bool:
    """Whether the first line names columns: a word stands above numbers, or there are no numbers at all."""
    first = rows[0][1]
    below = [cells for _, cells in rows[1 : 1 + LOOKED_AT] if len(cells) == len(first)]
    columns = [[row[i] for row in below if not is_missing(row[i].strip())] for i in range(len(first))]
    numeric = [bool(cells) and all(number(cell) is not None for cell in cells) for cells in columns]
    if not any(numeric):
        return all(number(cell) is None for cell in first)
    return any(is_number and number(cell) is None for cell, is_number in zip(first, numeric, strict=True))
