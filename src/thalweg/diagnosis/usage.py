"""Faults of the loop itself: gradients never cleared, evaluation mode left on, weights that nothing moves, clipping.

| code | holds when |
|---|---|
| `stale_gradients` | the gradient of the last update was still there when the next one came, in nearly all reports |
| `wrong_mode` | it learns in evaluation mode, in nearly all reports, though it has dropout or batch norm |
| `frozen_parameters` | a gradient comes to a layer, and no update moves it |
| `optimizer_misconfigured` | the gradient is clipped in nearly all reports, to less than half: the clip sets the step |
"""

from __future__ import annotations

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import CHANCE, Floats, chance_of_median
from thalweg.records.finding import Finding

#: Reports, and samples, before which nothing is said.
REPORTS, SAMPLES = 8, 3
#: Share of the reports that count as nearly all.
MOST = 0.9
#: Share of the weights below which a step is lost in their rounding, 32-bit numbers having seven digits: there a
#: gradient has vanished. And a gradient that rules which divide by its size take for nothing (their eps).
ROUNDED = 1e-6
#: What a clipped gradient is cut to, of its size, for it to be told; and for it to be more than a note.
CLIPPED, CRUSHED = 0.5, 0.05
#: Rules whose step does not depend on the gradient's size: clipping changes little.
SCALE_FREE = (
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "radam",
    "rmsprop",
    "adagrad",
    "adadelta",
    "adafactor",
    "muon",
    "soap",
)


def findings(case: Case) -> list[Finding]:
    """What is wrong with the loop."""
    found = [_stale(case), _mode(case), _unmoved(case), _clipped(case)]
    return [finding for finding in found if finding is not None]


def _share(values: Floats) -> float:
    """Of the reports in which it was so; the first has no update before it."""
    return float(np.mean(values[1:] > 0)) if len(values) > REPORTS else 0.0


def _stale(case: Case) -> Finding | None:
    share = _share(case.values("stale_gradient"))
    if share < MOST:
        return None
    return Finding(
        "stale_gradients",
        "critical",
        1,
        "Gradients are never cleared: each update still has those of all updates before it in it.",
        "Call optimizer.zero_grad() after each optimizer.step(); where micro-batches are added up, once per update.",
        evidence={"share_of_reports": share},
        confidence=0.99,
    )


def _mode(case: Case) -> Finding | None:
    share = _share(case.values("trained_in_eval"))
    if share < MOST:
        return None
    return Finding(
        "wrong_mode",
        "warning",
        1,
        "The model learns in evaluation mode: dropout is off, and batch norm uses old statistics.",
        "Call model.train() before training, and again after each evaluation.",
        evidence={"share_of_reports": share},
        confidence=0.99,
    )


def _unmoved(case: Case) -> Finding | None:
    """Layers that have a gradient and are not moved by any update while others are."""
    moves, norms = case.by_layer("update_ratio"), case.by_layer("gradient_norm")
    moves = {layer: series for layer, series in moves.items() if len(series[1]) >= SAMPLES and layer in norms}
    still = [layer for layer, (at, values) in moves.items() if not values.any() and _pulled(case, layer, at)]
    if not still or len(still) == len(moves):
        return None
    others = f" and {len(still) - 1} more" if len(still) > 1 else ""
    return Finding(
        "frozen_parameters",
        "warning",
        1,
        f"Layer {still[0]}{others} gets a gradient, and no update moves it.",
        "Give its parameters to the optimizer: model.parameters(), taken after the last layer was put in.",
        place=still[0],
        evidence={"layers": float(len(still)), "of": float(len(moves))},
        confidence=0.95,
    )


def _pulled(case: Case, layer: str, at: Floats) -> bool:
    """Whether there was a gradient at several of these steps that must have moved the layer."""
    steps, norms = case.series(f"gradient_norm/{layer}")
    weights = case.values(f"weight_norm/{layer}")
    size = float(weights[-1]) if len(weights) else 0.0
    scale_free = str(case.facts.get("optimizer")) in SCALE_FREE
    least = ROUNDED if scale_free else ROUNDED * size / (case.fact("learning_rate") or 1.0)
    return int((norms[np.isin(steps, at)] > least).sum()) >= SAMPLES


def _clipped(case: Case) -> Finding | None:
    """A gradient that is cut all the time: the clip sets the length of the step, not the gradient."""
    factors = case.values("clip_factor")
    bound = case.fact("clip_norm")
    if not len(factors) and bound:
        factors = np.minimum(1.0, bound / np.maximum(case.values("gradient_norm"), 1e-300))
    factors = factors[np.isfinite(factors)]
    newest = factors[-max(2 * REPORTS, len(factors) // 2) :]
    if len(newest) < 2 * REPORTS or np.mean(newest < CLIPPED) < MOST or chance_of_median(newest, CLIPPED) > CHANCE:
        return None
    middle = float(np.median(newest))
    is_crushed = middle < CRUSHED and str(case.facts.get("optimizer")) not in SCALE_FREE
    return Finding(
        "optimizer_misconfigured",
        "warning" if is_crushed else "note",
        1,
        f"The gradient is clipped at nearly every step, to {100 * middle:.2g} % of its size: the clip sets how far "
        "each step goes.",
        "Clip at a norm that the gradient seldom reaches, and set the step by the learning rate.",
        evidence={"clip_factor": middle},
        confidence=0.9,
    )
