"""What was put in and can be computed into its neighbour is, at the end: the structure is the user's own again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.layers.moved import Moved
from thalweg.repairs.data import Rescale, Standardise
from thalweg.repairs.structure import MATRICES, Around, name_of, owners, put, slots


@torch.no_grad()
def fold(model: nn.Module) -> list[str]:
    """Compute batch norms, standardised inputs and rescaled outputs that were put in into the layers beside them.

    Images are moved no more. In evaluation the function stays. What does not fold stays in place: layer norms behind
    gates, dropout, and what stands at a recurrent layer, at one without bias, at a convolution that pads with zeros, or
    at tied weights.

    Returns:
        Names of the modules that are single layers again.
    """
    named, folded = name_of(model), []
    for module in reversed([*model.modules()]):  # the innermost first
        if not isinstance(module, Around) or module not in slots(model):
            continue
        layer: Any = module.layer
        if isinstance(module.ahead, Moved):  # it acts while training alone
            module.ahead = None
        if isinstance(layer, MATRICES) and owners(model, layer.weight) == 1:
            _take_ahead(module, layer)
            _take_behind(module, layer)
        if module.ahead is None and module.behind is None:
            put(model, {module: layer})
            folded.append(named[module])
    return folded


def _take_ahead(module: Around, layer: Any) -> None:
    ahead = module.ahead
    if not isinstance(ahead, Standardise):
        return
    conv = not isinstance(layer, nn.Linear)
    axis = 1 - layer.weight.ndim if conv else -1
    if ahead.axis != axis or (conv and (layer.groups > 1 or getattr(layer, "transposed", False))):
        return
    centred = bool((ahead.mean == 0).all())
    pads = conv and layer.padding_mode == "zeros" and layer.padding not in ("valid", (0,) * (layer.weight.ndim - 2))
    if not centred and (pads or layer.bias is None):
        return
    shape = (1, -1, *[1] * (layer.weight.ndim - 2))
    weight = layer.weight.double() / ahead.deviation.double().view(shape)
    if not centred:
        moved = (weight * ahead.mean.double().view(shape)).flatten(1).sum(1)
        layer.bias.copy_(layer.bias.double() - moved)
    layer.weight.copy_(weight)
    module.ahead = None


def _take_behind(module: Around, layer: Any) -> None:
    behind = module.behind
    if layer.bias is None:
        return
    if isinstance(behind, nn.modules.batchnorm._BatchNorm) and behind.running_mean is not None:
        assert behind.running_var is not None
        scale = behind.weight.double() / (behind.running_var.double() + behind.eps).sqrt()
        _scaled(layer, scale, behind.bias.double() - scale * behind.running_mean.double())
        module.behind = None
    elif isinstance(behind, Rescale) and isinstance(layer, nn.Linear):
        _scaled(layer, behind.deviation.double(), behind.mean.double())
        module.behind = None


def _scaled(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """W, b → scale · W, scale · b + shift, row by row."""
    axis = 1 if getattr(layer, "transposed", False) else 0
    shape = [1] * layer.weight.ndim
    shape[axis] = -1
    layer.weight.copy_(layer.weight.double() * scale.view(shape))
    layer.bias.copy_(layer.bias.double() * scale + shift)
