"""Labels that are wrong: all, so that nothing carries over to validation, or some, so that training falls behind.

| what is wrong | seen by |
|---|---|
| all | neighbours agree as by chance, or validation never comes below the trivial loss while training learns |
| a share p | the score in training stays behind that in validation, and neighbours agree no more than they can then |

A label that was drawn anew is right by chance alone. So as long as none is learned by heart, accuracy beyond chance is
in training 1 − p of what it is in validation; and r² is (1 − p)/(1 + p) of it, for the best prediction of such targets
is 1 − p of the true one. Dropout and augmentation hold training back too, but no neighbours: two labels, each right
with 1 − p, agree beyond chance in at most (1 − p)² of cases.
"""

from __future__ import annotations

import math

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.noise import SURE
from thalweg.records.finding import Finding

#: Examples that the agreement of neighbours was counted over, at least.
SAMPLE = 512
#: A validation loss that never came below this share of the trivial one has learned nothing that carries over.
NEVER = 0.97
#: Share of wrong labels from which on they are told, and that it must surely be, for norms and light dropout do as much
#: as a tenth; and what validation must have over chance for a share to be measured.
WRONG, SURELY, SOMETHING = 0.2, 0.1, 0.1
#: Evaluations, at least, over which both scores are meant.
EVALUATIONS = 5


def findings(case: Case, outcomes: set[str]) -> list[Finding]:
    """What is wrong with the labels, once."""
    found = _unrelated(case, outcomes) or _partly_wrong(case)
    return [found] if found is not None else []


def _unrelated(case: Case, outcomes: set[str]) -> Finding | None:
    """Labels that have nothing to do with the inputs: neighbours disagree as by chance, and nothing carries over."""
    course = case.course
    validation = case.values("validation_loss")
    agreement, chance = case.fact("neighbour_agreement"), case.fact("neighbour_chance")
    if course.trivial is None:
        return None
    finite = validation[np.isfinite(validation)]
    best = float(finite.min()) if len(finite) else np.nan
    never = len(validation) >= 4 and best > NEVER * course.trivial and not _carries_over(case)
    learned = course.learned > 0.1
    by_chance = known = False
    if agreement is not None and chance is not None:
        known, by_chance = True, agreement < chance + SURE * (chance / SAMPLE) ** 0.5
    if by_chance:
        if not (never or "plateau" in outcomes):
            return None
    elif not (never and learned) or (known and "overfitting" in outcomes):  # learned by heart, and neighbours do agree
        return None
    evidence = {"trivial": course.trivial}
    if len(finite):
        evidence["best_validation_loss"] = best
    if agreement is not None and chance is not None:
        evidence |= {"neighbour_agreement": agreement, "neighbour_chance": chance}
    return Finding(
        "bad_labels",
        "warning",
        0,
        "The labels seem to have nothing to do with the inputs: what is learned of some examples says nothing about "
        "others.",
        "Look at a few examples with their labels; check that both were shuffled, sorted and cut in the same way.",
        evidence=evidence,
        confidence=0.9 if by_chance and never else 0.7,
    )


def _carries_over(case: Case) -> bool:
    """Whether a validation score above chance says so where the loss, which counts how sure answers are, does not."""
    measured = case.scores
    if measured is None or measured.name != "accuracy" or len(measured.validation) < EVALUATIONS - 1:
        return False
    return measured.best.validation - measured.chance > SURE * measured.error(measured.chance)


def _partly_wrong(case: Case) -> Finding | None:
    measured = case.scores
    if measured is None or len(measured.validation) < EVALUATIONS or len(measured.training) < EVALUATIONS:
        return None
    best = measured.best
    beyond = best.validation - measured.chance
    if not beyond > SOMETHING:
        return None
    ratio = (best.training - measured.chance) / beyond
    error = measured.error(best.validation) / beyond
    right, surely = (_right(measured.name, ratio + more) for more in (0.0, SURE * error))
    if not right < 1 - WRONG or not surely < 1 - SURELY or not _neighbours_differ(case, right):
        return None
    return Finding(
        "bad_labels",
        "warning",
        0,
        f"The network is right more often on validation data ({measured.name} {best.validation:.2f}) than on what it "
        f"trains on ({best.training:.2f}): about {100 * min(1 - right, 1):.0f} % of the training labels seem wrong.",
        "Look at the training examples with the highest loss and how they came by their labels; if it is dropout or "
        "augmentation that makes training so much harder, use less of it.",
        evidence={
            "training": best.training,
            "validation": best.validation,
            "share_wrong": 1 - right,
        },
        confidence=0.7,
    )


def _right(score: str, ratio: float) -> float:
    """The share of labels that are right, from the ratio of the scores."""
    return ratio if score == "accuracy" else 2 * ratio / max(1 + ratio, 1e-9)


def _neighbours_differ(case: Case, right: float) -> bool:
    """Whether nearest neighbours are known, and agree no more often than labels of which this share is right."""
    agreement, chance = case.fact("neighbour_agreement"), case.fact("neighbour_chance")
    squared = case.fact("neighbour_error")
    if agreement is not None and chance is not None and chance < 1:
        agree = (agreement - chance) / (1 - chance)
        error = math.sqrt(agreement * (1 - agreement) / SAMPLE) / (1 - chance)
    elif squared is not None and case.trivial is not None:  # of chance, it is twice the variance
        agree, error = 1 - squared / (2 * case.trivial), 1 / math.sqrt(SAMPLE)
    else:
        return False
    return agree < max(right, 0.0) ** 2 + SURE * error
