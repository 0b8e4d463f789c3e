"""Forward and backward, which everything is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def forward_and_backward(model: nn.Module, batch: Any) -> Callable[[], None]:
    """The loss and its gradient into `.grad`, from none, as a step of training leaves it."""
    x, y = batch
    loss_of = nn.CrossEntropyLoss()

    def call() -> None:
        model.zero_grad()
        loss_of(model(x), y).backward()

    return call


def step_of_training(model: nn.Module, batch: Any) -> Callable[[], None]:
    """The same and an update by fused Adam."""
    gradient, optimizer = forward_and_backward(model, batch), torch.optim.Adam(model.parameters(), 1e-6, fused=True)

    def call() -> None:
        gradient()
        optimizer.step()

    return call
