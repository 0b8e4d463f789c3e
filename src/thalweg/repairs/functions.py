"""Activations that a forward method calls as functions, `F.relu(x)`: found, and others called in their place.

The forward method is traced by `torch.fx`, its submodules being called as they are; the traced code becomes the forward
of a class derived from the module's own, which the module is then of. So parameters, submodules and their names stay,
and so does the user's object. What does not trace (loops over values, branches on the mode) is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn import functional as F

from thalweg.repairs.change import Body, Undo
from thalweg.repairs.passes import FEW, Pass, evaluating, forward
from thalweg.repairs.structure import WEIGHTED, code
from thalweg.tensors.named import leaves, mapped
from thalweg.tensors.seeds import untouched

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
        return _again, (self._origin, self._swaps), super().__reduce_ex__(protocol)[2]


def _again(origin: type[nn.Module], swaps: tuple[dict[int, str], ...]) -> nn.Module:
    """A module without any state yet; when it is given its own, its forward is traced and rewritten."""

    class Waiting(origin):  # type: ignore[misc, valid-type]
        def __setstate__(self, state: Any) -> None:
            self.__class__ = origin  # type: ignore[assignment]
            own, slots = state if isinstance(state, tuple) else (state, {})
            self.__setstate__(own)
            for name, value in slots.items():
                setattr(self, name, value)
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
    """The forward method of a module's class; None where a trace would not be the same.

    So where it does not trace, says something else in training, writes to the module, or reads numbers of it that may
    be others later; where it switches gradients or autocast, which a trace does not hold.
    """
    if _says_more_than_a_trace(module):
        return None
    graphs, mode = [], module.training
    with untouched(), _as_it_was(module) as is_as_it_was:
        try:
            for training in (mode, not mode):
                module.training = training
                graphs.append(_Outer().trace(module))
        except Exception:  # whatever a forward method may do to a proxy
            return None
        module.training = mode
        if not is_as_it_was() or str(graphs[0]) != str(graphs[1]):
            return None
    return graphs[0] if all(_is_own(module, node) for node in graphs[0].nodes) else None


#: Names in a method that say what a trace forgets.
_FORGOTTEN = frozenset("no_grad enable_grad inference_mode set_grad_enabled autocast".split())  # noqa: SIM905


def _says_more_than_a_trace(module: nn.Module) -> bool:
    forward: Any = type(module).forward
    if not isinstance(forward, FunctionType) or hasattr(forward, "__wrapped__"):  # decorated, with no_grad perhaps
        return True
    read = set(forward.__code__.co_names)
    numbers = (float, bool, Tensor, type(None))
    own = {name for name, value in vars(module).items() if isinstance(value, numbers) and name != "training"}
    return bool(read & (_FORGOTTEN | own))


@contextlib.contextmanager
def _as_it_was(module: nn.Module) -> Iterator[Callable[[], bool]]:
    """Whatever is done to a module inside, it is as before afterwards; inside, whether it still is can be asked."""
    kept = ("_parameters", "_buffers", "_modules")
    before = dict(vars(module))
    inner = {name: dict(before[name]) for name in kept}
    values = {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}

    def is_as_it_was() -> bool:
        now = vars(module)
        same = now.keys() == before.keys() and all(now[name] is value for name, value in before.items())
        parts = all(now[name].keys() == of.keys() for name, of in inner.items())
        return same and parts and all(torch.equal(module._buffers[n], v) for n, v in values.items())  # type: ignore[arg-type]

    try:
        yield is_as_it_was
    finally:
        vars(module).clear()
        vars(module).update(before)
        for name, of in inner.items():
            before[name].clear()
            before[name].update(of)
        with torch.no_grad():
            for name, value in values.items():
                module._buffers[name].copy_(value)  # type: ignore[union-attr]


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


def poor(body: Body, passed: Pass) -> list[Place]:
    """Where functions with hardly a gradient are called that may be swapped.

    As with modules, between two layers with weights alone; a sigmoid only where a layer takes what it gives, for
    elsewhere it may be a gate. What is traced must do on the sample what the method does.
    """
    model = body.model
    graphs = {module: traced(module) for name, module in model.named_modules() if _is_rewritable(module, name)}
    able = {module: graph for module, graph in graphs.items() if graph is not None and _calls(graph)}
    if not able:
        return []
    same = _that_do_the_same(body, able)
    found = []
    for name, module in model.named_modules():
        if module not in same:
            continue
        before, after = _weighted_around(passed, module)
        for number, node in enumerate(_calls(able[module])):
            is_hidden = (before or _any_weighted(module, _upstream(node))) and (
                after or _any_weighted(module, _downstream(node))
            )
            is_zero_below = node.target in _RELU
            is_alone = is_zero_below or all(user.op == "call_module" for user in node.users)
            if is_hidden and is_alone and not _is_read_elsewhere(node):
                found.append(Place(f"{name}:{number}", is_zero_below))
    return found


def _is_read_elsewhere(node: Node) -> bool:
    """Whether a function that works in place is read through what it was given, too."""
    name = str(node.target if node.op == "call_method" else getattr(node.target, "__name__", ""))
    in_place = name.endswith("_") or True in node.args[1:] or node.kwargs.get("inplace") is True
    return not node.users or (in_place and any(len(given.users) > 1 for given in node.all_input_nodes))


def _that_do_the_same(body: Body, graphs: Mapping[nn.Module, Graph]) -> set[nn.Module]:
    """The modules that are called in a pass over the sample, and whose graphs give what they gave, every time."""
    called: set[nn.Module] = set()
    wrong: set[nn.Module] = set()
    given: list[Any] = []

    def take(module: nn.Module, args: Any, named: Any) -> None:
        given.append(mapped(lambda t: t.clone(), (args, named)))

    def compare(module: nn.Module, args: Any, named: Any, output: Any) -> None:
        (first, words), made = given.pop(), list(leaves(output))
        called.add(module)
        try:
            again = list(leaves(_compiled(module, graphs[module])(module, *first, **words)))
        except Exception:  # whatever it may do with other arguments than it was traced with
            again = []
        if not (len(made) == len(again) and all(_is_same(a, b) for a, b in zip(made, again, strict=True))):
            wrong.add(module)

    hooks = [module.register_forward_pre_hook(take, with_kwargs=True) for module in graphs]
    hooks += [module.register_forward_hook(compare, with_kwargs=True) for module in graphs]
    try:
        with evaluating(body.model):
            forward(body, FEW, graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    return called - wrong


def _is_same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second) and first.requires_grad == second.requires_grad


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
