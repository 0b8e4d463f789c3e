"""Which signals a step takes, and the one moment at which all of them are read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.taps import Taps
from thalweg.signals import backward, forward, loss, noise, outputs, update
from thalweg.signals.cadence import is_awaited, is_sampled
from thalweg.signals.layers import Layers
from thalweg.step.forward import Forward
from thalweg.step.kinds import kind_of
from thalweg.step.moment import Moment
from thalweg.step.whole import Step


class Signals:
    """Takes part in reported steps; nothing waits for the device before `read`.

    What is taken when is decided by the number of the step alone, so that a run repeats and resumes exactly.
    """

    def __init__(
        self, model: Forward, parameters: Sequence[nn.Parameter], loss_of_batch: Any = None, taps: bool = True
    ) -> None:
        """`parameters` in the order in which the update will show them; without `taps` no layer is listened to."""
        self._taps = taps
        self._model = model
        self._loss = loss_of_batch
        self._noise = noise.Noise(model)
        names = {id(p): name for name, p in model.parameters().items()}
        self._layers = Layers.of(names.get(id(p), f"parameter {i}") for i, p in enumerate(parameters))
        self._parameters = parameters
        self._activations = forward.Activations(model.model)
        kind = kind_of(loss_of_batch)
        self._outputs = outputs.Outputs(kind)
        self._floor = 0.0 if kind is not None and kind.task == "regression" else loss.FLOOR
        self._held: dict[str, Tensor] = {}
        self._old: list[Tensor] | None = None
        self._earlier: list[Tensor] | None = None
        """The weights before the step ahead of a sampled one; then its update."""
        self._gradients: list[Tensor | None] | None = None
        self._precision = 0.0
        self._step = 0
        self.listens = False

    def take(self, step: Step, number: int, batch: Any, watcher: Any = None) -> Tensor:
        """Make a step that is reported, or awaited by one that is sampled; returns its loss."""
        is_repeated = is_sampled(number) and step.can_repeat
        found = Moment(self._model) if is_repeated else None
        with self.taking(number, batch):
            value = step(batch, self, watcher)
        if found is not None and "promised" in self._held:
            self._repeat(step, batch, found, value)
        return value

    @contextlib.contextmanager
    def taking(self, step: int, batch: Any = None) -> Iterator[Signals]:
        """Around a reported step on a batch: taps are on the model where this is one that is sampled."""
        self._step = step
        if step % noise.EVERY == 0 and isinstance(batch, tuple):
            scale = self._noise.taken(batch, self._loss)
            if scale is not None:
                self._held["noise_scale"] = scale
        if not is_sampled(step) or not self._taps:
            yield self
            return
        self._outputs.target = batch[1] if isinstance(batch, tuple) else None
        self.listens = True
        try:
            with Taps(self._model.model, self._activations, self._outputs):
                yield self
        finally:
            self.listens = False
        self._held.update(self._activations.taken())
        self._held.update(self._outputs.taken())

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients are there, and not clipped yet."""
        self._held["gradients"] = backward.norms(parameters)
        if is_sampled(self._step):
            self._gradients = loss.kept(parameters)

    def before(self, parameters: Sequence[nn.Parameter]) -> None:
        """The rule is about to move the parameters."""
        sampled = is_sampled(self._step)
        if sampled or self._step == 1:
            self._old = update.copies(parameters)
        if sampled and self._earlier is not None:
            self._earlier = update.moves(parameters, self._earlier)
        elif is_awaited(self._step):
            self._earlier = update.copies(parameters)

    def after(self, parameters: Sequence[nn.Parameter]) -> None:
        """The rule has moved the parameters."""
        if self._old is None:
            return
        moved, self._old = update.moves(parameters, self._old), None
        self._held["updates"] = update.norms(parameters, moved)
        if is_sampled(self._step):
            if self._earlier is not None:
                self._held["update_cosine"], self._earlier = update.cosine(moved, self._earlier), None
            if self._gradients is not None and any(g is not None for g in self._gradients):
                self._held["promised"] = loss.along(self._gradients, moved)
            self._gradients = None

    def _repeat(self, step: Step, batch: Any, found: Moment, value: Tensor) -> None:
        """Take the loss of the same batch once more, by the same function; nothing of it stays."""
        now = Moment(self._model)
        found.put_back()
        try:
            after = step.again(batch)
        finally:
            now.put_back()
        self._precision = torch.finfo(value.dtype).eps
        self._held["loss_before"], self._held["loss_change"] = value, after - value

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
        promised, change = found.pop("promised", 0.0), found.pop("loss_change", None)
        if change is not None:
            size = max(abs(found.pop("loss_before")), self._floor)
            found.update(loss.ratio(change, promised, size, self._precision))
        for name in ("noise_scale", "update_cosine"):
            if not math.isfinite(found.get(name, 0.0)):
                del found[name]  # noise hid the gradient altogether in this batch; nothing was moved
        return found

    def state_dict(self) -> dict[str, Any]:
        """What later signals build on."""
        return {**self._activations.state_dict(), "earlier": self._earlier or []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: weights that were kept are not those of this model.
        """
        self._activations.load_state_dict(state, self._parameters[0].device)
        earlier = state.get("earlier") or None
        if earlier is not None:
            if [t.shape for t in earlier] != [p.shape for p in self._parameters]:
                raise ValueError("the weights that were kept for the next signal are of another model")
            earlier = [t.to(p) for t, p in zip(earlier, self._parameters, strict=True)]
        self._earlier = earlier
