"""Whether loss and output belong together, by what the output came out of and by the numbers in it.

A mismatch is a mistake whatever becomes of the training: a softmax in front of a loss that takes logits squeezes the
loss into a narrow band (of ten classes it cannot fall below ln(1 + 9/e) = 1.46), a ReLU cuts off half of all answers.
"""

from __future__ import annotations

from typing import Any

from thalweg.records.finding import Finding
from thalweg.records.history import History

#: Losses → what they take; those of logits apply the softmax or the sigmoid themselves.
LOGITS = ("cross_entropy", "binary_cross_entropy")
PROBABILITIES = ("categorical_cross_entropy", "bce")
#: Confidence below which a mismatch is a suspicion: it may do no harm.
SUSPECTED = 0.7
#: Rows that sum to one within this are probabilities, whatever they were made by.
ROUNDING = 1e-3


def findings(history: History) -> list[Finding]:
    """What the facts say of the loss and the output."""
    facts = history.facts
    told = _mismatch(facts)
    if told is None:
        return []
    sentence, advice, sure = told
    severity = "note" if sure < SUSPECTED else "warning"
    names = ("initial_loss", "expected_initial_loss", "output_low", "output_high", "output_row_sum_error")
    evidence = {name: float(facts[name]) for name in names if isinstance(facts.get(name), int | float)}
    return [
        Finding("loss_output_mismatch", severity, 0, sentence, advice, "output", evidence=evidence, confidence=sure)
    ]


def _mismatch(facts: dict[str, Any]) -> tuple[str, str, float] | None:
    """Sentence, advice and confidence, where something does not fit."""
    loss, function, units = facts.get("loss"), facts.get("output_function"), facts.get("output_units", 0)
    if loss not in (*LOGITS, *PROBABILITIES, "nll", "mse", "mae", "huber"):
        return None
    if function == "softmax" and units == 1:
        return "A softmax over one unit is always 1: the network cannot learn anything.", _without("softmax"), 1.0
    if loss in LOGITS:
        return _of_logits(facts, str(loss), str(function))
    if loss in PROBABILITIES and function in (None, "none", "relu", "tanh"):
        return _of_probabilities(facts, str(loss))
    if loss == "nll" and function in ("none", "softmax", "sigmoid", "relu", "tanh"):
        words = "The loss nll takes logarithms of probabilities, and the output is none."
        return words, 'Use the loss "cross_entropy" on plain scores, or end the network with a log-softmax.', 0.9
    return _of_values(facts, str(loss), str(function))


def _of_logits(facts: dict[str, Any], loss: str, function: str) -> tuple[str, str, float] | None:
    inner = "softmax" if loss == "cross_entropy" else "sigmoid"
    if function in ("softmax", "sigmoid"):
        sentence = f"The network ends with a {function}, and the loss {loss} applies a {inner} itself: one too many."
        return sentence, _without(function), 0.97
    if function in ("relu", "tanh"):
        cut = "cannot be negative" if function == "relu" else "stay between -1 and 1"
        sentence = f"The network ends with a {function}, so the scores that the loss {loss} takes {cut}."
        # Of several classes the scores beside the right one may be zero, and it as large as it likes: that can do.
        return sentence, _without(function), 0.65 if function == "relu" and loss == "cross_entropy" else 0.9
    error, low = facts.get("output_row_sum_error"), facts.get("output_low")
    if loss == "cross_entropy" and error is not None and low is not None and error < ROUNDING and low >= 0:
        sentence = "The outputs are probabilities, and the loss cross_entropy takes plain scores."
        return sentence, 'Take the softmax out of the network, or use the loss "categorical_cross_entropy".', 0.9
    return None


def _of_probabilities(facts: dict[str, Any], loss: str) -> tuple[str, str, float] | None:
    """Numbers outside [0, 1] are no probabilities."""
    low, high = facts.get("output_low"), facts.get("output_high")
    if low is None or high is None or (low >= 0 and high <= 1):
        return None
    instead = "cross_entropy" if loss == "categorical_cross_entropy" else "binary_cross_entropy"
    sentence = f"The loss {loss} takes probabilities, and the outputs run from {low:.3g} to {high:.3g}."
    return sentence, f'Use the loss "{instead}", which takes plain scores.', 0.95


def _of_values(facts: dict[str, Any], loss: str, function: str) -> tuple[str, str, float] | None:
    """Targets that the output cannot reach; and classes learned as numbers, through an output that saturates."""
    if loss not in ("mse", "mae", "huber") or function not in ("relu", "sigmoid", "tanh", "softmax"):
        return None
    mean, std, largest = (facts.get(name) for name in ("target_mean", "target_std", "target_max_abs"))
    if mean is None or std is None or largest is None:
        return None
    top = float("inf") if function == "relu" else 1.0
    bottom = -1.0 if function == "tanh" else 0.0
    if loss == "mse" and function in ("sigmoid", "softmax") and abs(std**2 - mean * (1 - mean)) < 1e-3 * std**2:
        sentence = (
            f"Classes are learned as numbers: a squared error through a {function} has hardly a gradient where it "
        )
        return sentence + "is wrong.", 'Use the loss "cross_entropy" (or "binary_cross_entropy") on plain scores.', 0.65
    if mean + 1.5 * std <= top and mean - 1.5 * std >= bottom and largest <= 1.05 * top:
        return None
    low = facts.get("target_low", mean - 1.5 * std)
    if low >= bottom and largest <= 1.05 * top:
        return None
    sentence = (
        f"The network ends with a {function}, which gives only numbers "
        + ("from 0 up" if function == "relu" else f"from {bottom:g} to 1")
        + f", and targets lie at {mean:.3g} ± {std:.3g}."
    )
    return sentence, _without(function), 0.95


def _without(function: str) -> str:
    return f"Take the {function} off the end of the network."
