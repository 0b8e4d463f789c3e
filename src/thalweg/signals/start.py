"""What a model and its loss are like before the first update: facts of one forward and backward pass.

The pass is that of training, on the first examples; random state, buffers, modes and gradients are put back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.step.backward import objective
from thalweg.step.data import Batch, num_examples
from thalweg.step.kinds import Kind, class_axis
from thalweg.step.moment import Moment
from thalweg.step.whole import Step
from thalweg.tensors.named import leaves

#: Share of a loss that rounding does not explain, also where a device adds up in any order.
RANDOM = 1e-4
#: What came last before the output, by the name of its node in autograd's graph.
_FUNCTIONS = {
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "Sigmoid": "sigmoid",
    "Relu": "relu",
    "Tanh": "tanh",
}
#: Nodes that only show the same numbers in another shape.
_SHAPES = frozenset(
    ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute", "Clone", "Slice")
)
#: Share of a gradient by which equal ones may differ: sums in float32 are made in different orders.
ROUNDING = 1e-5
#: How far the weight with the largest gradient is moved to see what a step would change: as far as weights are large.
MOVE = 0.1
_MODES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
_MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)
_ACTIVATIONS = "torch.nn.modules.activation"


def of_start(step: Step, batch: Batch, kind: Kind | None) -> dict[str, Any]:
    """Facts of the model as it stands, by the names of docs/signals.md."""
    model = step.forward.model
    found = {**of_model(model), "modules_in_eval": _in_eval(model)}
    if step.forward.is_keras:
        return found
    moment = Moment(step.forward)
    modes = [(module, module.training) for module in model.modules()]
    parameters = dict(model.named_parameters())
    trained = [p for p in parameters.values() if p.requires_grad]
    try:
        model.train()
        with torch.enable_grad():
            loss, output = objective(step.forward, step.loss, batch)
            gradients = torch.autograd.grad(loss, trained, allow_unused=True) if loss.requires_grad else ()
        found["initial_loss"] = float(loss.detach())
        if step.loss is not None and step.loss.reduction == "sum":  # told per example, as in training
            found["initial_loss"] /= num_examples(batch)
            found["terms_per_example"] = float(step.loss.num_terms(output, batch[1])) / num_examples(batch)
        found |= _of_output(output, batch[1], kind)
        found |= _of_gradients(parameters, trained, gradients)
        alike = _alike(parameters, gradients)
        if any(name in alike for name in found["symmetric_layers"]):
            alike &= _alike_after(step, batch, parameters, gradients)
        found["symmetric_layers"] = _with_units(model, found["symmetric_layers"], alike)
        found["unbroken_layers"] = [name for name in found["symmetric_layers"] if name in alike]
        found["random_in_evaluation"] = _is_random(step, batch)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ):  # a model that cannot be differentiated this way is trained all the same
        pass
    finally:
        for module, mode in modes:
            module.training = mode
        moment.put_back()
    return found


def _is_random(step: Step, batch: Batch) -> bool:
    """Whether the model in evaluation gives one batch two losses: dropout that does not know the difference, say."""
    step.forward.model.eval()
    with torch.no_grad():
        first, second = (float(objective(step.forward, step.loss, batch)[0]) for _ in range(2))
    return abs(first - second) > RANDOM * abs(first)


def of_model(model: nn.Module) -> dict[str, Any]:
    """Facts of the layers and their weights alone."""
    return {**_of_layers(model), **_of_weights(model)}


def _of_layers(model: nn.Module) -> dict[str, Any]:
    layers: dict[str, dict[str, Any]] = {}
    frozen = []
    for name, p in model.named_parameters():
        owner, _, own = name.rpartition(".")
        module = model.get_submodule(owner) if owner else model
        kind = type(module).__name__ if owner else "Parameter"
        layer = layers.setdefault(
            owner or name, {"name": owner or name, "kind": kind, "parameters": 0, "trainable": False, "bias": False}
        )
        layer["parameters"] += p.numel()
        layer["trainable"] |= p.requires_grad
        layer["bias"] |= "bias" in own
        if p.ndim > 1 and isinstance(module, _MATRICES):
            layer["scale"] = max(layer.get("scale", 0.0), _scale(p.detach()))
        if not p.requires_grad:
            frozen.append(name)
    activations = [
        {"name": name, "kind": type(module).__name__}
        for name, module in model.named_modules()
        if type(module).__module__ == _ACTIVATIONS and type(module).__name__ != "MultiheadAttention"
    ]
    return {"layers": list(layers.values()), "activations": activations, "frozen_parameters": frozen}


def _scale(weights: Tensor) -> float:
    """Root mean square times the root of the inputs of a unit: what its output spreads by, for inputs that spread by 1.
    About 0.6 as torch makes layers, 1 (LeCun), 1.4 (He).
    """
    return float(weights.double().square().mean().sqrt()) * math.sqrt(weights[0].numel())


def _of_weights(model: nn.Module) -> dict[str, Any]:
    """Layers whose units all have the same incoming weights: they get the same gradient, and stay alike."""
    alike = []
    for name, p in model.named_parameters():
        rows = p.detach().flatten(1) if p.ndim > 1 else None
        if rows is not None and len(rows) > 1 and bool((rows == rows[:1]).all()):
            alike.append(name.rpartition(".")[0] or name)
    return {"symmetric_layers": list(dict.fromkeys(alike))}


def _with_units(model: nn.Module, names: list[str], alike: set[str]) -> list[str]:
    """Those of the layers that are matrices, or get one gradient for all rows as a matrix would: the rows of a table of
    places, or of scales by frequency, are no units, and may well begin the same.
    """
    matrices = {name for name, module in model.named_modules() if isinstance(module, _MATRICES)}
    return [name for name in names if name in matrices or name in alike]


def _in_eval(model: nn.Module) -> list[str]:
    """Modules that stay in evaluation mode although the model is told to train, of those that know the difference."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    stuck = [name for name, module in model.named_modules() if isinstance(module, _MODES) and not module.training]
    for module, mode in modes:
        module.training = mode
    return stuck


def _of_output(output: Any, target: Any, kind: Kind | None) -> dict[str, Any]:
    y = next(iter(leaves(output)), None) if output is not None else None
    if y is None or not y.is_floating_point() or y.ndim == 0:
        return {}
    found: dict[str, Any] = {"output_function": output_function(y)}
    y = y.detach()
    found |= {"output_low": float(y.min()), "output_high": float(y.max()), "output_units": y[0].numel()}
    if len(y) > 1:
        found["output_spread"] = float(y.std(0, correction=0).mean())
    axis = class_axis(y, target) if kind is not None and kind.task == "classification" else None
    if axis is not None:
        found["output_row_sum_error"] = float((y.sum(axis) - 1).abs().mean())
        found["output_units"] = y.shape[axis]
    return {name: value for name, value in found.items() if not isinstance(value, float) or math.isfinite(value)}


def output_function(output: Tensor) -> str:
    """What the output came out of: softmax, log_softmax, sigmoid, relu, tanh or none.

    >>> output_function(torch.zeros(2, 3, requires_grad=True).softmax(1).reshape(6))
    'softmax'
    """
    node = output.grad_fn
    while node is not None:
        name = node.name().rpartition("Backward")[0]
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if name not in _SHAPES or not node.next_functions:
            break
        node = node.next_functions[0][0]
    return "none"


def _alike(parameters: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...]) -> set[str]:
    """Layers whose units all get the same gradient, or none: with the same weights, they stay the same unit."""
    trained = [(name, p) for name, p in parameters.items() if p.requires_grad]
    alike = set()
    for (name, p), gradient in zip(trained, gradients, strict=False):
        if p.ndim > 1 and (
            gradient is None or bool((gradient - gradient[:1]).abs().max() <= ROUNDING * gradient.abs().max())
        ):
            alike.add(name.rpartition(".")[0] or name)
    return alike


def _alike_after(
    step: Step, batch: Batch, parameters: dict[str, nn.Parameter], gradients: tuple[Tensor | None, ...]
) -> set[str]:
    """The same after a step down the gradient: a layer behind may have held it back and does so no longer, as a last
    layer of zeros does. The weights are put back.
    """
    trained = [p for p in parameters.values() if p.requires_grad]
    saved = [p.detach().clone() for p in trained]
    largest = max((float(g.abs().max()) for g in gradients if g is not None), default=0.0)
    try:
        with torch.no_grad():
            for p, gradient in zip(trained, gradients, strict=True):
                if gradient is not None and largest > 0:
                    p.sub_(gradient, alpha=MOVE / largest)
        with torch.enable_grad():
            loss, _ = objective(step.forward, step.loss, batch)
            return _alike(parameters, torch.autograd.grad(loss, trained, allow_unused=True))
    finally:
        with torch.no_grad():
            for p, value in zip(trained, saved, strict=True):
                p.copy_(value)


def _of_gradients(
    parameters: dict[str, nn.Parameter], trained: list[nn.Parameter], gradients: tuple[Tensor | None, ...]
) -> dict[str, Any]:
    names = {id(p): name for name, p in parameters.items()}
    unreached, silent = [], []
    for p, gradient in zip(trained, gradients or [None] * len(trained), strict=True):
        if gradient is None:
            unreached.append(names[id(p)])
        elif not bool(gradient.any()):
            silent.append(names[id(p)].rpartition(".")[0] or names[id(p)])
    return {"unreached_parameters": unreached, "gradient_free_layers": list(dict.fromkeys(silent))}
