"""How the answers of a table's network are judged: loss and metrics that know of its members."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F


class SquaredError:
    """Mean of ((answer − target) / scale)² over rows and members: the share of the target's variance that is left."""

    def __init__(self, scale: float) -> None:
        self.__name__ = "scaled_squared_error"
        self.scale = scale

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """`output` `[batch, members]` or `[batch]`, `target` `[batch]`."""
        if output.ndim > 1:
            target = target[:, None]
        return ((output - target) / self.scale).square().mean()


class CrossEntropy:
    """Mean of −log p of the right class over rows and members."""

    def __init__(self) -> None:
        self.__name__ = "cross_entropy_of_members"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """`output` `[batch, members, classes]` or `[batch, classes]`, `target` `[batch]`."""
        if output.ndim > 2:
            target = target[:, None].expand(output.shape[:2])
        return F.cross_entropy(output.flatten(0, -2), target.flatten())


class RootMeanSquaredError:
    """Of the members' mean, in the target's own unit; exact over batches of any size."""

    name = "rmse"
    _defaults: ClassVar = {"total": 0.0, "rows": 0}  # what a checkpoint keeps, as of torchmetrics' own

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.total: Tensor | float = 0.0
        self.rows = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch."""
        mean = output.double().mean(1) if output.ndim > 1 else output.double()
        self.total = self.total + (mean - target).square().sum()
        self.rows += len(target)

    def compute(self) -> float:
        """The root of the mean so far."""
        return (float(self.total) / self.rows) ** 0.5


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Share of rows whose class is the likeliest one by the members' mean probability."""
    if output.ndim > 2:
        output = output.softmax(-1).mean(1)
    return (output.argmax(-1) == target).to(torch.float64).mean()
