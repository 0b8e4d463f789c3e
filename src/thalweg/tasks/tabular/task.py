"""`tabular`: any CSV file, a column to predict, and a network that tells which columns it goes by."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import thalweg
from thalweg.tasks import hub
from thalweg.tasks.tabular import columns as reading
from thalweg.tasks.tabular.network import build
from thalweg.tasks.tabular.pictures import Pictures
from thalweg.tasks.tabular.scores import CrossEntropy, RootMeanSquaredError, SquaredError, accuracy
from thalweg.tasks.tabular.table import Table, is_missing, number, of_hub, read_table
from thalweg.tasks.task import BadData, seeded

#: Share of the rows not held out that chooses the best weights.
VALIDATION = 0.1

#: Passes over the data; a small table, whose epochs are few updates, is given more.
EPOCHS, MOST_EPOCHS, UPDATES = 20, 200, 1200

KINDS = ("auto", "regression", "classification")


def make(
    data: Path,
    target_column: str,
    kind: str = "auto",
    held_out: float = 0.2,
    header: str = "auto",
    width: int = 192,
    layers: int = 3,
    members: int = 8,
    dropout: float = 0.1,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """A network for the column `target_column` of a CSV file `data`, or of `train.csv` [and `test.csv`] in a folder. A
    name of the hub, `hub:OWNER/NAME`, will do as well.

    Columns are numbers, dates or categories by what they hold; missing cells are told to the network. A share
    `held_out` of the rows, drawn by the seed, is set aside for the last judgement (`test_rmse`, `test_accuracy`), where
    there is no `test.csv`; a tenth of the others chooses the best weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no such column, or holds what is refused.
    """
    _check(kind, header, held_out)
    bad = BadData(on_bad_data)
    table, test = _of_hub(str(data)) if hub.is_hub(data) else _tables(Path(data), bad, header)
    table = _with_target(table, target_column, bad)
    rows, validation_rows, test_rows = _split(len(table), held_out if test is None else 0.0, seed)
    facts_columns, notes = reading.infer(table.part(rows), target_column, bad)
    facts: dict[str, Any] = {"target": target_column, "columns": facts_columns, "width": width, "layers": layers}
    facts |= {"members": members, "dropout": dropout, "header": header}
    facts |= _target_facts(table, rows, target_column, kind)
    parts = [table.part(part) for part in (rows, validation_rows, test_rows)]
    if test is not None:
        parts[2] = _with_target(test, target_column, bad)
    (x, y), validation, judged = (_encoded(part, facts, bad) for part in parts)
    with seeded(seed):
        model = build(facts)
    is_classes = bool(facts["classes"])
    return {
        "model": model,
        "data": (x, y),
        "loss": CrossEntropy() if is_classes else SquaredError(facts["scale"]),
        "validation_data": validation,
        "metrics": (accuracy if is_classes else RootMeanSquaredError(),),
        "epochs": min(MOST_EPOCHS, max(EPOCHS, math.ceil(32 * UPDATES / len(y)))),
        "callbacks": [Pictures(facts, [(x, y), validation], judged, seed)],
        "seed": seed,
        "facts": facts,
        "notes": [*bad.notes(), *notes],
    }


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterable[dict[str, Any]]:
    """The column's value for each row of CSV files with the other columns.

    Raises:
        ValueError: a file lacks a column, or holds a word where numbers stand.
    """
    for file in files:
        bad = BadData()
        table = read_table(Path(file), bad, facts["header"])
        x = inputs(table, facts, bad)
        for row, output in enumerate(thalweg.predict(model, x)):
            answer: dict[str, Any] = {"file": str(file), "line": table.lines[row]}
            if facts["classes"]:
                best = int(output.argmax())
                answer |= {"answer": facts["classes"][best], "probability": float(output[best].exp())}
            else:
                answer |= {"answer": float(output)}
            yield answer


def inputs(table: Table, facts: dict[str, Any], bad: BadData) -> tuple[Tensor, ...]:
    """What the network takes of a table's rows, each of which must be sound."""
    reading.faults(table, [fact for fact in facts["columns"] if fact["name"] in table.columns], bad)
    return tuple(torch.from_numpy(array) for array in reading.encode(table, facts["columns"]))


def _check(kind: str, header: str, held_out: float) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind takes {', '.join(KINDS)}, got {kind!r}")
    if header not in ("auto", "yes", "no"):
        raise ValueError(f"header takes auto, yes, no, got {header!r}")
    if not 0 < held_out < 0.9:
        raise ValueError(f"held_out is a share above 0 and below 0.9, got {held_out}")


def _tables(data: Path, bad: BadData, header: str) -> tuple[Table, Table | None]:
    """The rows to learn from, and those of a test file where the folder has one."""
    if not data.is_dir():
        return read_table(data, bad, header), None
    found = {part: sorted(data.glob(f"{part}.csv*"))[:1] for part in ("train", "test")}
    if not found["train"]:
        raise FileNotFoundError(f"the folder {data} lacks train.csv[.gz]: give it, or a CSV file")
    test = [read_table(path, bad, header) for path in found["test"]]
    return read_table(found["train"][0], bad, header), test[0] if test else None


def _of_hub(name: str) -> tuple[Table, Table | None]:
    found = hub.splits(name)
    parts = [hub.part(found, which) for which in ("train", "test")]
    if parts[0] is None:
        raise ValueError(f"{name} has no part to learn from: its parts are {', '.join(found)}")
    return of_hub(name, parts[0]), of_hub(name, parts[1]) if parts[1] is not None else None


def _with_target(table: Table, target: str, bad: BadData) -> Table:
    """The rows that have a target."""
    if target not in table.columns:
        near = difflib.get_close_matches(target, table.columns, n=1)
        guess = f": did you mean {near[0]!r}?" if near else ":"
        raise ValueError(f"{table.path} has no column {target!r}{guess} Its columns are {', '.join(table.columns)}")
    kept = []
    for row, cell in enumerate(table.columns[target]):
        if is_missing(cell):
            bad.add(table.place(row), f"the target {target!r} is missing")
        else:
            kept.append(row)
    if not kept:
        raise ValueError(f"{table.path}: the target {target!r} is missing in every row")
    return table.part(kept)


def _split(count: int, held_out: float, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Rows to learn from, to choose the best weights by, and to judge by, drawn by the seed."""
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    judged = round(held_out * count)
    chosen = judged + max(1, round(VALIDATION * (count - judged)))
    if count - chosen < 2 or (held_out and not judged):
        raise ValueError(f"{count} rows are too few to hold some out: at least 10 were expected")
    return sorted(drawn[chosen:]), sorted(drawn[judged:chosen]), sorted(drawn[:judged])


def _target_facts(table: Table, rows: list[int], target: str, kind: str) -> dict[str, Any]:
    """The classes, or centre and scale of a number; the kind by what the column holds where it was left open."""
    cells = [table.columns[target][row] for row in rows]
    values = [value for cell in cells if (value := number(cell)) is not None]
    numeric = len(values) >= reading.NUMBERS * len(cells)
    few = len(set(values)) <= reading.CLASSES and all(value.is_integer() for value in values)
    if kind == "regression" and not numeric:
        raise ValueError(
            f"{table.path}: the target {target!r} holds words, got {cells[0]!r}: leave out kind=regression"
        )
    if len(set(cells)) == 1:
        raise ValueError(f"{table.path}: the target {target!r} is {cells[0]!r} in every row: there is nothing to learn")
    if kind == "classification" or (kind == "auto" and (not numeric or few)):
        classes = sorted(set(table.columns[target]), key=lambda word: (number(word) is None, number(word) or 0, word))
        return {"classes": classes, "centre": 0.0, "scale": 1.0}
    return {"classes": [], "centre": float(np.mean(values)), "scale": float(np.std(values))}


def _encoded(table: Table, facts: dict[str, Any], bad: BadData) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets of the rows that are sound."""
    table = table.part(reading.faults(table, facts["columns"], bad))
    target = facts["target"]
    kept, y = [], []
    for row, cell in enumerate(table.columns[target]):
        known = cell in facts["classes"] if facts["classes"] else number(cell) is not None
        if known:
            kept.append(row)
            y.append(facts["classes"].index(cell) if facts["classes"] else number(cell))
        else:
            what = "is a class that is not among those to learn" if facts["classes"] else "is no number"
            bad.add(table.place(row), f"the target {cell[:40]!r} {what}")
    arrays = reading.encode(table.part(kept), facts["columns"])
    dtype = torch.int64 if facts["classes"] else torch.float32
    return tuple(torch.from_numpy(array) for array in arrays), torch.tensor(y, dtype=dtype)


task = thalweg.Task(make=make, build=build, predict=predict)
