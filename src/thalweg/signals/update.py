"""How far an update moves each layer, against how large the layer's weights are; and whether it goes on or turns back.

| series | unit | cost | when |
|---|---|---|---|
| `weight_norm/LAYER` | Euclidean norm after the update | one pass over the weights | step 1 and sampled steps |
| `update_ratio/LAYER` | ‖θ′ − θ‖ / ‖θ′‖ | a copy of the weights and two passes | step 1 and sampled steps |
| `update_cosine` | cosine of the angle between θ′ − θ and the update before it, −1 to 1 | another copy | sampled |

A ratio of about 1e-3 is usual for a healthy training. A cosine far below 0 is a training that bounces between the walls
of a valley, about 0 one that noise leads, near 1 one that walks down a long slope. What they mean is judged elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thalweg.signals.layers import Layers


def copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The weights as they are, to be compared after the update."""
    return [p.detach().clone() for p in parameters]


def moves(new: Sequence[Tensor], old: list[Tensor]) -> list[Tensor]:
    """New − old, by tensor; the old values are used up."""
    torch._foreach_sub_(old, [p.detach() for p in new])
    torch._foreach_neg_(old)
    return old


def norms(parameters: Sequence[nn.Parameter], moved: Sequence[Tensor]) -> Tensor:
    """Norms of the weights and of their change, `[2 × parameters]`, on the device."""
    return torch.stack([*torch._foreach_norm([p.detach() for p in parameters]), *torch._foreach_norm(list(moved))])


def cosine(moved: Sequence[Tensor], earlier: Sequence[Tensor]) -> Tensor:
    """Of the angle between two updates of all weights, a scalar on the device; NaN where one of them is none."""
    pairs = [(a.reshape(-1), b.reshape(-1)) for a, b in zip(moved, earlier, strict=True)]
    both = torch.stack([torch.stack([a.dot(b), a.dot(a), b.dot(b)]).float() for a, b in pairs]).sum(0)
    return both[0] / (both[1] * both[2]).sqrt()


def series(layers: Layers, values: Sequence[float]) -> dict[str, float]:
    """Norms read from the device → series by layer; a layer whose weights are all zero has no ratio."""
    half = len(values) // 2
    found = {}
    for (name, weights), (_, moved) in zip(layers.split(values[:half]), layers.split(values[half:]), strict=True):
        size = math.hypot(*weights)
        found[f"weight_norm/{name}"] = size
        if size:
            found[f"update_ratio/{name}"] = math.hypot(*moved) / size
    return found
