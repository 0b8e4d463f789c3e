"""Conjugate gradients for a matrix known by its products (Hestenes & Stiefel 1952), stopped as in Martens 2010."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: The quadratic has to fall by this share of itself in each of so many iterations as a tenth of those done, ten at
#: least (Martens 2010, section 4.4).
PROGRESS, FEWEST = 5e-4, 10


@dataclass(frozen=True, slots=True)
class Solution:
    """What conjugate gradients came to."""

    x: Tensor
    product: Tensor
    """M x"""
    iterations: int


def solve(
    matrix: Callable[[Tensor], Tensor], b: Tensor, start: Tensor | None, most: int, exact: float = 0.0
) -> Solution:
    """The x that lowers q(x) = ½ xᵀMx − bᵀx, from a start (0 without one); M is symmetric and positive.

    Args:
        matrix: v → M v.
        b: [n].
        start: [n], or None.
        most: iterations at most.
        exact: a relative residual that ends it as well.
    """
    x = torch.zeros_like(b) if start is None else start.clone()
    product = torch.zeros_like(b) if start is None else matrix(x)
    residual = b - product
    direction = residual.clone()
    square, limit = float(residual @ residual), exact**2 * float(b @ b)
    values: list[float] = []
    done = 0
    while done < most and square > limit:
        curved = matrix(direction)
        bend = float(direction @ curved)
        if not bend > 0 or not bend < float("inf"):
            break  # not positive in this arithmetic, or not finite
        done += 1
        length = square / bend
        x += length * direction
        product += length * curved
        residual -= length * curved
        values.append(float(-(x @ (b + residual))) / 2)
        window = max(FEWEST, done // 10)
        if done > window and values[-1] < 0 and (values[-1] - values[-1 - window]) / values[-1] < window * PROGRESS:
            break
        square, before = float(residual @ residual), square
        direction = residual + (square / before) * direction
    return Solution(x, product, done)
