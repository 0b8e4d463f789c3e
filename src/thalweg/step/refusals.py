"""Which steps are not written down as a program: those that do more in Python than operations on tensors."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.step.data import Batch
from thalweg.step.update import Update
from thalweg.step.whole import Step


class Untraceable(ValueError):
    """The step cannot be written down; the message says why, to follow "the step is not compiled: "."""


def check(step: Step, batch: Batch) -> torch.device:
    """Let pass what may make one program of all steps on such batches; returns where they are computed.

    Raises:
        Untraceable: it may not.
    """
    model = step.forward.model
    if step.forward.is_keras:
        raise Untraceable("a Keras model keeps its state outside of the graph")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise Untraceable("the model is compiled already")
    if not isinstance(batch, tuple) or not all(isinstance(t, Tensor) for t in pytree.tree_leaves(batch)):
        raise Untraceable("a batch holds more than tensors")
    if nn.modules.module._has_any_global_hook():
        raise Untraceable("hooks are set on all modules")
    for name, module in model.named_modules():
        if any(getattr(module, hooks, None) for hooks in HOOKS):
            raise Untraceable(f"module {name!r} has hooks, which a program passes over" if name else "it has hooks")
        if getattr(module, "sparse", False):
            raise Untraceable(f"module {name!r} has sparse gradients")
        if hasattr(module, "_orig_mod"):
            raise Untraceable(f"module {name!r} is compiled already")
        if any(isinstance(value, _GENERATORS) for value in vars(module).values()):
            raise Untraceable(f"module {name!r} has a random generator of its own, which a program would freeze")
    for name, p in model.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise Untraceable(f"parameter {name!r} has hooks, which a program passes over")
    for part in parts_of(step.loss):
        if any(getattr(part, hooks, None) for hooks in HOOKS):
            raise Untraceable("the loss has hooks, which a program passes over")
        if any(isinstance(value, _GENERATORS) for value in vars(part).values()):
            raise Untraceable("the loss has a random generator of its own, which a program would freeze")
    owned = set(map(id, model.parameters()))
    if any(p.requires_grad and id(p) not in owned for p in step.update.parameters):
        raise Untraceable("the rule moves parameters that are not the model's, which a program has no gradients of")
    device = _device(model, batch)
    if torch.is_autocast_enabled(device.type):
        raise Untraceable("autocast is on around it, which a program leaves out")
    return device


def parts_of(loss: Any) -> list[Any]:
    """What of a loss may change between two steps: its modules, or the object that it is, or whose method it is."""
    source = loss if (given := getattr(loss, "source", None)) is None else given
    source = getattr(source, "__self__", source)
    if isinstance(source, nn.Module):
        return list(source.modules())
    return [source] if hasattr(source, "__dict__") and not isinstance(source, _CONSTANT) else []


#: What losses may be, or be methods of, without attributes of their own.
_CONSTANT = (FunctionType, ModuleType, type)


def _device(model: nn.Module, batch: Batch) -> torch.device:
    """Where all tensors of model and batch are.

    Raises:
        Untraceable: in several places, or where no programs are made.
    """
    held: dict[str, Tensor] = {f"parameter {name!r}": p for name, p in model.named_parameters()}
    held |= {f"buffer {name!r}": t for name, t in model.named_buffers()}
    device = next(iter(held.values())).device
    if device.type not in DEVICES:
        raise Untraceable(f"programs are made for CPU and CUDA, and the model is on {device.type}")
    named = [*held.items(), *(("a part of the batch", t) for t in pytree.tree_leaves(batch))]
    for name, t in named:
        if t.device != device:  # a graph of kernels would go by what it was when recorded
            raise Untraceable(f"the model is on {device}, and {name} on {t.device}")
    return device


#: Where programs are made.
DEVICES = ("cpu", "cuda")
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def is_recordable(update: Update) -> bool:
    """Whether a rule is nothing but operations on tensors, as far as can be told before trying."""
    optimizer = update.optimizer
    if update.needs_closure or update.needs_batch or has_hooks(optimizer):
        return False
    if any(isinstance(value, Optimizer) for value in vars(optimizer).values()):
        return False  # a rule inside has rates of its own
    values = (v for p in update.parameters for v in optimizer.state.get(p, {}).values())
    return all(value is None or isinstance(value, Tensor) for value in values)


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether something else happens around a step of a rule."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


class NothingFrozen(TorchDispatchMode):
    """Refuse what a graph of kernels would see once only: numbers drawn, read, or kept in memory, beside the GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if "_attention" in str(function):  # the seeds of its dropout lie on the CPU where there is none to be captured
            return result
        found = pytree.tree_leaves((args, kwargs, result))
        devices = {t.device.type for t in found if isinstance(t, Tensor)}
        is_mixed = "cpu" in devices and (len(devices) > 1 or torch.Tag.nondeterministic_seeded in function.tags)
        if is_mixed or function is torch.ops.aten._local_scalar_dense.default:
            raise Untraceable(f"it calls {function} on the CPU in each step")
        return result


@contextmanager
def unchanged(*owners: Any) -> Iterator[None]:
    """Refuse a model or loss that remembers something in Python from call to call, or draws random numbers there.

    Their attributes, and what lists and dicts among them hold, are put back as they were.
    """
    parts, before, kept = _attributes(owners)
    drawn = random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
    refused = "{} changes {} in each call, which a program would not"
    try:
        yield
        if (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]) != drawn:
            raise Untraceable("the model draws random numbers in Python, which a program would freeze")
        for part, found in zip(parts, before, strict=True):
            changed = _changed(part.__dict__, found)
            if changed is not None:
                raise Untraceable(refused.format(type(part).__name__, f"its attribute {changed!r}"))
        for part, container, was in kept:
            if not _same_contents(container, was):
                raise Untraceable(refused.format(type(part).__name__, "a list or dict of its own"))
    finally:
        _put_back(parts, before, kept)


def attributes_kept(*owners: Any) -> Callable[[], None]:
    """Look at attributes of models or rules, and what lists and dicts among them hold; what comes back puts them
    back.
    """
    found = _attributes(owners)
    return lambda: _put_back(*found)


_Kept = tuple[Any, Any, Any]


def _attributes(owners: Iterable[Any]) -> tuple[list[Any], list[dict[str, Any]], list[_Kept]]:
    """Owners, each module of a model by itself; the attributes of each, and the lists and dicts among them with
    copies.
    """
    each = (part for one in owners for part in (one.modules() if isinstance(one, nn.Module) else (one,)))
    parts = list({id(part): part for part in each}.values())
    before = [dict(part.__dict__) for part in parts]
    kept = [(m, v, v.copy()) for m, d in zip(parts, before, strict=True) for v in d.values() if _holds(v)]
    return parts, before, kept


def _put_back(parts: list[Any], before: list[dict[str, Any]], kept: list[_Kept]) -> None:
    for _, container, was in kept:
        if not _same_contents(container, was):
            container.clear()
            container.extend(was) if isinstance(container, list | deque) else container.update(was)
    for part, found in zip(parts, before, strict=True):
        if list(part.__dict__) != list(found) or any(part.__dict__[n] is not found[n] for n in found):
            part.__dict__.clear()
            part.__dict__.update(found)


def _holds(value: Any) -> bool:
    return isinstance(value, list | dict | set | deque)


def _changed(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> Any:
    """The first name whose value is another one, or None."""
    return next((n for n in [*before, *now] if n not in now or n not in before or not _same(now[n], before[n])), None)


def _same(a: Any, b: Any) -> bool:
    """Whether two values are one, or are equal numbers or words."""
    return a is b or (type(a) is type(b) and isinstance(a, int | float | complex | str | torch.Size) and a == b)


def _same_contents(now: Any, before: Any) -> bool:
    if isinstance(now, dict):
        return len(now) == len(before) and all(map(_is_key, now, before)) and _changed(now, before) is None
    if isinstance(now, set):
        return bool(now == before)
    return len(now) == len(before) and all(map(_same, now, before))


def _is_key(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b))
