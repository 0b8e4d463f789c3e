"""Loss and metrics over a whole data set, counted exactly; and predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from thalweg.loop.metrics import Metrics, resolve_metrics
from thalweg.step.backward import BatchLoss
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Batch, num_examples, read
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.tensors.named import leaves, mapped

#: Examples a forward pass without gradients takes at once.
BATCH_SIZE = 256


def evaluate(
    model: nn.Module, data: Any, loss: str | Callable[..., Tensor] | None = None, metrics: Any = ()
) -> dict[str, float]:
    """Measure a model on data, in evaluation mode, without gradients.

    Returns:
        `loss` (the mean over all terms of the data, not over batches; of a summed loss the mean over examples) where a
        loss is given or the model makes its own, and each metric by its name.

    Raises:
        ValueError: data, loss or metric do not fit; TypeError: data of a form that is not understood.

    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> evaluate(model, ([[1.0], [2.0]], [[1.0], [4.0]]), "mse", metrics=["mae"])
    {'loss': 2.0, 'mae': 1.0}
    """
    rule = resolve(loss) if loss is not None else None
    counted = resolve_metrics(metrics, rule.name if rule is not None else None)
    forward = Forward(model)
    with_loss = rule is not None or not counted.names
    return measure(forward, rule, batches_for(model, data), counted, with_loss)


def predict(model: nn.Module, x: Any, batch_size: int | str = "auto") -> Any:
    """Outputs for all inputs, in evaluation mode, without gradients, joined along axis 0 on the CPU.

    `x` is an array or tensor `[examples, …]`, or a tuple or dict of them.
    """
    forward = Forward(model)
    if batch_size != "auto" and not isinstance(batch_size, int):
        raise TypeError(f'batch_size takes a whole number or "auto", got {batch_size!r}')
    size = BATCH_SIZE if isinstance(batch_size, str) else batch_size
    if isinstance(x, Dataset | DataLoader):
        raise TypeError(f"predict takes inputs, an array [examples, …] or several, not a {type(x).__name__}")
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size!r}")
    data = read((x, None), model_dtype(model))
    batches = Batches(data, Order(size, shuffle=False), model_dtype(model), model_device(model))
    with evaluating(model), torch.no_grad():
        outputs = [mapped(Tensor.cpu, forward(inputs, training=False)) for inputs, _ in batches.epoch(0)]
    return _joined(outputs)


def measure(
    forward: Forward, loss: BatchLoss | None, batches: Iterable[Batch], metrics: Metrics, with_loss: bool = True
) -> dict[str, float]:
    """Loss and metrics over batches; the sums stay on the device, one read at the end."""
    total: Any = 0.0
    terms: Any = 0
    weight: Any
    is_mean = loss is None or loss.reduction == "mean"
    metrics.reset()
    with evaluating(forward.model), torch.no_grad():
        for batch in batches:
            x, y = batch
            if loss is None and with_loss:
                value, weight = forward.own_loss(x, y, training=False), num_examples(batch)
            else:
                output = forward(x, training=False)
                if metrics.names:
                    metrics.update(output, y)
                if loss is None:
                    continue
                value, weight = loss(output, y), loss.num_terms(output, y) if is_mean else 1
            sum_of_batch = (value.double() if value.device.type != "mps" else value) * weight
            total = total + sum_of_batch.where(torch.as_tensor(weight, device=value.device) > 0, 0)
            terms = terms + (weight if is_mean else num_examples(batch))
    measured = metrics.compute() if metrics.names else {}
    if not with_loss:
        return measured
    return {"loss": float(total / terms), **measured}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module is put back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def batches_for(model: nn.Module, data: Any) -> Iterator[Batch]:
    """Data as batches, sequences by their length, in the model's dtype and on its device."""
    dtype, device = model_dtype(model), model_device(model)
    return Batches(read(data, dtype), Order(BATCH_SIZE, shuffle=False, by_length=True), dtype, device).epoch(0)


def _joined(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    if isinstance(outputs[0], dict):
        return {key: _joined([output[key] for output in outputs]) for key in outputs[0]}
    return type(outputs[0])(_joined([output[i] for output in outputs]) for i in range(len(outputs[0])))


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating parameter or buffer."""
    tensors = leaves((dict(model.named_parameters()), dict(model.named_buffers())))
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def model_device(model: nn.Module) -> torch.device:
    """The device that a model computes on: that of its first parameter or buffer."""
    tensors = leaves((dict(model.named_parameters()), dict(model.named_buffers())))
    return next((t.device for t in tensors), torch.device("cpu"))
