"""The families of trainings of the clinic, and a case: one training, in parts that a sickness may change.

A run is small, about a second on one thread, because everything is recorded for ten seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import data
import networks
import torch
from torch import Tensor, nn

RULES = ("momentum", "adam", "rmsprop")


@dataclass(frozen=True)
class Family:
    """Network, data, loss and length of a healthy training."""

    network: Callable[..., nn.Module]
    words: dict[str, Any]
    """Keywords of the network."""
    data: str
    loss: str
    batch_size: int
    epochs: int


@dataclass
class Case:
    """One training, before the model is built. Changes are made in place."""

    network: Callable[..., nn.Module]
    words: dict[str, Any]
    train: data.Part
    validation: data.Part
    loss: Any
    fit: dict[str, Any]
    """Keywords of `thalweg.fit`."""
    after: list[Callable[[nn.Module], nn.Module | None]] = field(default_factory=list)
    """What is done to the model once it is built."""
    optimizer: Callable[[nn.Module, float], torch.optim.Optimizer] | None = None
    """Model, rate -> an optimizer in place of the rule of `fit`."""
    dataset: Callable[[data.Part], Any] | None = None
    """Training part -> what `fit` is given in place of arrays."""
    certified: bool = False
    """Whether what kind of point the training ended at is measured."""
    threshold: float = 0.0
    """Output above which the answer of a network with one output is class 1."""

    def model(self) -> nn.Module:
        """Built and changed; random numbers from torch's global state."""
        model = self.network(**self.words)
        for change in self.after:
            model = change(model) or model
        return model

    @property
    def steps(self) -> int:
        """Updates of the training."""
        size = self.fit["batch_size"]
        size = len(self.train[0]) if size == "full" else min(size, len(self.train[0]))
        total = self.fit["epochs"] * -(-len(self.train[0]) // size)
        return min(total, self.fit.get("steps") or total)


def even(inputs: int, outputs: int) -> Callable[..., nn.Module]:
    return partial(networks.even, inputs, outputs)


FAMILIES = {
    "blob_mlp": Family(even(2, 3), {"width": 16, "depth": 3}, "blob", "cross_entropy", 32, 35),
    "circle_mlp": Family(even(2, 1), {"width": 16, "depth": 3}, "circle", "binary_cross_entropy", 32, 35),
    "fashion_mlp": Family(even(196, 10), {"width": 64, "depth": 2}, "fashion", "cross_entropy", 64, 20),
    "plain_cnn": Family(networks.plain, {}, "digits", "cross_entropy", 32, 10),
    "residual_cnn": Family(networks.residual, {}, "clothes", "cross_entropy", 32, 8),
    "speech_gru": Family(networks.Recurrent, {}, "speech", "cross_entropy", 32, 16),
    "char_transformer": Family(networks.Transformer, {}, "text", "cross_entropy", 16, 10),
    "housing_mlp": Family(even(13, 1), {"width": 32, "depth": 2}, "housing", "mse", 64, 25),
    "autoencoder": Family(networks.hourglass, {}, "pictures", "mse", 64, 25),
}


def case(name: str, rule: str, rate: float, folder: Path = data.DATA) -> Case:
    """The healthy training of a family under a rule."""
    family = FAMILIES[name]
    train, validation = data.read(family.data, folder)
    words = {"optimizer": rule, "learning_rate": rate, "schedule": "constant"}
    return Case(
        family.network, dict(family.words), train, validation, family.loss,
        {"batch_size": family.batch_size, "epochs": family.epochs} | words,
    )  # fmt: skip


def metric(case: Case) -> Callable[[Tensor, Tensor], Tensor]:
    """The score of a validation, whatever the loss: share of right answers, or of the variance that is explained.

    Called by the name that a user would give it; a mean over examples.
    """
    y = case.validation[1]
    if y.is_floating_point() and not is_classes(y):
        spread = (y - y.mean(0)).square().mean()

        def r2(output: Tensor, target: Tensor) -> Tensor:
            return 1 - (output - target.reshape(output.shape)).square().mean() / spread

        return r2

    def accuracy(output: Tensor, target: Tensor) -> Tensor:
        if output.shape[-1] == 1:
            right = (output > case.threshold) == (target.reshape(output.shape) > 0.5)
        else:
            right = output.argmax(-1) == (target.argmax(-1) if target.shape == output.shape else target)
        return right.float().mean()

    return accuracy


def is_classes(y: Tensor) -> bool:
    """Whether targets say classes: an index, or zeros and ones (`[n, 1]`, one-hot)."""
    return not y.is_floating_point() or bool(((y == 0) | (y == 1)).all())


def chance(case: Case) -> float:
    """The score of the best answer that does not look at the input."""
    y = case.validation[1]
    if not is_classes(y):
        return 0.0
    labels = y.argmax(-1) if y.ndim == 2 and y.shape[1] > 1 and y.is_floating_point() else y.long()
    return float(labels.flatten().bincount().max()) / labels.numel()
