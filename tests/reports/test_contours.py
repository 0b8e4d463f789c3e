from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from thalweg.records.landscape import Plane
from thalweg.reports.contours import CLIFF, Heights, Loop, Values, loops


def area(loop: Loop) -> float:
    """Signed: positive where the loop goes round counter-clockwise."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise([*loop, loop[0]])) / 2


def inside(found: list[Loop], x: float, y: float) -> bool:
    """By the even-odd rule: how many lines a ray to the right crosses."""
    crossed = 0
    for loop in found:
        for a, b in pairwise([*loop, loop[0]]):
            if (a[1] > y) != (b[1] > y) and x < a[0] + (y - a[1]) / (b[1] - a[1]) * (b[0] - a[0]):
                crossed += 1
    return crossed % 2 == 1


@pytest.mark.parametrize("seed", range(6))
def test_the_loops_hold_exactly_the_points_above_the_level(seed: int) -> None:
    """On fields without any order, saddles and holes on all sides."""
    draw = np.random.default_rng(seed)
    field = draw.random((9, 12))
    field[draw.random(field.shape) < 0.1] = np.nan
    x, y = np.cumsum(draw.random(12) + 0.1), np.cumsum(draw.random(9) + 0.1)
    for level in (0.2, 0.5, 0.8):
        found = loops(x, y, field, level)
        for i, j in np.ndindex(7, 10):
            around = field[i : i + 3, j : j + 3]
            is_inside = inside(found, x[j + 1] + 1e-9, y[i + 1] + 1e-9 * math.pi)
            if np.isfinite(around).all():
                assert is_inside == (around[1, 1] >= level)
            elif np.isnan(around[1, 1]):
                assert not is_inside


def test_a_round_hill_with_a_lake() -> None:
    x = np.linspace(-2, 2, 81)
    radius: Values = np.hypot(*np.meshgrid(x, x))
    outer, inner = sorted(loops(x, x, -abs(radius - 1), -0.5), key=area, reverse=True)
    assert area(outer) == pytest.approx(math.pi * 1.5**2, rel=0.01)
    assert area(inner) == pytest.approx(-math.pi * 0.5**2, rel=0.02)


def test_lines_close_along_the_border() -> None:
    x = np.arange(3.0)
    (loop,) = loops(x, x, np.ones((3, 3)), 0.5)
    assert area(loop) == 4 and {*loop} >= {(0.0, 1.0), (2.0, 1.0)}
    assert loops(x, x, np.zeros((3, 3)), 0.5) == loops(x, x, np.full((3, 3), np.nan), 0.5) == []


def plane(losses: list[list[float]]) -> Plane:
    return Plane((0.0, 1.0), tuple(map(float, range(len(losses)))), tuple(map(tuple, losses)), "a", "b")


@pytest.mark.parametrize(
    ("losses", "log", "low", "high"),
    [
        ([[1.0, 2.0], [50.0, 99.0]], False, 1, 99),
        ([[1.0, 2.0], [50.0, 101.0]], True, 0, math.log10(101)),
        ([[0.0, 2.0], [50.0, 101.0]], False, 0, 101),
        ([[-5.0, 2.0], [50.0, 1e9]], False, -5, 1e9),
        ([[math.nan, 2.0], [3.0, math.inf]], False, 2, 3),
        ([[math.nan, math.inf]], False, 0, 1),
        ([[1.0, 1.0]], False, 1, 1),
        ([[1.0, 10.0], [1e30, math.inf]], True, 0, math.log10(2 * CLIFF)),
        ([[1e-30, 1.0], [2.0, 3.0]], True, math.log10(3e-8), math.log10(3)),
    ],
)
def test_the_scale(losses: list[list[float]], log: bool, low: float, high: float) -> None:
    heights = Heights.of(plane(losses), (2.0,))
    assert heights.log is log
    assert (heights.low, heights.high) == pytest.approx((low, high))
    finite = heights.field[~np.isnan(heights.field)]
    assert ((finite >= low - 1e-9) & (finite <= high + 1e-9)).all()
    assert np.isnan(heights.field).tolist() == [[not math.isfinite(value) for value in row] for row in losses]


def test_the_height_of_a_loss_is_on_the_scale() -> None:
    heights = Heights.of(plane([[1.0, 10.0], [100.0, 1000.0]]), ())
    assert [heights.height(loss) for loss in (10.0, 0.0, -1.0, 1e9)] == [1, 0, 0, 3]
    assert math.isnan(heights.height(math.inf)) and math.isnan(heights.height(math.nan))
