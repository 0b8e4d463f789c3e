"""What the model is like before the first update: alike units, a loss that begins too high, parts that are cut off."""

from __future__ import annotations

import math
from typing import Any

from thalweg.diagnosis.case import NORMS
from thalweg.records.finding import Finding
from thalweg.records.history import History

#: Times its expected value that a loss may begin at: scores of deviation s add about s²/2 to a cross-entropy, and
#: default initialisations stay below 1.
HIGH = 3.0
#: What to do about a part that no gradient reaches.
CUT_OFF = "Look for detach(), no_grad() or numpy between it and the loss, and for a layer that forward does not call."


def findings(history: History) -> list[Finding]:
    """What the facts say of the model and its first pass."""
    facts = history.facts
    found = (_alike(facts) or _begins_high(facts), _unreached(facts) or _frozen(facts), _in_eval(facts))
    return [finding for finding in found if finding is not None]


def _alike(facts: dict[str, Any]) -> Finding | None:
    """Units of a hidden layer that begin the same stay the same; an output layer of zeros is sound."""
    layers = [
        layer["name"]
        for layer in facts.get("layers") or []
        if layer["trainable"] and not any(norm in layer["kind"] for norm in NORMS) and layer["kind"] != "Embedding"
    ]
    alike = [name for name in facts.get("symmetric_layers") or [] if name in layers[:-1]]
    if not alike:
        return None
    unbroken = [name for name in facts.get("unbroken_layers", alike) if name in alike]
    told = "they get the same gradient and stay alike" if unbroken else "only their biases tell them apart"
    return Finding(
        "bad_initialization",
        "warning" if unbroken else "note",
        0,
        f"All units of layer {alike[0]} begin with the same weights: {told}.",
        "Initialise weights at random (torch's default, or nn.init.kaiming_normal_).",
        alike[0],
        evidence={"layers": float(len(alike))},
        confidence=0.95,
    )


def _begins_high(facts: dict[str, Any]) -> Finding | None:
    begun, expected = facts.get("initial_loss"), facts.get("expected_initial_loss")
    if not isinstance(begun, int | float) or not isinstance(expected, int | float) or not expected > 0:
        return None
    if facts.get("loss") in ("cross_entropy", "categorical_cross_entropy", "nll"):
        expected = max(expected, math.log(max(1, facts.get("output_units", 1))))  # undecided between all classes
    if begun <= HIGH * expected or not math.isfinite(begun):  # what is not finite may be the data's
        return None
    return Finding(
        "bad_initialization",
        "note",
        0,
        f"The loss begins at {begun:.3g}, where an answer that knows nothing would have {expected:.3g}.",
        "Scale the inputs, or start with smaller weights, in the last layer above all.",
        evidence={"initial_loss": float(begun), "expected_initial_loss": float(expected)},
        confidence=0.7,
    )


def _unreached(facts: dict[str, Any]) -> Finding | None:
    names = facts.get("unreached_parameters") or []
    if not names:
        return None
    return Finding(
        "frozen_parameters",
        "warning",
        0,
        f"No gradient reaches {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + ".",
        CUT_OFF,
        names[0],
        evidence={"parameters": float(len(names))},
        confidence=0.97,
    )


def _frozen(facts: dict[str, Any]) -> Finding | None:
    """Frozen by whoever made the model: often meant."""
    names = facts.get("frozen_parameters") or []
    if not names:
        return None
    return Finding(
        "frozen_parameters",
        "note",
        0,
        f"{names[0]}"
        + (f" and {len(names) - 1} more do" if len(names) > 1 else " does")
        + " not learn (requires_grad is off).",
        "Leave it if that is meant; else call requires_grad_(True).",
        names[0],
        evidence={"parameters": float(len(names))},
        confidence=0.8,
    )


def _in_eval(facts: dict[str, Any]) -> Finding | None:
    """What stays in evaluation mode when told to train was made to: often meant, as a norm that is not to move."""
    names = facts.get("modules_in_eval") or []
    if not names:
        return None
    return Finding(
        "wrong_mode",
        "note",
        0,
        f"{names[0]}"
        + (f" and {len(names) - 1} more stay" if len(names) > 1 else " stays")
        + " in evaluation mode while the model trains.",
        "Leave it if that is meant; else look for a train() of the model that does not reach it, or an eval() in its "
        "forward.",
        names[0],
        evidence={"modules": float(len(names))},
        confidence=0.9,
    )
