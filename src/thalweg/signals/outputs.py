"""What the model puts out on a batch: how far its answers differ, in what range they lie, which class it names.

| series | unit | cost | when |
|---|---|---|---|
| `output_spread` | of the output: standard deviation over the examples, mean over the outputs | two passes | sampled |
| `output_low`, `output_high` | of the output: the smallest and the largest | two passes | sampled |
| `prediction_share` | share of the examples predicted to be of the most frequent class, 0 to 1 | two passes | sampled |

A spread of nearly 0 is a model that gives the same answer to everything. Heard by a tap on the model itself, so not of
Keras models, nor of models that return their loss. The share is taken where the loss says that outputs are classes: by
the largest score, or for one unit by the side of zero (of one half, for probabilities).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.taps import Tap
from thalweg.step.kinds import Kind, class_axis


class Outputs:
    """Listens to the model's output on sampled steps. A reader of `gradients.taps`."""

    def __init__(self, kind: Kind | None) -> None:
        self._kind = kind
        self._spreads: list[Tensor] = []
        self._lows: list[Tensor] = []
        self._highs: list[Tensor] = []
        self._shares: list[Tensor] = []
        self.target: Any = None
        """Targets of the batch, where it comes in one piece: they say on which axis classes are."""

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """The model's own output."""
        return ("output",) if layer == "" else ()

    def read(self, tap: Tap) -> None:
        """Take in the output of one (micro-)batch; everything stays on the device."""
        y = tap.output
        assert y is not None
        if y.ndim == 0 or len(y) < 2 or not y.is_floating_point():
            return
        self._spreads.append(y.std(0, correction=0).mean())
        self._lows.append(y.min())
        self._highs.append(y.max())
        shares = self._class_shares(y)
        if shares is not None:
            self._shares.append(shares)

    def taken(self) -> dict[str, Tensor]:
        """The numbers of this sample, as scalars on the device; ends the sample. Of micro-batches the mean."""
        found = {}
        if self._spreads:
            found["output_spread"] = torch.stack(self._spreads).mean()
            found["output_low"] = torch.stack(self._lows).min()
            found["output_high"] = torch.stack(self._highs).max()
        if self._shares:
            found["prediction_share"] = torch.stack(self._shares).mean(0).max()
        for numbers in (self._spreads, self._lows, self._highs, self._shares):
            numbers.clear()
        self.target = None
        return found

    def _class_shares(self, y: Tensor) -> Tensor | None:
        """Shares of the predicted classes `[classes]`."""
        kind = self._kind
        if kind is None:
            return None
        if kind.task == "binary" and y.numel() == len(y):
            share = (y > (0.5 if kind.takes == "probabilities" else 0.0)).float().mean()
            return torch.stack([share, 1 - share])
        axis = class_axis(y, self.target) if kind.task == "classification" else None
        if axis is None:
            return None
        predicted = (y == y.amax(axis, keepdim=True)).float()
        return predicted.movedim(axis, 0).flatten(1).mean(1)
