"""A search trains in the user's own model and data: afterwards both are as they were found.

A copy of the model would be simpler, and wrong: a loss that looks at the model's weights would look at the other ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thalweg.loop.memory import generators


@contextlib.contextmanager
def untouched(model: Any, *data: Any) -> Iterator[None]:
    """Whatever happens inside, weights, buffers, gradients, `requires_grad` and device of the model, and the generators
    of data loaders, are as before afterwards. Gradients are out of the way inside, where a backward pass would add to
    them.
    """
    held = [_Held(module) for module in model.modules()] if isinstance(model, nn.Module) else []
    own = [(generator, generator.get_state()) for source in data for generator in generators(source)]
    for each in held:
        each.without_gradients()
    try:
        yield
    finally:
        for each in held:
            each.put_back()
        for generator, state in own:
            generator.set_state(state)


class _Held:
    """One module's own tensors: the objects themselves, where their values lie, the values and the gradients."""

    def __init__(self, module: nn.Module) -> None:
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        self._tensors = [(table, name, t) for table in tables for name, t in table.items() if _is_plain(t)]
        self._places = [t.data for _, _, t in self._tensors]
        self._values = [t.detach().clone() for _, _, t in self._tensors]
        self._gradients = [t.grad if t.is_leaf else None for _, _, t in self._tensors]
        self._required = [t.requires_grad for _, _, t in self._tensors]

    def without_gradients(self) -> None:
        for _, _, t in self._tensors:
            if t.is_leaf:
                t.grad = None

    def put_back(self) -> None:
        kept = zip(self._tensors, self._places, self._values, self._gradients, self._required, strict=True)
        with torch.no_grad():
            for (table, name, t), place, value, gradient, required in kept:
                table[name] = t  # a module moved to a device has other buffers
                if t.data_ptr() != place.data_ptr() or t.device != place.device:
                    t.data = place
                place.copy_(value)
                if t.is_leaf:
                    t.grad = gradient
                    t.requires_grad_(required)


def _is_plain(t: Tensor | None) -> bool:
    return t is not None and not is_lazy(t)
