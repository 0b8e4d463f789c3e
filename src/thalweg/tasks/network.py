"""The seed network: pixels → 10 (ReLU) → 10 logits, on inputs standardised by the network itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from thalweg.tasks.task import seeded

#: Rows that are read as float64 at once while statistics are taken: bounds memory, whatever the data's size.
ROWS = 4096


class Standardise(nn.Module):
    """(x − mean) / std, with the statistics of the training data as part of the model's state.

    Inputs may come in their raw units and in any type, as a file holds them: they become floating here. One mean and
    one deviation serve all pixels, so the module takes inputs of any shape.
    """

    mean: Tensor  # [] in the inputs' unit
    std: Tensor  # [] in the inputs' unit

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @classmethod
    def of(cls, x: Tensor) -> Standardise:
        """The statistics of `x` `[examples, …]`, taken in float64; a constant input is only centred."""
        parts = torch.split(x, ROWS)
        mean = math.fsum(part.double().sum().item() for part in parts) / x.numel()
        variance = math.fsum((part.double() - mean).square().sum().item() for part in parts) / x.numel()
        return cls(mean, math.sqrt(variance) or 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """`x` of any shape → the same shape, floating."""
        return (x.to(self.mean.dtype) - self.mean) / self.std


def network(x: Tensor, num_classes: int = 10, hidden: int = 10, seed: int = 0) -> nn.Sequential:
    """The network for images like `x` `[examples, …]`: → logits `[batch, classes]`.

    The weights start as in He et al. 2015, section 2.2 (ten units cannot spare one that is dead from the start), and
    the biases at zero. They follow from the seed alone; the user's global random state is left as it was.
    """
    with seeded(seed):
        first, last = nn.Linear(x[0].numel(), hidden), nn.Linear(hidden, num_classes)
        nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(last.weight, nonlinearity="linear")
        nn.init.zeros_(first.bias)
        nn.init.zeros_(last.bias)
    return nn.Sequential(Standardise.of(x), nn.Flatten(), first, nn.ReLU(), last)
