"""One layer's curvature A ⊗ G as K-FAC keeps it: running means of the factors, and their damped inverses.

    A ← β A + (1−β) Â,   G ← β G + (1−β) Ĝ,   β = min(1 − 1/k, 0.95) at the k-th estimate
    A⁻ = (A + π√λ I)⁻¹,  G⁻ = (G + √λ/π I)⁻¹,   π² = (tr A / dim A) / (tr G / dim G)

(Martens & Grosse 2015, sections 5 and 6.3). The direction is D = G⁻ ∇ A⁻. Where the gradient is that of a dense layer
and of fewer rows than the matrices, ∇ = gᵀa is never multiplied itself: D = (g G⁻)ᵀ (a A⁻).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.factors import KroneckerFactors
from thalweg.gradients.pieces import as_float

#: Weight of the running mean of the factors in the long run (Martens & Grosse 2015, section 5).
DECAY = 0.95
#: A new estimate counts for at most so many times the mean so far: one batch that is far off is not believed.
JUMP = 1000.0
#: Steps between two estimates of the factors, and between two inversions, at most.
LONGEST_FACTORS, LONGEST_INVERSES = 20, 100
#: What an inverse of d rows costs, in multiplications, over d³: Cholesky and inverse measured beside a product.
INVERSE = 2.0
#: A direction from rows is taken where it costs less than this share of the one from the gradient.
WORTH = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A weight, or some rows of it, with its bias and the state that holds its factors under names with a suffix."""

    layer: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: tuple[int, int]
    bias_rows: tuple[int, int]
    num_rows: int
    """Rows that a batch has, when the block was made."""
    is_dense: bool
    """A dense layer as a whole, which can be listened to."""
    state: dict[str, Any]
    """Of the weight."""

    @property
    def suffix(self) -> str:
        """Tells the factors of several blocks of one weight apart."""
        return f"[{self.rows[0]}]" if self.rows != (0, len(self.weight)) else ""

    def get(self, name: str) -> Any:
        """A tensor of the state, or None."""
        return self.state.get(name + self.suffix)

    def set(self, name: str, value: Any) -> None:
        """Keep a tensor."""
        self.state[name + self.suffix] = value

    # ── statistics ───────────────────────────────────────────────────────────────────────────────────────────────

    def observe(self, found: KroneckerFactors) -> None:
        """Take in an estimate; one that is not finite is passed over."""
        count = (self.get("estimates") or 0) + 1
        self.set("estimates", count)
        decay = min(1 - 1 / count, DECAY)
        for name, new in (("A", found.A), ("G", found.G)):
            mean = self.get(name)
            if mean is None:
                self.set(name, new.clone(memory_format=torch.contiguous_format).nan_to_num_(0.0, 0.0, 0.0))
                continue
            size, known = float(_trace(new)), float(_trace(mean))
            if math.isfinite(size):
                cap = JUMP * known / size if known > 0 and size > JUMP * known else 1.0
                mean.mul_(decay).add_(new, alpha=(1 - decay) * cap)

    @property
    def curvature(self) -> tuple[float, int]:
        """Trace of A ⊗ G, and its rows."""
        a, g = self.get("A"), self.get("G")
        return float(_trace(a) * _trace(g)), len(a) * len(g)

    def invert(self, damping: float) -> bool:
        """Invert both factors; False where one could not be, and its old inverse stays."""
        a, g = self.get("A"), self.get("G")
        ratio = float(_trace(a) / len(a)) / max(float(_trace(g) / len(g)), torch.finfo(g.dtype).tiny)
        pi = math.sqrt(ratio) if 0 < ratio < math.inf else 1.0
        pi = min(max(pi, 1e-6), 1e6)
        done = True
        for name, factor, shift in (("A", a, pi * math.sqrt(damping)), ("G", g, math.sqrt(damping) / pi)):
            inverse = inverted(factor, shift)
            if inverse is not None:
                self.set(f"{name}_inverse", inverse.contiguous())  # laid out as a checkpoint brings it back
                continue
            done = False
            if self.get(f"{name}_inverse") is None:
                scale = 1 / (float(_trace(factor)) / len(factor) + shift)
                self.set(f"{name}_inverse", torch.full_like(factor, scale) if factor.ndim == 1 else
                         torch.eye(len(factor)).to(factor) * scale)  # fmt: skip
        return done

    def forget(self) -> None:
        """Nothing is known of the layer, and no factor in the state."""
        for name in ("A", "G", "A_inverse", "G_inverse", "estimates", "is_told_by_rows"):
            self.state.pop(name + self.suffix, None)

    # ── direction ────────────────────────────────────────────────────────────────────────────────────────────────

    def gradient(self) -> Tensor | None:
        """∇ as a matrix [out, in], or [out, in + 1]; of an embedding [words, width]."""
        if self.weight.grad is None:
            return None
        g = as_float(self.weight.grad.to_dense()[slice(*self.rows)]).flatten(1)
        if self.bias is None:
            return g
        b = self.bias.grad
        column = g.new_zeros(len(g)) if b is None else as_float(b[slice(*self.bias_rows)])
        return torch.cat([g, column.unsqueeze(1)], 1)

    def direction(self, gradient: Tensor) -> Tensor:
        """G⁻ ∇ A⁻."""
        a, g = self.get("A_inverse"), self.get("G_inverse")
        if a.ndim == 1:
            return (gradient @ g).mul_(a.unsqueeze(1))
        return g @ (gradient @ a)

    def direction_of_rows(self, rows: tuple[Tensor, Tensor]) -> Tensor:
        """(g G⁻)ᵀ (a A⁻), of rows a [rows, in] and g [rows, out] with ∇ = gᵀa."""
        a, inverse = rows[0], self.get("A_inverse")
        left = rows[1] @ self.get("G_inverse")
        if self.bias is None:
            return left.T @ (a @ inverse)
        return left.T @ torch.addmm(inverse[-1], a, inverse[:-1])

    def parts(self, d: Tensor) -> list[tuple[nn.Parameter, slice, Tensor]]:
        """The direction as parameters have it: (parameter, rows, part)."""
        width = d.shape[1] - (self.bias is not None)
        shape = (len(d), *self.weight.shape[1:])
        split = [(self.weight, slice(*self.rows), d[:, :width].reshape(shape))]
        if self.bias is not None:
            split.append((self.bias, slice(*self.bias_rows), d[:, width]))
        return split

    # ── cost ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def sizes(self) -> tuple[int, int]:
        """Columns and rows of the gradient: dimensions of A and G."""
        return len(self.get("A")), len(self.get("G"))

    @property
    def is_by_rows(self) -> bool:
        """Whether the direction is made from the rows of the batch: that costs less, and they tell all of ∇."""
        if not self.is_dense or self.get("is_told_by_rows") is False:
            return False
        into, out = self.sizes
        return self.num_rows * (into**2 + out**2 + into * out) < WORTH * into * out * (into + out)

    @property
    def costs(self) -> tuple[float, float, float]:
        """Multiplications of a gradient, of an estimate of the factors, and of inverses."""
        into, out = self.sizes
        if self.get("A").ndim == 1:
            return 2.0 * self.num_rows * out, self.num_rows * (2.0 * out + out**2), INVERSE * out**3
        of_pass = float(self.num_rows * into * out)
        return 3 * of_pass, 2 * of_pass + self.num_rows * (into**2 + out**2), INVERSE * (into**3 + out**3)


def mean_curvature(made: Sequence[Block]) -> float:
    """The mean entry of the diagonal of A ⊗ G, over all blocks."""
    traces, sizes = zip(*(block.curvature for block in made), strict=True)
    return max(sum(traces) / sum(sizes), 1e-30)


def periods(made: Sequence[Block], budget: float) -> list[int]:
    """Steps between estimates and between inversions that keep the budget, half of it for each."""
    base, factors, inverses = (sum(costs) for costs in zip(*(b.costs for b in made), strict=True))
    half = budget * base / 2
    first = min(LONGEST_FACTORS, max(1, math.ceil(factors / half)))
    return [first, min(LONGEST_INVERSES, first * max(1, math.ceil(inverses / half / first)))]


def inverted(factor: Tensor, shift: float) -> Tensor | None:
    """(factor + shift I)⁻¹ of a symmetric matrix, or of a diagonal; None where it has none in this arithmetic."""
    if factor.ndim == 1:
        inverse = 1 / (factor + shift)
    else:
        damped = factor.clone()
        damped.diagonal().add_(shift)
        try:
            root, info = torch.linalg.cholesky_ex(damped)
            if bool(info):
                return None
            inverse = torch.cholesky_inverse(root)
        except RuntimeError:
            return None
    return inverse if math.isfinite(float(inverse.sum())) else None


def _trace(factor: Tensor) -> Tensor:
    return factor.sum() if factor.ndim == 1 else factor.diagonal().sum()
