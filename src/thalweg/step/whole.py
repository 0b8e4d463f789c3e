"""The four steps of gradient descent in order: forward, loss, backward, update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.step import keras
from thalweg.step.backward import BatchLoss, Watcher, gradient, value
from thalweg.step.batches import Parts
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.update import Probe, Update


class Step:
    """One update from one batch. Never waits for the device: what it returns are tensors."""

    def __init__(self, forward: Forward, loss: BatchLoss | None, update: Update) -> None:
        self.forward = forward
        self.loss = loss
        self.update = update
        self.device = update.parameters[0].device
        self.arithmetic: torch.dtype | None = None
        """What products are computed in, if not in the parameters' own dtype; sums and updates stay in theirs."""
        self.constrained = forward.is_keras and keras.is_constrained(forward.model)

    def __call__(self, batch: Batch | Parts, probe: Probe | None = None, watcher: Watcher | None = None) -> Tensor:
        """Make one update; returns the loss on the batch before it, a detached scalar."""
        if self.update.needs_batch:
            loss = self.update.with_batch(batch, probe, watcher)
        elif self.update.needs_closure:
            loss = self.update.with_closure(lambda: self.gradients(batch, watcher), probe)
        elif self.update.clip.skips:
            loss = self._whole_or_not_at_all(batch, probe, watcher)
        else:
            loss = self.gradients(batch, watcher)
            self.update(probe)
        if self.constrained:
            keras.apply_constraints(self.forward.model)
        return loss

    def _whole_or_not_at_all(self, batch: Batch | Parts, probe: Probe | None, watcher: Watcher | None) -> Tensor:
        """Of an update that is left out, running statistics are as they were, too."""
        before, skipped = [(b, b.clone()) for b in self.forward.model.buffers()], self.update.num_skipped
        loss = self.gradients(batch, watcher)
        self.update(probe)
        if self.update.num_skipped > skipped:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
        return loss

    @property
    def can_repeat(self) -> bool:
        """Whether the loss that `again` gives is comparable to that of a step: not where a rule evaluates it several
        times, nor in half precision, whose digits do not tell one step, nor where Keras projects weights afterwards.
        """
        return not (self.update.needs_closure or self.arithmetic is not None or self.constrained)

    def again(self, batch: Any) -> Tensor:
        """The loss on a batch (or micro-batches) as a step takes it, with the weights as they are; no gradients."""
        with torch.no_grad():
            return value(self.forward, self.loss, batch if type(batch) is Parts else [batch])

    def resumed(self, number: int) -> None:
        """State was loaded into model and rule, as it stood after so many updates."""

    def gradients(self, batch: Any, watcher: Watcher | None = None) -> Tensor:
        """Forward, loss, backward: adds the gradient to the parameters' `.grad` and returns the loss."""
        if self.arithmetic is None:
            return gradient(self.forward, self.loss, batch, watcher, self.update.parameters)
        with torch.autocast(next(iter(self.update.parameters)).device.type, self.arithmetic):
            return gradient(self.forward, self.loss, batch, watcher, self.update.parameters)
