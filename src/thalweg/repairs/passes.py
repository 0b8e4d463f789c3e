"""One forward pass in evaluation, looked at: who was called with what, and what is done with what comes out.

What is done with an output is read from autograd's graph, so that `F.relu(x)` and `nn.ReLU()(x)` are the same.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from thalweg.repairs import structure
from thalweg.repairs.change import Body
from thalweg.tensors.named import leaves, mapped
from thalweg.tensors.seeds import untouched

#: Examples that a pass is made on where only the structure matters, and where statistics are taken.
FEW, MANY = 4, 1024
#: Activations by their node in autograd's graph: zero or nearly so on one side, or flat on both.
RECTIFIED = frozenset(
    "Relu LeakyRelu Threshold Gelu Silu Elu Softplus Mish Hardswish Hardtanh PreluKernel RreluWithNoise".split()  # noqa: SIM905
)
SATURATING = frozenset(("Sigmoid", "Tanh", "Hardsigmoid", "LogSigmoid"))
#: Spread of the outputs over examples, as a share of their size, below which a network says the same of all; and the
#: least size that counts, so that outputs about zero are not taken for answers.
SAME, LEAST = 1e-2, 1e-2
ACTIVATIONS = RECTIFIED | SATURATING | {"Exp"}
#: Nodes that show the same numbers in another shape, or a choice or a mean of them.
SHAPES = frozenset(
    "View UnsafeView ReshapeAlias Squeeze Unsqueeze Transpose T Permute Clone Slice Alias Split Unbind Select".split()  # noqa: SIM905
)


@dataclass(slots=True)
class Call:
    """A module was called."""

    module: nn.Module
    name: str
    input: Tensor | None
    """Its first argument, where that is a tensor."""
    others: list[Tensor]
    """Tensors among the other arguments."""
    output: Tensor | None
    """The first tensor of what it returned."""
    node: Any
    """The operation that made the output, as it was when the call ended."""
    source: Any
    """The operation that made the input."""
    steps: int | None = None
    """Those of the longest sequence, where sequences came packed."""


@dataclass(slots=True)
class Pass:
    """A forward pass: calls in the order in which they ended, the model's own last."""

    inputs: list[Tensor]
    output: Any
    calls: list[Call]
    uses: dict[Any, list[Any]]
    """Operation → operations that take its result."""

    def times(self, module: nn.Module) -> int:
        """How often a module was called."""
        return sum(call.module is module for call in self.calls)

    def takers(self, call: Call, through: frozenset[str] = SHAPES) -> list[Any]:
        """The operations that take the output, seen through some."""
        found, waiting = [], list(self.uses.get(call.node, ()))
        while waiting:
            node = waiting.pop()
            if operation(node) in through:
                waiting += self.uses.get(node, ())
            else:
                found.append(node)
        return found

    def is_last(self, node: Any) -> bool:
        """Whether an operation makes what the model returns."""
        return any(unshaped(y.grad_fn) is node for y in leaves(self.output))

    def is_constant(self) -> bool:
        """Whether the network says the same of every example: then it computes nothing that would be lost."""
        y = next(leaves(self.output)).detach().double()
        if y.ndim == 0 or len(y) < 2:
            return False
        spread, size = float(y.std(0).square().mean().sqrt()), float(y.square().mean().sqrt())
        return not spread > SAME * max(size, LEAST)

    def is_output(self, call: Call) -> bool:
        """Whether what the model returned is what this module returned, perhaps in another shape."""
        return any(shares(call.output, y) for y in leaves(self.output))


def operation(node: Any) -> str:
    """The name of a node of autograd's graph: `Relu`; every kind of normalisation is `Norm`.

    >>> operation(torch.ones(1, requires_grad=True).tanh().grad_fn)
    'Tanh'
    """
    if node is None:
        return ""
    name: str = node.name().partition("Backward")[0]
    return "Norm" if "Norm" in name and "LinalgVector" not in name else name


def unshaped(node: Any) -> Any:
    """The operation that made the numbers, seen through those that only show them in another shape."""
    while node is not None and operation(node) in SHAPES:
        node = node.next_functions[0][0]
    return node


def shares(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two tensors show the same numbers."""
    if first is None or second is None or first.numel() != second.numel():
        return False
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, also one that refuses to change; modes and random state as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with untouched():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def forward(body: Body, rows: int, graph: bool = False) -> tuple[list[Tensor], Any]:
    """Inputs and output of the model on the first examples of the sample; with a graph that reaches the inputs."""
    x, y = (mapped(lambda t: t[:rows] if t.ndim else t, part) for part in body.sample)
    # A copy of a leaf: a model may change its input in place.
    x = mapped(lambda t: t.detach().clone().requires_grad_(graph and t.is_floating_point()).clone(), x)
    with torch.set_grad_enabled(graph):
        made = body.forward.own_loss(x, y, False) if body.loss is None else body.forward(x, False)
    return list(leaves(x)), made


def is_closed(body: Body) -> bool:
    """Whether nothing of a model can be replaced: Keras, scripted or compiled."""
    return body.forward.is_keras or structure.is_closed(body.model)


def look(body: Body, rows: int = FEW) -> Pass:
    """One pass on the first examples of the sample. Neither weights, buffers, modes nor random state change."""
    calls: list[Call] = []
    names = {module: name for name, module in body.model.named_modules()}

    def note(module: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        given, made = list(leaves((args, named))), next(iter(leaves(output)), None)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        others = given[1:] if first is not None else given
        packed = len(args[0].batch_sizes) if args and isinstance(args[0], PackedSequence) else None
        calls.append(Call(module, names[module], first, others, made, _node(made), _node(first), packed))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in names]
    try:
        with evaluating(body.model):
            inputs, output = forward(body, rows, graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    return Pass(inputs, output, calls, _uses(output))


def _node(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.grad_fn


def _uses(output: Any) -> dict[Any, list[Any]]:
    uses: dict[Any, list[Any]] = defaultdict(list)
    waiting, seen = [t.grad_fn for t in leaves(output) if t.grad_fn is not None], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for before, _ in node.next_functions:
            if before is not None:
                uses[before].append(node)
                waiting.append(before)
    return uses
