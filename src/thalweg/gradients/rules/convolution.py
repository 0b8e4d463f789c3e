"""Convolutions in one to three dimensions, and their transposes.

With stride s, dilation d and padding p, at place l, kernel position k and channels o, c:

    y[n,o,l] = b[o] + Σ_{c,k} w[o,c,k] x[n,c,s l + d k − p]
    ∂J/∂x    = the transposed convolution of g with w
    ∂J/∂w[o,c,k] = Σ_{n,l} g[n,o,l] x[n,c,s l + d k − p]       a convolution of x with g, stride d and dilation s
    ∂J/∂b[o] = Σ_{n,l} g[n,o,l]

(Dumoulin & Visin 2016, A guide to convolution arithmetic, §4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, rule

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over its input, a number for each dimension."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    """Zeros before and after."""
    dilation: tuple[int, ...]
    groups: int


@rule("conv1d", "conv2d", "conv3d")
def convolution(
    x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups=1
) -> tuple[Tensor, Pull]:
    """X `[batch, in, ...]` (or without batch), w `[out, in / groups, ...]`."""
    n = w.ndim - 2
    y = _CONVOLVE[n - 1](x, w, bias, stride, padding, dilation, groups)
    dilated = each(dilation, n)
    window = Window(each(stride, n), _padding(padding, dilated, w.shape[2:]), dilated, groups)

    def pull(g: Tensor) -> list[Any]:
        X, G = (x, g) if x.ndim == n + 2 else (x[None], g[None])
        return [
            (x, lambda: _input_gradient(G, w, X.shape[2:], window).reshape(x.shape)),
            (w, lambda: _kernel_gradient(G, X, w.shape, window)),
            (bias, lambda: G.sum((0, *range(2, n + 2)))),
        ]

    return y, pull


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Tensor, Pull]:
    """The same with x and y exchanged: ∂J/∂x is a convolution of g. w `[in, out / groups, ...]`."""
    n = w.ndim - 2
    y = _TRANSPOSED[n - 1](x, w, bias, stride, padding, output_padding, groups, dilation)
    window = Window(each(stride, n), tuple((p, p) for p in each(padding, n)), each(dilation, n), groups)

    def pull(g: Tensor) -> list[Any]:
        X, G = (x, g) if x.ndim == n + 2 else (x[None], g[None])
        size = X.shape[2:]
        back = lambda: _CONVOLVE[n - 1](G, w, None, stride, padding, dilation, groups)  # noqa: E731
        return [
            (x, lambda: _cut(back(), size).reshape(x.shape)),
            (w, lambda: _kernel_gradient(X, G, w.shape, window)),
            (bias, lambda: G.sum((0, *range(2, n + 2)))),
        ]

    return y, pull


def _input_gradient(g: Tensor, w: Tensor, size: torch.Size, window: Window) -> Tensor:
    """∂J/∂x `[batch, in, *size]`.

    What the stride left over at the end of x has no part in y: the output padding says how much that is.
    """
    spread = _TRANSPOSED[len(size) - 1]
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], window.dilation, strict=True)]
    reached = [(m - 1) * s + span for m, s, span in zip(g.shape[2:], window.stride, spans, strict=True)]
    left_over = [m + a + b - r for m, (a, b), r in zip(size, window.padding, reached, strict=True)]
    if all(a == b for a, b in window.padding):
        before = [a for a, _ in window.padding]
        return spread(g, w, None, window.stride, before, left_over, window.groups, window.dilation)
    full = spread(g, w, None, window.stride, 0, left_over, window.groups, window.dilation)
    for axis, (m, (a, _)) in enumerate(zip(size, window.padding, strict=True), start=2):
        full = full.narrow(axis, a, m)
    return full


def _kernel_gradient(g: Tensor, x: Tensor, shape: torch.Size, window: Window) -> Tensor:
    """∂J/∂w `[out, in / groups, *kernel]`: what is summed over is the batch, so it takes the channels' part."""
    n, groups = len(shape) - 2, window.groups
    if any(a != b for a, b in window.padding):
        x, before = F.pad(x, [p for sides in reversed(window.padding) for p in sides]), [0] * n
    else:
        before = [a for a, _ in window.padding]
    # [batch, groups · in, ...] → [in, groups · batch, ...]: each group of g's channels meets its own group of x's.
    columns = x.unflatten(1, (groups, -1)).permute(2, 1, 0, *range(3, 3 + n)).flatten(1, 2)
    y = _CONVOLVE[n - 1](columns, g.transpose(0, 1), None, window.dilation, before, window.stride, groups)
    return _cut(y, shape[2:]).transpose(0, 1)


def _cut(x: Tensor, size: torch.Size) -> Tensor:
    """The first `size` places, after batch and channels."""
    return x[(slice(None), slice(None), *(slice(m) for m in size))]


def _padding(padding: Any, dilation: tuple[int, ...], kernel: torch.Size) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in each(padding, len(kernel)))


def each(value: Any, n: int) -> tuple[int, ...]:
    """A number for each dimension.

    >>> each(2, 2), each((3,), 2), each([1, 2], 2)
    ((2, 2), (3, 3), (1, 2))
    """
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * n if len(values) == 1 else values
