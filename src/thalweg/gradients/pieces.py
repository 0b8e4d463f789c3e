"""Each example's gradient of one parameter as the product it is, and what is measured on it without forming it.

    Outer    Σ_t g_t a_tᵀ       dense layers, convolutions, projections of attention
    Lookup   g_t at row x_t     embeddings
    Formed   the gradient       biases, norms

‖Σ_t g_t a_tᵀ‖² is ‖g‖²‖a‖² for one position (Goodfellow 2015, arXiv 1510.01799), else Σ_{s,t} (a_s·a_t)(g_s·g_t)
(Rochette et al. 2019, arXiv 1912.06015) or taken from the gradient itself, whichever multiplies less. The pieces of a
parameter that is used several times, in whatever layers, are measured as one sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Elements of what is formed or unfolded at once: 2 MB of float32, so that it stays in a core's cache while it is used.
CHUNK = 1 << 19


@dataclass(frozen=True, slots=True)
class Outer:
    """Each example's gradient is Σ_t g_t a_tᵀ, for each group of a grouped convolution by itself."""

    gradient: Tensor
    """[batch, positions, out], or [batch, fold, out, …] of a convolution."""
    input: Tensor
    """[batch, positions, in], or [batch, fold, in, …] of a convolution."""
    module: nn.Module | None = None
    """The convolution, None for a dense layer."""

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Groups, positions, rows and columns of a group's gradient."""
        g, conv = self.gradient, self.module
        if conv is None:
            return 1, g.shape[1], g.shape[2], self.input.shape[2]
        taps = math.prod(conv.kernel_size) * conv.in_channels // conv.groups  # type: ignore[arg-type,operator]
        return conv.groups, g.shape[1] * g[0, 0, 0].numel(), conv.out_channels // conv.groups, taps  # type: ignore

    def rows(self, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Rows g [n, groups, out, positions] and a [n, groups, in, positions] of some examples."""
        g, a = as_float(self.gradient[part]), as_float(self.input[part])
        if self.module is None:
            return g.transpose(1, 2).unsqueeze(1), a.transpose(1, 2).unsqueeze(1)
        fold = g.shape[1]
        g = g.flatten(0, 1).flatten(2).unflatten(1, (self.module.groups, -1))
        a = patches(a.flatten(0, 1), self.module)
        if fold > 1:
            g, a = (t.unflatten(0, (-1, fold)).movedim(1, -2).flatten(-2) for t in (g, a))
        return g, a


@dataclass(frozen=True, slots=True)
class Lookup:
    """Each example's gradient has g_t added at row x_t."""

    gradient: Tensor
    """[batch, positions, width]"""
    index: Tensor
    """[batch, positions]"""
    num_rows: int


@dataclass(frozen=True, slots=True)
class Formed:
    """Each example's gradient as it is: [batch, *shape of the parameter]."""

    gradient: Tensor


Piece = Outer | Lookup | Formed


def squared_norms(parts: Sequence[Piece]) -> Tensor:
    """‖Σ of the pieces‖² of each example, [batch], of one parameter."""
    if any(isinstance(part, Formed) for part in parts) or not _cheaper_by_gram(parts):
        chunks = [gradients.flatten(1).square().sum(1) for gradients in formed(parts)]
        return torch.cat(chunks)
    outers = [part for part in parts if isinstance(part, Outer)]
    lookups = [part for part in parts if isinstance(part, Lookup)]
    total = _outer_norms(outers) if outers else 0
    if lookups:
        total = total + _lookup_norms(lookups)
    for outer in outers:
        for lookup in lookups:
            total = total + 2 * _inner(outer, lookup)
    return total  # type: ignore[return-value]


def squared_sum(parts: Sequence[Piece]) -> Tensor:
    """Σ over the examples of the squared gradient, element by element, in the shape of the rows that are used."""
    first = parts[0]
    if len(parts) == 1 and isinstance(first, Outer) and first.module is None and first.sizes[1] == 1:
        return as_float(first.gradient[:, 0]).square().T @ as_float(first.input[:, 0]).square()
    if len(parts) == 1 and isinstance(first, Lookup):
        sums, keys = _segments(parts)
        return sums.new_zeros(first.num_rows, sums.shape[1]).index_add_(0, keys % first.num_rows, sums.square())
    total: Tensor | None = None
    for gradients in formed(parts):
        added = gradients.square().sum(0)
        total = added if total is None else total.add_(added)
    assert total is not None
    return total


def formed(parts: Sequence[Piece]) -> Iterator[Tensor]:
    """The examples' gradients [n, …] themselves, some examples at a time."""
    batch = len(parts[0].gradient)
    size = max(1, CHUNK // max(_elements(part) for part in parts))
    for start in range(0, batch, size):
        chosen = slice(start, min(batch, start + size))
        total: Any = 0
        for part in parts:
            if isinstance(part, Outer):
                g, a = part.rows(chosen)
                total = total + (g @ a.transpose(-1, -2)).flatten(1, 2)
            elif isinstance(part, Lookup):
                total = total + _scattered(part, chosen)
            else:
                total = total + part.gradient[chosen]
        yield total


def patches(x: Tensor, conv: Any) -> Tensor:
    """What each position of a convolution's output sees: [batch, channels, …] → [batch, groups, in, positions]."""
    view = windows(x, conv)
    positions = math.prod(view.shape[2 + len(conv.kernel_size) :])
    return view.reshape(len(x), conv.groups, -1, positions)


def windows(x: Tensor, conv: Any) -> Tensor:
    """The same as a view, copied for padding only: [batch, channels, *kernel, *out], for 1, 2 and 3 dimensions."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    if any(conv._reversed_padding_repeated_twice):
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    spans = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    out = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in spans]
    within = [step * d for step, d in zip(x.stride()[2:], dilation, strict=True)]
    between = [step * s for step, s in zip(x.stride()[2:], stride, strict=True)]
    return x.as_strided((*x.shape[:2], *kernel, *out), (*x.stride()[:2], *within, *between), x.storage_offset())


# ── arithmetic ──


def as_float(t: Tensor) -> Tensor:
    """Half precision is added up in single."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t


def _elements(part: Piece) -> int:
    """What forming one example's gradient holds at once."""
    if isinstance(part, Outer):
        groups, positions, out, into = part.sizes
        return max(1, groups * (out * into + positions * (into if part.module is not None else 0)))
    return max(1, part.num_rows * part.gradient.shape[-1] if isinstance(part, Lookup) else part.gradient[0].numel())


def _cheaper_by_gram(parts: Sequence[Piece]) -> bool:
    """Products of positions with each other, T²(in + out), against T·in·out for the gradient itself."""
    outers = [part.sizes for part in parts if isinstance(part, Outer)]
    if not outers or len(outers) < len(parts):
        return True
    positions = sum(sizes[1] for sizes in outers)
    _, _, out, into = outers[0]
    return (
        positions == 1 or positions * (out + into) < 0.7 * out * into
    )  # two products and their product cost more than one


def _outer_norms(parts: Sequence[Outer]) -> Tensor:
    first, batch = parts[0], len(parts[0].gradient)
    positions = sum(part.sizes[1] for part in parts)
    if positions == 1 and first.module is None:
        return as_float(first.gradient).square().sum((1, 2)) * as_float(first.input).square().sum((1, 2))
    groups, _, _, into = first.sizes
    size = max(1, CHUNK // (groups * positions * (2 * positions + (into if first.module is not None else 0))))
    chunks = []
    for start in range(0, batch, size):
        rows = [part.rows(slice(start, start + size)) for part in parts]
        g, a = (torch.cat(t, -1) if len(t) > 1 else t[0] for t in zip(*rows, strict=True))
        chunks.append(((g.transpose(-1, -2) @ g) * (a.transpose(-1, -2) @ a)).sum((1, 2, 3)))
    return torch.cat(chunks)


def _segments(parts: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Gradients added up where example and row agree: sums [segments, width], keys example·rows + row."""
    num_rows, batch = parts[0].num_rows, len(parts[0].index)
    index = torch.cat([part.index for part in parts], 1)
    g = as_float(torch.cat([part.gradient for part in parts], 1))
    keys = (index + num_rows * torch.arange(batch, device=index.device).unsqueeze(1)).flatten()
    keys, inverse = keys.unique(return_inverse=True)
    sums = g.new_zeros(len(keys), g.shape[-1]).index_add_(0, inverse, g.flatten(0, 1))
    return sums, keys


def _lookup_norms(parts: Sequence[Lookup]) -> Tensor:
    if len(parts) == 1 and parts[0].index.shape[1] == 1:
        return as_float(parts[0].gradient).square().sum((1, 2))
    sums, keys = _segments(parts)
    squares = sums.square().sum(1)
    return squares.new_zeros(len(parts[0].index)).index_add_(0, keys // parts[0].num_rows, squares)


def _inner(outer: Outer, lookup: Lookup) -> Tensor:
    """⟨Σ_t g_t a_tᵀ, gradient of the lookup⟩ = Σ_{s,t} g_t[x_s] (a_t · e_s) of each example."""
    g, a = outer.rows()
    index = lookup.index.unsqueeze(-1).expand(-1, -1, g.shape[-1])  # [batch, s, t]
    picked = g.squeeze(1).gather(1, index)
    return (picked * (as_float(lookup.gradient) @ a.squeeze(1))).sum((1, 2))


def _scattered(part: Lookup, chosen: slice) -> Tensor:
    g, index = as_float(part.gradient[chosen]), part.index[chosen]
    rows = g.new_zeros(len(g), part.num_rows, g.shape[-1])
    return rows.scatter_add_(1, index.unsqueeze(-1).expand_as(g), g)
