"""Sums and other reductions over dimensions: ∂J/∂x spreads g back over what was reduced."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.gradients.rules.registry import RULES, Pull, composed, rule


def dims_of(x: Tensor, dim: Any) -> list[int]:
    """The dimensions that are meant, all of them for None.

    >>> dims_of(torch.zeros(2, 3, 4), (-1, 0)), dims_of(torch.zeros(2, 3), None)
    ([2, 0], [0, 1])
    """
    if dim is None or dim in ((), []):
        return list(range(x.ndim))
    return [axis % x.ndim if x.ndim else 0 for axis in (dim if isinstance(dim, list | tuple) else [dim])]


def _opened(t: Tensor, x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    """A reduced tensor with its reduced dimensions back, of length 1."""
    if keepdim or not x.ndim:
        return t
    for axis in sorted(dims_of(x, dim)):
        t = t.unsqueeze(axis)
    return t


@rule("sum")
def total(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> tuple[Tensor, Pull]:
    """Y = Σ x: every x gets g."""
    y = torch.sum(x, dim, keepdim, dtype=dtype)
    return y, lambda g: [(x, lambda: _opened(g, x, dim, keepdim).expand(x.shape))]


@rule("mean")
def mean(x: Tensor, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> tuple[Tensor, Pull]:
    """Y = Σ x / n: every x gets g/n."""
    y = torch.mean(x, dim, keepdim, dtype=dtype)
    n = math.prod(x.shape[axis] for axis in dims_of(x, dim)) if x.ndim else 1
    return y, lambda g: [(x, lambda: (_opened(g, x, dim, keepdim) / n).expand(x.shape))]


@rule("logsumexp")
def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> tuple[Tensor, Pull]:
    """Y = log Σ exp(x): ∂J/∂x = g exp(x − y)."""
    y = torch.logsumexp(x, dim, keepdim)
    open_ = lambda t: _opened(t, x, dim, keepdim)  # noqa: E731
    return y, lambda g: [(x, lambda: open_(g) * (x - open_(y)).exp())]


@rule("prod")
def product(x: Tensor, dim: int | None = None, keepdim: bool = False, dtype: Any = None) -> tuple[Tensor, Pull]:
    """Y = Π x: each x gets g times the product of the others, from the left and from the right (right at zeros too)."""
    y = torch.prod(x, dtype=dtype) if dim is None else torch.prod(x, dim, keepdim, dtype=dtype)

    def others(values: Tensor, axis: int) -> Tensor:
        one = torch.ones_like(values.narrow(axis, 0, 1))
        left = torch.cat([one, values.narrow(axis, 0, values.shape[axis] - 1)], axis).cumprod(axis)
        right = torch.cat([values.narrow(axis, 1, values.shape[axis] - 1), one], axis)
        return left * right.flip(axis).cumprod(axis).flip(axis)

    def back(g: Tensor) -> Tensor:
        if dim is None:
            return (g * others(x.reshape(-1), 0)).reshape(x.shape)
        return _opened(g, x, dim, keepdim) * others(x, dim)

    return y, lambda g: [(x, lambda: back(g))]


@rule("vector_norm", "linalg_vector_norm")
def vector_norm(
    x: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> tuple[Tensor, Pull]:
    """Y = (Σ|x|ᵖ)^{1/p}: ∂J/∂x = g sign(x) (|x|/y)ᵖ⁻¹; 0 where y = 0."""
    p = float(ord)
    if not 0 < p < math.inf:
        raise ValueError(f"a norm of order {ord}")
    y = torch.linalg.vector_norm(x, p, dim, keepdim, dtype=dtype)

    def back(g: Tensor) -> Tensor:
        Y, G = _opened(y, x, dim, keepdim), _opened(g, x, dim, keepdim)
        ratio = x / Y if p == 2 else x.sign() * (x.abs() / Y) ** (p - 1)
        return G * ratio.masked_fill(Y == 0, 0)

    return y, lambda g: [(x, lambda: back(g))]


@composed("norm", "linalg_norm", "frobenius_norm")
def norm(x: Tensor, p: Any = None, dim: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    """A norm by its order; of a matrix only Frobenius'."""
    p = named.get("ord", p)
    return torch.linalg.vector_norm(x, 2 if p is None or p == "fro" else p, dim, keepdim)


@composed("var")
def var(x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    """Σ(x − mean)² / (n − correction)."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    correction = named.get("correction", 1 if unbiased is None else int(unbiased))
    n = math.prod(x.shape[axis] for axis in dims_of(x, dim))
    around = x - x.mean(dims_of(x, dim), keepdim=True)
    return (around * around).sum(dims_of(x, dim), keepdim=keepdim) / (n - correction)


@composed("std")
def std(x: Tensor, *options: Any, **named: Any) -> Tensor:
    """√var."""
    return torch.var(x, *options, **named).sqrt()


@composed("var_mean")
def var_mean(x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **named: Any) -> Any:
    """Both."""
    return var(x, dim, unbiased, keepdim, **named), x.mean(dims_of(x, dim), keepdim=keepdim)


@composed("std_mean")
def std_mean(x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **named: Any) -> Any:
    """Both."""
    return var(x, dim, unbiased, keepdim, **named).sqrt(), x.mean(dims_of(x, dim), keepdim=keepdim)


def _extreme(name: str) -> None:
    """The largest or smallest: g goes to where it is.

    Over all, or by `amax`: in equal parts where it is several times. Along one dimension, and by the index: to the one
    that the index names.
    """
    reduce, of_two, along = getattr(torch, f"a{name}"), getattr(torch, f"{name}imum"), getattr(torch, name)

    @rule(f"a{name}")
    def evenly(x: Tensor, dim: Any = (), keepdim: bool = False) -> tuple[Tensor, Pull]:
        y = reduce(x, dim, keepdim)

        def back(g: Tensor) -> Tensor:
            there = x == _opened(y, x, dim, keepdim)
            return _opened(g, x, dim, keepdim) * there / there.sum(dims_of(x, dim), keepdim=True)

        return y, lambda g: [(x, lambda: back(g))]

    @rule(name)
    def by_index(x: Tensor, dim: Any = None, keepdim: bool = False, other: Any = None) -> tuple[Any, Pull]:
        second = dim if isinstance(dim, Tensor) else other
        if second is not None:
            return RULES[of_two.__name__](x, second)
        if dim is None:
            return evenly(x)
        found = along(x, dim, keepdim)
        open_ = lambda t: _opened(t, x, dim, keepdim)  # noqa: E731
        return found, lambda g: [(x, lambda: torch.zeros_like(x).scatter_(dim, open_(found.indices), open_(g)))]


_extreme("max")
_extreme("min")


def _chosen(name: str) -> None:
    """Values chosen along one dimension: g goes to the places that the indices name."""
    choose = getattr(torch, name)

    @rule(name)
    def apply(x: Tensor, *options: Any, **named: Any) -> tuple[Any, Pull]:
        found = choose(x, *options, **named)
        place = 1 if name == "topk" else 0
        dim = named.get("dim", options[place] if len(options) > place else -1)
        return found, lambda g: [(x, lambda: torch.zeros_like(x).scatter_(dim, found.indices, g))]


_chosen("sort")
_chosen("topk")


@rule("cumsum")
def cumsum(x: Tensor, dim: int, dtype: Any = None) -> tuple[Tensor, Pull]:
    """y_t = Σ_{s ≤ t} x_s: ∂J/∂x_s = Σ_{t ≥ s} g_t."""
    return torch.cumsum(x, dim, dtype=dtype), lambda g: [(x, lambda: g.flip(dim).cumsum(dim).flip(dim))]
