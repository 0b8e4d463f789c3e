"""Activations that a forward method calls as functions, `F.relu(x)`: found, and others called in their place.

The forward method is traced by `torch.fx`, its submodules being called as they are; the traced code becomes the forward
of a class derived from the module's own, which the module is then of. So parameters, submodules and their names stay,
and so does the user's object. What does not trace (loops over values, branches on the mode) is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn import functional as F

from thalweg.repairs.change import Undo
from thalweg.repairs.passes import Pass
from thalweg.repairs.structure import WEIGHTED, code

#: Of the negative side: steeper than Maas et al. 2013 (0.01), so that a dead unit comes back within a short training.
#: Xu et al. 2015, table 1, find steep slopes (1/5.5) no worse than gentle ones.
SLOPE = 0.1
#: What a function is called, by itself, in place or as a method.
_RELU = {F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, "relu", "relu_"}
_SIGMOID = {F.sigmoid, F.hardsigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"}


def leaky_relu(x: Tensor) -> Tensor:
    """As it is where it is positive, a tenth of it elsewhere."""
    return F.leaky_relu(x, SLOPE)


INSTEAD: dict[str, Callable[[Tensor], Tensor]] = {"leaky_relu": leaky_relu, "silu": F.silu, "selu": F.selu}
"""Name → what is called."""


@dataclass(frozen=True, slots=True)
class Place:
    """An activation that is called as a function."""

    name: str
    """Of the module whose forward calls it, and which of its activations it is: `blocks.0:1`; `:1` of the model."""
    is_zero_below: bool
    """Whether it is a ReLU, and no sigmoid."""


class _Swapped:
    """What classes have in common whose forward was rewritten: they are made again where a module is unpickled."""

    _swaps: tuple[dict[int, str], ...]
    """One after the other: which of the activations in the traced code → the name of another."""
    _origin: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _again, (self._origin, self._swaps), vars(self)


def _again(origin: type[nn.Module], swaps: tuple[dict[int, str], ...]) -> nn.Module:
    """A module without any state yet; when it is given its own, its forward is traced and rewritten."""

    class Waiting(origin):  # type: ignore[misc, valid-type]
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__class__ = origin  # type: ignore[assignment]
            self.__setstate__(state)
            for of in swaps:
                self.__class__ = _swapped(self, of)  # type: ignore[assignment]

    made: nn.Module = Waiting.__new__(Waiting)
    return made


def _swapped(module: nn.Module, swaps: Mapping[int, str]) -> type[nn.Module]:
    """The class of a module, under the same name, with other activations in its forward."""
    kind, graph = type(module), traced(module)
    if graph is None:
        raise ValueError(f"the forward method of {kind.__name__} cannot be traced")
    nodes = _calls(graph)
    for number, name in swaps.items():
        _put(graph, nodes[number], INSTEAD[name])
    origin = kind._origin if issubclass(kind, _Swapped) else kind
    before = kind._swaps if issubclass(kind, _Swapped) else ()
    named = {word: getattr(kind, word) for word in ("__module__", "__qualname__", "__doc__")}
    own = {"forward": _compiled(module, graph), "_origin": origin, "_swaps": (*before, dict(swaps))}
    return type(kind.__name__, (_Swapped, origin), {**named, **own})


class _Outer(Tracer):
    """Traces a forward method and nothing below it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def traced(module: nn.Module) -> Graph | None:
    """The forward method of a module's class; None where it does not trace, or says something else in training."""
    graphs, mode = [], module.training
    try:
        for training in (mode, not mode):
            module.training = training
            graphs.append(_Outer().trace(module))
    except Exception:  # whatever a forward method may do to a proxy
        return None
    finally:
        module.training = mode
    same = str(graphs[0]) == str(graphs[1])
    return graphs[0] if same and all(_is_own(module, node) for node in graphs[0].nodes) else None


def _is_own(module: nn.Module, node: Node) -> bool:
    """Whether what a node reads is there in the module itself: constants that tracing made are not."""
    if node.op != "get_attr":
        return True
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    return found is not None and not str(node.target).startswith("_tensor_constant")


def _calls(graph: Graph) -> list[Node]:
    """Activations that are called as functions, in order."""
    kinds = _RELU | _SIGMOID
    return [node for node in graph.nodes if node.op in ("call_function", "call_method") and node.target in kinds]


def _put(graph: Graph, node: Node, function: Callable[[Tensor], Tensor]) -> None:
    with graph.inserting_after(node):
        new = graph.call_function(function, (node.args[0] if node.args else node.kwargs["input"],))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _compiled(module: nn.Module, graph: Graph) -> Callable[..., Any]:
    """What the graph says, as a function of the module and its arguments."""
    made = type(GraphModule(module, graph)).forward
    assert isinstance(made, FunctionType)
    return made


def poor(model: nn.Module, passed: Pass) -> list[Place]:
    """Where functions with hardly a gradient are called that may be swapped.

    As with modules, between two layers with weights alone; a sigmoid only where a layer takes what it gives, for
    elsewhere it may be a gate.
    """
    found = []
    for name, module in model.named_modules():
        graph = traced(module) if _is_rewritable(module, name) and passed.times(module) else None
        if graph is None:
            continue
        before, after = _weighted_around(passed, module)
        for number, node in enumerate(_calls(graph)):
            is_hidden = (before or _any_weighted(module, _upstream(node))) and (
                after or _any_weighted(module, _downstream(node))
            )
            is_zero_below = node.target in _RELU
            if is_hidden and (is_zero_below or all(user.op == "call_module" for user in node.users)):
                found.append(Place(f"{name}:{number}", is_zero_below))
    return found


def rewrite(model: nn.Module, calls: Iterable[tuple[str, str]]) -> Undo:
    """Have others called: names of places, and of activations.

    Returns:
        What gives the modules back the classes they had.
    """
    before: list[tuple[nn.Module, type[nn.Module]]] = []
    swaps: dict[str, dict[int, str]] = {}
    for place, kind in calls:
        name, _, number = place.partition(":")
        swaps.setdefault(name, {})[int(number)] = kind
    for name, of in swaps.items():
        module = model.get_submodule(name)
        before.append((module, type(module)))
        module.__class__ = _swapped(module, of)

    def undo() -> None:
        for module, kind in before:
            module.__class__ = kind

    return undo


def told(place: str) -> str:
    """Where an activation is called, for people.

    >>> told("blocks.0:1"), told(":0")
    ('model.blocks[0].forward, activation 2', 'model.forward, activation 1')
    """
    name, _, number = place.partition(":")
    return f"{code(name)}.forward, activation {int(number) + 1}"


def _is_rewritable(module: nn.Module, name: str) -> bool:
    """Whether its forward is that of its class, and its name can be held in words."""
    own = "forward" not in vars(module) and isinstance(type(module).forward, FunctionType)
    return own and not type(module).__module__.startswith("torch.") and not {" ", ":"} & set(name)


def _weighted_around(passed: Pass, module: nn.Module) -> tuple[bool, bool]:
    """Whether layers with weights come before a module is called, and after it."""
    inner = set(module.modules())
    within = [i for i, call in enumerate(passed.calls) if call.module in inner]
    if not within:
        return False, False
    weighted = [i for i, call in enumerate(passed.calls) if isinstance(call.module, WEIGHTED)]
    return any(i < within[0] for i in weighted), any(i > within[-1] for i in weighted)


def _any_weighted(module: nn.Module, nodes: Iterable[Node]) -> bool:
    called = (module.get_submodule(str(node.target)) for node in nodes if node.op == "call_module")
    return any(isinstance(inner, WEIGHTED) for of in called for inner in of.modules())


def _upstream(node: Node) -> Iterator[Node]:
    return _reached(node, lambda one: one.all_input_nodes)


def _downstream(node: Node) -> Iterator[Node]:
    return _reached(node, lambda one: list(one.users))


def _reached(node: Node, following: Callable[[Node], list[Node]]) -> Iterator[Node]:
    waiting, seen = following(node), set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting = [*waiting, *following(one)]
            yield one
