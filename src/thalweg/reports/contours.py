"""The losses of a plane as heights, and the lines of equal height as closed loops that can be filled.

Marching squares (Lorensen, Cline 1987, in two dimensions): between two neighbouring points of which one lies above the
level and one below, the line crosses their edge, and within a cell it goes straight from edge to edge. A ring of
points below every level around the field, and for every point that is not finite, closes each line upon itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thalweg.records.landscape import Plane

Values = npt.NDArray[np.float64]
Loop = list[tuple[float, float]]
#: An edge of the grid: its first point's row and column, and whether it goes up to the next row.
Edge = tuple[int, int, bool]

#: Factors above the highest loss that matters, and below the top of the scale, at which a logarithmic scale ends.
CLIFF, DEPTH = 1e3, 1e8

#: For each set of a cell's corners above the level (1 lower left, 2 lower right, 4 upper right, 8 upper left): the
#: sides that the line goes from and to, with what is above on its left. Where two opposite corners are above, the
#: mean of the cell says whether they belong together: 16 is added then.
_SIDES = dict(enumerate(["-", "BL", "RB", "RL", "TR", "BLTR", "TB", "TL", "LT", "BT", "RBLT", "RT", "LR", "BR", "LB"]))
_SIDES |= {5 + 16: "BRTL", 10 + 16: "RTLB"}


@dataclass(frozen=True, slots=True)
class Heights:
    """The losses of a plane on the scale that they are drawn on."""

    field: Values
    """[len(y), len(x)]: cut off at both ends of the scale, NaN where the loss is not finite."""
    low: float
    high: float
    log: bool
    """Whether all of it is log₁₀ of the loss."""

    @classmethod
    def of(cls, plane: Plane, along: Sequence[float]) -> Heights:
        """By the logarithm where positive losses span more than two decades.

        Then the scale ends where a cliff would take the colours from the ground that matters: `CLIFF` times above the
        highest of the losses `along` the path or at the point, and `DEPTH` times below that.
        """
        losses = np.array(plane.loss, dtype=np.float64)
        losses[~np.isfinite(losses)] = np.nan
        finite = losses[~np.isnan(losses)]
        if not len(finite):
            return cls(losses, 0.0, 1.0, False)
        low, high = float(finite.min()), float(finite.max())
        if not 0 < 100 * low < high:
            return cls(losses, low, high, False)
        high = min(high, CLIFF * max([value for value in along if low <= value < math.inf], default=high))
        low = max(low, high / DEPTH)
        return cls(np.log10(np.clip(losses, low, high)), math.log10(low), math.log10(high), True)

    def height(self, loss: float) -> float:
        """Where a loss lies on the scale; NaN where it is not finite."""
        if not math.isfinite(loss):
            return math.nan
        on_scale = math.log10(max(loss, 10**self.low)) if self.log else loss
        return min(max(on_scale, self.low), self.high)


def loops(x: Values, y: Values, field: Values, level: float) -> list[Loop]:
    """The boundary of where a field `[len(y), len(x)]` is above a level, as closed loops of points (x, y).

    To be filled by the even-odd rule. Where the field is not finite counts as below.

    >>> field = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> loops(np.arange(3.0), np.arange(3.0), field, 0.5)
    [[(0.5, 1.0), (1.0, 0.5), (1.5, 1.0), (1.0, 1.5)]]
    """
    height = np.pad(np.where(np.isfinite(field), field, -np.inf), 1, constant_values=-np.inf)
    xs, ys = np.pad(x, 1, mode="edge"), np.pad(y, 1, mode="edge")
    following = dict(_pieces(height, level))
    places = {edge: _crossing(xs, ys, height, level, edge) for edge in following}
    found = []
    while following:
        edge, loop = next(iter(following)), []
        while edge in following:
            loop.append(places[edge])
            edge = following.pop(edge)
        found.append(loop)
    return found


def _pieces(height: Values, level: float) -> Iterator[tuple[Edge, Edge]]:
    """From which edge to which the line goes, for every cell that it crosses."""
    above = (height >= level).astype(np.int64)
    corners = above[:-1, :-1] + 2 * above[:-1, 1:] + 4 * above[1:, 1:] + 8 * above[1:, :-1]
    for row, column in zip(*np.nonzero((corners > 0) & (corners < 15)), strict=True):
        i, j, kind = int(row), int(column), int(corners[row, column])
        if kind in (5, 10) and height[i : i + 2, j : j + 2].mean() >= level:
            kind += 16
        edges = {"B": (i, j, False), "T": (i + 1, j, False), "L": (i, j, True), "R": (i, j + 1, True)}
        sides = _SIDES[kind]
        for first, last in zip(sides[::2], sides[1::2], strict=True):
            yield edges[first], edges[last]


def _crossing(xs: Values, ys: Values, height: Values, level: float, edge: Edge) -> tuple[float, float]:
    """Where the line crosses an edge, by a straight line between its ends."""
    i, j, up = edge
    other = (i + 1, j) if up else (i, j + 1)
    here, there = float(height[i, j]), float(height[other])
    if math.isinf(here) or math.isinf(there):
        share = float(math.isinf(here))  # all the way to the end that has a height
    else:
        share = (level - here) / (there - here)
    x, y = float(xs[j]), float(ys[i])
    return x + share * (float(xs[other[1]]) - x), y + share * (float(ys[other[0]]) - y)
