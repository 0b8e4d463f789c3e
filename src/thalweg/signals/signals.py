"""Which signals a step takes, and the one moment at which all of them are read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.taps import Taps
from thalweg.signals import backward, forward, noise, update
from thalweg.signals.layers import Layers
from thalweg.step.forward import Forward

#: Every step is reported up to the first of these, then one in so many.
REPORT_FIRST, REPORT_EVERY = 20, 10


class Signals:
    """Takes part in reported steps; nothing waits for the device before `read`.

    What is taken when is decided by the number of the step alone, so that a run repeats and resumes exactly.
    """

    def __init__(self, model: Forward, parameters: Sequence[nn.Parameter], loss: Any = None) -> None:
        """`parameters` in the order in which the update will show them."""
        self._model = model
        self._loss = loss
        self._noise = noise.Noise(model)
        names = {id(p): name for name, p in model.parameters().items()}
        self._layers = Layers.of(names.get(id(p), f"parameter {i}") for i, p in enumerate(parameters))
        self._activations = forward.Activations(model.model)
        self._held: dict[str, Tensor] = {}
        self._old: list[Tensor] | None = None
        self._step = 0
        self.listens = False

    @contextlib.contextmanager
    def taking(self, step: int, batch: Any = None) -> Iterator[Signals]:
        """Around a reported step on a batch: taps are on the model where this is one that is sampled."""
        self._step = step
        if step % noise.EVERY == 0 and isinstance(batch, tuple):
            scale = self._noise.taken(batch, self._loss)
            if scale is not None:
                self._held["noise_scale"] = scale
        if step % forward.EVERY:
            yield self
            return
        self.listens = True
        try:
            with Taps(self._model.model, self._activations):
                yield self
        finally:
            self.listens = False
        self._held.update(self._activations.taken())

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients are there, and not clipped yet."""
        self._held["gradients"] = backward.norms(parameters)

    def before(self, parameters: Sequence[nn.Parameter]) -> None:
        """The rule is about to move the parameters."""
        if self._step == 1 or self._step % (REPORT_EVERY * update.EVERY) == 0:
            self._old = update.before(parameters)

    def after(self, parameters: Sequence[nn.Parameter]) -> None:
        """The rule has moved the parameters."""
        if self._old is not None:
            self._held["updates"] = update.norms(parameters, self._old)
            self._old = None

    def read(self) -> dict[str, float]:
        """All that was taken since the last read, by name of series, in one transfer for each kind."""
        held, self._held = self._held, {}
        gradients, updates = held.pop("gradients", None), held.pop("updates", None)
        found: dict[str, float] = {}
        if gradients is not None:
            found.update(backward.series(self._layers, gradients.tolist()))
        if updates is not None:
            found.update(update.series(self._layers, updates.tolist()))
        if held:
            found.update(zip(held, torch.stack([t.float() for t in held.values()]).tolist(), strict=True))
        if not math.isfinite(found.get("noise_scale", 0.0)):
            del found["noise_scale"]  # noise hid the gradient altogether in this batch
        return found

    def state_dict(self) -> dict[str, Any]:
        """What later signals build on."""
        return self._activations.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._activations.load_state_dict(state)


def is_reported(step: int) -> bool:
    """Whether a step is reported: by its number alone.

    >>> [step for step in range(1, 61) if is_reported(step)][17:]
    [18, 19, 20, 30, 40, 50, 60]
    """
    return step <= REPORT_FIRST or step % REPORT_EVERY == 0
