"""Where a module stands in a model, and another one put in its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.repairs.change import Undo

#: Modules that only hold others and call them as they are: what stands in them may be replaced.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: Layers with one matrix of weights and at most one bias.
MATRICES = (nn.Linear, nn.modules.conv._ConvNd)
#: All layers with weights that signals are mixed by.
WEIGHTED = (*MATRICES, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
Slot = tuple[nn.Module, str]


class Around(nn.Module):
    """A layer with another module ahead of it or behind it: behind(layer(ahead(x))).

    Further arguments go to the layer, and what is asked of this module and is the layer's is the layer's: a model
    that reads `self.cell.hidden_size` goes on doing so.
    """

    ahead: nn.Module | None
    behind: nn.Module | None
    layer: nn.Module

    def __init__(self, layer: nn.Module, ahead: nn.Module | None = None, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.training = layer.training
        for name, part in (("ahead", ahead), ("behind", behind)):
            self.register_module(name, part)
            if part is not None:
                part.train(layer.training)
        self.layer = layer

    def forward(self, x: Tensor, *args: Any, **named: Any) -> Any:
        """The layer's output for `x` and whatever else the layer takes."""
        if self.ahead is not None:
            x = self.ahead(x)
        y = self.layer(x, *args, **named)
        return y if self.behind is None else self.behind(y)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_modules", {}).get("layer")
            if layer is None or name.startswith("__"):
                raise
            return getattr(layer, name)


def slots(model: nn.Module) -> dict[nn.Module, list[Slot]]:
    """Every module that can be replaced, with each place it stands at: (parent, name in the parent).

    Left out are the model itself; names that words cannot hold, with a space or a colon; what stands in a composite
    module of torch, which reads its parts' weights instead of calling them; and what a parent holds a second time, in a
    list or an attribute of its own.
    """
    found: dict[nn.Module, list[Slot]] = {}
    refused: set[nn.Module] = set()
    for parent in model.modules():
        stock = type(parent).__module__.startswith("torch.") and not isinstance(parent, _CONTAINERS)
        for name, child in parent._modules.items():
            if child is None:
                continue
            found.setdefault(child, []).append((parent, name))
            if stock:
                refused.add(child)
        refused.update(_held(vars(parent)))
    refused.update(module for name, module in model.named_modules() if ":" in name or name.split() not in ([name], []))
    return {module: places for module, places in found.items() if module not in refused and module is not model}


def is_closed(model: nn.Module) -> bool:
    """Whether modules are no longer what is called: scripted or compiled ones."""
    return any(
        isinstance(module, torch.jit.ScriptModule)
        or "_orig_mod" in module._modules
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def owners(model: nn.Module, parameter: Tensor) -> int:
    """In how many modules a parameter stands: 0 for one that is made of others at each call, 2 or more where tied."""
    return sum(any(p is parameter for p in module._parameters.values()) for module in model.modules())


def _held(attributes: Mapping[str, Any]) -> Iterator[nn.Module]:
    """Modules in plain attributes, and in lists and dicts among them."""
    for name, value in attributes.items():
        if name.startswith("_") and name in _OWN:
            continue
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (v for v in values if isinstance(v, nn.Module))


_OWN = frozenset(vars(nn.Module()))


def put(model: nn.Module, instead: Mapping[nn.Module, nn.Module]) -> Undo:
    """Put others in the place of modules, wherever these stand; a shared one stays shared.

    Returns:
        What puts the very same modules back.
    """
    places = slots(model)
    before = [(parent, name, old) for old in instead for parent, name in places[old]]
    for parent, name, old in before:
        parent._modules[name] = instead[old]

    def undo() -> None:
        for parent, name, old in before:
            parent._modules[name] = old

    return undo


def name_of(model: nn.Module) -> dict[nn.Module, str]:
    """The first name of each module."""
    return {module: name for name, module in reversed([*model.named_modules(remove_duplicate=False)])}


def code(name: str, model: str = "model") -> str:
    """A module's name as Python.

    >>> code("blocks.0.dense")
    'model.blocks[0].dense'
    """
    parts = name.split(".") if name else []
    return model + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
