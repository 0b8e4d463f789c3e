"""Bases of eigenvectors that follow a slowly changing symmetric matrix: found once, then turned a little at a time.

F factor `[d, d]` (symmetric, positive semidefinite), Q orthogonal `[d, d]`, columns by falling eigenvalues.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class NoBasis(ArithmeticError):
    """A decomposition failed, or what was decomposed is not finite."""


def eigenbasis(F: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[d]`, falling, none below 0, and eigenvectors `[d, d]`; in float64 where F's own dtype fails.

    Raises:
        NoBasis: they cannot be found.
    """
    for factor in (F, F.double()):
        try:
            values, vectors = torch.linalg.eigh(factor)
        except RuntimeError:  # torch.linalg.LinAlgError is one
            continue
        if bool(values.isfinite().all() & vectors.isfinite().all()):
            return values.flip(-1).clamp_min(0.0).to(F.dtype), vectors.flip(-1).to(F.dtype)
    raise NoBasis


def turned(F: Tensor, Q: Tensor, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """One orthogonal iteration, Q ← qr(F Q), unless the basis is off by no more than a tolerance.

    Off is ‖QᵀFQ − diag‖ / ‖F‖ (Frobenius), as in Eschenhagen et al. 2025, "Purifying Shampoo", section 4; since
    ‖QᵀFQ‖ = ‖F‖, the diagonal is enough to know it. Columns are sorted by diag QᵀFQ before. It reads back to the host.

    Returns:
        Which column of the old basis became each of the new one `[d]`, and the new basis; None where the old one stays.

    Raises:
        NoBasis: it cannot be found.
    """
    trace = F.diagonal().sum()
    F = F / trace.clamp_min(torch.finfo(F.dtype).tiny)  # its square has the range of a square
    QF = Q.mT @ F  # rows are the columns of F Q, side by side in memory as LAPACK wants columns
    diagonal = (Q.mT * QF).sum(-1)
    off = 1 - diagonal.square().sum() / F.square().sum()
    size, share = torch.stack([trace, off]).tolist()
    if not size < math.inf:
        raise NoBasis
    if not (size and share > tolerance**2):
        return None
    order = diagonal.argsort(descending=True)
    try:
        basis = torch.linalg.householder_product(*torch.geqrf(QF[order].mT))  # the other factor is not made
    except RuntimeError:
        raise NoBasis from None
    if not bool(basis.isfinite().all()):
        raise NoBasis
    return order, basis
