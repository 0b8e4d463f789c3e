"""Bases of eigenvectors that follow a slowly changing symmetric matrix: found once, then turned a little at a time.

F factor `[matrices, d, d]` (symmetric, positive semidefinite), Q orthogonal `[matrices, d, d]`, columns by falling
eigenvalues. A decomposition that fails leaves the basis as it is: a stale basis is a worse one, not a wrong one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Turned:
    """New bases of some of the matrices of a stack."""

    rows: list[int]
    """Which of the matrices."""
    order: Tensor
    """`[rows, d]`: which column of the old basis became each of the new one."""
    basis: Tensor
    """`[rows, d, d]`."""
    failed: bool
    """Whether there are matrices whose basis could not be found."""


def eigenbasis(F: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Eigenvalues `[matrices, d]`, falling, none below 0; eigenvectors; and whether some could not be found.

    What fails in F's dtype is tried in float64; what fails there has the unit vectors, and the diagonal for values.
    """
    values, vectors, failed = [], [], False
    for factor in F.unbind():
        found = _eigh(factor) or _eigh(factor.double())
        if found is None:
            failed = True
            found = factor.diagonal(), torch.eye(len(factor), dtype=F.dtype, device=F.device)
        else:
            found = found[0].flip(-1), found[1].flip(-1)
        values.append(found[0].to(F.dtype).clamp_min(0.0))
        vectors.append(found[1].to(F.dtype))
    return torch.stack(values), torch.stack(vectors), failed


def _eigh(factor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Of one matrix by itself: one that fails spoils no other."""
    try:
        values, vectors = torch.linalg.eigh(factor)
    except RuntimeError:  # torch.linalg.LinAlgError is one
        return None
    return (values, vectors) if bool(values.isfinite().all() & vectors.isfinite().all()) else None


def turned(F: Tensor, Q: Tensor, tolerance: float) -> Turned:
    """One orthogonal iteration Q ← qr(F Q) for the matrices whose basis has come off by more than a tolerance.

    Off is ‖QᵀFQ − diag‖ / ‖F‖ (Frobenius), as in Eschenhagen et al. 2025, "Purifying Shampoo", section 4; since
    ‖QᵀFQ‖ = ‖F‖, the diagonal is enough to know it. Columns are sorted by diag QᵀFQ before. It reads back to the host.
    """
    trace = F.diagonal(dim1=-2, dim2=-1).sum(-1)
    F = F / trace.clamp_min(torch.finfo(F.dtype).tiny)[:, None, None]  # its square has the range of a square
    QF = Q.mT @ F  # rows are the columns of F Q, side by side in memory as LAPACK wants columns
    diagonal = (Q.mT * QF).sum(-1)
    off = 1 - diagonal.square().sum(-1) / F.square().sum((-2, -1))
    rows, failed = [], False
    for row, (share, size) in enumerate(torch.stack([off, trace], -1).tolist()):
        if not size < math.inf:
            failed = True
        elif size and share > tolerance**2:
            rows.append(row)
    order = diagonal.argsort(-1, descending=True)[rows]
    FQ = QF[rows].gather(1, order.unsqueeze(-1).expand(-1, -1, F.shape[-1])).mT
    basis, found = _qr(FQ) if rows else (FQ, [])
    if not all(found):
        good = [i for i, is_found in enumerate(found) if is_found]
        rows, order, basis, failed = [rows[i] for i in good], order[good], basis[good], True
    return Turned(rows, order, basis, failed)


def _qr(A: Tensor) -> tuple[Tensor, list[bool]]:
    """Orthogonal factors, and which of them could be found; the other factors are not made."""
    try:
        Q = torch.linalg.householder_product(*torch.geqrf(A))
    except RuntimeError:
        if len(A) == 1:
            return A, [False]
        parts = [_qr(a.unsqueeze(0)) for a in A.unbind()]
        return torch.cat([part for part, _ in parts]), [found for _, (found,) in parts]
    return Q, Q.isfinite().all(-1).all(-1).tolist()
