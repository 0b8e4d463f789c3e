"""Numbers picked out by index, and written in by index: ∂J/∂x is g put back where it was picked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, rule


def _is_basic(index: Any) -> bool:
    """Whether an index picks no place twice: numbers, slices, None, Ellipsis, or a mask."""
    parts = index if isinstance(index, tuple) else (index,)
    return not any(isinstance(part, list) or (isinstance(part, Tensor) and part.dtype != torch.bool) for part in parts)


def _put_back(x: Tensor, index: Any, g: Tensor) -> Tensor:
    d = torch.zeros_like(x)
    if _is_basic(index):
        d[index] = g
        return d
    # Torch counts repeated places one after the other only in this form; its arguments are the index as torch reads it.
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)[index]
    return g.new_zeros(x.numel()).index_add_(0, places.reshape(-1), g.reshape(-1)).reshape(x.shape)


@rule("getitem", moves=True)
def getitem(x: Tensor, index: Any) -> tuple[Tensor, Pull]:
    """Y = x[index]; a place that was picked twice gets both."""
    return x[index], lambda g: [(x, lambda: _put_back(x, index, g))]


@rule("setitem", moves=True)
def setitem(x: Tensor, index: Any, value: Any) -> tuple[Tensor, Pull]:
    """Y = x with value at index: the old numbers there no longer count."""
    y = x.clone()
    y[index] = value

    def kept(g: Tensor) -> Tensor:
        d = g.clone()
        d[index] = 0
        return d

    return y, lambda g: [(x, lambda: kept(g)), (value, lambda: _trimmed(g[index], value))]


def _trimmed(g: Tensor, value: Tensor) -> Tensor:
    """The leading dimensions of length 1 that torch lets a value have beyond its place."""
    return g.reshape(value.shape) if value.ndim > g.ndim else g


@rule("select", moves=True)
def select(x: Tensor, dim: int, index: int) -> tuple[Tensor, Pull]:
    """One place along a dimension."""
    return x.select(dim, index), lambda g: [(x, lambda: torch.select_scatter(torch.zeros_like(x), g, dim, index))]


@rule("narrow", moves=True)
def narrow(x: Tensor, dim: int, start: int, length: int) -> tuple[Tensor, Pull]:
    """Some places along a dimension."""

    def back(g: Tensor) -> Tensor:
        d = torch.zeros_like(x)
        d.narrow(dim, start, length).copy_(g)
        return d

    return x.narrow(dim, start, length), lambda g: [(x, lambda: back(g))]


@rule("index_select", moves=True)
def index_select(x: Tensor, dim: int, index: Tensor) -> tuple[Tensor, Pull]:
    """Places along a dimension by number."""
    return x.index_select(dim, index), lambda g: [(x, lambda: torch.zeros_like(x).index_add_(dim, index, g))]


@rule("gather", moves=True)
def gather(x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> tuple[Tensor, Pull]:
    """One place along a dimension for each place of the index."""
    return x.gather(dim, index), lambda g: [(x, lambda: torch.zeros_like(x).scatter_add_(dim, index, g))]


@rule("masked_select", moves=True)
def masked_select(x: Tensor, mask: Tensor) -> tuple[Tensor, Pull]:
    """The numbers where the mask is set."""

    def back(g: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(x.shape, mask.shape)
        return g.new_zeros(shape).masked_scatter_(mask.expand(shape), g)

    return x.masked_select(mask), lambda g: [(x, lambda: back(g))]


@rule("scatter", moves=True)
def scatter(x: Tensor, dim: int, index: Tensor, src: Any) -> tuple[Tensor, Pull]:
    """Y = x with the source's numbers at the index (each place once)."""
    return x.scatter(dim, index, src), lambda g: [
        (x, lambda: g.scatter(dim, index, 0)),
        (src, lambda: _in_shape(g.gather(dim, index), src)),
    ]


@rule("scatter_add", moves=True)
def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> tuple[Tensor, Pull]:
    """Y = x plus the source's numbers at the index."""
    return x.scatter_add(dim, index, src), lambda g: [
        (x, lambda: g),
        (src, lambda: _in_shape(g.gather(dim, index), src)),
    ]


def _in_shape(d: Tensor, src: Tensor) -> Tensor:
    """The index may cover the first places of the source only; the rest took no part."""
    if d.shape == src.shape:
        return d
    whole = torch.zeros_like(src)
    whole[tuple(slice(m) for m in d.shape)] = d
    return whole


@rule("index_add", moves=True)
def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, alpha: float = 1) -> tuple[Tensor, Pull]:
    """Y = x plus α times the source's places at the index."""
    return x.index_add(dim, index, source, alpha=alpha), lambda g: [
        (x, lambda: g),
        (source, lambda: alpha * g.index_select(dim, index)),
    ]


@rule("as_strided_scatter", moves=True)
def write_view(x: Tensor, src: Tensor, size: Any, stride: Any, offset: int) -> tuple[Tensor, Pull]:
    """The source's numbers where a view of x had its own, the rest of x; x is contiguous."""

    def kept(g: Tensor) -> Tensor:
        return torch.as_strided_scatter(g, torch.zeros_like(src), size, stride, offset)

    y = torch.as_strided_scatter(x, src, size, stride, offset)
    return y, lambda g: [
        (x, lambda: kept(g.contiguous())),
        (src, lambda: g.contiguous().as_strided(size, stride, offset)),
    ]


@rule("copy", moves=True)
def copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> tuple[Tensor, Pull]:
    """X overwritten by the source."""
    return source.to(x.dtype).expand(x.shape).clone(), lambda g: [(source, lambda: g)]


@rule("zero", moves=True)
def zero(x: Tensor) -> tuple[Tensor, Pull]:
    """X overwritten by zeros."""
    return torch.zeros_like(x), lambda g: []


@rule("fill", moves=True)
def fill(x: Tensor, value: Any) -> tuple[Tensor, Pull]:
    """X overwritten by one number."""
    return torch.fill(x, value), lambda g: [(value, lambda: g.sum())]
