"""A model's tensors by name, copied and put back; and trees of tensors (tuples, lists, dicts) mapped as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the tensors themselves; a tied tensor stands under each of its names.

    Buffers that the module does not save (`persistent=False`) are part of it: a run goes on with them.
    """
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return named


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies by the same names; tensors that were one before stay one."""
    seen: dict[int, Tensor] = {}
    return {name: seen.setdefault(id(t), t.detach().clone()) for name, t in tensors.items()}


def assign(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into the tensors of the same names.

    Raises:
        ValueError: a name is missing or a shape differs; nothing is written then.
    """
    missing = sorted(set(targets) ^ set(values))
    if missing:
        raise ValueError(f"the saved weights are of another model: {missing[0]!r} is in one and not in the other")
    for name, target in targets.items():
        if target.shape != values[name].shape:
            shapes = f"{list(values[name].shape)} saved, {list(target.shape)} in the model"
            raise ValueError(f"the saved weights are of another model: {name!r} is {shapes}")
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])


def num_bytes(tree: Any) -> int:
    """Bytes of all tensors in a tree."""
    return sum(t.numel() * t.element_size() for t in leaves(tree))


def leaves(tree: Any, of: Any = Tensor) -> Iterator[Any]:
    """The tensors of a tree, in order; or what is of another type or types."""
    if isinstance(tree, of):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value, of)
    elif isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value, of)


def mapped(function: Callable[[Any], Any], tree: Any, of: Any = Tensor) -> Any:
    """The same tree with a function applied to each tensor (or what is `of` other types); the rest stays as it is."""
    if isinstance(tree, of):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: mapped(function, value, of) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(function, value, of) for value in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(function, value, of) for value in tree)
    return tree
