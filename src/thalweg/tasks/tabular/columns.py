"""What the columns of a table are, and how their cells become numbers: all of it plain facts."""

from __future__ import annotations

import difflib
from collections import Counter
from datetime import UTC, datetime
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.tasks.tabular.table import Table, is_missing, number
from thalweg.tasks.task import BadData

Array = npt.NDArray[Any]

#: Share of a column's cells that must be numbers for the others to be faults of single rows.
NUMBERS = 0.95

#: A category that fewer rows of training have counts as one that was never seen, which so gets trained too.
RAREST = 3

#: Words of which more than this share are different name the row; they are no category.
DISTINCT = 0.5

#: Knots of the piecewise linear map of a number onto a normal distribution.
KNOTS = 64

#: Columns that hold whole numbers of at most so many kinds are classes where they are the target.
CLASSES = 20


def infer(table: Table, target: str, bad: BadData) -> tuple[list[dict[str, Any]], list[str]]:
    """The facts of each column but the target, learned from these rows; and a sentence for each that is left out.

    A fact is `{"name", "kind": "number" or "date", "centre", "scale", "knots", "places", "missing"}` or `{"name",
    "kind": "category", "levels"}`. A constant or empty column is a fault, refused or skipped as `bad` says.
    """
    facts, notes = [], []
    for name, cells in table.columns.items():
        if name == target:
            continue
        there = [cell for cell in cells if not is_missing(cell)]
        if not there:
            bad.add(table.path, f"the column {name!r} is missing in every row")
        elif len(set(there)) == 1 and len(there) == len(cells):
            bad.add(table.path, f"the column {name!r} has the same value in every row ({there[0]})")
        elif (kind := kind_of(there)) != "category":
            facts.append(_number(name, kind, [value_of(kind, cell) for cell in cells]))
        elif len(set(there)) > DISTINCT * len(there) and len(there) > 2 * CLASSES:
            notes.append(f"The column {name!r} was left out: nearly every row has a word of its own there.")
        else:
            counted = Counter(there)
            facts.append(
                {"name": name, "kind": "category", "levels": sorted(w for w in counted if counted[w] >= RAREST)}
            )
    if not facts:
        raise ValueError(f"{table.path} has no column to predict {target!r} from")
    return facts, notes


def kind_of(cells: list[str]) -> str:
    """number, date (ISO 8601) or category, by nearly all of the cells.

    >>> kind_of(["1", "2.5"]), kind_of(["2024-01-31"]), kind_of(["red", "2"])
    ('number', 'date', 'category')
    """
    for kind in ("number", "date"):
        if sum(value_of(kind, cell) is not None for cell in cells) >= NUMBERS * len(cells):
            return kind
    return "category"


def value_of(kind: str, cell: str) -> float | None:
    """The number in a cell; of a date its days since 1970."""
    if kind == "number":
        return number(cell)
    if len(cell) < 8 or not cell[:4].isdigit():
        return None
    try:
        when = datetime.fromisoformat(cell)
    except ValueError:
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() / 86_400


def faults(table: Table, facts: list[dict[str, Any]], bad: BadData) -> list[int]:
    """The rows without a word where numbers stand; the others are refused or skipped as `bad` says."""
    kept = []
    for row in range(len(table)):
        wrong = None
        for fact in facts:
            cell = table.columns[fact["name"]][row]
            if fact["kind"] != "category" and not is_missing(cell) and value_of(fact["kind"], cell) is None:
                wrong = f"{cell[:40]!r} stands in the column {fact['name']!r}, where a {fact['kind']} was expected"
                break
        if wrong is None:
            kept.append(row)
        else:
            bad.add(table.place(row), wrong)
    return kept


def encode(table: Table, facts: list[dict[str, Any]]) -> tuple[Array, Array, Array]:
    """Cells → numbers `[rows, numbers]` as (value − centre) / scale, 0 where there is none; where they are missing
    `[rows, numbers]` as 0 and 1; categories `[rows, categories]`, 0 unseen, 1 missing, then the levels in order.

    Raises:
        ValueError: a column is not there.
    """
    numbers, missing, categories = [], [], []
    for fact in facts:
        name = fact["name"]
        if name not in table.columns:
            raise ValueError(f"{table.path} lacks the column {name!r}{nearest(name, table)}")
        cells = table.columns[name]
        if fact["kind"] == "category":
            places = {level: 2 + i for i, level in enumerate(fact["levels"])}
            categories.append([1 if is_missing(cell) else places.get(cell, 0) for cell in cells])
            continue
        values = np.array([_or_nan(value_of(fact["kind"], cell)) for cell in cells])
        missing.append(np.isnan(values))
        numbers.append(np.nan_to_num((values - fact["centre"]) / fact["scale"]))
    return (
        _columns(numbers, len(table), np.float32),
        _columns(missing, len(table), np.float32),
        _columns(categories, len(table), np.int64),
    )


def nearest(name: str, table: Table) -> str:
    """The end of a sentence about a column that is not there."""
    near = difflib.get_close_matches(name, table.columns, n=1)
    guess = f": did you mean {near[0]!r}?" if near else ":"
    return f"{guess} Its columns are {', '.join(table.columns)}"


def _number(name: str, kind: str, values: list[float | None]) -> dict[str, Any]:
    """Centre, scale and the map onto a normal distribution: knots (standardised), and where each is taken."""
    there = np.sort([value for value in values if value is not None])
    centre, scale = float(np.median(there)), float(there.std()) or 1.0
    ranks = np.linspace(0, 1, KNOTS)
    knots = np.unique(np.quantile(there, ranks))
    # The share of the data below a knot, with half of what lies on it: a value that many rows share has one place.
    share = (np.searchsorted(there, knots, "left") + np.searchsorted(there, knots, "right")) / (2 * len(there))
    edge = 0.5 / KNOTS
    places = [NormalDist().inv_cdf(min(max(s, edge), 1 - edge)) for s in share]
    return {
        "name": name,
        "kind": kind,
        "centre": centre,
        "scale": scale,
        "knots": [float(k) for k in (knots - centre) / scale],
        "places": [float(p) for p in places],
        "missing": any(value is None for value in values),
    }


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _columns(columns: list[Any], rows: int, dtype: Any) -> Array:
    return np.stack(columns, 1).astype(dtype) if columns else np.zeros((rows, 0), dtype)
