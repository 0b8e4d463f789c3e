"""Arithmetic of two operands, number by number; the sweep sums a share over what was broadcast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, composed, rule


@rule("add")
def add(a: Any, b: Any, alpha: float = 1) -> tuple[Tensor, Pull]:
    """Y = a + αb."""
    return a + (b if alpha == 1 else alpha * b), lambda g: [(a, lambda: g), (b, lambda: g * alpha)]


@rule("sub", "subtract")
def sub(a: Any, b: Any, alpha: float = 1) -> tuple[Tensor, Pull]:
    """Y = a − αb."""
    return a - (b if alpha == 1 else alpha * b), lambda g: [(a, lambda: g), (b, lambda: -g * alpha)]


@rule("mul", "multiply")
def mul(a: Any, b: Any) -> tuple[Tensor, Pull]:
    """Y = ab: each operand gets the other times g."""
    return a * b, lambda g: [(a, lambda: g * b), (b, lambda: g * a)]


@rule("div", "divide", "true_divide", "truediv")
def div(a: Any, b: Any) -> tuple[Tensor, Pull]:
    """Y = a/b: ∂y/∂a = 1/b, ∂y/∂b = −y/b."""
    y = a / b
    return y, lambda g: [(a, lambda: g / b), (b, lambda: -g * y / b)]


@rule("pow", "float_power")
def power(a: Any, b: Any) -> tuple[Tensor, Pull]:
    """Y = aᵇ: ∂y/∂a = b aᵇ⁻¹, ∂y/∂b = aᵇ log a (0 where a = 0 and b ≥ 0)."""
    y = torch.pow(a, b)

    def to_base(g: Tensor) -> Tensor:
        if not isinstance(b, Tensor):
            return torch.zeros_like(g) if b == 0 else g * (b * torch.pow(a, b - 1))
        return torch.where(b == 0, 0.0, g * (b * torch.pow(a, b - 1)))

    def to_exponent(g: Tensor) -> Tensor:
        base = torch.as_tensor(a, dtype=g.dtype, device=g.device)
        return g * torch.where((base == 0) & (b >= 0), 0.0, y * base.log())

    return y, lambda g: [(a, lambda: to_base(g)), (b, lambda: to_exponent(g))]


@rule("maximum")
def maximum(a: Tensor, b: Tensor) -> tuple[Tensor, Pull]:
    """The larger one gets g; of two that are equal, each half."""
    return torch.maximum(a, b), lambda g: [(a, lambda: g * _won(a, b)), (b, lambda: g * _won(b, a))]


@rule("minimum")
def minimum(a: Tensor, b: Tensor) -> tuple[Tensor, Pull]:
    """The smaller one gets g; of two that are equal, each half."""
    return torch.minimum(a, b), lambda g: [(a, lambda: g * _won(b, a)), (b, lambda: g * _won(a, b))]


def _won(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a > b, 1.0, torch.where(a == b, 0.5, 0.0))


@rule("where")
def where(chosen: Tensor, a: Any, b: Any) -> tuple[Tensor, Pull]:
    """Y = a where chosen, else b."""
    if isinstance(chosen, Tensor) and not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return torch.where(chosen, a, b), lambda g: []
    return torch.where(chosen, a, b), lambda g: [
        (a, lambda: torch.where(chosen, g, 0.0)),
        (b, lambda: torch.where(chosen, 0.0, g)),
    ]


@rule("masked_fill")
def masked_fill(x: Tensor, mask: Tensor, value: Any) -> tuple[Tensor, Pull]:
    """Y = value where the mask is set, else x."""
    return x.masked_fill(mask, value), lambda g: [
        (x, lambda: g.masked_fill(mask, 0)),
        (value, lambda: torch.where(mask, g, 0.0).sum()),
    ]


@rule("tril")
def tril(x: Tensor, diagonal: int = 0) -> tuple[Tensor, Pull]:
    """The lower triangle, and zeros."""
    return x.tril(diagonal), lambda g: [(x, lambda: g.tril(diagonal))]


@rule("triu")
def triu(x: Tensor, diagonal: int = 0) -> tuple[Tensor, Pull]:
    """The upper triangle, and zeros."""
    return x.triu(diagonal), lambda g: [(x, lambda: g.triu(diagonal))]


@composed("lerp")
def lerp(a: Tensor, b: Tensor, weight: Any) -> Tensor:
    """A + w (b − a)."""
    return a + weight * (b - a)


@composed("addcmul")
def addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """X + v a b."""
    return x + value * (a * b)


@composed("addcdiv")
def addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """X + v a / b."""
    return x + value * (a / b)
