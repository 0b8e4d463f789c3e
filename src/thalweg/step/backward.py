"""Step three: loss → gradients; also from micro-batches, exactly, in the memory of one.

For a loss that is a mean over terms, the gradient over micro-batches m with n_m terms each is

    ∇J = Σ n_m ∇J_m / Σ n_m

so terms are counted as the loss counts them (ignored targets and class weights included): neither a smaller last
micro-batch nor an ignored index changes the result. For a sum it is Σ ∇J_m.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from thalweg.step.batches import Parts
from thalweg.step.data import Batch, num_examples
from thalweg.step.forward import Forward


class BatchLoss(Protocol):
    """What steps need of a loss: its value on outputs and targets, and how many terms the value is a mean over."""

    @property
    def reduction(self) -> str: ...  # noqa: D102
    def __call__(self, output: Any, target: Any) -> Tensor: ...  # noqa: D102
    def num_terms(self, output: Any, target: Any) -> int | Tensor: ...  # noqa: D102


class Watcher(Protocol):
    """Sees the outputs of each (micro-)batch, to count metrics."""

    def update(self, output: Any, target: Any) -> None: ...  # noqa: D102


def objective(forward: Forward, loss: BatchLoss | None, batch: Batch) -> tuple[Tensor, Any]:
    """Forward and loss: the scalar to descend on, and the outputs (None where the model makes its own loss)."""
    x, y = batch
    if loss is None:
        return forward.own_loss(x, y), None
    output = forward(x)
    return loss(output, y), output


def gradient(
    forward: Forward,
    loss: BatchLoss | None,
    batch: Any,
    watcher: Watcher | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
) -> Tensor:
    """Add the gradient over a batch, or over all of its micro-batches, to `.grad`; returns the loss over it.

    `parameters` are those that a rule moves, where they are not just the model's.
    """
    if type(batch) is Parts:
        return accumulate(forward, loss, batch, watcher, parameters)
    value, output = objective(forward, loss, batch)
    if forward.is_keras and (added := forward.added_loss()) is not None:
        value = value + added
    value.backward()  # type: ignore[no-untyped-call]
    if watcher is not None and output is not None:
        watcher.update(output, batch[1])
    return value.detach()


def accumulate(
    forward: Forward,
    loss: BatchLoss | None,
    parts: Iterable[Batch],
    watcher: Watcher | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
) -> Tensor:
    """Add the gradient over all micro-batches to the parameters' `.grad`; returns the loss over all of them.

    `parameters` are those that a rule moves; without them, the model's.
    """
    is_mean = loss is None or loss.reduction == "mean"
    parameters = list(forward.parameters().values()) if parameters is None else parameters
    total: Tensor | None = None
    weight: Any
    terms: Any = 0
    scale = 0  # of the weights in half precision, whose range terms by the hundred thousand leave
    for batch in parts:
        value, output = objective(forward, loss, batch)
        if watcher is not None and output is not None:
            watcher.update(output, batch[1])
        weight = _weight(loss, output, batch) if is_mean else 1
        if is_mean and value.dtype == torch.float16:
            scale = scale or num_examples(batch)
            weight = weight / scale
        weighted = value * weight
        added = forward.added_loss()
        if added is not None and (is_mean or total is None):
            weighted = weighted + added * weight
        weighted.backward()  # type: ignore[no-untyped-call]
        # A micro-batch whose targets are all ignored has no mean: its value is 0/0, and counts for nothing.
        counted = weighted.detach().where(torch.as_tensor(weight, device=value.device) > 0, 0)
        total = counted if total is None else total + counted
        terms = terms + weight
    assert total is not None, "an update needs at least one micro-batch"
    if not is_mean:
        return total
    divide(parameters, terms)
    return total / terms


def value(forward: Forward, loss: BatchLoss | None, parts: Iterable[Batch]) -> Tensor:
    """The loss over all micro-batches, or over the one batch, as `accumulate` has it."""
    is_mean = loss is None or loss.reduction == "mean"
    total: Any = 0.0
    terms: Any = 0
    for batch in parts:
        of_part, output = objective(forward, loss, batch)
        weight: Any = _weight(loss, output, batch) if is_mean else 1
        added = forward.added_loss()
        if added is not None and (is_mean or not terms):
            of_part = of_part + added
        sum_of_part = (of_part.double() if of_part.device.type != "mps" else of_part) * weight
        total = total + sum_of_part.where(torch.as_tensor(weight, device=of_part.device) > 0, 0)
        terms = terms + weight
    return total / terms if is_mean else total  # type: ignore[no-any-return]


def divide(parameters: Sequence[nn.Parameter], terms: int | Tensor) -> None:
    """Divide every gradient by the number of terms, on the device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_div_(gradients, terms)


def _weight(loss: BatchLoss | None, output: Any, batch: Batch) -> int | Tensor:
    return num_examples(batch) if loss is None else loss.num_terms(output, batch[1])
