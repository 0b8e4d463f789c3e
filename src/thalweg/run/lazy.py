"""Modules that take their shapes from what they are first given (`nn.LazyLinear`)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from thalweg.loop.evaluate import evaluating
from thalweg.loop.failures import named_failure
from thalweg.step.batches import Batches
from thalweg.step.forward import Forward
from thalweg.tensors.seeds import untouched


def has_lazy(model: nn.Module) -> bool:
    """Whether some parameter or buffer has no shape yet."""
    return any(is_lazy(t) for t in [*model.parameters(), *model.buffers()])


def materialise(forward: Forward, batches: Batches, makes_loss: bool) -> None:
    """Give a model its weights by one call on a few examples; it learns nothing by it.

    They are drawn from the global generators as these are found, and the generators are put back.

    Raises:
        ValueError: the model cannot take the inputs.
    """
    if not has_lazy(forward.model):
        return
    batch = batches.first(1)
    with untouched(), torch.no_grad(), evaluating(forward.model), named_failure(forward.model, batch, makes_loss):
        if makes_loss:
            forward.own_loss(*batch, training=False)
        else:
            forward(batch[0], training=False)
