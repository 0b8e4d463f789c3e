"""What the loss shows: the outcomes that are bad, each as a symptom. Why it is so is asked in `causes.py`.

| code | holds when |
|---|---|
| `non_finite` | a loss, a validation loss or a gradient is NaN or infinite |
| `diverging_loss` | it stays above 1.5 times its start and the trivial loss, or has lost for good what it had gained |
| `plateau` | nothing learned: the loss is at the trivial one, and no fall leads away from there |
| `slow_convergence` | it falls so steadily that as many updates again would gain 5 % of the trivial loss |
| `oscillating_loss` | single batches scatter far more than sampling explains, at a level that is not low |
| `underfitting` | flat, and far from what can be attained by what nearest neighbours say |
| `overfitting` | the validation loss has risen off its best by more than its noise, while the training loss fell |
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thalweg.diagnosis import overfitting
from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import SURE, Floats
from thalweg.records.finding import Finding

#: Examples that the agreement of neighbours was counted over, at least.
SAMPLE = 512
#: Share of what can be attained, beyond chance, that a training which went well comes to; and below which it went badly
#: whatever the reason, for not every network can attain it.
WELL, BADLY = 0.9, 0.75
#: Share that is nearly all of it: what falls short of that and is surely worse than the neighbours themselves, too.
NEARLY = 0.95
#: What the error of neighbours is known to, as a factor.
KNOWN = 1.15


def findings(case: Case) -> list[Finding]:
    """The symptoms of the loss."""
    course = case.course
    found = [_non_finite(case)]
    if course.is_blown_up or course.is_worse:
        found.append(_diverging(case))
    elif course.is_short:
        found.append(_short(case))
    elif course.is_stuck:
        found.append(_plateau(case))
    elif course.is_slow:
        found.append(_slow(case))
    elif course.is_swinging:
        found.append(_oscillating(case))
    elif (weak := is_weak(case, sure=True)) is not None:
        found.append(_underfitting(case, weak))
    found.append(overfitting.finding(case))
    return [finding for finding in found if finding is not None]


def _non_finite(case: Case) -> Finding | None:
    """The first number that was not finite, and where."""
    firsts = []
    for name in ("loss", "gradient_norm", "validation_loss", "epoch_loss"):
        steps, values = case.series(name)
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            firsts.append((float(steps[broken[0]]), name))
    if not firsts:
        return None
    step, name = min(firsts)
    layer = _broken_layer(case, step)
    what = {"loss": "loss", "gradient_norm": "gradient"}.get(name, name.replace("_", " "))
    losses = case.series("loss")
    before = losses[1][(losses[0] < step) & np.isfinite(losses[1])]
    evidence = {"last_finite_loss": float(before[-1])} if len(before) else {}
    return Finding(
        "non_finite",
        "critical",
        int(step),
        f"From step {int(step)} on the {what} is no longer a finite number; nothing is learned after that.",
        "Look at the batch of that step for missing or huge values; if the loss grew before, lower the learning rate, "
        "and keep logarithms, divisions and roots away from zero.",
        place=layer,
        evidence=evidence,
    )


def _broken_layer(case: Case, step: float) -> str:
    """The layer nearest to the output whose gradient was not finite while others still were; "" where all broke."""
    broken = {}
    for layer, (steps, values) in case.by_layer("gradient_norm").items():
        now = values[steps == step]
        if len(now):
            broken[layer] = not math.isfinite(float(now[0]))
    if not any(broken.values()) or all(broken.values()):
        return ""
    return [layer for layer, is_broken in broken.items() if is_broken][-1]


def _diverging(case: Case) -> Finding:
    course = case.course
    if course.is_blown_up:
        above = course.losses > 1.5 * max(course.top, course.start)
        since = _since(course.steps, above) if len(course.steps) else 0
        since = min(since, course.broken) if course.broken is not None and not above.any() else since
        sentence = "The loss grows instead of falling: the training has diverged."
        severity = "critical"
    else:
        since = course.lowest_step
        sentence = (
            f"The loss came down to {course.lowest:.3g} by step {since} and has risen to {course.level:.3g} since."
        )
        severity = "warning"
    evidence = _finite({"start": course.start, "lowest": course.lowest, "level": course.level, "trivial": course.top})
    return Finding(
        "diverging_loss",
        severity,
        int(since),
        sentence,
        "Lower the learning rate, or clip the gradient's norm; go back to the weights before it rose.",
        evidence=evidence,
    )


def _symptom(code: str, since: float, sentence: str, advice: str, sure: float, **evidence: float) -> Finding:
    """A warning about the loss, with those of its numbers that are finite."""
    return Finding(code, "warning", int(since), sentence, advice, evidence=_finite(evidence), confidence=sure)


def _plateau(case: Case) -> Finding:
    course = case.course
    return _symptom(
        "plateau",
        course.steps[0],
        f"The loss stands at {course.level:.3g}, which is what answering the same for every example would give: "
        "the network has learned nothing yet.",
        "Look at what else was found here for the reason; if nothing, try another learning rate and initialisation.",
        0.9 if course.trivial is not None else 0.7,
        level=course.level,
        trivial=course.top,
        error=course.error,
        gain=course.gain,
    )


def _short(case: Case) -> Finding:
    course = case.course
    return _symptom(
        "slow_convergence",
        0,
        f"The training is over after {case.step} updates, with {100 * (1 - course.learned):.0f} % of the loss still "
        "there: that is too few to have learned much.",
        "Train for more epochs.",
        0.8,
        updates=case.step,
        level=course.level,
        trivial=course.top,
    )


def _slow(case: Case) -> Finding:
    course = case.course
    return _symptom(
        "slow_convergence",
        course.steps[len(course.steps) // 2],
        f"The loss falls so slowly that {100 * (1 - course.learned):.0f} % of it is still there; as many steps again "
        f"would take away about {100 * course.gain:.0f} %.",
        "Raise the learning rate, or train longer.",
        0.8,
        level=course.level,
        trivial=course.top,
        learned=course.learned,
        gain=course.gain,
    )


def _oscillating(case: Case) -> Finding:
    course = case.course
    return _symptom(
        "oscillating_loss",
        course.steps[len(course.steps) // 2],
        f"The loss jumps from batch to batch {course.swing:.2g} times as far as chance in the choice of examples "
        "explains, and does not settle.",
        "Lower the learning rate, or take larger batches.",
        0.8,
        swing=course.swing,
        level=course.level,
        trivial=course.top,
    )


def _underfitting(case: Case, found: Weak) -> Finding:
    course = case.course
    return _symptom(
        "underfitting",
        course.steps[len(course.steps) // 2],
        f"The training has stopped at {found.what} {found.now:.3g}; by how alike neighbouring examples are, about "
        f"{found.attainable:.3g} can be attained, so there is more to learn in these data.",
        "Use a larger network, train longer, or look at the other findings for what holds it back.",
        0.7,
        level=course.level,
        now=found.now,
        attainable=found.attainable,
        trivial=course.top,
    )


@dataclass(frozen=True, slots=True)
class Weak:
    """A training that is worse than it ought to be: in `what` (accuracy or loss), where it stands, what can be had."""

    what: str
    now: float
    attainable: float


def is_weak(case: Case, sure: bool) -> Weak | None:
    """Whether a training is worse than it ought to be, by what nearest neighbours say can be attained. Of many
    examples the neighbour errs r = R (2 − R C/(C − 1)) times where the best of all answers errs R times, and its
    squared error is twice that of the best (Cover and Hart 1967; Cover 1968). `sure`: far worse, as is asked where
    nothing else is wrong.
    """
    course = case.course
    if course.trivial is None or not course.is_long:
        return None
    is_over = case.share_done is not None and case.share_done >= 1
    is_falling = not is_over and course.gain > 0  # it will come down further
    if is_falling and (case.share_done is None or sure):
        return None
    share = BADLY if sure or is_falling else WELL
    agreement, error = case.fact("neighbour_agreement"), case.fact("neighbour_error")
    if agreement is not None:
        return _weak_classes(case, agreement, share)
    if error is None or case.facts.get("loss") != "mse" or error > 0.9 * course.trivial:
        return None
    attainable = KNOWN * error / 2
    bound, nearly = (course.trivial - part * (course.trivial - attainable) for part in (share, NEARLY))
    if share == WELL:
        bound = min(bound, max(nearly, KNOWN * error))
    return Weak("a loss of", course.level, attainable) if course.level - SURE * course.error > bound else None


def _weak_classes(case: Case, agreement: float, share: float) -> Weak | None:
    """By accuracy where that is measured. Else by the loss of a calibrated answer that is right with chance a and
    spreads the rest over C − 1 classes: H(a) + (1 − a) ln(C − 1).
    """
    course, classes = case.course, case.fact("num_classes") or 2.0
    right = agreement - SURE * math.sqrt(max(agreement * (1 - agreement), 1 / SAMPLE) / SAMPLE)
    if right <= (case.fact("neighbour_chance") or 1 / classes) + 0.1:
        return None
    measured, best = case.scores, _attainable(right, classes)
    if measured is not None:
        score = max(float(np.median(part[-3:])) for part in (measured.training, measured.validation) if len(part))
        bound, nearly = (measured.chance + part * (best - measured.chance) for part in (share, NEARLY))
        if share == WELL:
            bound = max(bound, min(nearly, right))
        return Weak("an accuracy of", score, best) if score < bound else None
    assert course.trivial is not None
    wrong = 1 - best
    attainable = -best * math.log(best) - (wrong * math.log(wrong / (classes - 1)) if wrong > 0 else 0.0)
    bound = max(course.trivial - share * (course.trivial - attainable), 0.1 * course.trivial)
    return Weak("a loss of", course.level, attainable) if course.level - SURE * course.error > bound else None


def _attainable(right: float, classes: float) -> float:
    """How often the best answer is right where the nearest neighbour's is: r solved for R.

    >>> round(_attainable(0.72, 3), 2)
    0.84
    """
    share = classes / (classes - 1)
    return 1 - (1 - math.sqrt(max(0.0, 1 - share * (1 - right)))) / share


def _since(steps: Floats, holds: np.ndarray) -> float:
    """The step from which on something holds without a break up to now, or the last one."""
    breaks = np.flatnonzero(~holds)
    first = int(breaks[-1]) + 1 if len(breaks) else 0
    return float(steps[min(first, len(steps) - 1)])


def _finite(evidence: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in evidence.items() if math.isfinite(value)}
