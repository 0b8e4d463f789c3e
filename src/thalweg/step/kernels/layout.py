"""Channels last: the order in which convolutions on a CPU (and in half precision on a GPU) read images fastest.

A tensor `[batch, channels, height, width]` keeps its shape; the channels of one pixel lie side by side in memory. What
lies so already, or has one channel or one pixel, is not copied.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.tensors.named import mapped

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def has_images(model: nn.Module) -> bool:
    """Whether the model has layers that gain by it."""
    return any(isinstance(module, _CONVOLUTIONS) for module in model.modules())


def images_last(batch: object) -> object:
    """A batch with every four-dimensional tensor channels last."""
    return mapped(_last, batch)


def _last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t


class Layout:
    """Brings a model's four-dimensional parameters and what a rule keeps of them to channels last, and back."""

    def __init__(self, parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> None:
        self.parameters = [p for p in parameters if p.ndim == 4]
        self.optimizer = optimizer
        self.strides = [p.stride() for p in self.parameters]

    def apply(self) -> None:
        """Channels last from here on; again after a state was loaded."""
        for p in self.parameters:
            p.data = _last(p.data)
        self.follow()

    def undo(self) -> None:
        """The strides that were found."""
        for p, strides in zip(self.parameters, self.strides, strict=True):
            if p.stride() != strides:
                p.data = torch.empty_strided(p.shape, strides, dtype=p.dtype, device=p.device).copy_(p.data)
        self.follow()

    def follow(self) -> None:
        """What the rule keeps of a parameter, and its gradient, lie as the parameter does."""
        for p in self.parameters:
            if p.grad is not None:
                p.grad = _like(p.grad, p)
            state = self.optimizer.state.get(p, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    state[name] = _like(value, p)


def _like(t: Tensor, p: Tensor) -> Tensor:
    return t if t.stride() == p.stride() else torch.empty_like(p, dtype=t.dtype).copy_(t)
