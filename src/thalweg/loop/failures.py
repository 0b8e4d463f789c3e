"""Where model or loss cannot take a batch: which layer, what it got and what to do, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.step.data import Batch, Data, Stream, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.refusal import Refusal
from thalweg.tensors.named import leaves


def check_pair(data: Data, batch: Batch) -> None:
    """A loss needs inputs and targets, and as many of them as a batch has.

    Raises:
        ValueError: there are no targets, or the data gives its examples one by one.
    """
    x, y = batch
    if y is None:
        raise ValueError(_without_targets(data, x))
    if isinstance(data, Stream) and (isinstance(y, Number) or (isinstance(y, Tensor) and not y.ndim)):
        raise Refusal(
            "wrong_shape",
            "the data gives single examples (its first target is one number), and batches are needed: put it into a "
            "torch.utils.data.DataLoader with a batch_size",
        )


def _without_targets(data: Data, x: Any) -> str:
    parts = data.source if isinstance(data, Stream) else None
    if isinstance(parts, tuple | list) and len(parts) > 2 and all(hasattr(part, "shape") for part in parts):
        return f"the data has {len(parts)} parts, and (x, y) has 2: give several inputs together, as ((a, b), y)"
    if isinstance(x, Mapping):
        keys = ", ".join(repr(key) for key in x)
        return (
            f"the data gives dicts with the keys {keys}, all taken for inputs, and there are no targets: give pairs "
            "(inputs, target), or loss=None where the model returns its loss"
        )
    return "there are no targets, only inputs; give data as (x, y), or loss=None"


def explain(forward: Forward, data: Data, batch: Batch, loss: Loss | None, wanted: str) -> None:
    """Go through a batch that failed once more, part by part, for what was `wanted` of it: "outputs" of the model, what
    is "measured" on them with targets, or the "own loss" of the model.

    Raises:
        ValueError: what is wrong with it, where that can be told.
    """
    if wanted == "own loss":
        with named_failure(forward.model, batch, makes_loss=True):
            forward.own_loss(*batch, training=False)
        return
    if wanted == "measured":
        check_pair(data, batch)
    with named_failure(forward.model, batch):
        output = forward(batch[0], training=False)
    if loss is not None:
        try:
            loss.check(output, batch[1])
        except Refusal as refusal:
            raise Refusal(refusal.code, f"{refusal} (seen in a batch of {num_examples(batch)} examples)") from refusal


@contextmanager
def named_failure(model: nn.Module, batch: Batch, makes_loss: bool = False) -> Iterator[None]:
    """If a layer cannot take what it gets, say which layer, what it got and what it computes with."""
    entered: list[tuple[str, nn.Module, Any]] = []
    names = {module: name for name, module in model.named_modules()}
    handle = nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: entered.append((names.get(module, ""), module, args)) if module in names else None
    )
    try:
        yield
    except Refusal:
        raise  # it says by itself what is wrong
    except Exception as error:  # whatever a model of the user's raises: the cause stays chained
        if makes_loss and batch[1] is not None and isinstance(error, TypeError) and _is_of_call(model, entered):
            raise Refusal("wrong_shape", _without_loss(model, error)) from error
        raise _explained(error, entered, batch) from error
    finally:
        handle.remove()


def _is_of_call(model: nn.Module, entered: list[tuple[str, nn.Module, Any]]) -> bool:
    """Whether no layer was reached: it is the call of the model that failed."""
    return not entered or entered[-1][1] is model


def _without_loss(model: nn.Module, error: Exception) -> str:
    return (
        "without a loss the model is called with inputs and target and must return its loss, which "
        f"{type(model).__name__} cannot ({first_line(error)}); give loss="
    )


def _explained(error: Exception, entered: list[tuple[str, nn.Module, Any]], batch: Batch) -> Exception:
    shapes = ", ".join(f"{list(t.shape)} {_plain(t)}" for t in leaves(batch[0]))
    if not entered:
        return Refusal("wrong_shape", f"the model cannot be called with inputs of shape {shapes}: {first_line(error)}")
    name, module, args = entered[-1]
    got = ", ".join(f"{list(t.shape)} {_plain(t)}" for t in leaves(args)) or shapes
    weight = next((f", its weight is {list(p.shape)} {_plain(p)}" for p in module.parameters(recurse=False)), "")
    layer = f"layer {name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"
    hint = ""
    if any(not t.is_floating_point() for t in leaves(args)) and "dtype" in str(error):
        hint = "; give inputs as floats, e.g. x.astype('float32')"
    return Refusal("wrong_shape", f"{layer} cannot take inputs of shape {got}{weight}: {first_line(error)}{hint}")


def _plain(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def first_line(error: Exception) -> str:
    """What an error says first; its kind, where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def is_of_memory(error: Exception) -> bool:
    """Whether there was too little memory, which says nothing about the data."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError)
