"""Pooling and resizing. A maximum sends g to the place it came from; an average is a matrix along each dimension."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.convolution import each
from thalweg.gradients.rules.registry import Pull, rule

#: A resizing in several dimensions is one along each of them.
_ALONG_ONE = {"bilinear": "linear", "trilinear": "linear"}


def _largest(dims: int, names: str, pool: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Y = max of each window over the last `dims` dimensions: ∂J/∂x is g at the largest, summed where windows meet."""

    @rule(*names.split())
    def apply(x: Tensor, *options: Any, return_indices: bool = False, **named: Any) -> tuple[Any, Pull]:
        y, places = pool(x, *options, return_indices=True, **named)

        def back(g: Tensor) -> Tensor:
            d = torch.zeros_like(x, memory_format=torch.contiguous_format).flatten(-dims)
            return d.scatter_add(-1, places.flatten(-dims), g.flatten(-dims)).reshape(x.shape)

        # With the places asked for, the second output is of whole numbers and has no gradient.
        return (y, places) if return_indices else y, lambda g: [(x, lambda: back(g))]


for _dims in (1, 2, 3):
    _name = f"max_pool{_dims}d"
    _largest(_dims, f"{_name} {_name}_with_indices", getattr(F, _name))
    _largest(_dims, f"adaptive_{_name} adaptive_{_name}_with_indices", getattr(F, f"adaptive_{_name}"))


def _through(x: Tensor, y: Tensor, matrices: Sequence[Tensor]) -> tuple[Tensor, Pull]:
    """Y = x with a matrix A `[in, out]` along each of its last dimensions: ∂J/∂x = g with Aᵀ along each."""

    def back(g: Tensor) -> Tensor:
        for axis, A in enumerate(reversed(matrices), start=1):
            g = (g.transpose(-axis, -1) @ A.mT).transpose(-axis, -1)
        return g

    return y, lambda g: [(x, lambda: back(g))]


def _units(length: int, x: Tensor) -> Tensor:
    """Unit vectors `[length, 1, length]`: what an operation makes of them is its matrix."""
    return torch.eye(length, dtype=x.dtype, device=x.device).unsqueeze(1)


def _average(n: int) -> None:
    """The mean of each window in n dimensions: the mean along one dimension, then along the next."""
    pool = getattr(F, f"avg_pool{n}d")

    @rule(f"avg_pool{n}d")
    def apply(
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> tuple[Tensor, Pull]:
        if divisor_override is not None:
            raise ValueError("average pooling with divisor_override")
        y = pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
        steps = each(kernel_size if stride in (None, [], ()) else stride, n)
        windows = zip(x.shape[-n:], each(kernel_size, n), steps, each(padding, n), strict=True)
        return _through(
            x, y, [F.avg_pool1d(_units(m, x), k, s, p, ceil_mode, count_include_pad)[:, 0] for m, k, s, p in windows]
        )


def _adaptive_average(n: int) -> None:
    """Means of windows that together cover x."""
    pool = getattr(F, f"adaptive_avg_pool{n}d")

    @rule(f"adaptive_avg_pool{n}d")
    def apply(x: Tensor, output_size: Any) -> tuple[Tensor, Pull]:
        y = pool(x, output_size)
        sizes = zip(x.shape[-n:], y.shape[-n:], strict=True)
        return _through(x, y, [F.adaptive_avg_pool1d(_units(m, x), size)[:, 0] for m, size in sizes])


for _n in (1, 2, 3):
    _average(_n)
    _adaptive_average(_n)


@rule("interpolate", "upsample")
def interpolate(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> tuple[Tensor, Pull]:
    """Resize: each place of y is a weighted mean of places of x, along one dimension and then the next."""
    if mode not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear") or antialias:
        raise ValueError(f"interpolation with mode={mode!r}, antialias={antialias}")
    y = F.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor)
    n, along = x.ndim - 2, _ALONG_ONE.get(mode, mode)
    sizes = (None,) * n if size is None else each(size, n)
    factors = each(scale_factor, n) if size is None else (None,) * n
    matrices = [
        F.interpolate(_units(m, x), to, factor, along, align_corners, recompute_scale_factor)[:, 0]
        for m, to, factor in zip(x.shape[2:], sizes, factors, strict=True)
    ]
    return _through(x, y, matrices)
