"""Rows of a batch at dense layers, for K-FAC's direction where they are fewer than the layer is wide.

∇ = gᵀa, of inputs a [rows, in] and gradients g [rows, out] at the outputs, holds where all of the gradient comes
through the layer's output. It does not where the weight is used in another way as well (`F.linear(h, layer.weight.T)`),
nor where the loss has a penalty on it; the two are compared, for no hook tells.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn

from thalweg.gradients.pieces import as_float
from thalweg.gradients.taps import Tap
from thalweg.optim.kronecker import Block

#: How far ‖gᵀa − ∇‖ may be from zero, in roundings of ‖g‖‖a‖.
ROUNDINGS = 16.0


class Rows:
    """Listens to dense layers whose direction is made from rows: the layer's inputs, and gradients at its outputs."""

    def __init__(self, layers: Collection[str]) -> None:
        self.layers = layers
        self._held: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._eps: dict[str, float] = {}

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """Of the layers that are listened to, input and gradient."""
        return ("input", "gradient") if layer in self.layers else ()

    def read(self, tap: Tap) -> None:
        """A call."""
        assert tap.input is not None and tap.gradient is not None
        pair = as_float(tap.input).flatten(0, -2), as_float(tap.gradient).flatten(0, -2)
        self._held.setdefault(tap.layer, []).append(pair)
        self._eps[tap.layer] = max(torch.finfo(t.dtype).eps for t in (tap.input, tap.gradient))

    def of(self, layer: str) -> tuple[Tensor, Tensor] | None:
        """Rows of all calls of a layer, one below the other."""
        held = self._held.get(layer)
        if not held:
            return None
        if len(held) == 1:
            return held[0]
        return torch.cat([a for a, _ in held]), torch.cat([g for _, g in held])

    def suffice(self, block: Block) -> bool | None:
        """Whether the rows of its layer tell all of a block's gradient; None where they are not finite."""
        rows, gradient = self.of(block.layer), block.gradient()
        assert rows is not None and gradient is not None
        a, g = rows
        if block.bias is not None:
            a = torch.cat([a, a.new_ones(len(a), 1)], 1)
        gap = float(torch.linalg.vector_norm(gradient - g.T @ a))
        size = float(torch.linalg.vector_norm(g) * torch.linalg.vector_norm(a))
        return gap <= ROUNDINGS * self._eps[block.layer] * size if math.isfinite(gap) else None
