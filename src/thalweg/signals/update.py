"""How far an update moves each layer, against how large the layer's weights are.

| series | unit | cost | when |
|---|---|---|---|
| `weight_norm/LAYER` | Euclidean norm after the update | one pass over the weights | one report in `EVERY` |
| `update_ratio/LAYER` | ‖θ′ − θ‖ / ‖θ′‖ | a copy of the weights and two passes | one report in `EVERY` |

About 1e-3 is usual for a healthy training; what it means is judged elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.signals.layers import Layers

#: Reports between two looks: a copy of all weights is no small thing beside a step.
EVERY = 10


def before(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The weights as they are, to be compared after the update."""
    return [p.detach().clone() for p in parameters]


def norms(parameters: Sequence[nn.Parameter], old: list[Tensor]) -> Tensor:
    """Norms of the weights and of their change, `[2 × parameters]`, on the device; the old values are used up."""
    new = [p.detach() for p in parameters]
    torch._foreach_sub_(old, new)
    return torch.stack([*torch._foreach_norm(new), *torch._foreach_norm(old)])


def series(layers: Layers, values: Sequence[float]) -> dict[str, float]:
    """Norms read from the device → series by layer; a layer whose weights are all zero has no ratio."""
    half = len(values) // 2
    found = {}
    for (name, weights), (_, moves) in zip(layers.split(values[:half]), layers.split(values[half:]), strict=True):
        size = math.hypot(*weights)
        found[f"weight_norm/{name}"] = size
        if size:
            found[f"update_ratio/{name}"] = math.hypot(*moves) / size
    return found
