"""What the gradients show on their way back: whether they fade, grow, or do not arrive.

| code | holds when |
|---|---|
| `vanishing_gradient` | from the output to the input the gradient falls by more than two decades, layer by layer |
| `exploding_gradient` | a layer's gradient times its weights is more than a hundred times the trivial loss; or bursts |

The ratio of the first layer to the last alone says little: it is small in networks that have converged too. Notes until
the engine has seen that the outcome is bad.
"""

from __future__ import annotations

import math

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import SURE, Floats, chance_of_median, going_together
from thalweg.records.finding import Finding

#: Decades from the last layers to the first by which a gradient has vanished; AUTOTRAINER asks for three of the first
#: over the last layer alone, here the fall must go on through the layers as well.
DECADES = 2.0
#: Reports at the start: each of the first twenty steps is one.
FIRST = 10
#: Relative change of the loss by a relative change of a layer's weights from which on no usual step is small enough.
STEEP = 100.0
#: Times its usual size from which on a gradient has burst.
BURST = 1e3
#: Quantile of a gradient's norms that bounds it from then on (Seetharaman et al. 2020, AutoClip).
TYPICAL = 0.1


def findings(case: Case) -> list[Finding]:
    """The symptoms of what passes back."""
    found = [_vanishing(case), _exploding(case)]
    return [finding for finding in found if finding is not None]


def profile(case: Case) -> tuple[list[str], np.ndarray]:
    """Layers that multiply, and log10 of their gradient norms `[layers, reports]`; NaN where one is 0 or not finite."""
    layers = case.matrices
    columns = [case.series(f"gradient_norm/{layer}")[1] for layer in layers]
    length = min((len(column) for column in columns), default=0)
    if not length:
        return layers, np.empty((len(layers), 0))
    norms = np.array([column[:length] for column in columns])
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log10(norms)
    return layers, np.where(np.isfinite(logs), logs, np.nan)


def _vanishing(case: Case) -> Finding | None:
    layers, logs = profile(case)
    if len(layers) < 3 or logs.shape[1] < 5:
        return None
    third = max(1, len(layers) // 3)
    whole = np.isfinite(logs).all(axis=0)
    if whole.sum() < 5:
        return None
    every = logs[:, whole]
    # Of the whole training; else of its first reports, before what it learned can make up for it.
    logs = next((part for part in (every, every[:, :FIRST]) if _fades(part, third)), every[:, :0])
    if not logs.shape[1]:
        return None
    fall, typical = _fall(logs, third), np.median(logs, axis=1)
    decades = float(np.median(fall))
    since = 1 if fall[0] > DECADES else int(case.series("gradient_norm")[0][whole][int(np.argmax(fall > DECADES))])
    first = layers[int(typical.argmin())]
    return Finding(
        "vanishing_gradient",
        "note",
        since,
        f"The gradient fades on its way back: {_times(decades)} smaller at layer {first} than at the output, so the "
        "first layers hardly learn.",
        "Use relu or gelu instead of sigmoid or tanh, normalisation (nn.BatchNorm1d, nn.LayerNorm), residual "
        "connections, or fewer layers.",
        place=first,
        evidence={"decades": decades, "layers": float(len(layers)), "smallest": 10 ** float(typical.min())},
        confidence=min(0.95, 0.5 + decades / 10),
    )


def _fall(logs: Floats, third: int) -> Floats:
    """Decades from the last third of the layers to the least of the first, at each report."""
    fall: Floats = np.median(logs[-third:], axis=0) - logs[:third].min(axis=0)
    return fall


def _fades(logs: Floats, third: int) -> bool:
    """Whether it falls by enough decades in nearly all of these reports, and in the order of the layers."""
    is_far = chance_of_median(_fall(logs, third), DECADES, below=False) <= 0.01
    return is_far and going_together(np.median(logs, axis=1)) >= min(SURE, 0.8 * math.sqrt(len(logs)))


def _times(decades: float) -> str:
    return f"{10**decades:,.0f} times" if decades < 6 else f"10^{decades:.0f} times"


def sensitivity(case: Case) -> tuple[str, Floats, Floats]:
    """By how many times the trivial loss (or itself, where that is not known) the loss would change if the weights of a
    layer changed by their own size: the most sensitive layer, the steps, and the numbers there, ‖g‖ ‖w‖ / loss.
    """
    steps, losses = case.series("loss")
    best: tuple[str, Floats, Floats] = ("", np.empty(0), np.empty(0))
    for layer in case.matrices:
        at, weights = case.series(f"weight_norm/{layer}")
        steps_g, norms = case.series(f"gradient_norm/{layer}")
        if not len(at) or not len(steps_g) or not len(steps):
            continue
        scale = case.course.trivial or np.maximum(np.abs(_at(steps, losses, at)), 0.05 * abs(case.course.top))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            numbers = weights * _kept(case, layer, at) * _at(steps_g, norms, at) / scale
        sound = np.isfinite(numbers)
        common, numbers = at[sound], numbers[sound]
        if not len(numbers):
            continue
        if not len(best[2]) or numbers[0] > best[2][0]:
            best = layer, common, numbers
    return best


def _kept(case: Case, layer: str, at: Floats) -> Floats:
    """Share of the weights at these steps that was there before the update: norms are taken after it."""
    steps, ratios = case.series(f"update_ratio/{layer}")
    return np.clip(1 - _at(steps, ratios, at), 0.0, 1.0) if len(steps) else np.ones(len(at))


def _at(steps: Floats, values: Floats, wanted: Floats) -> Floats:
    """The values of a series at steps of another: the last ones reported by then."""
    return values[np.clip(np.searchsorted(steps, wanted, side="right") - 1, 0, None)]


def _exploding(case: Case) -> Finding | None:
    layer, steps, numbers = sensitivity(case)
    steep = numbers > STEEP
    if len(numbers) and steep[0]:
        return _grown(layer, int(steps[0]), {"sensitivity": float(numbers[0])}, 0.8)
    at, norms = case.series("gradient_norm")
    norms, at = norms[np.isfinite(norms)], at[np.isfinite(norms)]
    if len(norms) < 10:
        return None
    usual = float(np.median(norms[:10]))
    bursts = norms > BURST * max(usual, 1e-30)
    if bursts.sum() < 2:
        return None
    first = int(at[int(np.argmax(bursts))])
    typical = float(np.quantile(norms, TYPICAL))
    return _grown("", first, {"largest": float(norms.max()), "usual": usual, "typical_norm": typical}, 0.7)


def _grown(layer: str, step: int, evidence: dict[str, float], confidence: float) -> Finding:
    where = f" at layer {layer}" if layer else ""
    return Finding(
        "exploding_gradient",
        "note",
        step,
        f"The gradient{where} is so large that no step of a usual size can follow it.",
        "Clip its norm (clip_norm=1.0), start with smaller weights, or normalise between the layers.",
        place=layer,
        evidence=evidence,
        confidence=confidence,
    )
