"""Every code: a hand-written history that has it, and a healthy look-alike on which nothing above a note is said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from histories import HEALTHY_FACTS, falling, training

from thalweg.diagnosis import backward
from thalweg.diagnosis.case import Case
from thalweg.diagnosis.engine import findings
from thalweg.diagnosis.loss import is_weak
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.step import StepRecord

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


def test_bursts_tell_the_usual_norm_of_the_gradient() -> None:
    history = History()
    for step in range(1, 41):
        values = {"loss": 2.3, "gradient_norm": 1e5 if step in (20, 30) else 2.0 + 0.01 * step}
        history.append(StepRecord(step, step / 50, step / 100, values))
    found = backward._exploding(Case(history))
    assert found is not None and 2.0 < found.evidence["typical_norm"] < 2.1


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
    "overfitting ": (  # of two classes: half of what was learned holds for training alone
        {"loss": falling(0.01), "validation": falling(0.9), "accuracy": (lambda step: 0.98, lambda step: 0.72),
         "facts": {"largest_class_share": 0.5, "num_classes": 2, "num_validation_examples": 1000}},
        {"loss": falling(0.01), "validation": falling(0.9), "accuracy": (lambda step: 0.98, lambda step: 0.72),
         "facts": {"num_validation_examples": 1000}},
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
        assert code.strip() in codes(training(**CASES[code][0], seed=seed)), seed


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


def test_a_restart_is_not_to_go_on_at_the_bottom_it_came_from() -> None:
    worse = lambda step: falling(0.2)(step) + (0.25 if step > 500 else 0.0)  # noqa: E731
    restart = lambda step: 0.05 if step > 500 or step < 50 else 1e-5  # noqa: E731
    found = findings(training(worse, learning_rate=restart, facts={"learning_rate": 0.05}))
    (high,) = [finding for finding in found if finding.code == "learning_rate_too_high"]
    assert 0.05 / 20 < high.evidence["suggested_learning_rate"] < 0.05


def test_where_a_schedule_goes_beyond_what_was_asked_for_that_is_the_rate_to_use() -> None:
    burst = lambda step: 3.0 if step < 20 else 0.03  # noqa: E731
    thrown = {"loss": lambda step: 40.0 if step < 8 else 2.3, "facts": {"learning_rate": 0.03}}
    found = findings(training(**thrown, learning_rate=burst, update_ratio=0.02, descent_ratio=0.99))
    (high,) = [finding for finding in found if finding.code == "learning_rate_too_high"]
    assert high.evidence["learning_rate"] == 3.0 and high.evidence["suggested_learning_rate"] == 0.03


def test_a_rate_that_fell_too_soon_is_to_stay_where_it_was() -> None:
    fell = lambda step: 0.05 if step < 60 else 5e-6  # noqa: E731
    small = lambda step: 0.01 if step < 60 else 1e-6  # noqa: E731
    loss = lambda step: 2.3 - 0.5 * min(step, 60) / 60 - 1e-5 * step  # noqa: E731
    found = warnings(training(loss, learning_rate=fell, update_ratio=small, descent_ratio=0.999))
    (low,) = [finding for finding in found if finding.code == "learning_rate_too_low"]
    assert low.evidence["suggested_learning_rate"] == 0.05 and low.evidence["learning_rate"] == 5e-6
    assert low.advice == "Let the learning rate fall later: it stood at 0.05 before."


def test_one_answer_for_all_is_bad_where_no_loss_says_what_it_is_worth() -> None:
    thrown = {"loss": falling(2.3, 20.0), "output_low": -0.2, "output_high": 0.2, "dead_share__1": 0.9}
    own = {"loss": "my_loss", "expected_initial_loss": None, "initial_loss": 20.0}
    assert codes(training(**thrown, output_spread=1e-8, facts=own)) == ["dead_units", "collapsed_output"]
    assert codes(training(**thrown, output_spread=1e-5, facts=own)) == []  # little, beside its size: that may be meant
    assert codes(training(**thrown, output_spread=0.1, facts=own)) == []


def test_a_decay_as_strong_as_the_gradient_is_found_where_most_is_left_to_learn() -> None:
    decay = {"optimizer": "adam", "momentum": None, "weight_decay": 0.1}
    usual, apart = decay | {"weight_decay": 0.01}, decay | {"optimizer": "muon"}
    assert codes(training(falling(1.9), gradient=0.02, facts=usual)) == []
    assert codes(training(falling(1.9), gradient=0.02, facts=apart)) == []
    assert codes(training(falling(1.9), gradient=0.5, facts=decay)) == ["optimizer_misconfigured"]
    assert codes(training(falling(1.9), gradient=5.0, facts=decay)) == []
    assert codes(training(falling(0.2), gradient=0.5, facts=decay)) == []  # little is left to learn


def test_a_rate_that_has_long_come_down_is_not_too_high() -> None:
    high = CASES["learning_rate_too_high"][0]
    assert "learning_rate_too_high" in codes(training(**high))
    fell = lambda step: 0.05 if step < 60 else 5e-4  # noqa: E731
    assert "learning_rate_too_high" not in codes(training(**high, learning_rate=fell))


def test_a_gradient_that_explodes_before_any_step_is_why_a_rate_is_too_high() -> None:
    both = {**CASES["learning_rate_too_high"][0], "gradient": 500.0}
    graded = {finding.code: finding.severity for finding in findings(training(**both))}
    assert graded["exploding_gradient"] == "warning" and graded["learning_rate_too_high"] == "note"


def test_units_that_are_alike_do_not_make_a_rate_too_low() -> None:
    layers = [{"name": name, "kind": "Linear", "trainable": True} for name in ("0", "2", "4")]
    alike = {"layers": layers, "symmetric_layers": ["0"], "unbroken_layers": ["0"]}
    slow = {**CASES["learning_rate_too_low"][0], "facts": alike}
    assert {"bad_initialization", "learning_rate_too_low"} <= set(codes(training(**slow)))


def test_what_follows_from_a_cause_is_a_note() -> None:
    found = findings(training(**{**CASES["vanishing_gradient"][0], "update_ratio": 3e-4, "descent_ratio": 0.999}))
    graded = {finding.code: finding.severity for finding in found}
    assert graded["vanishing_gradient"] == "warning" and graded["learning_rate_too_low"] == "note"


def test_a_rate_that_killed_the_units_comes_before_them() -> None:
    thrown = {"loss": lambda step: 40.0 if step < 8 else 2.3 - 5e-4 * step, "dead_share__1": 0.95}
    found = findings(training(**thrown, descent_ratio=0.99))
    graded = {finding.code: finding.severity for finding in found}
    assert found[0].code == "learning_rate_too_high" and graded["dead_units"] == "note"
    born = {"loss": lambda step: 2.3 - 5e-4 * step, "dead_share__1": 0.95, "descent_ratio": 0.99}
    assert codes(training(**born))[0] == "dead_units"


def test_a_rate_that_was_raised_and_stays_so_while_the_loss_is_worse() -> None:
    def made(loss: Callable[[float], float], rate: Callable[[float], float]) -> list[str]:
        return codes(training(loss, learning_rate=rate))

    worse = lambda step: falling(0.2)(step) + (0.25 if step > 500 else 0.0)  # noqa: E731
    hardly = lambda step: falling(0.2)(step) + (0.05 if step > 500 else 0.0)  # noqa: E731
    high = lambda step: 1.0 if step > 500 else 0.05  # noqa: E731
    assert made(worse, high) == ["learning_rate_too_high"]
    evidence = findings(training(worse, learning_rate=high))[0].evidence
    assert (evidence["learning_rate"], evidence["suggested_learning_rate"]) == (1.0, 0.05)
    assert made(hardly, high) == []
    assert made(worse, lambda step: 1.0 if 500 < step < 700 else 0.05) == []  # as a warm restart


def test_units_that_were_dead_before_the_first_step_are_not_the_work_of_the_rate() -> None:
    wild: dict[str, Any] = {"loss": flat(), "update_ratio": lambda step: 0.5 if step < 60 else 1e-3}
    killed = training(**wild, dead_share__1=1.0)
    assert codes(killed)[0] == "learning_rate_too_high" and "dead_units" not in codes(killed)
    born = training(**wild, dead_share__1=1.0, gradient={"0": 0.0, "2": 0.0, "4": 1.0})
    assert {"dead_units", "learning_rate_too_high"} <= set(codes(born))


@pytest.mark.parametrize(
    ("rule", "rate", "both"),
    [
        ({"optimizer": "sgd", "momentum": 0.9}, 0.3, False),
        ({"optimizer": "sgd", "momentum": 0.9}, 3.0, True),
        ({"optimizer": "sgd", "momentum": 0.0}, 3.0, False),
        ({"optimizer": "adam", "momentum": None, "beta1": 0.9, "beta2": 0.999}, 0.01, False),
        ({"optimizer": "adam", "momentum": None, "beta1": 0.9, "beta2": 0.999}, 0.1, True),
        ({"optimizer": "muon", "momentum": 0.0}, 3.0, False),
    ],
)
def test_a_rate_beyond_all_that_is_usual_is_no_mere_consequence(rule: dict[str, Any], rate: float, both: bool) -> None:
    layers = [{"name": name, "kind": "Linear", "scale": 6.0, "trainable": True} for name in ("0", "2", "4")]
    sick = training(
        lambda step: 2.3 * 1.02 ** min(step, 300),
        descent_ratio=-0.5,
        learning_rate=lambda step: rate,
        facts={**rule, "learning_rate": rate, "layers": layers, "initial_loss": 2.3},
    )
    assert "bad_initialization" in codes(sick)
    assert ("learning_rate_too_high" in codes(sick)) == both
    evidence = [finding.evidence for finding in findings(sick) if finding.code == "learning_rate_too_high"]
    high = [of for of in evidence if "usual" in of]
    assert all(of["suggested_learning_rate"] < 1.01 * of["usual"] for of in high)  # rounded
    assert bool(high) == both


def test_validation_without_a_number_is_no_fault_of_the_labels() -> None:
    lost = training(lambda step: 2.3 if step < 50 else float("nan"), validation=lambda step: float("nan"))
    assert "bad_labels" not in codes(lost)
    assert "non_finite" in codes(lost)


def test_an_output_layer_may_begin_small_and_a_hidden_one_may_not() -> None:
    for small, told in (("4", False), ("2", True)):
        layers = [
            {"name": name, "kind": "Linear", "scale": 0.05 if name == small else 1.0, "trainable": True}
            for name in ("0", "2", "4")
        ]
        stuck = training(lambda step: 2.3, facts={"layers": layers, "initial_loss": 2.3})
        assert ("bad_initialization" in codes(stuck)) == told


#: A network that has learned, and less than copying the nearest neighbour's label would give.
BEHIND: dict[str, Any] = {
    "loss": falling(0.9),
    "accuracy": (lambda step: 0.7, lambda step: 0.7),
    "facts": {"neighbour_agreement": 0.8, "neighbour_chance": 0.1, "num_validation_examples": 1000},
}


def behind(**other: Any) -> History:
    return training(**{**BEHIND, **other, "facts": BEHIND["facts"] | other.get("facts", {})})


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ({"facts": {"momentum": 0.995}}, "optimizer_misconfigured"),
        ({"facts": {"beta1": 0.99, "beta2": 0.9}}, "optimizer_misconfigured"),
        ({"descent_ratio": 0.1, "update_cosine": -0.4}, "learning_rate_too_high"),
        ({"facts": {"modules_in_eval": ["1"]}}, "wrong_mode"),
        ({"facts": {"input_std": 0.03, "input_mean": 0.0}}, "unscaled_inputs"),
        ({"facts": {"output_function": "relu", "output_units": 10}}, "loss_output_mismatch"),
    ],
)
def test_a_cause_with_evidence_of_its_own_needs_no_more_than_neighbours_that_do_better(
    other: dict[str, Any], code: str
) -> None:
    assert codes(behind()) == []
    assert codes(behind(**other)) == [code]
    assert codes(behind(**other, accuracy=(lambda step: 0.85, lambda step: 0.85))) == []


@pytest.mark.parametrize(("accuracy", "weak", "sure"), [(0.85, False, False), (0.72, True, False), (0.6, True, True)])
def test_a_training_is_held_against_what_neighbours_say_can_be_attained(
    accuracy: float, weak: bool, sure: bool
) -> None:
    case = Case(behind(accuracy=(lambda step: accuracy, lambda step: accuracy)))
    found = is_weak(case, sure=False), is_weak(case, sure=True)
    assert [one is not None for one in found] == [weak, sure]
    if weak:
        assert (
            found[0] is not None and 0.84 < found[0].attainable < 0.88
        )  # 0.8 of neighbours: R = 0.106, less its error
    assert ("underfitting" in codes(case.history)) == sure


def test_what_is_still_falling_is_held_against_less() -> None:
    for accuracy, weak in ((0.72, False), (0.6, True)):
        made = training(
            lambda step: 2.3 - 1.4e-3 * step,
            accuracy=(lambda step, a=accuracy: a, lambda step, a=accuracy: a),  # type: ignore[misc]
            facts=BEHIND["facts"] | {"planned_steps": 1900},
        )
        assert (is_weak(Case(made), sure=False) is not None) == weak
        assert is_weak(Case(made), sure=True) is None


def test_where_neighbours_are_nearly_always_right_less_is_forgiven() -> None:
    facts = {"neighbour_agreement": 0.97, "neighbour_chance": 0.1, "num_validation_examples": 1000}
    for accuracy, weak in (
        (0.95, False),
        (0.9, True),
    ):  # more than nine tenths of what can be had, but not the neighbours'
        made = behind(accuracy=(lambda step, a=accuracy: a, lambda step, a=accuracy: a), facts=facts)  # type: ignore[misc]
        assert (is_weak(Case(made), sure=False) is not None) == weak


def test_a_decay_that_pulls_as_hard_as_the_loss() -> None:
    norm = 8 * 3**0.5  # of three layers; their gradients have about √3
    for decay, off in ((0.03, False), (0.3, True)):
        assert (decay * norm > 0.5 * 3**0.5) == off
        assert ("optimizer_misconfigured" in codes(behind(facts={"weight_decay": decay}))) == off
    apart = {"weight_decay": 0.3, "optimizer": "adamw"}  # it is no part of the gradient
    assert "optimizer_misconfigured" not in codes(behind(facts=apart))


def test_a_gradient_that_fades_at_the_start_and_has_evened_out_since() -> None:
    made = training(flat(1.9), layers=DEEP, gradient=FADING)
    evened = History()
    evened.note(made.facts | BEHIND["facts"])
    for name, column in made.to_dict().items():
        for step, value in zip(column["steps"], column["values"], strict=True):
            later = name.startswith("gradient_norm/") and step > 20
            evened.append(StepRecord(step, step / 50, 0.0, {name: 1.0 if later else value}))
    assert "vanishing_gradient" in codes(evened)


@pytest.mark.parametrize(("level", "weak", "sure"), [(0.25, False, False), (0.4, True, False), (0.6, True, True)])
def test_so_is_a_regression(level: float, weak: bool, sure: bool) -> None:
    facts = {"loss": "mse", "task": "regression", "expected_initial_loss": 1.0, "neighbour_error": 0.4}
    case = Case(training(falling(level, start=1.1), facts=facts, noise=0.02))
    assert [is_weak(case, one) is not None for one in (False, True)] == [weak, sure]  # 0.23 can be attained


def grown(end: float) -> Callable[[float], float]:
    return lambda step: end - (end - 0.1) * math.exp(-step / 100)


def of_noise(training_end: float, validation_end: float, agreement: float | None, **facts: Any) -> History:
    known = {"neighbour_agreement": agreement, "neighbour_chance": 0.1} if agreement is not None else {}
    return training(
        falling(1.2),
        validation=falling(0.8),
        accuracy=(grown(training_end), grown(validation_end)),
        facts={"num_validation_examples": 1000, **known, **facts},
    )


def test_labels_of_which_a_share_is_wrong_hold_training_back_and_not_validation() -> None:
    told = next(f for f in warnings(of_noise(0.66, 0.90, 0.45)) if f.code == "bad_labels")
    assert 0.25 < told.evidence["share_wrong"] < 0.35  # of a 0.3 that were drawn anew


def test_targets_of_which_a_share_is_wrong() -> None:
    """Of targets whose network explains 0.8 of the variance, 0.3 go to other examples: 0.7² 0.8 is left in training,
    and 0.8 (1 − 0.3²) in validation; pairs of neighbours differ by 0.5, and those of which one is wrong by 2.
    """
    facts = {"loss": "mse", "task": "regression", "expected_initial_loss": 1.0, "num_validation_examples": 1000}

    def made(neighbour_error: float) -> History:
        known = facts | {"neighbour_error": neighbour_error}
        return training(falling(0.6, start=1.1), score="r2", accuracy=(grown(0.39), grown(0.73)), facts=known)

    told = next(f for f in warnings(made(0.49 * 0.5 + 0.51 * 2)) if f.code == "bad_labels")
    assert 0.25 < told.evidence["share_wrong"] < 0.35
    assert "bad_labels" not in codes(made(0.5))  # neighbours are as they should be: it is dropout


@pytest.mark.parametrize(
    ("history", "why"),
    [
        (of_noise(0.82, 0.90, 0.45), "a tenth is what light dropout does"),
        (of_noise(0.66, 0.90, None), "nobody knows what neighbours say, and dropout would do the same"),
        (of_noise(0.66, 0.90, 0.85), "neighbours agree more often than such labels could: it is augmentation"),
        (of_noise(0.66, 0.90, 0.45, num_validation_examples=12), "so few are measured that it may be chance"),
        (of_noise(0.15, 0.18, 0.45), "nothing was learned that could be held back"),
    ],
)
def test_a_training_that_is_held_back_by_something_else(history: History, why: str) -> None:
    assert "bad_labels" not in codes(history), why


def test_a_validation_loss_of_wild_answers_does_not_condemn_the_labels() -> None:
    wild = {"loss": falling(1.5, over=400), "validation": lambda step: 3.5}
    facts = {"num_validation_examples": 1000}
    assert "bad_labels" in codes(training(**wild, accuracy=(grown(0.5), lambda step: 0.1), facts=facts))
    assert "bad_labels" not in codes(training(**wild, accuracy=(grown(0.5), lambda step: 0.3), facts=facts))


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


@pytest.mark.parametrize("missing", ["learning_rate", "gradient_norm", "weight_norm", "update_ratio", "loss", "facts"])
def test_any_series_may_be_missing(missing: str) -> None:
    for sick, _ in CASES.values():
        whole = training(**sick)
        part = History()
        if missing != "facts":
            part.note(whole.facts)
        for name in whole.names:
            if name.partition("/")[0] != missing:
                steps, values = whole.series(name)
                for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                    part.append(StepRecord(step, step / 50, 0.0, {name: value}))
        assert all(finding.sentence for finding in findings(part))
