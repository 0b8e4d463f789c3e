"""Results, a cell on a line, written after each and found again by what it is of: a run goes on where it stopped."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from workloads import CACHE, DATA, Data, Workload

sys.path.append(str(Path(__file__).parents[1] / "step"))  # for what the benchmarks share
from tables import machine, ours

RESULTS = Path(__file__).parents[1] / "results"
Cell = dict[str, Any]

__all__ = ["RESULTS", "Cell", "Table", "filled", "fingerprint", "machine", "ours", "parser", "rounded"]


class Table:
    """The cells of one file. `names` are the fields that say what a cell is of, `holds` what all were made on.

    Cells that were made on anything else (`holds` differs) are not read.
    """

    def __init__(self, path: Path, names: tuple[str, ...], holds: dict[str, Any], again: bool = False) -> None:
        self.path, self.names, self.holds = path, names, holds
        known = json.loads(path.read_text()) if path.exists() and not again else {}
        same = all(known.get(word) == value for word, value in holds.items())
        self.cells: dict[tuple[Any, ...], Cell] = {self.key(cell): cell for cell in known.get("cells", ()) if same}

    def key(self, cell: Cell) -> tuple[Any, ...]:
        return tuple(cell[name] for name in self.names)

    def add(self, cell: Cell) -> None:
        self.cells[self.key(cell)] = cell

    def where(self, **fields: Any) -> list[Cell]:
        """The cells in which every field is as given."""
        return [cell for cell in self.cells.values() if all(cell[name] == value for name, value in fields.items())]

    def save(self, **more: Any) -> None:
        """Written whole and put in place at once: a run that is cut off leaves the file as it was."""
        head = [
            f" {json.dumps(word)}: {json.dumps(value, ensure_ascii=False)},"
            for word, value in (self.holds | more).items()
        ]
        rows = ",\n".join(f"  {json.dumps(self.cells[key], ensure_ascii=False)}" for key in sorted(self.cells, key=str))
        written = self.path.with_suffix(".tmp")
        written.write_text("\n".join(["{", *head, ' "cells": [', rows, " ]", "}", ""]))
        written.replace(self.path)


def parser(words: str | None, names: Sequence[str]) -> argparse.ArgumentParser:
    """The flags that all programs with a table have; `names` may be asked for one by one."""
    found = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, default=DATA)
    found.add_argument("--cache", type=Path, default=CACHE)
    found.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    found.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="WORKLOAD")
    found.add_argument("--again", action="store_true", help="train what is known, too")
    return found


def filled(
    table: Table, work: Callable[[Any], Cell | list[Cell]], jobs: Iterable[Any], options: argparse.Namespace
) -> Iterator[Cell]:
    """Each new cell, once it is in the table; written after each job, unless it is to be quick."""
    with multiprocessing.Pool(options.jobs) as pool:
        for done in pool.imap_unordered(work, jobs):
            cells = done if isinstance(done, list) else [done]
            for cell in cells:
                table.add(cell)
            if not getattr(options, "quick", False):
                table.save(command=" ".join(sys.argv).replace(str(options.data), "FOLDER"))
            yield from cells


def fingerprint(workload: Workload, data: Data) -> str:
    """Which network, data and length a cell was made with: what a change to workloads.py may change."""
    digest = hashlib.sha256(
        repr((workload.make_model(0), workload.loss, workload.batch_size, workload.epochs)).encode()
    )
    for part in data:
        for tensor in part:
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:12]


def rounded(number: float | None) -> float | None:
    """To five digits; None where there is no finite number."""
    return float(f"{number:.5g}") if number is not None and abs(number) < float("inf") else None
