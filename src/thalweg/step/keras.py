"""What differs in a Keras model on the torch backend; Keras is recognised here and never imported.

Keras ignores `module.train()`, adds losses of its own, and counts its random draws in tensors. Its `state_dict()` is no
ground to stand on: its keys carry numbers that count up within a process (`dense_7`), weights of one path replace each
other in it, and buffers of wrapped torch modules are missing. So names and tensors are read from `model.variables`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.tensors import seeds
from thalweg.tensors.named import assign, copied, leaves, mapped

_PACKAGES = ("keras", "tf_keras")
_REMEDY = 'import os; os.environ["KERAS_BACKEND"] = "torch"  # before the first import of keras'


def is_keras(model: object) -> bool:
    """Whether a model is a Keras model or layer, of any backend and version; Keras need not be installed.

    >>> is_keras(nn.Linear(2, 3))
    False
    """
    return any(cls.__module__.partition(".")[0] in _PACKAGES for cls in type(model).__mro__)


def require_torch_backend(model: object) -> None:
    """Let pass what PyTorch can train: on the torch backend, and only there, a Keras model is an `nn.Module`.

    Raises:
        TypeError: a Keras model of another backend; the message holds the line to add.
    """
    if isinstance(model, nn.Module) or not is_keras(model):
        return
    modules = " ".join(cls.__module__ for cls in type(model).__mro__)
    backend = re.search(r"\bbackend\.(jax|numpy|openvino)\b", modules)
    raise TypeError(
        f"this Keras model was built on {backend[1] if backend else 'tensorflow'}, and Thalweg trains PyTorch models; "
        f"with Keras 3, put this line first and build the model again:\n    {_REMEDY}"
    )


def layers(model: Any) -> list[nn.Module]:
    """The model and every layer in it; `model.modules()` finds no layer of a `Sequential` or functional model."""
    found: list[nn.Module] = model._flatten_layers()
    return found


def build(model: Any, x: Any) -> None:
    """Build what is unbuilt by one call on the first example; only new weights stay of it.

    New weights are drawn from the global generators as they are found, and these are put back; so are the model's
    variables that were there before, its seed generators among them.

    Args:
        model: a Keras model on the torch backend.
        x: a tensor `[batch, …]`, a tuple or a dict of them.
    """
    if all(layer.built for layer in layers(model)):
        return
    found = {str(id(variable)): variable.value for variable in model.variables}
    found["global"] = global_seed()
    values = copied(found)
    with seeds.untouched(), torch.no_grad():
        call(model, mapped(lambda tensor: tensor[:1], x), training=False)
    assign(found, values)
    known = {id(tensor) for tensor in found.values()}
    for state in seed_tensors(model):
        if id(state) not in known:
            state[1] = 0  # a new generator: (seed, draws so far)


def call(model: Any, x: Any, training: bool) -> Any:
    """Outputs of a Keras model.

    `training` goes with every call, also where the model's own `call` does not take it: Keras then hands it to the
    layers inside, which would otherwise leave dropout off and batch statistics unused.

    Args:
        model: a Keras model on the torch backend.
        x: a tensor `[batch, …]`, a dict of them, or a tuple, which Keras takes as a list.
        training: True draws dropout and updates batch statistics.
    """
    with _device_of(x):
        return model(list(x) if isinstance(x, tuple) else x, training=training)


def regularisation(model: Any) -> Tensor | None:
    """The sum of what the model adds to the loss of its last call: a scalar, or None where it adds nothing.

    These are weight and activity regularisers and `add_loss`. Nothing is remembered from call to call, as layers may
    add a loss in one call and none in the next; asking in vain costs a few hundredths of the call itself.
    """
    with _device_of([variable.value for variable in model.variables[:1]]):
        losses = model.losses
    if not losses:
        return None
    total: Tensor = losses[0].sum()
    for loss in losses[1:]:
        total = total + loss.sum()
    return total


def is_constrained(model: Any) -> bool:
    """Whether any weight that trains has a constraint (`kernel_constraint=…`)."""
    return any(variable.constraint is not None for variable in model.trainable_weights)


def apply_constraints(model: Any) -> None:
    """Project the weights onto their constraints, as Keras does after each update."""
    constrained = [variable for variable in model.trainable_weights if variable.constraint is not None]
    if not constrained:
        return
    with torch.no_grad(), _device_of([constrained[0].value]):
        for variable in constrained:
            variable.assign(variable.constraint(variable))


def trainable_parameters(model: Any) -> dict[str, nn.Parameter]:
    """What a training may change, by stable name.

    A parameter must be trainable to Keras and require a gradient to torch: `Model(…, trainable=False)` leaves
    `requires_grad` on, and `requires_grad_(False)` leaves Keras's `trainable` on.
    """
    trainable = {id(variable) for variable in model.trainable_weights}
    return {
        name: variable.value
        for name, variable in _named_variables(model).items()
        if id(variable) in trainable and variable.value.requires_grad
    }


def state_tensors(model: Any) -> dict[str, Tensor]:
    """All that is to be saved to go on exactly, the tensors themselves, by stable name.

    Weights, moving statistics, seed generators `[2]`, other variables of layers, and the buffers of torch modules that
    Keras wraps. Two models built by the same code have the same names, in one process or in two. Not among them are
    the global generators: torch's, from which `Dropout(seed=None)` draws, and Keras's (`global_seed`).
    """
    tensors: dict[str, Tensor] = {name: variable.value for name, variable in _named_variables(model).items()}
    seen = {id(tensor) for tensor in tensors.values()}
    for layer in layers(model):
        for name, buffer in layer.named_buffers():
            if id(buffer) not in seen:
                seen.add(id(buffer))
                tensors[_unused(f"buffers.{name}", tensors)] = buffer
    return tensors


def seed_tensors(model: Any) -> list[Tensor]:
    """The states of the model's seed generators, each (seed, draws so far) `[2]`: no weights, never averaged."""
    weights = {id(weight) for weight in model.weights}
    return [variable.value for variable in model.variables if id(variable) not in weights]


def global_seed() -> Tensor:
    """The state `[2]` of Keras's own global generator in this thread; `keras.random.*` without a seed draws from it."""
    with seeds.untouched():  # the first to ask for the generator seeds it from Python's
        state: Tensor = sys.modules["keras.src.random.seed_generator"].global_seed_generator().state.value
    return state


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, Keras's own global generator follows from the seed; outside it is as it was."""
    state = global_seed()
    found = state.clone()
    with torch.no_grad():
        state.copy_(torch.tensor([seed % 2**31, 0]))
    try:
        yield
    finally:
        with torch.no_grad():
            state.copy_(found)


def _device_of(x: Any) -> contextlib.AbstractContextManager[Any]:
    """Keras moves every input to its own default device, the first accelerator; here it stays where `x` is."""
    first = next(leaves(x), None)
    if first is None:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = sys.modules["keras"].device(str(first.device))
    return scope


def _named_variables(model: Any) -> dict[str, Any]:
    """Each variable of a model once, in Keras's order, by the layers that hold it, as in `dense_1.kernel`.

    A variable's own `path` will not do: it tells which layer was at work when it was made.
    """
    places: dict[int, str] = {}
    _place(model, "", places, Counter())
    named: dict[str, Any] = {}
    for variable in model.variables:
        name = "variable" if re.fullmatch(r"variable_\d+", variable.name) else variable.name
        named[_unused(places[id(variable)] + name, named)] = variable
    return named


def _place(layer: Any, prefix: str, places: dict[int, str], counts: Counter[str]) -> None:
    """Note for each variable the first of the innermost layers that hold it."""
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        _place(inner, f"{prefix}{_stable_name(inner, counts)}.", places, counts)
    for variable in layer.variables:
        places.setdefault(id(variable), prefix)


def _stable_name(layer: Any, counts: Counter[str]) -> str:
    """A layer's name; one that Keras made up, as `dense_7` or `forward_lstm_3`, is counted anew in each model.

    Keras counts within a process: the `dense_1` of one model is the `dense_3` of its twin.
    """
    name: str = layer.name
    automatic = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)).lower()
    base = re.sub(r"_\d+$", "", name)
    if base != automatic and not base.endswith(f"_{automatic}"):
        return name
    counts[base] += 1
    return f"{base}_{counts[base] - 1}" if counts[base] > 1 else base


def _unused(name: str, taken: dict[str, Any]) -> str:
    """The name, or where it is taken the first free `name.2`, `name.3`, …: Keras lets two weights share a path."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}.{number}", number + 1
    return candidate
