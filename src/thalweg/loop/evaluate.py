"""Loss and metrics over a whole data set, counted exactly; and predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from thalweg.loop.failures import explain, first_line, is_of_memory
from thalweg.loop.metrics import Metrics, resolve_metrics
from thalweg.records.settings import whole
from thalweg.step.backward import BatchLoss
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Batch, num_examples, read
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss, resolve
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
    makes_loss = rule is None and not counted.names
    dtype, device = model_dtype(model), model_device(model)
    place(loss, device)
    batches = Batches(read(data, dtype), Order(BATCH_SIZE, shuffle=False, by_length=True), dtype, device)
    with _explained(forward, batches, "own loss" if makes_loss else "measured", rule) as followed:
        return measure(forward, rule, followed, counted, rule is not None or makes_loss)


def predict(model: nn.Module, x: Any, batch_size: int | str = "auto") -> Any:
    """Outputs for all inputs, in evaluation mode, without gradients, joined along axis 0 on the CPU.

    `x` is an array or tensor `[examples, …]`, or a tuple or dict of them.
    """
    forward = Forward(model)
    if isinstance(x, Dataset | DataLoader):
        raise TypeError(f"predict takes inputs, an array [examples, …] or several, not a {type(x).__name__}")
    if batch_size != "auto":
        whole("batch_size", batch_size, ' (or "auto")')
    size = BATCH_SIZE if isinstance(batch_size, str) else int(batch_size)
    data = read((x, None), model_dtype(model))
    batches = Batches(data, Order(size, shuffle=False), model_dtype(model), model_device(model))
    with _explained(forward, batches, "outputs") as followed, evaluating(model), torch.no_grad():
        outputs = [mapped(Tensor.cpu, forward(inputs, training=False)) for inputs, _ in followed]
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


@contextlib.contextmanager
def _explained(forward: Forward, batches: Batches, wanted: str, loss: Loss | None = None) -> Iterator[Iterator[Batch]]:
    """Gives the batches; where one fails inside, what is wrong with it is said, for what is `wanted` (`explain`).

    Raises:
        ValueError: model or loss cannot take a batch.
    """
    last: Batch | None = None

    def followed() -> Iterator[Batch]:
        nonlocal last
        for batch in batches.epoch(0):
            last = batch
            yield batch

    try:
        yield followed()
    except Exception as error:  # whatever a model of the user's raises: the cause stays chained
        if last is None or is_of_memory(error):
            raise
        with evaluating(forward.model), torch.no_grad():
            explain(forward, batches.data, last, loss, wanted)
        if isinstance(error, ValueError | TypeError):
            raise
        raise ValueError(f"the data cannot be measured: {first_line(error)}") from error


def _joined(outputs: list[Any], place: str = "") -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        if not first.ndim:
            what = f"{place} of the model's output is" if place else "the model's output is"
            raise ValueError(f"{what} a single number, without an axis of examples: it cannot be joined over batches")
        return torch.cat(outputs)
    if isinstance(first, dict):
        return {key: _joined([output[key] for output in outputs], f"{place}[{key!r}]") for key in first}
    if isinstance(first, tuple | list):
        parts = [_joined([output[i] for output in outputs], f"{place}[{i}]") for i in range(len(first))]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    what = f"{place} of what the model returns" if place else "what the model returns"
    raise ValueError(f"{what} is a {type(first).__name__}, and only tensors can be joined over batches")


def model_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating parameter or buffer."""
    tensors = leaves((dict(model.named_parameters()), dict(model.named_buffers())))
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def place(loss: Any, device: torch.device) -> None:
    """Bring a loss that is a module, and may have weights of classes, to where its model is."""
    if isinstance(loss, nn.Module):
        loss.to(device)


def model_device(model: nn.Module) -> torch.device:
    """The device that a model computes on: that of its first parameter or buffer."""
    tensors = leaves((dict(model.named_parameters()), dict(model.named_buffers())))
    return next((t.device for t in tensors), torch.device("cpu"))
