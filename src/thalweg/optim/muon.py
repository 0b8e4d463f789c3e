"""Muon: each matrix moves by the nearest orthogonal matrix to its momentum, with rows evened out (NorMuon).

    B ← μB + (1−μ)G;  U = μB + (1−μ)G                      momentum as Nesterov has it
    O = U (UᵀU)^−½, roughly                                 all singular values of U brought to about 1
    v ← β₂v + (1−β₂) mean over columns of O²;  Ô = O/√v     each row of one size
    W ← (1−αλ) W − α · 0.2 √max(m, n) · Ô ‖O‖/‖Ô‖

W weight `[m, n]`, G its gradient, v `[m, 1]`, α learning rate, λ weight decay. With the factor 0.2 √max(m, n) an entry
moves by about 0.2 α a step, as under AdamW, so AdamW's rate and decay carry over (Liu et al. 2025, "Muon is scalable
for LLM training", section 2.2). Momentum and orthogonalisation: Jordan et al. 2024, "Muon". Rows: Li et al. 2025,
"NorMuon", algorithm 1, but for the size of the update, which stays that of O, so that a gradient of low rank is not
blown up.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.optim.averages import wide
from thalweg.optim.matrices import MatrixRule, output_layer
from thalweg.optim.stacks import Stack, size
from thalweg.tensors.timing import bfloat16_may_pay, seconds

COEFFICIENTS = (
    (8.1377, -22.7137, 16.3254),
    (3.9667, -2.8368, 0.5224),
    (3.5003, -2.5705, 0.5026),
    (2.5347, -1.8720, 0.4410),
)
"""(a, b, c) of x ← ax + bx³ + cx⁵, iteration by iteration: the best for singular values in [0.003, 1] with four
iterations, by the method of Amsel et al. 2025 ("Polar Express", algorithm 1, with its cushion 0.024 and its safety
factor 1.01). What comes out lies in [0.78, 1.22]; Jordan's five iterations give [0.68, 1.20]."""

MARGIN = 1.02
"""By which the bound on the largest singular value is kept above what rounding may hide of it (Polar Express, 4.4)."""

LEAST = 1e-7
"""The norm of a momentum from which it counts in full, as in torch: a network that has learnt all comes to rest."""


class Muon(MatrixRule):
    """Orthogonalised momentum for matrices, AdamW for all other parameters.

    A convolution `[out, in, k, k]` is the matrix `[out, in·k·k]`. AdamW (fused) moves vectors and scalars, groups with
    `adamw=True`, and, where `params` is a module, its embeddings and its last matrix, the output layer: for their rows
    (tokens, classes) are separate things, not a basis that may be turned. From a list of parameters nobody can tell
    what is an embedding: then say so in a group.

    When: hidden layers of more than a few dozen units, of transformers above all; it takes about the steps of SOAP and
    costs less. When not: where nearly all parameters are vectors, embeddings or an output layer; full batches without
    noise (L-BFGS).

    Cost of a step: 4 (4 m² n + 2 m³) multiplications and additions for a matrix `[m, n]`, m ≤ n, in bfloat16 where that
    is faster; 4 m/R of a forward and backward pass over R rows for a square one. Memory: one float32 number a
    parameter (AdamW: two) and one a row.

    Args:
        params: a module, or parameters, pairs (name, parameter) or groups as for any torch optimizer.
        lr: α; AdamW's.
        weight_decay: λ; AdamW's. From a module, of matrices and embeddings only.
        momentum: μ (Jordan et al.: 0.95).
        betas: β₁ and β₂ of AdamW inside (Liu et al.: 0.9, 0.95); β₂ of the rows too (Li et al.: 0.95).
        eps: ε of AdamW inside.
        adamw: leave a group's matrices to AdamW.
        arithmetic: what matrices are orthogonalised in: "exact" (their own dtype), "bfloat16", or "auto": the faster,
            timed once for each shape at its first step, written into `state[p]["arithmetic"]` and kept on resume. With
            `torch.use_deterministic_algorithms(True)` no clock decides, and "auto" is "exact".

    Raises:
        ValueError: an option out of its range, a parameter of complex numbers, nothing to train.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> optimizer = Muon(model, lr=0.01)
    >>> [(group["param_names"], group["adamw"]) for group in optimizer.param_groups]
    [(['0.weight', '2.weight'], False), (['4.weight'], True), (['0.bias', '2.bias', '4.bias'], True)]
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        adamw: bool = False,
        arithmetic: str = "auto",
    ) -> None:
        if arithmetic not in ("auto", "exact", "bfloat16"):
            raise ValueError(f'arithmetic is "auto", "exact" or "bfloat16", got {arithmetic!r}')
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**options, "adamw": adamw, "arithmetic": arithmetic})

    @classmethod
    def apart(cls, model: nn.Module) -> set[nn.Parameter]:  # noqa: D102
        return super().apart(model) | output_layer(model)

    def _decide(self, matrices: list[tuple[dict[str, Any], nn.Parameter]]) -> None:
        """Which arithmetic, for each shape that is new."""
        new: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for group, p in matrices:
            if "arithmetic" not in self.state[p]:
                new.setdefault((group["arithmetic"], size(p), p.dtype, p.device), []).append(p)
        for (asked, *_), ps in new.items():
            chosen = faster(ps) if asked == "auto" else asked
            for p in ps:
                self.state[p]["arithmetic"] = chosen

    def _names(self, p: nn.Parameter) -> list[str]:
        m, n = size(p)
        self._begin(p, {"momentum": (m, n), "row_variance": (m, 1)})
        return ["momentum", "row_variance"]

    def _shared(self, p: nn.Parameter) -> Hashable:
        return self.state[p]["arithmetic"]

    def _move(self, stack: Stack, number: int) -> None:
        B, v = stack.tensors["momentum"], stack.tensors["row_variance"]
        μ, β2 = stack.group["momentum"], stack.group["betas"][1]
        U = prepared(B.shape, B, stack.kept[0]["arithmetic"])
        for piece in stack.pieces():
            G, b = stack.gradients(piece), B[piece]
            b.lerp_(G, 1 - μ)
            U[piece].copy_(torch.lerp(G, b, μ))
        O = orthogonal(U)  # noqa: E741
        squares = torch.linalg.vector_norm(O, dim=-1, keepdim=True, dtype=v.dtype).square_().div_(O.shape[-1])
        v.lerp_(squares, 1 - β2)
        # Rows are divided by √v and the whole by what that does to its norm. A row that never had a gradient stays 0.
        least = torch.finfo(v.dtype).tiny
        factors = v.clamp_min(least).rsqrt_()
        sizes = squares.sum(-2, keepdim=True), (squares * factors.square()).sum(-2, keepdim=True)
        factors *= (sizes[0] / sizes[1].clamp_min(least)).sqrt_()
        stack.apply(O, 0.2 * max(B.shape[-2:]) ** 0.5, factors)


# ── the nearest orthogonal matrix ────────────────────────────────────────────────────────────────────────────────────


def prepared(shape: torch.Size, like: Tensor, arithmetic: str) -> Tensor:
    """Room for what is to be made orthogonal, the shorter of m and n leading in memory; in bfloat16 if so asked."""
    many, m, n = shape
    room = (many, m, n) if m <= n else (many, n, m)
    X = torch.empty(room, dtype=torch.bfloat16 if arithmetic == "bfloat16" else like.dtype, device=like.device)
    return X if m <= n else X.mT


def orthogonal(U: Tensor) -> Tensor:
    """`[matrices, m, n]` with the singular vectors of U and all singular values near 1. What is in U is lost.

    Values below 0.003 of the bound on the largest become less than 0.78: a null space stays one. So do all of a matrix
    whose norm is far below `LEAST`.

    Args:
        U: `[matrices, m, n]`, in the dtype that products are taken in; as `prepared` lays it out, to be fast.
    """
    m, n = U.shape[-2:]
    X = (U if m <= n else U.mT).contiguous()
    # One matrix by itself is multiplied faster as a matrix than as a batch.
    X = _iterated(X) if len(X) > 1 else _iterated(X[0])[None]
    return X if m <= n else X.mT


def _iterated(X: Tensor) -> Tensor:
    """X ← X/√s, then X ← (aI + bA + cA²) X with A = XXᵀ, once for each (a, b, c); X `[…, m, n]`.

    s = ‖XXᵀ‖ (Frobenius) is the square of a bound on the largest singular value, a closer one than ‖X‖.

    aI + bA + cA² = T² + dI with T = √c (A + b/2c I) and d = a − b²/4c, so that beside three products only diagonals are
    touched. For √c to be in T already, X is held times γ, with γ⁴ = ρc and ρ = γ′/γ for γ′ of the next iteration: the
    last leaves γ = 1. The first iteration finds X at κ = γ/√s of what it should be, and makes up for it in T and d.
    """
    multiply = torch.bmm if X.ndim == 3 else torch.mm
    m = X.shape[-2]
    A, P, other = X.new_empty(*X.shape[:-1], m), X.new_empty(*X.shape[:-1], m), torch.empty_like(X)
    diagonals = [square.diagonal(dim1=-2, dim2=-1) for square in (A, P)]
    for step, (γ, ρ, (a, b, c)) in enumerate(_SCALED):
        multiply(X, X.mT, out=A)
        d: float | Tensor = ρ * (a - b * b / (4 * c))
        e: float | Tensor = γ * γ * b / (2 * c)
        if step == 0:
            s = torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True, dtype=wide(A.dtype)).mul_(MARGIN)
            s.clamp_min_(LEAST**2)
            κ = γ * s.rsqrt()
            root = (κ * (ρ * c)).sqrt_()
            A.mul_((root / s).to(A.dtype))
            d, e = ((κ * d)[..., 0]).to(A.dtype), ((root * (b / (2 * c)))[..., 0]).to(A.dtype)
        diagonals[0].add_(e)
        multiply(A, A, out=P)
        diagonals[1].add_(d)
        X, other = multiply(P, X, out=other), X
    return X


def _scaled() -> list[tuple[float, float, tuple[float, float, float]]]:
    """(γ, ρ, (a, b, c)) of each iteration, from the last to the first: γ⁵ = γ′c."""
    found, following = [], 1.0
    for coefficients in reversed(COEFFICIENTS):
        γ = (following * coefficients[2]) ** 0.2
        found.append((γ, following / γ, coefficients))
        following = γ
    return found[::-1]


_SCALED = _scaled()


def faster(parameters: list[nn.Parameter]) -> str:
    """The arithmetic that takes the least time for matrices of one shape: "exact" or "bfloat16"."""
    first = parameters[0]
    if first.dtype == torch.float64 or torch.are_deterministic_algorithms_enabled():
        return "exact"
    if not bfloat16_may_pay(first.device):
        return "exact"
    shape, like = torch.Size((len(parameters), *size(first))), torch.empty(0, device=first.device)
    times = {}
    for word in ("exact", "bfloat16"):
        U = prepared(shape, like, word).fill_(1.0)
        times[word] = seconds(partial(orthogonal, U), U.device)
    return min(times, key=times.__getitem__)
