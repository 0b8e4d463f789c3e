"""What activations do: how large, how spread, which units never fire, how many sit where they are flat.

| series | unit | cost | when |
|---|---|---|---|
| `activation_mean/LAYER` | mean of the outputs | one pass over them | sampled |
| `activation_spread/LAYER` | standard deviation of the outputs | two passes | sampled |
| `dead_share/LAYER` | share of units without a positive output in the last `WINDOW` samples | one pass | sampled |
| `saturated_share/LAYER` | share of outputs where the slope is below 5 % of its largest | one pass | sampled |

Heard of every activation that is a module (`nn.ReLU`, `nn.Tanh`, …), by taps on sampled steps; functions called
in a forward method are not seen. A unit is a channel of a convolution, a feature elsewhere; which of the two an output
with three axes has is told by the widths of the model's layers. Dead is said of units over many batches, never of
single zeros, which are what a healthy ReLU network is full of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.taps import Tap

#: Samples without a positive output that make a unit dead.
WINDOW = 8
#: Slope, as a share of its largest, below which an output counts as saturated.
FLAT = 0.05

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Threshold)
#: Output → the activation's slope there, as a share of its largest: the shape of each decides what saturated means.
_SLOPES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Sigmoid: lambda y: 4 * y * (1 - y),
    nn.Tanh: lambda y: 1 - y.square(),
    nn.Softsign: lambda y: (1 - y.abs()).square(),
    nn.Hardsigmoid: lambda y: ((y > 0) & (y < 1)).to(y.dtype),
    nn.Hardtanh: lambda y: (y.abs() < 1).to(y.dtype),
}
_CHANNELS = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)
_OTHERS = (nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish)


class Activations:
    """Listens to activations on sampled steps, and counts over them. A reader of `gradients.taps`."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._samples = 0
        self._last_active: dict[str, Tensor] = {}
        self._numbers: dict[str, list[Tensor]] = {}

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """The output of every activation."""
        return ("output",) if isinstance(module, (*_RECTIFIERS, *_OTHERS)) or type(module) in _SLOPES else ()

    def read(self, tap: Tap) -> None:
        """Take in one call of one activation; everything stays on the device."""
        y = tap.output
        assert y is not None
        self._add(f"activation_mean/{tap.layer}", y.mean())
        self._add(f"activation_spread/{tap.layer}", y.std(correction=0))
        if isinstance(tap.module, _RECTIFIERS):
            self._mark_active(tap.layer, y)
        slope = _SLOPES.get(type(tap.module))
        if slope is not None:
            self._add(f"saturated_share/{tap.layer}", (slope(y) < FLAT).float().mean())

    def taken(self) -> dict[str, Tensor]:
        """The numbers of this sample, as scalars on the device; ends the sample."""
        self._samples += 1
        found = {name: torch.stack(values).mean() for name, values in self._numbers.items()}
        self._numbers.clear()
        silence = min(WINDOW, self._samples)
        for layer, last in self._last_active.items():
            found[f"dead_share/{layer}"] = (last <= self._samples - silence).float().mean()
        return found

    def state_dict(self) -> dict[str, Any]:
        """What later samples build on."""
        return {"samples": self._samples, "last_active": dict(self._last_active)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from there, on the device of the outputs that are to come."""
        self._samples = state["samples"]
        self._last_active = {layer: last.to(device) for layer, last in state["last_active"].items()}

    def _add(self, name: str, value: Tensor) -> None:
        self._numbers.setdefault(name, []).append(value)

    def _mark_active(self, layer: str, y: Tensor) -> None:
        """Write down, for each unit, the number of the last sample in which it gave something positive."""
        active = (y > 0).movedim(self._unit_axis(y), 0).flatten(1).any(1)
        last = self._last_active.get(layer)
        if last is None or len(last) != len(active):
            last = self._last_active[layer] = torch.zeros(len(active), dtype=torch.int64, device=y.device)
        last[active] = self._samples + 1

    def _unit_axis(self, y: Tensor) -> int:
        """Channels of images and of what is as wide as a one-dimensional convolution; the last axis elsewhere."""
        if y.ndim == 3 and self._model is not None:
            modules = list(self._model.modules())
            channels = {getattr(m, "out_channels", None) or m.num_features for m in modules if isinstance(m, _CHANNELS)}
            features = {m.out_features for m in modules if isinstance(m, nn.Linear)}
            features |= {m.normalized_shape[-1] for m in modules if isinstance(m, nn.LayerNorm)}
            return 1 if y.shape[1] in channels and y.shape[2] not in features else 2
        return 1 if y.ndim > 3 else y.ndim - 1
