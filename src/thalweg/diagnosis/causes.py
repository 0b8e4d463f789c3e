"""Causes that neither facts of before training nor the length of steps tell: frozen layers, old gradients."""

from __future__ import annotations

import numpy as np

from thalweg.diagnosis import curvature
from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import chance_of_median
from thalweg.diagnosis.start import CUT_OFF
from thalweg.diagnosis.update import FEW, steps
from thalweg.records.finding import Finding

#: Root mean square of weights times the root of their inputs: He's is 1.4, torch's own 0.6. Twice the one and a third
#: of the other, over a few layers, is a signal gone.
LARGE, SMALL = 2.8, 0.2
#: Share of a layer that is dead or flat from which on nothing gets through; and that of a gradient which says of the
#: next layer that its own may have vanished below what a number holds.
SHUT, UNDERFLOW = 0.98, 1e-12
#: Cosine between updates from which on they are nearly the same one; with a momentum of 0.9 it comes to about that.
SAME = 0.95


def findings(case: Case, outcomes: set[str], is_bad: bool) -> list[Finding]:
    """Causes for the outcomes that were seen; `is_bad` where the network has learned less than it ought to."""
    found = [_zero_start(case) or _standing_still(case), _random(case)]
    if is_bad:
        found += [_odd_scale(case), _copies(case)]
    if outcomes:
        found.append(_stale(case, outcomes))
    return [finding for finding in found if finding is not None]


def _zero_start(case: Case) -> Finding | None:
    """Layers whose weights are exactly zero, and stay so."""
    zero = [
        layer for layer, (_, values) in case.by_layer("weight_norm").items() if len(values) > 2 and not values.any()
    ]
    if not zero:
        return None
    return Finding(
        "bad_initialization",
        "warning",
        0,
        f"The weights of layer {zero[0]} are all zero and stay so: every unit does the same, and no gradient passes.",
        "Start weights at random: nn.init.kaiming_normal_ for relu, nn.init.xavier_normal_ for tanh or sigmoid.",
        place=zero[0],
        evidence={"layers": float(len(zero))},
        confidence=0.97,
    )


def _random(case: Case) -> Finding | None:
    """A network that draws at random in evaluation too; a loss of the user's own may want that."""
    if not case.facts.get("random_in_evaluation") or case.facts.get("task") in (None, "other"):
        return None
    return Finding(
        "wrong_mode",
        "warning",
        0,
        "In evaluation the network gives different answers to the same question: something in it draws at random that "
        "should only do so in training.",
        "Use nn.Dropout, or functional dropout with training=self.training.",
        confidence=0.93,
    )


def _odd_scale(case: Case) -> Finding | None:
    """Weights that began several times larger or smaller than what keeps a signal's size from layer to layer."""
    scales = {entry["name"]: float(entry["scale"]) for entry in case.facts.get("layers") or [] if entry.get("scale")}
    last = next(reversed(scales), None)  # an output layer may begin small: its answers begin undecided
    odd = {
        layer: max(scale / LARGE, SMALL / scale)
        for layer, scale in scales.items()
        if scale >= LARGE or (scale <= SMALL and layer != last)
    }
    if not odd:
        return None
    worst = max(odd, key=lambda layer: odd[layer])
    size = "large" if scales[worst] > LARGE else "small"
    return Finding(
        "bad_initialization",
        "warning",
        0,
        f"The first weights of layer {worst} are too {size}: a signal of size 1 leaves it at {scales[worst]:.2g}.",
        "Start with nn.init.kaiming_normal_ for relu, or nn.init.xavier_normal_ for tanh or sigmoid.",
        place=worst,
        evidence={"scale": scales[worst], "layers": float(len(odd))},
        confidence=0.92,
    )


def _copies(case: Case) -> Finding | None:
    """Units that have the weights of others when a look is taken: gradients keep alike what is, and make nothing so."""
    layers = case.facts.get("landscape_symmetric") or []
    if not layers or not curvature.is_valid(case.history, case.step):
        return None
    return Finding(
        "bad_initialization",
        "warning",
        0,
        f"At least half of the units of layer {layers[0]} have the weights of another one: they began alike, and no "
        "gradient tells them apart.",
        "Initialise weights at random (torch's default, or nn.init.kaiming_normal_).",
        place=layers[0],
        evidence={"layers": float(len(layers))},
        confidence=0.9,
    )


def _standing_still(case: Case) -> Finding | None:
    """Layers whose gradient is exactly zero in every report while others have one: nothing reaches them."""
    norms = {layer: values for layer, (_, values) in case.by_layer("gradient_norm").items()}
    if not norms or max(len(values) for values in norms.values()) < 5:
        return None
    still = [layer for layer, values in norms.items() if not values.any()]
    if not still or len(still) == len(norms):
        return None
    first = next(iter(norms))
    shares = [*case.by_layer("dead_share").values(), *case.by_layer("saturated_share").values()]
    shut = any(np.max(values) >= SHUT for _, values in shares if len(values))
    moved = [float(np.median(values)) for values in norms.values() if values.any()]
    if shut or min(moved) < UNDERFLOW * max(moved):  # what is dead or flat above a layer keeps its gradient away
        return None
    return Finding(
        "frozen_parameters",
        "warning",
        1,
        f"Layer {still[0]} never gets a gradient"
        + (f", nor do {len(still) - 1} more" if len(still) > 1 else "")
        + ": it does not learn.",
        CUT_OFF,
        place=still[0],
        evidence={"layers": float(len(still)), "of": float(len(norms))},
        confidence=0.95 if first in still else 0.9,
    )


def _stale(case: Case, outcomes: set[str]) -> Finding | None:
    """Updates that go on as before although they climb: gradients of steps long gone are still in them."""
    momentum = case.fact("momentum") or case.fact("beta1") or 0.0
    cosines = case.values("update_cosine")
    if momentum > 0.95 or not outcomes & {
        "diverging_loss",
        "oscillating_loss",
        "plateau",
        "non_finite",
        "underfitting",
    }:
        return None
    taken = steps(case)
    same = chance_of_median(cosines[-8:], SAME, below=False) <= FEW
    if not (same and taken.overshoots):
        return None
    return Finding(
        "stale_gradients",
        "warning",
        1,
        "Updates go on in one direction although it has long led uphill: gradients are added up over the steps.",
        "Call optimizer.zero_grad() before each backward pass.",
        evidence={"update_cosine": float(np.median(cosines)), "descent_ratio": taken.descent},
        confidence=0.8,
    )
