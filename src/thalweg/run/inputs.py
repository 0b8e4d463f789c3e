"""What is wrong with model, data or loss is said before training, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.loop.evaluate import evaluating
from thalweg.loop.failures import check_pair, named_failure
from thalweg.loop.metrics import Metrics
from thalweg.step import keras
from thalweg.step.batches import Batches
from thalweg.step.data import COLUMNS, Arrays, Data, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.moment import Moment
from thalweg.step.refusal import Refusal
from thalweg.step.sequences import Sequences
from thalweg.step.targets import IGNORED
from thalweg.tensors.named import assign, copied, leaves

#: Rows of the trial before training; and rows whose targets are looked at together.
TRIAL_ROWS = 4
CHECKED_ROWS = 1 << 16

_NORMS = (nn.modules.batchnorm._BatchNorm,)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether batches are normalised, so that examples depend on each other and one alone cannot be trained on."""
    modules = keras.layers(model) if keras.is_keras(model) else model.modules()
    return any(isinstance(module, _NORMS) or type(module).__name__ == "BatchNormalization" for module in modules)


def check_model(forward: Forward) -> None:
    """Something must be left to train, in finite numbers.

    Raises:
        ValueError: there are no parameters, all are frozen, or some are not finite.
    """
    if not any(True for _ in forward.model.parameters()):
        raise Refusal("frozen_parameters", "the model has no parameters: there is nothing to train")
    parameters = forward.parameters()
    if not parameters:
        raise Refusal(
            "frozen_parameters",
            "nothing to train: every parameter of the model is frozen; set requires_grad_(True) on those to train",
        )
    for name, p in parameters.items():
        if not bool(torch.isfinite(p).all()):
            words = f"parameter {name!r} holds NaN or Inf before training; initialise the model anew"
            raise Refusal("non_finite", words)


def check_values(data: Data, name: str) -> None:
    """Arrays must be finite.

    Raises:
        ValueError: NaN or Inf; the message names the first row and how many there are.
    """
    if not isinstance(data, Arrays):
        return
    for part, tree in (("x", data.x), ("y", data.y)):
        for column in leaves(tree, COLUMNS):
            t = column.values if isinstance(column, Sequences) else column
            # A sum is finite only if all its terms are; one that overflowed by itself is looked at term by term.
            if t.is_floating_point() and not bool(torch.isfinite(t.sum())):
                _name_bad_rows(column, f"{part} of the {name} data" if name else part)


def _name_bad_rows(t: Tensor | Sequences, where: str) -> None:
    finite = t.finite if isinstance(t, Sequences) else torch.isfinite(t).reshape(len(t), -1).all(dim=1)
    bad = (~finite).nonzero().flatten()
    if not len(bad):
        return
    count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    words = f"{where} holds NaN or Inf in {count}, the first is row {int(bad[0])}; remove or fill them"
    raise Refusal("non_finite", words)


def trial(forward: Forward, loss: Loss | None, batches: Batches, metrics: Metrics) -> None:
    """Send a few examples through model, loss and metrics; nothing of it stays.

    Raises:
        ValueError: the model cannot take the inputs (the layer is named, with shapes), or the loss or a metric not the
            outputs.
        TypeError: the inputs are of a kind that the model does not compute in.
    """
    batch = batches.first(TRIAL_ROWS)
    for part, tree in zip(("x", "y"), batch, strict=True):
        for t in leaves(tree):
            if t.is_floating_point():
                _name_bad_rows(t, f"{part} of the first batch")
    moment, parameters = Moment(forward), forward.parameters()
    values = copied(parameters)
    try:
        with torch.no_grad(), evaluating(forward.model), _no_new_parameters(forward, parameters):
            if loss is None:
                with named_failure(forward.model, batch, makes_loss=True):
                    forward.own_loss(*batch, training=False)
                return
            check_pair(batches.data, batch)
            with named_failure(forward.model, batch):
                output = forward(batch[0], training=False)
            with _said_of_a_trial(num_examples(batch)):
                check_loss(loss, output, batch[1])
            check_targets(loss, batches, output)
            with _said_of_a_trial(num_examples(batch)):
                metrics.check(output, batch[1])
    finally:
        moment.put_back()
        assign(parameters, values)


@contextmanager
def _no_new_parameters(forward: Forward, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """A rule is made for the parameters that are there before the first call: others would never be trained."""
    yield
    for name in sorted(forward.parameters().keys() - parameters.keys()):
        words = f"the model makes the parameter {name!r} in its first call: make it in __init__"
        raise ValueError(f"{words}, or call the model once before training")


@contextmanager
def _said_of_a_trial(rows: int) -> Iterator[None]:
    """The shapes in a message are those of the trial: say so."""
    try:
        yield
    except ValueError as error:
        raise Refusal(_code(error), f"{error} (seen on a trial of {rows} examples)") from error


def _code(error: ValueError) -> str:
    return error.code if isinstance(error, Refusal) else "loss_output_mismatch"


def check_loss(loss: Loss, output: Any, target: Any) -> None:
    """Targets and outputs must belong together.

    Raises:
        ValueError: they do not; the message shows both shapes.
    """
    if not any(True for _ in leaves(output)):
        raise ValueError(f"the model returned {type(output).__name__}, no tensor; the loss needs one")
    loss.check(output, target)
    value = loss(output, target)
    if value.ndim or not value.is_floating_point():
        raise ValueError(f"the loss must return one number, it returned shape {list(value.shape)}; average over it")


def check_targets(loss: Loss, batches: Batches, output: Any) -> None:
    """All labels of arrays, against what the model puts out.

    Raises:
        ValueError: one is out of range; the message names it and its row.
    """
    data = batches.data
    if not isinstance(data, Arrays) or not isinstance(output, Tensor) or not isinstance(data.y, Tensor):
        return
    if not data.y.is_floating_point():
        _check_labels(loss, data.y, output)


def _check_labels(loss: Loss, y: Tensor, output: Tensor) -> None:
    """The rows with the largest and the smallest label: what fits them fits all between."""
    if loss.name not in ("cross_entropy", "categorical_cross_entropy", "nll") or y.shape[1:] == output.shape[1:]:
        return
    labels = y.long().masked_fill(y == IGNORED, 0).reshape(len(y), -1)  # booleans too have a largest
    for row in {int(labels.amax(dim=1).argmax()), int(labels.amin(dim=1).argmin())}:
        try:
            loss.check(output[:1], y[row : row + 1].to(output.device))
        except ValueError as error:
            raise Refusal(_code(error), f"{error} (seen in row {row} of y)") from error
