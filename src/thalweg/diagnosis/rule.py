"""Whether the rule's own settings are the reason: momentum, averages, eps, decay. Asked where the outcome is bad; a
decay that holds the weights where they are is one by itself.
"""

from __future__ import annotations

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.records.finding import Finding

#: A time constant of 100 updates or more: what was right 100 updates ago is still gone after.
HEAVY = 0.99
#: Five times what is usual for a decay (1e-2: Loshchilov and Hutter 2019).
STRONG = 0.05
#: Rules whose decay is apart from the gradient.
APART = ("adamw", "muon", "soap", "kfac")


def findings(case: Case, is_bad: bool) -> list[Finding]:
    """The first setting that is far off what the rule's own proof or practice asks for."""
    for name, value, off, sentence, advice in _settings(case):
        if off and (is_bad or (name == "weight_decay" and value >= STRONG and _is_held(case))):
            told = Finding(
                "optimizer_misconfigured",
                "warning",
                0,
                sentence,
                advice,
                place=name,
                evidence={name: value},
                confidence=0.85,
            )
            return [told]
    return []


def _settings(case: Case) -> list[tuple[str, float, bool, str, str]]:
    """(setting, value, whether it is off, sentence, advice) of every setting that is known."""
    momentum, beta1, beta2 = case.fact("momentum"), case.fact("beta1"), case.fact("beta2")
    eps, decay, rate = case.fact("eps"), case.fact("weight_decay"), case.fact("learning_rate") or 0.0
    found = []
    if momentum is not None:
        words = f"A momentum of {momentum:g} carries each gradient on for {_memory(momentum)} updates."
        found.append(("momentum", momentum, momentum >= HEAVY, words, "Use a momentum of 0.9."))
    if beta1 is not None:
        words = f"beta1 = {beta1:g} carries each gradient on for {_memory(beta1)} updates."
        found.append(("beta1", beta1, beta1 >= HEAVY, words, "Use beta1 = 0.9."))
    if beta1 is not None and beta2 is not None:  # Zhang et al. 2022: Adam converges where beta1 < sqrt(beta2) < 1
        words = (
            f"beta2 = {beta2:g} forgets sizes faster than beta1 = {beta1:g} forgets directions: Adam may not converge."
        )
        found.append(("beta2", beta2, beta1**2 >= beta2, words, "Use beta2 = 0.999."))
    if eps is not None and beta2 is not None:
        words = f"eps = {eps:g} is larger than the gradients it divides by, so that the rule no longer adapts."
        found.append(("eps", eps, eps >= 1e-2, words, "Use eps = 1e-8."))
        words = f"eps = {eps:g} lets a gradient of almost nothing make a full step of {rate:g}."
        found.append(("eps", eps, eps < 1e-12 and rate >= 1e-2, words, "Use eps = 1e-8 and a learning rate of 1e-3."))
    if decay is not None and decay > 0:
        words = f"A weight decay of {decay:g} pulls the weights to zero faster than the loss holds them up."
        found.append(
            (
                "weight_decay",
                decay,
                (decay >= STRONG and _shrank(case)) or _pulls(case, decay),
                words,
                "Use a weight decay of 1e-4 to 1e-2.",
            )
        )
    return found


def _memory(decay: float) -> str:
    return f"{1 / (1 - decay):,.0f}" if decay < 1 else "all"


def _pulls(case: Case, decay: float) -> bool:
    """Whether a decay that is added to the gradient, λ‖w‖, comes to half of it: where both are equal, nothing moves."""
    if str(case.facts.get("optimizer")) in APART:
        return False
    norms = case.values("gradient_norm")
    norms = norms[np.isfinite(norms)]
    weights = [values[-1] for _, values in case.by_layer("weight_norm").values() if len(values)]
    if not len(norms) or not weights:
        return False
    return decay * float(np.linalg.norm(weights)) > 0.5 * float(np.median(norms[-len(norms) // 3 :]))


def _is_held(case: Case) -> bool:
    """Whether a training stands with most of its loss left: where the gradient is small because nothing is left to
    learn, any decay is as large.
    """
    course = case.course
    return course.is_long and course.gain == 0 and course.learned < 0.5


def _shrank(case: Case) -> bool:
    """Whether the weights of most layers have gone down to less than half of what they were."""
    ratios = [
        values[-1] / values[0]
        for layer, (_, values) in case.by_layer("weight_norm").items()
        if layer in set(case.matrices) and len(values) > 2 and values[0] > 0
    ]
    return bool(ratios) and float(np.median(ratios)) < 0.5
