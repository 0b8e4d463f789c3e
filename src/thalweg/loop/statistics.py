"""A model with averaged weights in place: norm layers need their running statistics measured again for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from thalweg.optim.averages import WeightAverage
from thalweg.step.batches import Batches, Parts
from thalweg.step.forward import Forward
from thalweg.tensors.named import assign, copied
from thalweg.tensors.seeds import untouched


@contextlib.contextmanager
def averaged_model(average: WeightAverage | None, forward: Forward, batches: Batches, has_norm: bool) -> Iterator[None]:
    """Averaged weights inside, the trained ones again afterwards.

    A stochastic weight average is a point where no batch was ever normalised, so its batch norms get the statistics of
    the training data (Izmailov et al. 2018, section 3.2); an exponential one averages them along with the weights.
    """
    if average is None:
        yield
        return
    with average.averaged():
        if not (has_norm and average.kind == "swa" and average.num_averaged):
            yield
            return
        counters = {name: t for name, t in forward.state().items() if not t.is_floating_point()}
        before = copied(counters)  # of batches, which an average leaves alone
        try:
            measure_norms(forward, batches)
            yield
        finally:
            assign(counters, before)


def measure_norms(forward: Forward, batches: Batches) -> None:
    """Set the running statistics of batch norms to those of the data, for the weights as they are."""
    with untouched(), torch.no_grad():
        update_bn(([x] for x in _inputs(batches)), _Called(forward))


def _inputs(batches: Batches) -> Iterator[Any]:
    for batch in batches.epoch(0):
        for x, _ in batch if isinstance(batch, Parts) else [batch]:
            yield x


class _Called(nn.Module):
    """A model behind its `Forward`, since `update_bn` calls with one argument."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.model = forward.model
        self.call = forward

    def forward(self, x: Any) -> Any:
        return self.call(x)
