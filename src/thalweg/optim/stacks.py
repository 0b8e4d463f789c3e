"""Parameters as matrices, and those that move together: stacks of one shape for a rule, all others for AdamW.

A parameter `[out, in, …]` is the matrix `[out, in·…]`. `state[p]` holds views of what a stack keeps of its matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from thalweg.optim.averages import wide

PIECE = 1 << 16
"""Entries of a piece: of float32 and four tensors a megabyte, half of a core's cache."""
Piece = tuple[slice, slice]
"""Matrices of a stack, and rows of each."""
_FUSED = ("cpu", "cuda", "mps", "xpu")


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter has rows and columns: a matrix of one row is a vector."""
    return p.ndim >= 2 and p.numel() > 0 and 1 not in size(p)


def size(p: Tensor) -> tuple[int, int]:
    """Rows and columns `(m, n)` of a parameter `[m, …]` as a matrix."""
    return p.shape[0], p.numel() // p.shape[0]


def words(p: Tensor) -> str:
    """A parameter's size as a matrix in words: "512x784"."""
    return "{}x{}".format(*size(p))


@dataclass(slots=True)
class Stack:
    """Matrices of one shape in one tensor each, and where their parts are kept."""

    group: dict[str, Any]
    parameters: list[nn.Parameter]
    kept: list[dict[str, Any]]
    """What `state` holds of each parameter."""
    tensors: dict[str, Tensor]
    """Name → `[matrices, …]`."""
    views: list[tuple[dict[str, Any], str, Tensor]]
    casts: dict[str, tuple[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, group: dict[str, Any], parameters: list[nn.Parameter], kept: list[dict[str, Any]], names: Iterable[str]
    ) -> Stack:
        """Put side by side what `kept` holds under these names; from then on it holds views."""
        tensors = {name: torch.stack([state[name] for state in kept]) for name in names}
        views = []
        for name, tensor in tensors.items():
            for state, view in zip(kept, tensor.unbind(), strict=True):
                state[name] = view
                views.append((state, name, view))
        return cls(group, parameters, kept, tensors, views)

    @property
    def step(self) -> int:
        """Steps that its parameters have had."""
        return int(self.kept[0]["step"])

    def is_live(self, state: dict[Any, dict[str, Any]]) -> bool:
        """Whether what is kept still lies here: a load or a reset puts other tensors in its place."""
        if any(state.get(p) is not kept for p, kept in zip(self.parameters, self.kept, strict=True)):
            return False
        return all(kept.get(name) is view for kept, name, view in self.views)

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor in another dtype, which is made anew only when it has changed."""
        tensor = self.tensors[name]
        if tensor.dtype == dtype:
            return tensor
        version, made = self.casts.get(name, (-1, tensor))
        if version != tensor._version:
            version, made = tensor._version, tensor.to(dtype)
            self.casts[name] = version, made
        return made

    def pieces(self) -> Iterator[Piece]:
        """Matrices, and rows of them, that together fit a processor's cache: what is done to each one thing after
        another never leaves it. Elsewhere all at once.
        """
        p, many = self.parameters[0], len(self.parameters)
        m, n = size(p)
        if p.device.type != "cpu":
            yield slice(0, many), slice(0, m)
        elif m * n <= PIECE:
            step = PIECE // (m * n)
            yield from ((slice(i, i + step), slice(0, m)) for i in range(0, many, step))
        else:
            step = max(1, PIECE // n)
            yield from ((slice(i, i + 1), slice(r, r + step)) for i in range(many) for r in range(0, m, step))

    def gradients(self, piece: Piece = (slice(None), slice(None))) -> Tensor:
        """`[matrices, m, n]` of a piece, in the dtype of what is kept."""
        which, part = piece
        rows = [gradient(p)[part].flatten(1) for p in self.parameters[which]]
        gradients = torch.stack(rows) if len(rows) > 1 else rows[0].unsqueeze(0)
        return gradients.to(wide(gradients.dtype))

    def apply(self, update: Tensor, factor: float, rows: Tensor | None = None) -> None:
        """W ← (1 − αλ) W − α·factor·U, for U `[matrices, m, n]` of any dtype, its rows times `[matrices, m, 1]`."""
        rate, decay = self.group["lr"], self.group["weight_decay"]
        for which, part in self.pieces():
            U = update[which, part]
            dtype = wide(self.parameters[0].dtype)
            if rows is not None or U.dtype != dtype:
                U = torch.empty(U.shape, dtype=dtype, device=U.device).copy_(U)
            if rows is not None:
                U.mul_(rows[which, part])
            for p, u in zip(self.parameters[which], U.unbind(), strict=True):
                W = p[part]
                if decay:
                    W.mul_(1 - rate * decay)
                W.add_(u.view(W.shape), alpha=-rate * factor)


@dataclass(slots=True)
class Fused:
    """Parameters of one group that AdamW moves in one call."""

    group: dict[str, Any]
    parameters: list[nn.Parameter]
    kept: list[dict[str, Any]]
    share: float = 1.0
    """Of the group's rate, what they are moved at."""

    def is_live(self, state: dict[Any, dict[str, Any]]) -> bool:
        """Whether this is what is kept of its parameters."""
        return all(state.get(p) is kept for p, kept in zip(self.parameters, self.kept, strict=True))

    def update(self) -> None:
        """Of one step: m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)g²; θ ← (1−αλ)θ − α m̂/(√ŝ + ε), in float32 or wider."""
        group, ps = self.group, self.parameters
        gradients = [gradient(p) for p in ps]
        wider = [p.to(wide(p.dtype)) for p in ps]
        adamw(
            wider,
            [g.to(w.dtype) for g, w in zip(gradients, wider, strict=True)],
            [kept["exp_avg"] for kept in self.kept],
            [kept["exp_avg_sq"] for kept in self.kept],
            [],
            list(torch.tensor([kept["step"] - 1.0 for kept in self.kept], device=ps[0].device).unbind()),
            foreach=False,
            fused=ps[0].device.type in _FUSED,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=self.share * group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for p, w in zip(ps, wider, strict=True):
            if w is not p:
                p.copy_(w)


def gradient(p: nn.Parameter) -> Tensor:
    """The gradient, in the parameter's memory order, which kernels go by."""
    g = p.grad
    assert g is not None
    if g.is_sparse:
        raise RuntimeError("sparse gradients cannot be used here: make the embedding with sparse=False")
    return g if g.stride() == p.stride() else torch.empty_like(p, dtype=g.dtype).copy_(g)
