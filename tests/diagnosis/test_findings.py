"""Every code: a hand-written history that has it, and a healthy look-alike on which nothing above a note is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from histories import HEALTHY_FACTS, falling, training

from thalweg.diagnosis.engine import findings
from thalweg.records.finding import Finding
from thalweg.records.history import History

DEEP = tuple(str(layer) for layer in range(8))
FADING = {layer: 10 ** (-4 + 0.5 * depth) for depth, layer in enumerate(DEEP)}


def warnings(history: History) -> list[Finding]:
    return [finding for finding in findings(history) if finding.severity != "note"]


def codes(history: History) -> list[str]:
    return [finding.code for finding in warnings(history)]


def flat(level: float = 2.3) -> Callable[[float], float]:
    return lambda step: level


def broken(step: float) -> float:
    return math.nan if step > 500 else falling()(step)


#: Code → a history that has it, and one that looks like it in the signal but whose outcome is good.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vanishing_gradient": (
        {"loss": flat(), "layers": DEEP, "gradient": FADING, "descent_ratio": 0.99},
        {"layers": DEEP, "gradient": FADING},
    ),
    "exploding_gradient": (
        {"loss": flat(), "gradient": 500.0},
        {"gradient": 500.0},
    ),
    "dead_units": ({"loss": flat(), "dead_share__1": 0.95}, {"dead_share__1": 0.7}),
    "saturated_units": ({"loss": flat(), "saturated_share__1": 0.9}, {"saturated_share__1": 0.7}),
    "learning_rate_too_high": (
        {"loss": lambda step: 2.3 + 0.5 * (step > 3), "noise": 0.3, "descent_ratio": -0.5, "update_cosine": -0.5},
        {"descent_ratio": 0.1, "update_cosine": -0.5},
    ),
    "learning_rate_too_low": (
        {"loss": lambda step: 2.3 - 5e-4 * step, "descent_ratio": 0.999, "update_ratio": 5e-5},
        {"descent_ratio": 0.999, "update_ratio": 5e-5},
    ),
    "stale_gradients": (
        {"loss": lambda step: 2.8 + 0.4 * np.sin(step / 20), "update_cosine": 0.99, "descent_ratio": -0.5,
         "facts": {"momentum": 0.0}},
        {"update_cosine": 0.99, "descent_ratio": 0.2, "facts": {"momentum": 0.0}},
    ),
    "optimizer_misconfigured": ({"loss": flat(), "facts": {"momentum": 0.999}}, {"facts": {"momentum": 0.999}}),
    "batch_too_small": (
        {"loss": flat(1.6), "noise": 1.0, "facts": {"batch_size": 2, "neighbour_agreement": 0.95,
                                                     "neighbour_chance": 0.1}, "update_cosine": 0.0},
        {"noise": 1.0, "facts": {"batch_size": 1}, "update_cosine": 0.0},
    ),
    "bad_labels": (
        {"loss": falling(0.05, over=300), "validation": lambda step: 2.3 + step / 500,
         "facts": {"neighbour_agreement": 0.1, "neighbour_chance": 0.1}},
        {"validation": falling(0.4), "facts": {"neighbour_agreement": 0.1, "neighbour_chance": 0.1}},
    ),
    "non_finite": ({"loss": broken}, {}),
    "diverging_loss": ({"loss": lambda step: 2.3 * 1.02 ** min(step, 300)}, {"loss": lambda step: falling()(step) * (
        3 if 3 <= step <= 12 else 1)}),
    "plateau": ({"loss": flat()}, {"loss": lambda step: 2.3 if step < 300 else falling()(step - 300)}),
    "slow_convergence": ({"loss": lambda step: 2.3 - 5e-4 * step}, {"loss": falling(0.3, over=250)}),
    "oscillating_loss": (
        {"loss": flat(1.0), "noise": 1.0, "facts": {"batch_size": 128}},
        {"noise": 1.0, "facts": {"batch_size": 128}},
    ),
    "underfitting": (
        {"loss": flat(1.4), "facts": {"neighbour_agreement": 0.95, "neighbour_chance": 0.1}},
        {"loss": falling(0.25), "facts": {"neighbour_agreement": 0.95, "neighbour_chance": 0.1}},
    ),
    "overfitting": (
        {"loss": falling(0.01), "validation": lambda step: falling(0.5)(step) + max(0, step - 300) * 1e-3},
        {"loss": falling(0.01), "validation": lambda step: falling(0.5)(step) + (0.3 if 300 < step < 500 else 0.0)},
    ),
    "collapsed_output": (
        {"loss": flat(), "prediction_share": 1.0},
        {"prediction_share": 0.3},
    ),
    "frozen_parameters": (
        {"loss": falling(0.2), "gradient": {"0": 0.0, "2": 1.0, "4": 1.0}},
        {"gradient": {"0": 1e-9, "2": 1.0, "4": 1.0}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", CASES)
def test_a_history_that_has_it(code: str) -> None:
    for seed in range(5):
        assert code in codes(training(**CASES[code][0], seed=seed)), seed


@pytest.mark.parametrize("code", CASES)
def test_the_healthy_look_alike_is_silent(code: str) -> None:
    for seed in range(5):
        assert codes(training(**CASES[code][1], seed=seed)) == [], seed


def test_a_healthy_training_has_nothing_to_say_of_it() -> None:
    said = sum(bool(warnings(training(validation=falling(0.3), noise=0.3, seed=seed))) for seed in range(50))
    assert said == 0


def test_nor_has_it_at_any_moment_on_its_way() -> None:
    for steps in (20, 30, 50, 100, 160, 250, 400, 700):
        history = training(steps=steps, validation=falling(0.3), facts={"planned_steps": 1000})
        assert codes(history) == [], steps


def test_the_cause_comes_before_the_symptom() -> None:
    found = warnings(training(**CASES["learning_rate_too_high"][0]))
    assert [finding.code for finding in found] == ["learning_rate_too_high", "plateau"]


def test_a_rate_comes_with_the_one_to_use_instead() -> None:
    high = warnings(training(**CASES["learning_rate_too_high"][0]))[0].evidence
    assert 0.05 / 10 < high["suggested_learning_rate"] < 0.05 / 2  # the bottom lies at a third of a step of −0.5
    low = warnings(training(**CASES["learning_rate_too_low"][0]))[0].evidence
    assert 0.05 * 5 < low["suggested_learning_rate"] < 0.05 * 100


def test_what_follows_from_a_cause_is_a_note() -> None:
    found = findings(training(**{**CASES["vanishing_gradient"][0], "update_ratio": 5e-5, "descent_ratio": 0.999}))
    graded = {finding.code: finding.severity for finding in found}
    assert graded["vanishing_gradient"] == "warning" and graded["learning_rate_too_low"] == "note"


def test_two_causes_that_have_nothing_to_do_with_each_other_are_both_told() -> None:
    history = training(lambda step: 40.0 if 3 < step < 20 else 2.4, layers=DEEP, gradient=FADING)
    assert {"vanishing_gradient", "learning_rate_too_high"} <= set(codes(history))


def test_the_same_history_gives_the_same_findings_and_stays_as_it_is() -> None:
    history = training(**CASES["learning_rate_too_high"][0])
    before = history.to_dict()
    assert findings(history) == findings(history)
    assert history.to_dict() == before and history.findings == []


def test_a_history_without_anything() -> None:
    assert findings(History()) == []
    only_facts = History()
    only_facts.note(HEALTHY_FACTS)
    assert findings(only_facts) == []


def test_every_finding_is_a_sentence_with_advice_and_finite_evidence() -> None:
    for sick, _ in CASES.values():
        for finding in findings(training(**sick)):
            assert finding.sentence.endswith(".") and finding.advice.endswith(".")
            assert all(math.isfinite(value) for value in finding.evidence.values())
            assert 0 < finding.confidence <= 1 and finding.step >= 0
