"""Operations that give numbers another place or shape: ∂J/∂x is g with each number moved back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.registry import RULES, Pull, composed, rule

# ── the same numbers in another shape or dtype ──


def _reshaping(name: str) -> None:
    move = getattr(Tensor, name)

    @rule(name, moves=True)
    def apply(x: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Pull]:
        return move(x, *options, **named), lambda g: [(x, lambda: g.reshape(x.shape))]


for _name in (
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "view_as", "reshape_as"),
    *("contiguous", "clone", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
):
    _reshaping(_name)


def _spreading(name: str) -> None:
    """The sweep sums a share down to its operand: g as it is."""
    move = getattr(Tensor, name)

    @rule(name, moves=True)
    def apply(x: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Pull]:
        return move(x, *options, **named), lambda g: [(x, lambda: g)]


for _name in ("expand", "expand_as", "broadcast_to"):
    _spreading(_name)


@composed("broadcast_tensors")
def broadcast_tensors(*tensors: Any) -> list[Tensor]:
    """All in their common shape."""
    tensors = tuple(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    shape = torch.broadcast_shapes(*[t.shape for t in tensors])
    return [t.expand(shape) for t in tensors]


# ── the same numbers in another order ──


@rule("transpose", "swapaxes", "swapdims", moves=True)
def transpose(x: Tensor, dim0: int, dim1: int) -> tuple[Tensor, Pull]:
    """Two dimensions exchanged; and back."""
    return x.transpose(dim0, dim1), lambda g: [(x, lambda: g.transpose(dim0, dim1))]


@rule("mT", "t", "adjoint", "mH", moves=True)
def matrix_transpose(x: Tensor) -> tuple[Tensor, Pull]:
    """The last two dimensions exchanged."""
    if x.ndim < 2:
        return x.t(), lambda g: [(x, lambda: g)]
    return x.mT, lambda g: [(x, lambda: g.mT)]


@rule("T", moves=True)
def reversed_dimensions(x: Tensor) -> tuple[Tensor, Pull]:
    """All dimensions in reverse order."""
    order = tuple(range(x.ndim - 1, -1, -1))
    return x.permute(order), lambda g: [(x, lambda: g.permute(order))]


@rule("permute", "permute_dims", moves=True)
def permute(x: Tensor, *dims: Any, **named: Any) -> tuple[Tensor, Pull]:
    """Dimensions in another order: back by the inverse order."""
    order = named.get("dims", dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims)
    back = torch.argsort(torch.tensor([d % x.ndim for d in order])).tolist()
    return x.permute(*order), lambda g: [(x, lambda: g.permute(back))]


@rule("movedim", "moveaxis", moves=True)
def movedim(x: Tensor, source: Any, destination: Any) -> tuple[Tensor, Pull]:
    """Dimensions moved; and back."""
    return x.movedim(source, destination), lambda g: [(x, lambda: g.movedim(destination, source))]


@rule("flip", moves=True)
def flip(x: Tensor, *dims: Any, **named: Any) -> tuple[Tensor, Pull]:
    """Dimensions reversed; and again."""
    turned = named.get("dims", dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims)
    return x.flip(turned), lambda g: [(x, lambda: g.flip(turned))]


# ── apart and together ──


@rule("cat", "concat", "concatenate", moves=True)
def cat(tensors: Any, dim: int = 0, **named: Any) -> tuple[Tensor, Pull]:
    """Tensors one after the other: each gets its own part of g."""
    dim = named.get("axis", dim)
    y = torch.cat(tuple(tensors), dim)

    def pull(g: Tensor) -> list[Any]:
        parts = g.split([t.shape[dim] if t.ndim == y.ndim else 0 for t in tensors], dim)
        return [(t, lambda part=part: part) for t, part in zip(tensors, parts, strict=True)]

    return y, pull


@rule("stack", moves=True)
def stack(tensors: Any, dim: int = 0) -> tuple[Tensor, Pull]:
    """Tensors along a new dimension."""

    def pull(g: Tensor) -> list[Any]:
        return [(t, lambda part=part: part) for t, part in zip(tensors, g.unbind(dim), strict=True)]

    return torch.stack(tuple(tensors), dim), pull


def _splitting(name: str, join: Callable[[list[Tensor], int], Tensor]) -> None:
    """Parts: ∂J/∂x is their gradients together, zeros for a part that nothing depends on."""
    split = getattr(Tensor, name)

    @rule(name, moves=True)
    def apply(x: Tensor, *options: Any, **named: Any) -> tuple[Any, Pull]:
        parts = split(x, *options, **named)
        place = 0 if name == "unbind" else 1
        dim = named.get("dim", options[place] if len(options) > place else 0)

        def pull(*gs: Tensor | None) -> list[Any]:
            whole = [torch.zeros_like(part) if g is None else g for g, part in zip(gs, parts, strict=True)]
            return [(x, lambda: join(whole, dim))]

        return parts, pull


for _name in ("split", "split_with_sizes", "chunk", "tensor_split"):
    _splitting(_name, torch.cat)
_splitting("unbind", torch.stack)

# ── copies of numbers ──


def _copying(name: str, move: Callable[..., Tensor]) -> None:
    """Y = x[i] for places i, which the operation itself makes from 0, 1, 2, …: ∂J/∂x is the sum of g over equal i."""

    @rule(name, moves=True)
    def apply(x: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Pull]:
        def back(g: Tensor) -> Tensor:
            # Some of these know floating numbers only; up to 2^53 they are whole.
            numbers = torch.arange(x.numel(), device=x.device, dtype=torch.float64).reshape(x.shape)
            places = move(numbers, *options, **named).long()
            return g.new_zeros(x.numel()).index_add_(0, places.reshape(-1), g.reshape(-1)).reshape(x.shape)

        return move(x, *options, **named), lambda g: [(x, lambda: back(g))]


for _name in ("repeat", "tile", "roll", "rot90", "unfold", "repeat_interleave", "diagonal", "take_along_dim"):
    _copying(_name, getattr(torch.Tensor, _name) if hasattr(torch.Tensor, _name) else getattr(torch, _name))
for _name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"):
    _copying(_name, getattr(F, _name))
_copying("_pad_by_copying", F.pad)


@rule("pad", moves=True)
def pad(x: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> tuple[Tensor, Pull]:
    """More places at the edges: constant ones have no gradient, copied ones add to where they came from."""
    if mode != "constant":
        return RULES["_pad_by_copying"](x, pad, mode)
    return F.pad(x, pad, mode, value), lambda g: [(x, lambda: F.pad(g, [-p for p in pad]))]
