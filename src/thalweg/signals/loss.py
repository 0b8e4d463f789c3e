"""What the losses themselves show: how far they scatter, and how far one update lowers its own batch's loss.

| series | unit | cost | when |
|---|---|---|---|
| `loss_spread` | of the loss, standard deviation of the losses since the last report | none | reports of 5 or more |
| `descent_ratio` | (J(θ′) − J(θ)) / (g · (θ′ − θ)), both losses of the same batch | one forward pass | sampled |

The ratio is 1 where the loss is straight along the update, ½ at the bottom of a quadratic valley, 0 where the step
crossed it to the same height, and negative where it overshot: by Taylor, 1 + Δᵀ H Δ / (2 g · Δ) with Δ = θ′ − θ.
Both losses are of one function: the same random numbers and the buffers of before the step; what such a pass draws,
counts or writes down is put back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: Losses below which their scatter is left unsaid: of four, a standard deviation is off by 40 %.
FEWEST = 5
#: Roundings of the loss that g · Δ must exceed, or the ratio of the two is one of rounding errors; and the loss whose
#: roundings they are at least, but for regression: a small loss of classes is made from scores of about 1.
ROUNDINGS, FLOOR = 100.0, 0.01


def loss_spread(losses: Sequence[float]) -> dict[str, float]:
    """The standard deviation of losses, where there are enough.

    >>> loss_spread([1.0, 2.0, 3.0]), loss_spread([1.0, 2.0, 3.0, 4.0, 5.0])
    ({}, {'loss_spread': 1.5811388300841898})
    """
    count = len(losses)
    if count < FEWEST:
        return {}
    mean = sum(losses) / count
    return {"loss_spread": math.sqrt(sum((loss - mean) ** 2 for loss in losses) / (count - 1))}


def along(gradients: Sequence[Tensor | None], moves: Sequence[Tensor]) -> Tensor:
    """G · Δ, a scalar on the device: what the loss falls by where it is straight."""
    return torch.stack(
        [g.reshape(-1).dot(m.reshape(-1)) for g, m in zip(gradients, moves, strict=True) if g is not None]
    ).sum()


def kept(parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Copies of the gradients, which clipping may change."""
    return [None if p.grad is None else p.grad.detach().to_dense().clone() for p in parameters]


def ratio(change: float, promised: float, size: float, precision: float) -> dict[str, float]:
    """The descent ratio, where more than rounding decides it: of losses of a size, with ε as their `precision`."""
    if not abs(promised) > ROUNDINGS * precision * size:
        return {}
    return {"descent_ratio": change / promised}
