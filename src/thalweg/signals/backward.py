"""The gradient of each layer, and of the whole.

| series | unit | cost | when |
|---|---|---|---|
| `gradient_norm` | Euclidean norm before clipping | one pass over the gradients | every report |
| `gradient_norm/LAYER` | the same of one layer's parameters | none beyond it | every report |

Norms that are not finite say in which layer a NaN or Inf came up first: the first such layer on the way back, which is
the one nearest to the output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.signals.layers import Layers


def norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Norm of each parameter's gradient `[parameters]`, 0 where there is none; on the device."""
    gradients = [_dense(p.grad) for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(len(parameters))
    found = iter(torch._foreach_norm(gradients))
    none = gradients[0].new_zeros(())
    return torch.stack([none if p.grad is None else next(found) for p in parameters])


def _dense(gradient: Tensor) -> Tensor:
    """The values that are there: all others of a sparse gradient are zero."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def series(layers: Layers, values: Sequence[float]) -> dict[str, float]:
    """Norms read from the device → series, by layer and of all."""
    by_layer = {f"gradient_norm/{name}": math.hypot(*part) for name, part in layers.split(values)}
    return {"gradient_norm": math.hypot(*values), **by_layer}
