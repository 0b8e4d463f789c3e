"""What each layer reported over a run, before anyone draws it: a field of values, layers by steps.

`heat_svg.py` draws a heat map for the page, `figures.py` for a notebook. However long and deep the run was, a map holds
at most `CELLS` values, and a value that is not finite is never averaged away: that is done here, once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.reports.chart import LARGEST, axis_of
from thalweg.reports.words import printable

#: Rows of a map: more would be thinner than a finger can point at.
ROWS = 64
#: Columns of a map: on a phone each is a pixel or two wide.
COLUMNS = 120
#: Cells of a map: even noise, which has no runs of one colour, is then drawn in 40 kB.
CELLS = 3600
#: Decades that the colours tell apart at most, and those spent on the rarest hundredth of the values at either end.
DECADES, RARE_DECADES = 12.0, 2.0
#: Letters of a layer's name.
_LETTERS = 80

Values = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One picture of all layers.

    `rows` are the layers (or groups of neighbours, "a … b"), the output layer first; `columns` the edges of the
    columns [columns + 1], in epochs or steps as `x_label` says. A column holds what was measured after its left edge
    up to its right one; `pooled`: that may be several steps. `values` [rows][columns] are NaN where nothing was
    measured and where only `broken` values were; `broken` [rows][columns] marks cells with any that is not finite.
    With `log` the colours follow the logarithm, else the values are shares of one. `band` is the range of ordinary
    values, where there is one.
    """

    title: str
    x_label: str
    rows: tuple[str, ...]
    columns: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    broken: tuple[tuple[bool, ...], ...]
    caption: str = ""
    log: bool = True
    band: tuple[float, float] | None = None
    pooled: bool = False

    @property
    def span(self) -> tuple[float, float]:
        """The values of the first and the last colour; some may lie beyond them.

        A lone spike may stretch a logarithmic scale by `RARE_DECADES`, no more, or it would press everything else
        into one colour. Shares go from 0 to 1.
        """
        if not self.log:
            return 0.0, 1.0
        values = np.array(self.values)
        logs = np.log10(values[values > 1 / LARGEST])
        if not len(logs):
            return self.band or (0.1, 1.0)
        rare = np.quantile(logs, [0.01, 0.99])
        high = min(float(logs.max()), float(rare[1]) + RARE_DECADES)
        low = max(float(logs.min()), float(rare[0]) - RARE_DECADES, high - DECADES)
        if self.band is not None:
            low, high = min(low, math.log10(self.band[0])), max(high, math.log10(self.band[1]))
        air = max(0.0, 1 - (high - low)) / 2  # less than a decade is noise and must not look like drama
        return 10 ** (low - air), 10 ** (high + air)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A signal of layers that has a map: the prefix of its series, and what is said about it."""

    prefix: str
    title: str
    caption: str
    log: bool = True
    band: tuple[float, float] | None = None


_KINDS = (
    _Kind(
        "gradient_norm/",
        "Gradient norm",
        "The size of the gradient of each layer's weights. Where rows fade towards the bottom, it vanishes on its way "
        "to the input; where they grow stronger, it explodes.",
    ),
    _Kind(
        "update_ratio/",
        "Update-to-weight ratio",
        "How far a step moves a layer's weights, as a share of their size. Most layers learn well between 1e-4 and "
        "1e-2; fainter they hardly move, stronger they may overshoot.",
        band=(1e-4, 1e-2),
    ),
    _Kind(
        "dead_share/",
        "Dead units",
        "The share of a layer's units that answer to no example: they pass no gradient on and learn nothing.",
        False,
    ),
    _Kind(
        "saturated_share/",
        "Saturated units",
        "The share of activations on the flat part of their curve, where hardly any gradient passes.",
        False,
    ),
)


def heat_maps(history: History, record: RunRecord | None = None) -> list[HeatMap]:
    """The pictures of a run's layers: gradient norm, update-to-weight ratio, dead and saturated shares.

    Kinds of which nothing was recorded are left out; the layers of the others are the series "gradient_norm/<layer>"
    and so on, taken to be recorded in forward order.
    """
    found = [(kind, [name for name in history.names if name.startswith(kind.prefix)]) for kind in _KINDS]
    return [_heat_map(history, record, kind, names) for kind, names in found if names]


def edges(steps: Values, firsts: npt.NDArray[np.int64]) -> Values:
    """Where columns begin and end `[columns + 1]` that start at the rows `firsts` of the sorted `steps`.

    Each column ends at its last step, and the first begins as far before its first step as the second step is later.

    >>> edges(np.array([10.0, 20.0, 30.0, 40.0]), np.array([0, 2]))
    array([ 0., 20., 40.])
    """
    gap = steps[1] - steps[0] if len(steps) > 1 else 1.0
    before = min(gap, steps[0]) or 1.0
    lasts = np.append(firsts[1:], len(steps)) - 1
    return np.concatenate([[steps[0] - before], steps[lasts]])


def middle(values: Values) -> Values:
    """The medians over the last axis `[..., n]` → `[...]`, NaN left out; NaN where there is nothing else.

    >>> middle(np.array([[3.0, np.nan, 1.0], [np.nan, np.nan, np.nan]]))
    array([ 2., nan])
    """
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=-1)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)
    pair = np.take_along_axis(ordered, np.stack([low, high], axis=-1), axis=-1)
    return np.where(count > 0, pair.mean(axis=-1), np.nan)


def _heat_map(history: History, record: RunRecord | None, kind: _Kind, names: Sequence[str]) -> HeatMap:
    names = names[::-1]
    steps, values, broken = _table(history, names)
    if kind.log:
        with np.errstate(divide="ignore"):
            values = np.log10(np.maximum(values, 0.0))  # zero, as of a frozen layer, is below every other value
    each = math.ceil(len(names) / ROWS)
    groups = np.arange(0, len(names), each)
    firsts = _columns(steps, min(COLUMNS, CELLS // len(groups)))
    # In time a share is an ordinary value; among neighbouring layers the worst one is what to look at.
    values = np.stack([middle(part) for part in np.split(values, firsts[1:], axis=1)], axis=1)
    join = middle if kind.log else _largest
    values = np.stack([join(part.T) for part in np.split(values, groups[1:])])
    broken = np.logical_or.reduceat(np.logical_or.reduceat(broken, firsts, axis=1), groups, axis=0)
    layers = [printable(_cut(name.removeprefix(kind.prefix) or "model")) for name in names]
    what = "median" if kind.log else "largest"
    axis = axis_of(history, record)
    return HeatMap(
        title=kind.title,
        x_label=axis.label,
        rows=tuple(_joined(layers[start : start + each]) for start in groups),
        columns=tuple(axis.place(edges(steps, firsts)).tolist()),
        values=tuple(map(tuple, (10**values if kind.log else values).tolist())),
        broken=tuple(map(tuple, broken.tolist())),
        caption=kind.caption + (f" A row is the {what} of {each} neighbouring layers." if each > 1 else ""),
        log=kind.log,
        band=kind.band,
        pooled=len(firsts) < len(steps),
    )


def _table(history: History, names: Sequence[str]) -> tuple[Values, Values, Flags]:
    """The steps `[steps]` at which any of the series has a value, the values and which are not finite.

    Both `[series, steps]`; values are NaN where there is none and where it is not finite.
    """
    columns = [history.series(name) for name in names]
    steps = np.unique(np.concatenate([at for at, _ in columns]))
    values, seen = np.full((len(names), len(steps)), np.nan), np.zeros((len(names), len(steps)), dtype=bool)
    for row, (at, measured) in enumerate(columns):
        places = np.searchsorted(steps, at)
        values[row, places], seen[row, places] = measured, True
    good = np.abs(values) < LARGEST
    return steps.astype(np.float64), np.where(good, values, np.nan), seen & ~good


def _columns(steps: Values, limit: int) -> npt.NDArray[np.int64]:
    """At which rows of the sorted steps a column starts: stretches of equal length, those without a step left out."""
    stretch = ((steps - steps[0]) * (limit / (steps[-1] - steps[0] + 1))).astype(np.int64)
    return np.flatnonzero(np.diff(stretch, prepend=-1))


def _largest(values: Values) -> Values:
    largest: Values = np.fmax.reduce(values, axis=-1)
    return largest


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def _cut(name: str) -> str:
    """Without the middle of a name that is longer than any picture shows."""
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS // 2]}…{name[1 - _LETTERS // 2 :]}"
