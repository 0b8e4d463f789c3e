"""A history as those who judge it read it: facts, series that may be missing, layers in their order."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from thalweg.diagnosis.course import BEGUN, Course, course
from thalweg.diagnosis.noise import Floats
from thalweg.records.history import History

_NOTHING: Floats = np.empty(0)
#: Kinds of layers that only shift and scale: their gradients say little of how a network passes them on.
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


class Case:
    """What is known of one training up to now."""

    def __init__(self, history: History, begun: float = BEGUN) -> None:
        self.history = history
        self.begun = begun
        self.facts: dict[str, Any] = dict(history.facts)
        self.names = history.names
        self._known = set(self.names)
        self._read: dict[str, tuple[Floats, Floats]] = {}

    def series(self, name: str) -> tuple[Floats, Floats]:
        """Steps and values of a series, both empty where it was not recorded."""
        if name not in self._known:
            return _NOTHING, _NOTHING
        if name not in self._read:
            steps, values = self.history.series(name)
            self._read[name] = steps.astype(np.float64), values
        return self._read[name]

    def values(self, name: str, since: float = 0) -> Floats:
        """The values of a series from a step on."""
        steps, values = self.series(name)
        return values[steps >= since]

    def by_layer(self, signal: str) -> dict[str, tuple[Floats, Floats]]:
        """A signal of every layer that has it, in the order in which they were recorded: that of the model."""
        lead = f"{signal}/"
        return {name.removeprefix(lead): self.series(name) for name in self.names if name.startswith(lead)}

    def fact(self, name: str) -> float | None:
        """A fact that is a number; None where it is not known."""
        value = self.facts.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    @cached_property
    def course(self) -> Course:
        """What the loss did."""
        return course(self)

    @cached_property
    def step(self) -> int:
        """The newest step that was reported."""
        return max((int(self.series(name)[0][-1]) for name in ("loss", "epoch_loss") if name in self._known), default=0)

    @cached_property
    def share_done(self) -> float | None:
        """How much of the training is behind, in [0, 1]: all of one that has ended; None where no end was planned."""
        ended = self.fact("ended_at")
        if ended is not None and 0 <= ended - self.step < 10:  # the last report may lie so far before the end
            return 1.0
        planned = self.fact("planned_steps")
        return min(1.0, self.step / planned) if planned else None

    @cached_property
    def matrices(self) -> list[str]:
        """The layers that multiply, in the order of the model: those whose gradients are passed on from one to the
        next. Layers that normalise are left out.
        """
        layers = self.facts.get("layers") or []
        kinds = {entry["name"]: str(entry.get("kind", "")) for entry in layers}
        names = list(self.by_layer("gradient_norm"))
        return [name for name in names if not any(norm in kinds.get(name, "") for norm in NORMS)]
