"""What the data alone say: scales, classes, and examples that stand on both sides.

Scales are suspicions, told as notes: many networks train on bytes as they are. They become warnings where the training
goes badly.
"""

from __future__ import annotations

import math
from typing import Any

from thalweg.diagnosis.case import NORMS
from thalweg.records.finding import Finding
from thalweg.records.history import History

#: Root mean square of the inputs: curvature in the first layer, and with it the largest stable rate, goes with its
#: square, so that 10 asks for a rate a hundred times smaller than standardised inputs do, and 0.1 for as much a larger.
LARGE, SMALL = 10.0, 0.1
#: Scale of one feature over that of most, and the largest mean over it: the condition number of the first layer's
#: curvature is about its square. Features that hardly vary do no harm: the border of a picture is full of them.
DISPARITY, OFFSET = 100.0, 10.0
#: Deviation of targets: the gradient is in their units, and so is the way that the last layer has to go. Curvature in
#: the layers before goes with its square, as with that of inputs.
FAR, NEAR = 10.0, 0.1
#: Share of the most frequent class, and what the rarest has of its fair share.
MOST, RARE = 0.8, 0.1
#: Examples whose neighbours were looked up, and standard deviations of chance that their agreement must exceed.
NEIGHBOURS, AS_CHANCE = 1024, 2.0
#: Share of validation examples found in training, beyond what is found twice in training alone.
LEAKED = 0.1


def findings(history: History) -> list[Finding]:
    """What the facts say of the data."""
    facts = history.facts
    found = (_inputs(facts), _targets(facts), _classes(facts), _leak(facts))
    return [finding for finding in found if finding is not None]


def details(history: History) -> list[Finding]:
    """What is worth a look before training and seldom harms it: idle features, labels that follow nothing."""
    facts = history.facts
    return [finding for finding in (_features(facts), _labels(facts)) if finding is not None]


def _features(facts: dict[str, Any]) -> Finding | None:
    constant, repeated = facts.get("constant_features") or 0, facts.get("repeated_features") or 0
    if not constant + repeated:
        return None
    parts = []
    if constant:
        parts.append("1 never changes" if constant == 1 else f"{constant} never change")
    if repeated:
        parts.append("1 repeats another" if repeated == 1 else f"{repeated} repeat others")
    return Finding(
        "idle_features",
        "note",
        0,
        f"Of {facts.get('num_features')} features {' and '.join(parts)}: they tell the network nothing.",
        "Leave them out; if they should differ, look at how the data was read.",
        "inputs",
        evidence={"constant": float(constant), "repeated": float(repeated)},
    )


def _labels(facts: dict[str, Any]) -> Finding | None:
    agreement, chance = _number(facts, "neighbour_agreement"), _number(facts, "neighbour_chance")
    count = min(NEIGHBOURS, _number(facts, "num_examples"))
    if not (count > 0 and 0 < chance < 1):
        return None
    limit = chance + AS_CHANCE * math.sqrt(chance * (1 - chance) / count)
    if not agreement <= limit or limit - chance > 0.1:
        return None
    return Finding(
        "bad_labels",
        "note",
        0,
        f"Nearest examples have the same label in {100 * agreement:.0f} % of cases, and by chance in "
        f"{100 * chance:.0f} %: the labels may be shuffled.",
        "Look at a few examples with their labels, and that x and y are in the same order.",
        "targets",
        evidence={"neighbour_agreement": agreement, "neighbour_chance": chance},
        confidence=0.5,
    )


def _number(facts: dict[str, Any], name: str) -> float:
    value = facts.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _inputs(facts: dict[str, Any]) -> Finding | None:
    layers = facts.get("layers") or [{}]
    if facts.get("input_is_integer") or any(norm in str(layers[0].get("kind", "")) for norm in NORMS):
        return None
    mean, std = _number(facts, "input_mean"), _number(facts, "input_std")
    size = math.hypot(mean, std)
    offset = max(abs(mean) / std if std > 0 else math.nan, _number(facts, "largest_offset"))
    ratio = _number(facts, "largest_feature_std") / max(_number(facts, "median_feature_std"), 1e-30)
    evidence = {"mean": mean, "deviation": std}
    if size > LARGE or size < SMALL:
        sentence, sure = f"Inputs are of size {size:.3g}, where networks expect about 1.", 0.9
    elif ratio > DISPARITY:
        place = f"feature {facts.get('largest_feature')}"
        sentence, sure = f"Inputs differ in scale: {place} varies {ratio:.3g} times as much as most.", 0.85
        evidence["ratio"] = ratio
    elif offset > OFFSET:
        sentence, sure = f"Inputs lie {offset:.3g} times as far from zero as they vary.", 0.85
        evidence["offset"] = offset
    else:
        return None
    return Finding(
        "unscaled_inputs",
        "note",
        0,
        sentence,
        "Subtract the mean of each input and divide by its standard deviation, both taken from the training data.",
        "inputs",
        evidence={name: value for name, value in evidence.items() if math.isfinite(value)},
        confidence=sure,
    )


def _targets(facts: dict[str, Any]) -> Finding | None:
    mean, std = _number(facts, "target_mean"), _number(facts, "target_std")
    if facts.get("task") != "regression" or not std > 0:
        return None
    if NEAR <= std <= FAR and abs(mean) <= FAR * max(std, 1.0):
        return None
    return Finding(
        "unscaled_targets",
        "note",
        0,
        f"Targets lie at {mean:.3g} ± {std:.3g}, where a network begins with outputs of about 1.",
        "Subtract the mean of the targets and divide by their standard deviation, and undo it on predictions.",
        "targets",
        evidence={"mean": mean, "deviation": std},
        confidence=0.9,
    )


def _classes(facts: dict[str, Any]) -> Finding | None:
    most, least, classes = (
        _number(facts, name) for name in ("largest_class_share", "smallest_class_share", "num_classes")
    )
    is_rare = least < RARE / classes and classes <= 100 and most > 3 / classes
    if _number(facts, "labels_in_sequence") > 1:  # letters of a text: that some are rare is in the nature of it
        is_rare = False
    if not classes >= 2 or not (most > MOST or is_rare):
        return None
    return Finding(
        "class_imbalance",
        "note",
        0,
        f"Classes are unbalanced: the most frequent has {100 * most:.0f} % of the examples, the rarest "
        f"{100 * least:.2g} %.",
        "Look at the accuracy of each class; weight the loss or draw rare classes more often if they matter.",
        "targets",
        evidence={"largest_class_share": most, "smallest_class_share": least},
        confidence=0.6,
    )


def _leak(facts: dict[str, Any]) -> Finding | None:
    shared, repeated = _number(facts, "shared_with_validation"), _number(facts, "repeated_examples")
    if not shared > (repeated if math.isfinite(repeated) else 0.0) + LEAKED:
        return None
    return Finding(
        "data_leak",
        "warning",
        0,
        f"{100 * shared:.0f} % of the validation examples are in the training data too: validation says nothing about "
        "new examples.",
        "Split the data before anything else is done with it, and by person or source where examples belong together.",
        "validation data",
        evidence={"shared": shared} | ({"repeated": repeated} if math.isfinite(repeated) else {}),
        confidence=0.95,
    )
