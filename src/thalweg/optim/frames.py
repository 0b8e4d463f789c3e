"""The leading directions of a slowly changing statistic, and the frame that they are of, beside the coordinates.

F statistic `[d, d]`, which is never made: F ≈ QΛQᵀ with Q `[d, k]` (orthonormal columns) and Λ its k largest
eigenvalues. The frame is T = [Q, I − QQᵀ] `[d, k + d]`: what a vector has along the leading directions, and in the old
coordinates what is left of it. TTᵀ = I, so that nothing is lost by going there and back. All tensors are stacks
`[matrices, …]`; `dim` says which side of a matrix is meant, −2 its rows and −1 its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

SLACK = 8
"""A side up to so many times as long as its leading directions are many has all directions instead: there they cost
little, and a gradient tells of most of them.
"""
WHOLE = 1024
"""And none longer than this, unless it is to have as many directions: its statistics would be of the side squared."""
SHIFT = 1e-5
"""Of the largest eigenvalue, what is added to all for an iteration. In its null space, of which a gradient of few rows
leaves much, directions thus stay what they were; else rounding would pick them.
"""
ITERATIONS = 3
"""Orthogonal iterations on the first gradient."""


def is_leading(Q: Tensor) -> bool:
    """Whether a basis has fewer directions than its space."""
    return Q.shape[-1] < Q.shape[-2]


def directions(d: int, rank: int | None) -> int:
    """How many directions the basis of a side has."""
    return d if rank is None or d <= min(SLACK * rank, max(rank, WHOLE)) else rank


def split(G: Tensor, Q: Tensor, dim: int) -> Tensor:
    """G in the frame: along the leading directions first, then the rest of it in the old coordinates."""
    k, d = Q.shape[-1], Q.shape[-2]
    shape = list(G.shape)
    shape[dim] = k + d
    found = G.new_empty(shape)
    lead, rest = found.split([k, d], dim)
    rest.copy_(G)
    if dim == -2:
        _multiply(lead, Q.mT, G, beta=0, alpha=1)
        _multiply(rest, Q, lead, beta=1, alpha=-1)
    else:
        _multiply(lead, G, Q, beta=0, alpha=1)
        _multiply(rest, lead, Q.mT, beta=1, alpha=-1)
    return found


def joined(U: Tensor, Q: Tensor, dim: int) -> Tensor:
    """T U, back from the frame, in the memory of U: the inverse of `split` for what came out of it.

    For anything else too: what the rest has along the leading directions is left out, so that to go there, scale each
    coordinate by a positive number and come back never leads uphill.
    """
    lead, rest = U.split([Q.shape[-1], Q.shape[-2]], dim)
    if dim == -2:
        return _multiply(rest, Q, _multiply(lead, Q.mT, rest, beta=1, alpha=-1), beta=1, alpha=1)
    return _multiply(rest, _multiply(lead, rest, Q, beta=1, alpha=-1), Q.mT, beta=1, alpha=1)


def first(G: Tensor, rank: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Λ `[matrices, k]` and Q of share · GGᵀ, from directions drawn alike each time; for which nothing failed."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(G.shape[-2], rank, generator=generator, dtype=G.dtype, device="cpu")
    Q = torch.linalg.qr(drawn)[0].to(G.device).expand(len(G), -1, -1).contiguous()
    values = torch.zeros_like(Q[:, 0])
    for _ in range(ITERATIONS):
        values, Q, _, well = followed(values, Q, G, 0.0)
    return values * share, Q, well


def followed(values: Tensor, Q: Tensor, G: Tensor, β: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One orthogonal iteration on F = β QΛQᵀ + (1−β) GGᵀ: Q ← qr((F + shift) Q), columns by falling QᵀFQ.

    Where nothing comes of it, because F is zero, not finite or cannot be decomposed, all stays: directions that were
    drawn are not to be lost before there is a gradient.

    Returns:
        Λ, Q, which old column each new one was `[matrices, k]`, and for which matrices nothing failed `[matrices]`.
    """
    FQ = (G @ (G.mT @ Q)).mul_(1 - β).add_(Q * values.unsqueeze(-2), alpha=β)
    found, order = (Q * FQ).sum(-2).sort(descending=True)
    largest = found[:, :1].unsqueeze(-1)
    FQ = FQ / largest.clamp_min(torch.finfo(FQ.dtype).tiny) + SHIFT * Q
    try:
        turned = torch.linalg.householder_product(*torch.geqrf(FQ.gather(-1, order.unsqueeze(-2).expand_as(FQ))))
    except RuntimeError:  # torch.linalg.LinAlgError is one
        turned = torch.full_like(Q, torch.nan)
    well = found.isfinite().all(-1) & turned.isfinite().all(-1).all(-1)
    is_new = well.unsqueeze(-1) & (found[:, :1] > 0)
    order = torch.where(is_new, order, torch.arange(Q.shape[-1], device=Q.device))
    return torch.where(is_new, found, values), torch.where(is_new.unsqueeze(-1), turned, Q), order, well


def _multiply(into: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """`into` becomes beta · into + alpha · a b; a single pair is multiplied faster as matrices than as a batch."""
    if len(into) == 1:
        into[0].addmm_(a[0], b[0], beta=beta, alpha=alpha)
    else:
        into.baddbmm_(a, b, beta=beta, alpha=alpha)
    return into
