"""Backpropagation in the open: from the loss back to the first layer, one factor of the chain rule at a time.

For a layer y = f(x, w) and g = ∂J/∂y, which the layers behind it have left,

    ∂J/∂x = (∂y/∂x)ᵀ g        goes on to the layer before it
    ∂J/∂w = (∂y/∂w)ᵀ g        is the gradient that training uses

and a tensor that is used several times gets the sum (Rumelhart, Hinton & Williams 1986). The factors are written out in
`rules/`, one for each operation; autograd has no part in it. The growth |∂J/∂x| / |∂J/∂y| says how much a layer's
Jacobian stretches or shrinks the gradient on its way down: it is what makes gradients vanish or explode (Bengio, Simard
& Frasconi 1994; Pascanu, Mikolov & Bengio 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.tape import Layer, Operation, Tape, UntraceableError
from thalweg.gradients.taps import eager, uncompiled
from thalweg.records.backprop import Backprop, LayerFlow
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Batch, read
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss, resolve
from thalweg.tensors import seeds
from thalweg.tensors.named import leaves, mapped

#: Examples of the one batch that is looked at.
BATCH_SIZE = 256

#: Norms in float32 between these have lost nothing to squares beyond its range.
_SAFE = (1e-12, 1e18)

#: A tensor and its gradient.
Start = tuple[Tensor, Tensor]
LossLike = str | Callable[[Any, Any], Tensor] | None


def backprop(model: nn.Module, data: Any, loss: LossLike = None) -> Backprop:
    """Sweep back through a model, layer by layer, and say what becomes of the gradient.

    The model runs once, in the mode it is in, on the first (at most 256) examples; nothing of it is changed.

    Args:
        model: any module whose operations have rules; `UntraceableError` names the first that has none.
        data: in any form that `fit` takes.
        loss: a name, a function of output and target, or None where the model returns its loss. The derivative of a
            function in torch's operations is swept like the model; where one of them has no rule (`ctc`), the loss
            alone is left to autograd.

    Returns:
        One row for each call of a layer, the output layer first.

    Raises:
        ValueError: an operation cannot be followed, or loss and data do not fit.

    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> _ = nn.init.ones_(net[0].weight)
    >>> [row] = backprop(net, ([[1.0, 1.0]], [[0.0]]), "mse").rows
    >>> row.output_gradient, row.input_gradient, row.weight_gradient  # g = 2(y − 0), g w, g x
    (4.0, 5.656..., 5.656...)
    """
    flow = Flow()
    value, _ = _swept(model, first_batch(model, data), loss, flow)
    return Backprop(flow.rows(), value)


def gradients(model: nn.Module, batch: Batch, loss: LossLike = None) -> dict[str, Tensor]:
    """∂J/∂w for every parameter that is trained and used, by name, from the same sweep. Nothing is changed.

    Raises:
        ValueError: as `backprop`.
    """
    _, found = _swept(model, batch, loss, None)
    return {name: found[id(p)] for name, p in Forward(eager(model)).parameters().items() if id(p) in found}


def first_batch(model: nn.Module, data: Any, rows: int = BATCH_SIZE) -> Batch:
    """Some examples as the model takes them: in its dtype, on its device.

    Raises:
        ValueError, TypeError: data that cannot be read.
    """
    p = next((t for t in model.parameters() if t.is_floating_point()), torch.empty(0))
    x, y = Batches(read(data, p.dtype), Order(rows, shuffle=False), p.dtype, p.device).first(rows)
    return x, y


# ── one pass forward, one back ──


def _swept(model: nn.Module, batch: Batch, loss: LossLike, flow: Flow | None) -> tuple[float, dict[int, Tensor]]:
    """The loss, and ∂J/∂w of all parameters by their `id` (of the inputs too where `flow` watches)."""
    model = eager(model)
    forward, rule = Forward(model), None if loss is None else resolve(loss)
    tape = Tape(model)
    with unchanged(forward), torch.enable_grad(), uncompiled():
        starts, value = _recorded(tape, forward, rule, batch)
    with torch.no_grad():
        return float(value), _sweep(tape, starts, flow)


def _recorded(tape: Tape, forward: Forward, loss: Loss | None, batch: Batch) -> tuple[list[Start], Tensor]:
    """Run forward and loss: where the sweep starts, and the loss."""
    x, y = tape.inputs(batch[0]), batch[1]
    with tape, tape.layers():
        output = forward.own_loss(x, y) if loss is None else forward(x)
        added = forward.added_loss()
    output = tape.current(output)
    if loss is None:
        starts, value = [(output, torch.ones_like(output))], output.detach()
    else:
        loss.check(mapped(Tensor.detach, output), y)
        starts, value = _of_loss(tape, loss, output, y)
    if added is not None:
        starts.append((added, torch.ones_like(added)))
        value = value + added.detach()
    if not any(tape.follows(t) for t, _ in starts):
        raise ValueError("the loss does not depend on the parameters or inputs: there is no gradient to follow")
    return starts, value


def _of_loss(tape: Tape, loss: Loss, output: Any, target: Any) -> tuple[list[Start], Tensor]:
    """∂J/∂J = 1 with the loss recorded like the model; or, where it has no rule, ∂J/∂z from autograd of it alone."""
    try:
        with tape.of_the_loss():
            J = loss(output, target)
        return [(J, torch.ones_like(J))], J.detach()
    except UntraceableError:
        z = mapped(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, output)
        J = loss(z, target)
        ends = [(t, leaf) for t, leaf in zip(leaves(output), leaves(z), strict=True) if leaf.requires_grad]
        found = torch.autograd.grad(J, [leaf for _, leaf in ends], allow_unused=True)
        return [(t, g) for (t, _), g in zip(ends, found, strict=True) if g is not None], J.detach()


def _sweep(tape: Tape, starts: list[Start], flow: Flow | None) -> dict[int, Tensor]:
    """From the last operation to the first: pull the gradient of its outputs back to its operands, and add up.

    Where no one watches the flow, what leads to the inputs alone is left out, as in autograd.
    """
    tape.check_constants()
    wanted = tape.is_trained if flow is None else tape.follows
    gradient: dict[int, Tensor] = {}
    for t, g in starts:
        gradient[id(t)] = gradient[id(t)] + g if id(t) in gradient else g
    while tape.operations:
        operation = tape.operations.pop()
        gs = [gradient.pop(id(t), None) for t in operation.outputs]
        if any(g is not None for g in gs):
            if flow is not None:
                flow.arrived(operation, gs)
            for t, share in operation.pull(*gs):
                if wanted(t):
                    d = _fitted(share(), t)
                    gradient[id(t)] = gradient[id(t)] + d if id(t) in gradient else d
                    if flow is not None:
                        flow.left(operation, t, d, id(t) in tape.parameters)
        if flow is not None and operation.layer.first == len(tape.operations):
            flow.passed(operation.layer)
    return gradient


def _fitted(share: Tensor, operand: Tensor) -> Tensor:
    """In the operand's shape and dtype: summed over what was broadcast."""
    share = share if share.dtype is operand.dtype else share.to(operand.dtype)
    return share if share.shape == operand.shape else share.sum_to_size(operand.shape)


class Snapshot:
    """Buffers, seeds and the random state of a moment, to go back to."""

    def __init__(self, forward: Forward) -> None:
        self._buffers = [(module, dict(module._buffers)) for module in forward.model.modules() if module._buffers]
        if forward.is_keras:  # it keeps statistics and seeds as parameters that are not trained
            trained = {id(p) for p in forward.parameters().values()}
            state = [t for t in forward.state().values() if id(t) not in trained]
        else:
            state = [t for _, buffers in self._buffers for t in buffers.values() if t is not None]
        self._state = [(t, t.detach().clone()) for t in {id(t): t for t in state}.values()]
        self._put_back_random = seeds.as_found()

    def restore(self) -> None:
        """Everything as it was; a buffer that was replaced by another tensor is the old one again."""
        for module, buffers in self._buffers:
            module._buffers.update(buffers)
        with torch.no_grad():
            for t, value in self._state:
                t.copy_(value)
        self._put_back_random()


@contextmanager
def unchanged(forward: Forward) -> Iterator[None]:
    """Whatever runs inside, buffers, seeds and the random state are as before afterwards."""
    found = Snapshot(forward)
    try:
        yield
    finally:
        found.restore()


# ── what becomes of the gradient ──


@dataclass(slots=True)
class _Passing:
    """What is known of a layer while the sweep is in it."""

    arrived: list[Tensor] = field(default_factory=list)
    inputs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Passed:
    """What is kept of a layer."""

    layer: Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    numbers: int
    """Of all inputs together."""
    has_weights: bool


class Flow:
    """Watches the sweep: the norms of what arrives at a layer and of what it leaves behind.

    The inputs' share is that of this layer alone: where a residual branches off, the other branch has its own.
    """

    def __init__(self) -> None:
        self._open: dict[int, _Passing] = {}
        self._layers: list[_Passed] = []
        self._norms: list[Tensor] = []

    def arrived(self, operation: Operation, gs: list[Tensor | None]) -> None:
        """The gradient of an operation's outputs is complete."""
        passing = self._open.setdefault(id(operation.layer), _Passing())
        ends = {id(t) for t in operation.layer.outputs}
        passing.arrived += [g for t, g in zip(operation.outputs, gs, strict=True) if g is not None and id(t) in ends]

    def left(self, operation: Operation, t: Tensor, d: Tensor, is_parameter: bool) -> None:
        """An operand got its share."""
        passing = self._open[id(operation.layer)]
        if is_parameter:
            passing.weights[id(t)] = passing.weights[id(t)] + d if id(t) in passing.weights else d
        elif id(t) not in operation.layer.made:
            passing.inputs[id(t)] = (t, passing.inputs[id(t)][1] + d if id(t) in passing.inputs else d)

    def passed(self, layer: Layer) -> None:
        """The sweep has left a layer: its tensors are let go, its norms stay on the device."""
        passing = self._open.pop(id(layer), None)
        if passing is None or not layer.listed:
            return
        inputs = [t for t, _ in passing.inputs.values()]
        outputs, weights = layer.outputs, list(passing.weights.values())
        of_inputs = [d for _, d in passing.inputs.values()]
        self._norms += [_norm(tensors) for tensors in (inputs, passing.arrived, of_inputs, weights)]
        numbers = sum(t.numel() for t in inputs)
        self._layers.append(_Passed(layer, _shape(inputs), _shape(outputs), numbers, bool(weights)))

    def rows(self) -> tuple[LayerFlow, ...]:
        """All layers in the order of the sweep. Here the numbers are read, all at once."""
        norms = iter(_together(self._norms).tolist() if self._norms else [])
        return tuple(self._row(passed, next(norms), next(norms), next(norms), next(norms)) for passed in self._layers)

    def _row(self, passed: _Passed, x: float, g: float, dx: float, dw: float) -> LayerFlow:
        has_inputs = passed.numbers > 0
        return LayerFlow(
            name=passed.layer.name,
            kind=passed.layer.kind,
            signal=x / math.sqrt(passed.numbers) if has_inputs else None,
            jacobian=dx / g if has_inputs and g else None,
            output_gradient=g,
            input_gradient=dx if has_inputs else None,
            weight_gradient=dw if passed.has_weights else None,
            input_shape=passed.input_shape,
            output_shape=passed.output_shape,
        )


def _together(norms: list[Tensor]) -> Tensor:
    """In one tensor, on the accelerator where there is one: the norm of no tensors at all lies on the CPU."""
    like = next((norm for norm in norms if norm.device.type != "cpu"), norms[0])
    return torch.stack([norm.to(like) for norm in norms])


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all together."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    norms = [_norm_of_one(t) for t in tensors]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _norm_of_one(t: Tensor) -> Tensor:
    """A norm that neither overflows nor vanishes where the squares of float32 would.

    An accelerator sums in float64 at once. On the CPU that takes seven times as long, so it is done only where it must,
    which is seen without waiting.
    """
    if t.device.type != "cpu":
        return torch.linalg.vector_norm(t, dtype=torch.float32 if t.device.type == "mps" else torch.float64)
    norm = torch.linalg.vector_norm(t, dtype=None if t.dtype in (torch.float32, torch.float64) else torch.float32)
    is_safe = _SAFE[0] < norm.item() < _SAFE[1]
    return norm.double() if is_safe else torch.linalg.vector_norm(t, dtype=torch.float64)


def _shape(tensors: list[Tensor]) -> tuple[int, ...]:
    """The shape of the first, which names the layer's input or output."""
    return tuple(tensors[0].shape) if tensors else ()
