"""Products of matrices: dense layers, matmul, einsum, bilinear; and embeddings, products with one-hot rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, composed, rule


@rule("linear")
def linear(x: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, Pull]:
    """Y = x wᵀ + b: ∂J/∂x = g w, ∂J/∂w = gᵀ x, ∂J/∂b = Σ g over all rows.

    x `[..., inputs]`, w `[outputs, inputs]`, b `[outputs]`.
    """

    def pull(g: Tensor) -> list[Any]:
        rows = g.reshape(-1, w.shape[0])
        return [
            (x, lambda: g @ w),
            (w, lambda: rows.T @ x.reshape(-1, w.shape[1])),
            (b, lambda: rows.sum(0)),
        ]

    return F.linear(x, w, b), pull


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(a: Tensor, b: Tensor) -> tuple[Tensor, Pull]:
    """Y = a b: ∂J/∂a = g bᵀ, ∂J/∂b = aᵀ g; a vector is a matrix of one row or column."""
    A = a[None] if a.ndim == 1 else a
    B = b[:, None] if b.ndim == 1 else b

    def to_right(G: Tensor) -> Tensor:
        if B.ndim == 2 and A.ndim > 2:  # one product over all rows instead of one a matrix, summed afterwards
            return A.reshape(-1, A.shape[-1]).T @ G.reshape(-1, G.shape[-1])
        return A.mT @ G

    def pull(g: Tensor) -> list[Any]:
        G = g.unsqueeze(-1) if b.ndim == 1 else g
        G = G.unsqueeze(-2) if a.ndim == 1 else G
        left = lambda: _fitted(G @ B.mT, A).reshape(a.shape)  # noqa: E731
        return [(a, left), (b, lambda: _fitted(to_right(G), B).reshape(b.shape))]

    return torch.matmul(a, b), pull


def _fitted(gradient: Tensor, operand: Tensor) -> Tensor:
    return gradient.sum_to_size(operand.shape)


@rule("einsum")
def einsum(equation: str, *operands: Any) -> tuple[Tensor, Pull]:
    """Y = Σ Π operands: each operand gets the einsum of g and the others; an index of it alone is spread out.

    Raises:
        ValueError: an index twice in one operand, or an ellipsis: no rule here.
    """
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    terms, _, result = equation.replace(" ", "").partition("->")
    indices = terms.split(",")
    if "->" not in equation:
        letters = [c for c in terms if c != ","]
        result = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if "." in equation or any(len(set(term)) < len(term) for term in (*indices, result)):
        raise ValueError(f"einsum {equation!r} has an ellipsis or an index twice in one operand")

    def share(g: Tensor, place: int) -> Tensor:
        others = [(indices[i], t) for i, t in enumerate(tensors) if i != place] + [(result, g)]
        known = [c for c in indices[place] if any(c in term for term, _ in others)]
        d = torch.einsum(f"{','.join(term for term, _ in others)}->{''.join(known)}", *[t for _, t in others])
        for axis, c in enumerate(indices[place]):
            d = d if c in known else d.unsqueeze(axis)
        return d.expand(tensors[place].shape)

    def pull(g: Tensor) -> list[Any]:
        return [(t, lambda place=place: share(g, place)) for place, t in enumerate(tensors)]

    return torch.einsum(equation, *tensors), pull


@rule("embedding")
def embedding(indices: Tensor, w: Tensor, padding_idx: int | None = None, *options: Any, **named: Any) -> Any:
    """Y = w[indices]: row i of ∂J/∂w is the sum of g over the places that hold i; 0 for the padding index.

    indices `[...]`, w `[entries, features]`.

    Raises:
        ValueError: `max_norm` or `scale_grad_by_freq`, which change weights or gradients on the side.
    """
    if named.get("max_norm") is not None or named.get("scale_grad_by_freq") or (options and options[0] is not None):
        raise ValueError("an embedding with max_norm or scale_grad_by_freq")

    def to_weights(g: Tensor) -> Tensor:
        d = torch.zeros_like(w).index_add_(0, indices.reshape(-1), g.reshape(-1, w.shape[1]))
        if padding_idx is not None and padding_idx >= 0:
            d[padding_idx] = 0
        return d

    return F.embedding(indices, w), lambda g: [(w, lambda: to_weights(g))]


@composed("bilinear")
def bilinear(a: Tensor, b: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """y_o = aᵀ w_o b + bias_o."""
    rows = torch.einsum("ni,oij,nj->no", a.reshape(-1, a.shape[-1]), w, b.reshape(-1, b.shape[-1]))
    y = rows.reshape(*a.shape[:-1], w.shape[0])
    return y if bias is None else y + bias


@composed("addmm", "baddbmm", "addmv")
def addmm(x: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """βx + α a b."""
    product = a @ b
    return (x if beta == 1 else beta * x) + (product if alpha == 1 else alpha * product)


@composed("outer")
def outer(a: Tensor, b: Tensor) -> Tensor:
    """A bᵀ."""
    return a.unsqueeze(1) * b


@composed("cosine_similarity")
def cosine_similarity(a: Tensor, b: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """aᵀb / (|a| |b|), each norm at least ε."""
    a = a / torch.linalg.vector_norm(a, dim=dim, keepdim=True).clamp_min(eps)
    b = b / torch.linalg.vector_norm(b, dim=dim, keepdim=True).clamp_min(eps)
    return (a * b).sum(dim)
