"""What the loss shows: the outcomes that are bad, each as a symptom. Why it is so is asked in `causes.py`.

| code | holds when |
|---|---|
| `non_finite` | a loss, a validation loss or a gradient is NaN or infinite |
| `diverging_loss` | it stays above 1.5 times its start and the trivial loss, or has lost for good what it had gained |
| `plateau` | nothing learned: the loss is at the trivial one, and no fall leads away from there |
| `slow_convergence` | it falls so steadily that as many updates again would gain 5 % of the trivial loss |
| `oscillating_loss` | single batches scatter far more than sampling explains, at a level that is not low |
| `underfitting` | flat, and above what the labels of nearest neighbours alone would give |
| `overfitting` | the validation loss has risen off its best by more than its noise, while the training loss fell |
"""

from __future__ import annotations

import math

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import SURE, Floats, line, scatter
from thalweg.records.finding import Finding

#: Evaluations without which a validation curve has no noise to be measured by.
EVALUATIONS = 6
#: Share of the best validation loss, and of the trivial one, that a rise must come to: less than a healthy training's
#: validation loss rises where the network becomes surer of what it gets wrong.
RISE, RISE_OF_TRIVIAL = 0.20, 0.03
#: A rise of so much more is overfitting by itself; by less only if the metric has come down too.
RISEN = 1.0
#: Gap between the metric in training and validation from which on most of what was learned holds for nothing else.
GAP = 0.4
METRICS = ("accuracy", "r2")
#: Examples that the agreement of neighbours was counted over, at least.
SAMPLE = 512
#: By how much accuracy, in training or validation, may lie below the nearest neighbour's, with a reason at hand or
#: without one: networks are better by some points wherever both were measured.
NARROW, WIDE = 0.03, 0.15
#: The same of losses.
LOWER, HIGHER = 0.85, 1.15


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
    elif (bound := is_weak(case, sure=True)) is not None:
        found.append(_underfitting(case, bound))
    found.append(_overfitting(case))
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


def _plateau(case: Case) -> Finding:
    course = case.course
    return Finding(
        "plateau",
        "warning",
        int(course.steps[0]),
        f"The loss stands at {course.level:.3g}, which is what answering the same for every example would give: "
        "the network has learned nothing yet.",
        "Look at what else was found here for the reason; if nothing, try another learning rate and initialisation.",
        evidence=_finite({"level": course.level, "trivial": course.top, "error": course.error, "gain": course.gain}),
        confidence=0.9 if course.trivial is not None else 0.7,
    )


def _short(case: Case) -> Finding:
    course = case.course
    return Finding(
        "slow_convergence",
        "warning",
        0,
        f"The training is over after {case.step} updates, with {100 * (1 - course.learned):.0f} % of the loss still "
        "there: that is too few to have learned much.",
        "Train for more epochs.",
        evidence=_finite({"updates": float(case.step), "level": course.level, "trivial": course.top}),
        confidence=0.8,
    )


def _slow(case: Case) -> Finding:
    course = case.course
    return Finding(
        "slow_convergence",
        "warning",
        int(course.steps[len(course.steps) // 2]),
        f"The loss falls so slowly that {100 * (1 - course.learned):.0f} % of it is still there; as many steps again "
        f"would take away about {100 * course.gain:.0f} %.",
        "Raise the learning rate, or train longer.",
        evidence=_finite(
            {"level": course.level, "trivial": course.top, "learned": course.learned, "gain": course.gain}
        ),
        confidence=0.8,
    )


def _oscillating(case: Case) -> Finding:
    course = case.course
    return Finding(
        "oscillating_loss",
        "warning",
        int(course.steps[len(course.steps) // 2]),
        f"The loss jumps from batch to batch {course.swing:.2g} times as far as chance in the choice of examples "
        "explains, and does not settle.",
        "Lower the learning rate, or take larger batches.",
        evidence=_finite({"swing": course.swing, "level": course.level, "trivial": course.top}),
        confidence=0.8,
    )


def _underfitting(case: Case, bound: float) -> Finding:
    course = case.course
    return Finding(
        "underfitting",
        "warning",
        int(course.steps[len(course.steps) // 2]),
        f"The training loss has stopped at {course.level:.3g}; copying the label of the most similar example would "
        f"give about {bound:.3g}, so there is more to learn in these data.",
        "Use a larger network, train longer, or look at the other findings for what holds it back.",
        evidence=_finite({"level": course.level, "neighbours_loss": bound, "trivial": course.top}),
        confidence=0.7,
    )


def is_weak(case: Case, sure: bool) -> float | None:
    """The loss that copying the target of the nearest neighbour would come to, where the training is worse than that;
    else None. The neighbour errs at most twice as often as anything can (Cover and Hart 1967), so a network that was
    trained well is better. `sure`: by a wide margin, as is asked where nothing else is wrong.
    """
    course = case.course
    if course.trivial is None or not course.is_long or (case.share_done or 1.0) <= 0.5:
        return None
    if case.share_done is None and course.gain > 0 and case.fact("ended_at") is None:
        return None  # it is on its way, and nobody knows how far that is to be
    agreement, error = case.fact("neighbour_agreement"), case.fact("neighbour_error")
    if agreement is not None:
        return _weak_classes(case, agreement, sure)
    if error is None or case.facts.get("loss") != "mse" or error > 0.9 * course.trivial:
        return None
    return error if course.level - SURE * course.error > (HIGHER if sure else LOWER) * error else None


def _weak_classes(case: Case, agreement: float, sure: bool) -> float | None:
    """By accuracy where that is measured. Else by the loss of a calibrated answer that is right with chance a and
    spreads the rest over C − 1 classes: H(a) + (1 − a) ln(C − 1).
    """
    course, classes = case.course, case.fact("num_classes") or 2.0
    right = agreement - SURE * math.sqrt(max(agreement * (1 - agreement), 1 / SAMPLE) / SAMPLE)
    if right <= (case.fact("neighbour_chance") or 1 / classes) + 0.1:
        return None
    wrong = 1 - right
    bound = -right * math.log(right) - (wrong * math.log(wrong / (classes - 1)) if wrong > 0 else 0.0)
    measured = _metrics(case)
    if measured is not None:
        score = max(float(np.median(part[-3:])) for part in measured if len(part))
        return bound if score < agreement - (WIDE if sure else NARROW) else None
    assert course.trivial is not None
    is_above = course.level - SURE * course.error > max((1.0 if sure else LOWER) * bound, 0.1 * course.trivial)
    return bound if is_above else None


def _overfitting(case: Case) -> Finding | None:
    """A rise of the validation loss off its best that its own noise does not explain, and that costs something; or a
    metric that is far better in training than in validation.
    """
    steps, values = case.series("validation_loss")
    if len(values) < 4 or not np.isfinite(values).all():
        return None
    best = int(values.argmin())
    end, noise = float(np.median(values[-3:])), scatter(values)
    evidence = {"best": float(values[best]), "now": end, "noise": noise, "training_loss": case.course.level}
    gap = _gap(case)
    if gap is not None and gap > GAP and case.course.learned > 0.5:
        return _by_heart(int(steps[best]), evidence | {"gap": gap}, 0.85)
    after = values[best:]
    if len(values) < EVALUATIONS or len(after) < 4 or not _training_fell(case, float(steps[best])):
        return None
    rise = end - float(values[best])
    needed = max(RISE * abs(float(values[best])), RISE_OF_TRIVIAL * abs(case.course.top), SURE * noise)
    if not (rise > needed and line(after).is_rising):
        return None
    costs = rise > RISEN * abs(float(values[best])) or _metric_fell(case) is not False
    return _by_heart(int(steps[best]), evidence | {"rise": rise}, 0.9) if costs else None


def _by_heart(step: int, evidence: dict[str, float], confidence: float) -> Finding:
    if "gap" in evidence:
        what = f"Of what is right in training, {100 * evidence['gap']:.0f} points in a hundred are wrong in validation"
    else:
        what = (
            f"Since step {step} the network gets worse on validation data (loss {evidence['best']:.3g} to "
            f"{evidence['now']:.3g}) and no worse on what it trains on"
        )
    return Finding(
        "overfitting",
        "warning",
        step,
        f"{what}: it learns examples by heart.",
        "Use more data, augmentation, weight decay, dropout or a smaller network; fit hands over the weights of the "
        "best validation.",
        evidence=evidence,
        confidence=confidence,
    )


def _metrics(case: Case) -> tuple[Floats, Floats] | None:
    """A metric that is 1 where all is right, in training (may be empty) and validation; None where none was taken."""
    for name in METRICS:
        training, validation = case.values(name), case.values(f"validation_{name}")
        if len(validation) >= 4:
            return training, validation
    return None


def _gap(case: Case) -> float | None:
    """By how much the metric is better in training than in validation, of late."""
    measured = _metrics(case)
    if measured is None or len(measured[0]) < 3:
        return None
    return float(np.median(measured[0][-3:]) - np.median(measured[1][-3:]))


def _metric_fell(case: Case) -> bool | None:
    """Whether the validation metric is surely below its best level; None where none was measured."""
    measured = _metrics(case)
    if measured is None:
        return None
    values = measured[1]
    k = max(3, len(values) // 8)
    means = np.convolve(values, np.ones(k) / k, "valid")
    fall, noise = float(means.max() - means[-1]), scatter(values)
    return fall > max(0.03, SURE * noise * math.sqrt(2 / k))


def _training_fell(case: Case, since: float) -> bool:
    """Whether the training loss is lower now than around the best validation, or at least no higher."""
    name = "epoch_loss" if "epoch_loss" in case.names else "loss"
    steps, values = case.series(name)
    before, after = values[steps <= since], values[steps > since]
    if not len(before) or not len(after):
        return False
    return float(np.median(after[-3:])) <= float(np.median(before[-2:])) * 1.02


def _since(steps: Floats, holds: np.ndarray) -> float:
    """The step from which on something holds without a break up to now, or the last one."""
    breaks = np.flatnonzero(~holds)
    first = int(breaks[-1]) + 1 if len(breaks) else 0
    return float(steps[min(first, len(steps) - 1)])


def _finite(evidence: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in evidence.items() if math.isfinite(value)}
