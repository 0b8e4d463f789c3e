"""Examples learned by heart: the validation loss off its best for good, or a score that holds for training alone."""

from __future__ import annotations

import math

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import SURE, line, scatter
from thalweg.records.finding import Finding

#: Evaluations without which a validation curve has no noise to be measured by.
EVALUATIONS = 6
#: Share of the best validation loss, and of the trivial one, that a rise must come to: less than a healthy training's
#: validation loss rises where the network becomes surer of what it gets wrong.
RISE, RISE_OF_TRIVIAL = 0.20, 0.03
#: A rise of so much more is overfitting by itself; by less only if the metric has come down too.
RISEN = 1.0
#: Gap between the score in training and validation from which on much of what was learned holds for nothing else; and
#: the same as a share of what was learned.
GAP, HALF = 0.4, 0.5


def finding(case: Case) -> Finding | None:
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
    if gap is not None and case.course.learned > 0.5:
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


def _gap(case: Case) -> float | None:
    """By how much the score is better in training than in validation, of late, where that is most of what was learned:
    so many points, or half of what training has beyond chance, which of few classes is less; else None.
    """
    scores = case.scores
    if scores is None or len(scores.training) < 4:
        return None
    training, validation = float(np.median(scores.training[-3:])), float(np.median(scores.validation[-3:]))
    gap = training - validation
    surely = gap > SURE * scores.error(validation)
    return gap if gap > GAP or (surely and gap > HALF * (training - scores.chance)) else None


def _metric_fell(case: Case) -> bool | None:
    """Whether the validation metric is surely below its best level; None where none was measured."""
    measured = case.scores
    if measured is None:
        return None
    values = measured.validation
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
