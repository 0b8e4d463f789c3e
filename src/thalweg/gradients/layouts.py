"""Where the examples of a batch are in every layer's tensors, found out and not guessed.

A shape alone does not tell the batch axis: 32 sequences of 32 steps, a table of positions that all examples share. So
the model is also run on the first example by itself; the axis that has shrunk from the batch to one is the batch axis.
The same run shows whether examples change each other's outputs, in which case none has a gradient of its own. What was
found is remembered for as long as the model lives, by the shapes of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.gradients.layers import Layout, kind
from thalweg.gradients.taps import Tap, Taps
from thalweg.step.forward import Forward
from thalweg.tensors.named import leaves, mapped

_FOUND: WeakKeyDictionary[nn.Module, dict[Any, Layouts]] = WeakKeyDictionary()


@dataclass
class Layouts:
    """The layout of each call of each layer; listens to the forward of a batch and settles them."""

    batch: int
    single: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """What each call took for the first example alone; forgotten when settled."""
    settled: dict[tuple[str, int], tuple[torch.Size, Layout | None]] = field(default_factory=dict)
    stochastic: bool = False
    """Whether the forward draws random numbers."""
    first_output: Any = None

    def wants(self, layer: str, module: nn.Module) -> tuple[str, ...]:
        """The input of every layer that is known."""
        return ("input",) if kind(module) else ()

    def read(self, tap: Tap) -> None:
        """A call in the forward of the whole batch."""
        assert tap.input is not None
        key = tap.layer, tap.call
        if key not in self.settled:
            self.settled[key] = tap.input.shape, self._layout(tap.input, self.single.get(key))
        elif self.settled[key][0] != tap.input.shape:  # the shape depends on the data: no rule for it
            self.settled[key] = tap.input.shape, None

    def of(self, tap: Tap) -> Layout | None:
        """Where the examples are in a tap; None where that is not known, or they are not apart there."""
        return self.settled.get((tap.layer, tap.call), (None, None))[1]

    def check_apart(self, output: Any) -> None:
        """Refuse a model whose output for the first example depends on the other examples.

        Raises:
            ValueError: it does.
        """
        first, self.first_output = self.first_output, None
        self.single.clear()
        if first is None or self.stochastic:
            return
        for alone, together in zip(leaves(first), leaves(output), strict=True):
            if not alone.is_floating_point() or alone.ndim == 0:
                continue
            together = together.detach()[:1]
            allowed = torch.finfo(alone.dtype).eps ** 0.5 * together.abs().amax().clamp_min(1e-30)
            if alone.shape != together.shape or not bool(((alone - together).abs() <= allowed).all()):
                raise ValueError(
                    "the model's output for an example depends on the other examples of the batch, so that no example "
                    "has a gradient of its own: look for statistics or attention over the batch axis"
                )

    def _layout(self, x: Tensor, alone: Tensor | None) -> Layout | None:
        if self.batch == 1:
            return Layout() if alone is not None and x.ndim == 1 else Layout(0, 1)
        if alone is None or alone.ndim != x.ndim:
            return None
        axes = [i for i in range(x.ndim) if x.shape[i] != alone.shape[i]]
        if len(axes) != 1 or x.shape[axes[0]] != self.batch * alone.shape[axes[0]]:
            return None
        fold = alone.shape[axes[0]]
        if fold == 1:
            return Layout(axes[0])
        if axes[0] == 0 and not self.stochastic and _same(alone, x[:fold]) and not _same(alone, x[:: self.batch]):
            return Layout(0, fold)
        return None


def layouts(forward: Forward, batch: tuple[Any, Any], own_loss: bool) -> Layouts:
    """The layouts of a model for inputs like these; the model is run on the first example where they are new."""
    model, (x, y) = forward.model, batch
    num_examples = len(next(leaves(x)))
    key = (tuple(t.shape for t in leaves(x)), tuple(m.training for m in model.modules()), torch.is_autocast_enabled())
    remembered = _FOUND.setdefault(model, {})
    if key not in remembered:
        remembered[key] = found = Layouts(num_examples)
        try:
            _probe(found, forward, mapped(lambda t: t[:1], (x, y)), own_loss)
        except BaseException:
            del remembered[key]
            raise
    return remembered[key]


def forget(model: nn.Module) -> None:
    """Find the layouts of this model anew."""
    _FOUND.pop(model, None)


def check_independent(model: nn.Module) -> None:
    """Refuse a model that normalises over the batch.

    Raises:
        ValueError: there is a batch norm in training mode.
    """
    for name, module in model.named_modules():
        normalises = isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        if normalises or (type(module).__name__ == "BatchNormalization" and module.training):
            raise ValueError(
                f"layer {name!r} normalises over the batch, so that no example has a gradient of its own: call "
                "model.eval() to use its running statistics"
            )


class _Inputs:
    def __init__(self, into: dict[tuple[str, int], Tensor]) -> None:
        self.into = into

    def wants(self, layer: str, module: nn.Module) -> tuple[str, ...]:
        return ("input",) if kind(module) else ()

    def read(self, tap: Tap) -> None:
        assert tap.input is not None
        self.into[tap.layer, tap.call] = tap.input


def _probe(found: Layouts, forward: Forward, one: tuple[Any, Any], own_loss: bool) -> None:
    training = forward.model.training
    device = next(leaves(one)).device
    state = _random_state(device)
    with torch.enable_grad(), Taps(forward.model, _Inputs(found.single)):
        if own_loss:
            forward.own_loss(*one, training)
        else:
            found.first_output = mapped(Tensor.detach, forward(one[0], training))
    found.stochastic = any(not torch.equal(a, b) for a, b in zip(state, _random_state(device), strict=True))
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.get_device_module(device).set_rng_state(state[1], device)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=1e-3, atol=1e-6)
