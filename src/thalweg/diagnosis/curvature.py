"""Stuck, and why: what a look at the curvature says of a loss that does not fall, or falls too slowly.

The look itself is taken by `signals/curvature.py` where `asks` wants it; here its numbers are read beside the curve of
the training loss. The first line that holds decides:

    none              less than a twentieth of the trivial loss is left
    plateau           weights changed by their own size would change the loss by less than a tenth, to second order
    slow_convergence  it falls, and one step along gradient and curvature would gain twice what the last third did
    noise_floor       it does not fall, and that step would gain: the steps of single batches undo each other
    saddle_point      half of a layer's units do as others do
    local_minimum     nothing is learned, at a minimum at which a layer has no gradient at all
    plateau           nothing is learned, at any other minimum; a saddle or a slope is told as such
    slow_convergence  far above neighbours, on a slope, with steps that have become short
    saddle_point      it falls along the lowest curvature, not the gradient
    local_minimum     a minimum well above what nearest neighbours' answers would give, in a network of several layers

The trivial loss is that of the best answer which is the same for all examples, or where it is not known the first loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import Floats, chance_of_median, line
from thalweg.diagnosis.update import FEW, SAMPLES, sound, steps
from thalweg.diagnosis.update import STILL as SHORT
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.verdict import Verdict

#: Symptoms of the loss in whose place a look puts a surer one.
TOLD_APART = frozenset({"slow_convergence", "underfitting"})
#: Evaluations and updates without which there is no curve to look beside.
EVALUATIONS, UPDATES = 8, 100
#: A look holds until so many times the steps are made.
AGED = 2.0
#: And no other is taken until so many times the steps are made.
FRESH = 1.25
#: Share of the trivial loss that must be left for a cause to be of interest.
LEFT = 0.05
#: Share of the loss below which a change of all weights by their own size says that nothing can be told from here.
FLAT = 0.1
#: Standard errors by which a gradient stands out of the choice of examples.
STANDS_OUT = 1.5
#: Share of the trivial loss that one step must gain: where the loss falls, too slowly; and where noise keeps it up.
SLOW, NOISY = 0.015, 0.03
#: Share of it that must be left to blame noise or a slow fall.
MOSTLY = 0.25
#: How many times what the last third of the training gained.
FASTER = 2.0
#: Share of the loss that must be gained along the lowest curvature where something was learned.
ESCAPE = 0.05
#: Share of the trivial loss within which nothing is learned.
NOTHING = 0.05
#: A minimum is a poor one from this multiple of what neighbours give, and this share of the trivial loss.
POOR, POOR_SHARE = 1.5, 0.1
#: A training loss that fell by less than this share of itself over its last third may be stuck.
HARDLY = 0.5
#: And by less than this it stands still.
STILL = 0.05
#: A step that takes so much of what its slope promised is a twentieth of the best one, or less.
TINY = 0.975


@dataclass(frozen=True, slots=True)
class Look:
    """The numbers of a look, and the curve of the training loss beside it."""

    facts: dict[str, Any]
    trivial: float
    fell: float
    """By how much the training loss came down over its last third, where that is more than chance; else 0."""
    steps_are_short: bool
    """Whether the updates are much shorter than the ground would bear."""
    is_cut_off: bool = False
    """Whether a layer has no gradient at all."""

    @property
    def loss(self) -> float:
        """The training loss where it was looked at, in evaluation mode."""
        return float(self.facts["landscape_loss"])

    @property
    def descent(self) -> float:
        """What one step along gradient and curvature gains, in the loss's unit."""
        return float(self.facts["descent"] * self.facts["landscape_scale"])

    @property
    def escape(self) -> float:
        """What a walk along the lowest curvature gains, in the loss's unit."""
        return float(self.facts["escape"] * self.facts["landscape_scale"])

    @property
    def has_learned(self) -> bool:
        """Whether the loss is below the trivial one."""
        return self.loss < (1 - NOTHING) * self.trivial

    @property
    def is_still(self) -> bool:
        """Whether the training loss hardly came down of late."""
        return self.fell < STILL * abs(self.loss)

    @property
    def stands_out(self) -> bool:
        """Whether the gradient is more than what the choice of examples explains."""
        error = self.facts["landscape_gradient_error"]
        return not self.facts["landscape_gradient"] <= STANDS_OUT * error

    @property
    def is_on_slope(self) -> bool:
        """Whether the gradient leads down, by more than the choice of examples explains, and to what is worth it."""
        if self.loss < MOSTLY * self.trivial:
            return False
        least = SLOW if self.is_slow else NOISY
        return self.stands_out and self.descent > max(least * self.trivial, FASTER * self.fell)

    @property
    def is_slow(self) -> bool:
        """Whether it comes down, or would if noise did not hide it, on steps as short as these."""
        return self.fell > 0 or self.steps_are_short

    @property
    def cause(self) -> str | None:
        """Why the loss does not come down, or None."""
        facts = self.facts
        if not self.loss > LEFT * self.trivial:
            return None
        if facts["flatness"] < FLAT and self.is_still:
            return "plateau"
        if self.is_on_slope:
            return "slow_convergence" if self.is_slow else "noise_floor"
        if not self.is_still:
            return None
        if facts["landscape_symmetric"]:
            return "saddle_point"
        if not self.has_learned:
            return self._unlearned
        if self.is_unfinished and self.steps_are_short:
            return "slow_convergence"
        if self.escape > ESCAPE * self.loss and not self.stands_out:
            return "saddle_point"
        return "local_minimum" if self._is_poor else None

    @property
    def _unlearned(self) -> str:
        """Of a loss that is where it began: with a part cut off there may be a minimum, while a network that hardly
        passes its gradients on has none.
        """
        kind = self.facts["landscape_kind"]
        if kind == "minimum":
            return "local_minimum" if self.is_cut_off else "plateau"
        return {"saddle": "saddle_point", "slope": "slow_convergence"}.get(kind, "plateau")

    @property
    def is_unfinished(self) -> bool:
        """Whether it is no place to be stuck at, for one step would still gain, and far above what neighbours give."""
        return self.facts["landscape_kind"] == "slope" and self._is_poor

    @property
    def _is_poor(self) -> bool:
        """Whether there is a better place than this minimum: neighbours say so, and only several layers have others."""
        bound = self.facts.get("neighbour_loss")
        if bound is None or self.facts["landscape_layers"] < 2:
            return False
        return self.loss > max(POOR * bound, POOR_SHARE * self.trivial)


def signal(facts: dict[str, Any]) -> float:
    """|G|² over the variance of a batch's gradient, tr Σ / B: above 1, batches see more of the gradient than of noise.
    A look on n examples knows tr Σ / n as the square of its standard error.
    """
    size, count = facts.get("batch_size"), facts.get("landscape_examples")
    if not size or not count:
        return 0.0
    error = max(facts["landscape_gradient_error"], 1e-300)
    return float(size / count * (facts["landscape_gradient"] / error) ** 2)


def asks(history: History, verdict: Verdict, step: int) -> bool:
    """Whether a look at the curvature would say more than the curve does."""
    if verdict.state == "diverged" or step < UPDATES or "epoch_loss" not in history.names:
        return False
    losses = history.series("epoch_loss")[1]
    if len(losses) < EVALUATIONS or not np.isfinite(losses).all() or is_valid(history, step, FRESH):
        return False
    if not losses[-1] > LEFT * abs(Case(history).top):
        return False
    if verdict.state != "improving":
        return True
    return _fallen(losses) < HARDLY * abs(float(losses[-1]))


def look(history: History, step: int) -> Look | None:
    """The newest look, where it still holds."""
    if not is_valid(history, step) or "epoch_loss" not in history.names:
        return None
    case = Case(history)
    _, descent = sound(*case.series("descent_ratio"))
    is_tiny = chance_of_median(descent[-SAMPLES:], TINY, below=False) <= FEW
    short = is_tiny or steps(case).ratio < SHORT
    newest = [values[-1] for _, values in case.by_layer("gradient_norm").values() if len(values)]
    fallen = _fallen(history.series("epoch_loss")[1])
    return Look(history.facts, abs(case.top), fallen, short, is_cut_off=any(newest) and not all(newest))


def is_valid(history: History, step: int, times: float = AGED) -> bool:
    """Whether a look was taken by this step, at most so many times earlier; one from beyond is of an undone past."""
    taken = history.facts.get("landscape_step")
    return taken is not None and taken <= step <= times * taken


def _fallen(losses: Floats) -> float:
    """What the last third of the values `[n]` came down by, along a straight line; 0 where that may be chance."""
    late = losses[-max(4, len(losses) // 3) :]
    if len(late) < 4:
        return 0.0
    through = line(late)
    return -through.rise if through.is_falling else 0.0


_SENTENCES = {
    "saddle_point": "Stuck on a saddle point: the gradient gives nothing, but the loss of {loss:.3g} falls along the "
    "lowest curvature.",
    "local_minimum": "Stuck in a local minimum: all ways lead up from a loss of {loss:.3g}, where neighbouring "
    "examples alone would give {bound:.3g}.",
    "plateau": "Stuck on a plateau: around here hardly any change of the weights changes the loss of {loss:.3g}.",
    "noise_floor": "Stuck at the noise of its updates: the gradient of all examples would lower the loss of {loss:.3g} "
    "by {descent:.2g} at once, those of single batches do not.",
    "slow_convergence": "Too slow: one step along gradient and curvature would lower the loss of {loss:.3g} by "
    "{descent:.2g}; the last third of the training lowered it by {fell:.2g}.",
}
_ADVICE = {
    "saddle_point": "Start again from random weights that differ from unit to unit, or disturb the weights a little.",
    "local_minimum": "Start again from other weights, or give the network more units.",
    "plateau": "Start again with smaller weights and biases, other activations, or normalisation.",
    "noise_floor": "Lower the learning rate, let it come down over the training, or take larger batches.",
    "slow_convergence": "Raise the learning rate, tenfold at first, or choose it by find_lr.",
}


def sentence(found: Look, cause: str | None = None) -> str:
    """For a person, of a look that has a cause."""
    cause = cause or found.cause
    assert cause is not None
    bound = found.facts.get("neighbour_loss", math.nan)
    return _SENTENCES[cause].format(loss=found.loss, descent=found.descent, fell=found.fell, bound=bound)


def evidence(found: Look) -> dict[str, float]:
    """The numbers of a look."""
    names = ("largest_curvature", "smallest_curvature", "descent", "escape", "flatness", "landscape_gradient")
    return {name: float(found.facts[name]) for name in names} | {"loss": found.loss, "fell": found.fell}


def findings(history: History, step: int) -> list[Finding]:
    """The symptom that a look shows."""
    found = look(history, step)
    if found is None:
        return []
    cause = found.cause
    if cause is None and found.is_unfinished and history.facts.get("ended_at") is not None:
        cause = "slow_convergence"  # it falls and there is far to go; only of one that has ended is that too little
    if cause is None:
        return []
    since, told = int(found.facts["landscape_step"]), evidence(found)
    if cause == "slow_convergence" and found.is_unfinished and found.is_still:
        told["neighbour_loss"] = float(found.facts["neighbour_loss"])
    return [Finding(cause, "warning", since, sentence(found, cause), _ADVICE[cause], "", told, 0.95)]
