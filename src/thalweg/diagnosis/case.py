"""A history as those who judge it read it: facts, series that may be missing, layers in their order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from thalweg.diagnosis.course import BEGUN, Course, course
from thalweg.diagnosis.noise import Floats
from thalweg.records.history import History

#: Scores that are 1 where all is right.
SCORES = ("accuracy", "r2")
_NOTHING: Floats = np.empty(0)
#: Kinds of layers that only shift and scale: their gradients say little of how a network passes them on.
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


@dataclass(frozen=True, slots=True)
class Pair:
    """A score in training and in validation, at one time."""

    training: float
    validation: float


@dataclass(frozen=True, slots=True)
class Scores:
    """A score that is 1 where all is right, by evaluations: `training` (may be empty) and `validation`."""

    name: str
    training: Floats
    validation: Floats
    chance: float
    """What the best answer has that does not look at its input; NaN where that is not known."""
    num_training: float | None
    num_validation: float | None
    """Examples."""

    def error(self, score: float) -> float:
        """The standard error of the difference of such a score in training and validation: binomial; of r², which is
        2 r (1 − r²) / √n (Olkin and Finn 1995). Infinite where it is not known on how many examples they were measured.
        """
        if not self.num_validation:
            return math.inf
        spread = score * (1 - score) if self.name == "accuracy" else 4 * score * (1 - score) ** 2
        return math.sqrt(max(spread, 0.0) * (1 / self.num_validation + 1 / (self.num_training or math.inf)))

    @property
    def best(self) -> Pair:
        """Means over the best eighth of the evaluations, three at least. What training has is a mean over an epoch that
        ends when validation is measured: its next one goes with it.
        """
        k = max(3, len(self.validation) // 8)
        means = np.convolve(self.validation, np.ones(k) / k, "valid")
        if len(self.training) != len(self.validation) or len(means) < 2:
            return Pair(math.nan, float(means.max()))
        first = int(means[:-1].argmax())
        return Pair(float(self.training[first + 1 : first + 1 + k].mean()), float(means[first]))


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
    def scores(self) -> Scores | None:
        """A score that was measured on validation data, twice or more."""
        for name in SCORES:
            validation = self.values(f"validation_{name}")
            if len(validation) >= 2:
                chance = 0.0 if name == "r2" else self.fact("largest_class_share") or math.nan
                counts = self.fact("num_examples"), self.fact("num_validation_examples")
                return Scores(name, self.values(name), validation, chance, *counts)
        return None

    @cached_property
    def course(self) -> Course:
        """What the loss did."""
        return course(self)

    @cached_property
    def trivial(self) -> float | None:
        """The loss of the best answer that does not look at its input; None where it is not known, or not above 0."""
        told = self.fact("expected_initial_loss")
        return told if told is not None and told > 0 else None

    @cached_property
    def start(self) -> float:
        """The loss before it learned: what was measured before the first update, else the first that was reported."""
        told = self.fact("initial_loss")
        if told is not None and math.isfinite(told):
            return told
        values = self.values("loss") if "loss" in self._known else self.values("epoch_loss")
        return float(values[0]) if len(values) else math.nan

    @cached_property
    def top(self) -> float:
        """The yardstick of what was learned: the trivial loss where it is known, else the start."""
        return self.trivial if self.trivial is not None else self.start

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
