"""What the layers' outputs show: units that answer to nothing, units where their curve is flat, one answer for all.

| code | holds when |
|---|---|
| `dead_units` | more than half of a layer's units have given nothing over all samples of late |
| `saturated_units` | more than half of a layer's outputs lie where the activation is flat |
| `collapsed_output` | the output does not depend on the input any more, or one class is answered for nearly all |

Shares are facts about the network, not outcomes: a healthy one may have many dead units. So these are notes until the
engine has seen that the outcome is bad.
"""

from __future__ import annotations

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import Floats
from thalweg.records.finding import Finding

#: Share of a layer from which on what is left of it is a bottleneck: SageMaker Debugger's rule for ReLU takes it too.
HALF = 0.5
#: Samples of late over which a share must hold: one may come of an odd batch.
SAMPLES = 3
#: Spread of an output over the examples of a batch, against its own size, below which it no longer tells them apart.
SAME = 1e-3
#: And below which it is constant, but for rounding.
CONSTANT = 1e-6
#: Share of one predicted class, above that class's own, from which on there is one answer for all.
ONE_ANSWER = 0.99


def findings(case: Case) -> list[Finding]:
    """The symptoms of what passes forward."""
    found = [_dead(case), _saturated(case), _collapsed(case)]
    return [finding for finding in found if finding is not None]


def _held(steps: Floats, values: Floats) -> tuple[float, int]:
    """The smallest share of the last samples, and the step since which shares have been above half of it."""
    newest = values[-SAMPLES:]
    share = float(newest.min())
    below = np.flatnonzero(values < share / 2)
    first = int(below[-1]) + 1 if len(below) else 0
    return share, int(steps[first])


def _worst(case: Case, signal: str) -> tuple[str, float, int, int] | None:
    """The layer with the largest share that has held: its name, the share, since when; how many are above half."""
    shares = {layer: _held(*series) for layer, series in case.by_layer(signal).items() if len(series[1])}
    if not shares:
        return None
    layer = max(shares, key=lambda name: shares[name][0])
    return layer, shares[layer][0], shares[layer][1], sum(share > HALF for share, _ in shares.values())


def _dead(case: Case) -> Finding | None:
    worst = _worst(case, "dead_share")
    if worst is None or worst[1] <= HALF:
        return None
    layer, share, since, layers = worst
    if _born_shut(case):
        since = 0
    return Finding(
        "dead_units",
        "note",
        since,
        f"{100 * share:.0f} % of the units of layer {layer} have given nothing for any example looked at: they "
        "are dead and cannot learn any more.",
        "Use leaky_relu, gelu or normalisation before it, start biases at zero, or lower the learning rate.",
        place=layer,
        evidence={"dead_share": share, "layers": float(layers)},
        confidence=min(0.95, 0.5 + share / 2),
    )


def _born_shut(case: Case) -> bool:
    """Whether no gradient came through to some layer at the first step already, before any update."""
    firsts = [norms[0] for _, norms in (case.series(f"gradient_norm/{name}") for name in case.matrices) if len(norms)]
    return len(firsts) > 1 and firsts[-1] > 0 and min(firsts[:-1]) == 0


def _saturated(case: Case) -> Finding | None:
    worst = _worst(case, "saturated_share")
    if worst is None or worst[1] <= HALF:
        return None
    layer, share, since, layers = worst
    return Finding(
        "saturated_units",
        "note",
        since,
        f"{100 * share:.0f} % of the outputs of layer {layer} lie at the flat end of their curve, where hardly any "
        "gradient passes.",
        "Scale the inputs, start with smaller weights, normalise before it, or use relu or gelu.",
        place=layer,
        evidence={"saturated_share": share, "layers": float(layers)},
        confidence=0.4 + share / 2,
    )


def _collapsed(case: Case) -> Finding | None:
    """One answer for all, where the labels ask for several."""
    steps, share = case.series("prediction_share")
    largest = case.fact("largest_class_share") or 1.0
    if len(share) >= SAMPLES and float(share[-SAMPLES:].min()) >= ONE_ANSWER and largest < 0.9:
        return _one_answer(int(steps[-SAMPLES]), {"prediction_share": float(share[-1]), "largest_class_share": largest})
    steps, spread = case.series("output_spread")
    if len(spread) < SAMPLES:
        return None
    low, high = case.values("output_low"), case.values("output_high")
    size = max(abs(float(low[-1])), abs(float(high[-1]))) if len(low) and len(high) else 1.0
    if float(spread[-SAMPLES:].max()) > SAME * max(size, 1e-30):
        return None
    return _one_answer(int(steps[-SAMPLES]), {"output_spread": float(spread[-1]), "output_size": size})


def is_constant(finding: Finding) -> bool:
    """Whether outputs do not differ at all: then the outcome is bad, whatever the loss, and none may say what it is
    worth. A spread that is only small beside the size may be all that is asked for.
    """
    spread, size = finding.evidence.get("output_spread"), finding.evidence.get("output_size", 0.0)
    return finding.code == "collapsed_output" and spread is not None and spread <= CONSTANT * size


def _one_answer(since: int, evidence: dict[str, float]) -> Finding:
    return Finding(
        "collapsed_output",
        "note",
        since,
        "The network gives the same answer for every example.",
        "Look at the findings above for the reason: dead or saturated units, a rate that was too high, or a start with "
        "weights that are too small.",
        evidence=evidence,
        confidence=0.9,
    )
