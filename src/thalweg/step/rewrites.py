"""A recorded step made ready to be compiled: what Inductor would get wrong, or repeat, is put in other words."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from thalweg.step.kernels import operators
from thalweg.step.refusals import Untraceable

#: Operations above which compiling takes minutes: a recurrence written out step by step.
LIMIT = 6_000


def fit_to_compile(graph: GraphModule, num_held: int) -> list[Tensor]:
    """Rewrite a graph in place; its first `num_held` arguments come before those of a batch.

    Returns:
        Tensors that have become arguments, after those that are held.

    Raises:
        Untraceable: it is not to be compiled.
    """
    for node in reversed(list(graph.graph.nodes)):  # marks for a profiler, which torch's rules set around a step
        if str(node.target).startswith("profiler."):
            graph.graph.erase_node(node)
    strange = [n for n in graph.graph.nodes if n.op == "call_function" and not _is_plain(n.target)]
    if strange:
        raise Untraceable(f"it calls {strange[0].target}, which is no operation on tensors")
    if len(graph.graph.nodes) > LIMIT:
        raise Untraceable(f"it is {len(graph.graph.nodes)} operations long")
    constants = _lifted(graph, num_held)
    _draw_masks(graph)
    _share_scalars(graph)
    _hold_scalars(graph)
    graph.recompile()
    return constants


def _is_away(node: Node) -> bool:
    """Whether an operation's result is on a GPU, for which our operators are not made."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _is_plain(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) or target is operator.getitem


def _draw_masks(graph: GraphModule) -> None:
    """Masks of dropout, which torch draws into empty memory, are drawn as new tensors."""
    empty = (torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default, torch.ops.aten.empty.memory_format)
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.bernoulli_.float or len(node.args) > 2 or node.kwargs or _is_away(node):
            continue
        memory, p = node.args[0], node.args[1] if len(node.args) > 1 else 0.5
        if memory.target not in empty or list(memory.users) != [node]:
            continue
        value = memory.meta["val"]
        with graph.graph.inserting_before(node):
            new = graph.graph.call_function(
                operators.drawn(), (list(value.shape), list(value.stride()), value.dtype, p)
            )
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        graph.graph.erase_node(memory)


def _is_number(node: Node) -> bool:
    """Whether it stands for one number: a count, a rate, or what is computed of them."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.ndim


def _is_scalar(node: Node) -> bool:
    """Whether it computes one number in double precision on the CPU."""
    return (
        node.op == "call_function"
        and _is_number(node)
        and node.meta["val"].dtype == torch.float64
        and not _is_away(node)
    )


def _share_scalars(graph: GraphModule) -> None:
    """What a rule computes of one count, once for each parameter, is computed once for all."""
    _count_in_new_places(graph)
    changed = {_origin(node) for user in graph.graph.nodes for node in _written_over(user)}
    known: dict[Any, Node] = {}
    for node in list(graph.graph.nodes):
        if any(_is_number(_origin(written)) for written in _written_over(node)):
            known.clear()  # what was computed of it before is another number
        elif _is_scalar(node) and node not in changed and _follows_from_numbers(node):
            first = known.setdefault((node.target, node.args, tuple(node.kwargs.items())), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.graph.erase_node(node)


def _written_over(node: Node) -> list[Node]:
    """The arguments that an operation changes."""
    found: list[Node] = []
    if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
        for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                map_arg(value, found.append)
        map_arg([node.kwargs.get(a.name) for a in node.target._schema.arguments if a.kwarg_only], found.append)
    return found


def _shares_memory(node: Node) -> bool:
    """Whether an operation's result is its first argument under another name: a view, or what was changed in place."""
    if node.target is operator.getitem:
        return True  # one of several results, which may be views
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args or not isinstance(node.args[0], Node):
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _origin(node: Node) -> Node:
    """Whose memory it is."""
    while _shares_memory(node):
        node = node.all_input_nodes[0]
    return node


def _follows_from_numbers(node: Node) -> bool:
    """Whether the same operation on the same numbers gives the same, in memory of its own."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    inputs = node.all_input_nodes
    if _shares_memory(node) or not inputs or any(map(_shares_memory, inputs)):
        return False
    return all(map(_is_number, inputs))


def _count_in_new_places(graph: GraphModule) -> None:
    """A count that a rule raises where its copy lies becomes another number."""
    aten = torch.ops.aten
    apart = {aten.add_.Tensor: aten.add.Tensor, aten.mul_.Tensor: aten.mul.Tensor}
    places = {node: place for place, node in enumerate(graph.graph.nodes)}
    for node in places:
        if node.target not in apart or not _is_scalar(node):
            continue
        copied = node.args[0]
        has_other_names = any(_shares_memory(user) and user is not node for user in copied.users)
        if copied.target is aten._to_copy.default and not has_other_names:
            node.target = apart[node.target]
            copied.replace_all_uses_with(node, lambda user: places[user] > places[node])  # noqa: B023 (called here)


def _hold_scalars(graph: GraphModule) -> None:
    """What a rule computes of its counts and rate is computed once: a compiler would repeat it in the loop over each
    parameter, a power for every vector of numbers.
    """
    for node in filter(_is_scalar, list(graph.graph.nodes)):
        users = [user for user in node.users if getattr(user.meta.get("val"), "ndim", 0)]
        if users:
            with graph.graph.inserting_after(node):
                held = graph.graph.call_function(operators.held(), (node,))
            for user in users:
                user.replace_input_with(node, held)


def _lifted(graph: GraphModule, place: int) -> list[Tensor]:
    """Tensors that the model holds outside of parameters and buffers become arguments, after those that are held: a
    program must see what they are at each step.
    """
    constants: list[Tensor] = []
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    first_of_batch = placeholders[place] if place < len(placeholders) else None
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(graph, node.target)
        if not isinstance(value, Tensor):
            raise Untraceable("it holds a part that is no tensor")
        before = first_of_batch or next(n for n in graph.graph.nodes if n.op != "placeholder")
        with graph.graph.inserting_before(before):
            argument = graph.graph.placeholder(f"constant_{len(constants)}")
        argument.meta = dict(node.meta)
        node.replace_all_uses_with(argument)
        graph.graph.erase_node(node)
        constants.append(value)
    return constants
