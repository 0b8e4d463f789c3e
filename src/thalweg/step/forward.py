"""Step one: model, batch → outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from thalweg.step import keras
from thalweg.step.refusal import Refusal
from thalweg.tensors import named


class Forward:
    """Calls a model as it wants to be called: several inputs as arguments, a dict by name, Keras with its flag.

    A model whose `forward` takes one argument, by a name that is no key of the dict, is given the dict itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.is_keras = keras.is_keras(model)
        self._names = _names_of_one(model)

    def __call__(self, x: Any, training: bool = True) -> Any:
        """Outputs for inputs `x`: a tensor `[batch, …]`, a tuple or a dict of them."""
        if self.is_keras:
            return keras.call(self.model, x, training)
        if isinstance(x, Tensor):
            return self.model(x)
        if isinstance(x, Mapping):
            is_named = self._names is None or not self._names.isdisjoint(x)
            return self.model(**x) if is_named else self.model(x)
        if isinstance(x, tuple):
            return self.model(*x)
        return self.model(x)

    def own_loss(self, x: Any, y: Any, training: bool = True) -> Tensor:
        """The loss of a model that makes its own: it is called with inputs and target, and returns the loss.

        Understood are a scalar tensor, an object with `.loss`, a dict with "loss", a tuple that begins with the loss.

        Raises:
            ValueError: none of these came back.
        """
        if isinstance(x, Mapping):
            output = self(x if y is None else {**x, "target": y}, training)
        else:
            inputs = x if isinstance(x, tuple) else (x,)
            output = self(inputs if y is None else (*inputs, y), training)
        if isinstance(output, Mapping):
            output = output.get("loss")
        elif isinstance(output, tuple | list):
            output = output[0]
        elif not isinstance(output, Tensor):
            output = getattr(output, "loss", None)
        if not isinstance(output, Tensor) or output.ndim:
            shape = f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else f"{output!r}"
            words = f"without a loss the model must return a scalar loss, it returned {shape}; give loss="
            raise Refusal("loss_output_mismatch", words)
        return output

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the model that a training may change or read, by a name that the next process knows too."""
        if not self.is_keras:
            return named.state(self.model)
        return {**keras.state_tensors(self.model), "keras.global_seed": keras.global_seed()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; a tied parameter once."""
        if self.is_keras:
            return keras.trainable_parameters(self.model)
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, Tensor]:
        """What a prediction depends on, by name, and an average is taken over: no seeds, no counters."""
        tensors = dict(self.state())
        seeds = {id(t) for t in keras.seed_tensors(self.model)} if self.is_keras else set()
        tensors.pop("keras.global_seed", None)
        return {name: t for name, t in tensors.items() if t.is_floating_point() and id(t) not in seeds}

    def added_loss(self) -> Tensor | None:
        """What the model itself adds to the loss: a Keras model's regularisers."""
        return keras.regularisation(self.model) if self.is_keras else None


def _names_of_one(model: nn.Module) -> frozenset[str] | None:
    """What `forward` calls its arguments, where one alone goes by position and no name will do; else None."""
    called = getattr(model, "_orig_mod", model)  # of a compiled model
    try:
        parameters = inspect.signature(called.forward).parameters
    except (TypeError, ValueError):  # scripted, or not of Python
        return None
    kinds = [parameter.kind for parameter in parameters.values()]
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    is_one = sum(kind in by_position for kind in kinds) == 1 and not any(kind in open_ended for kind in kinds)
    return frozenset(parameters) if is_one else None
