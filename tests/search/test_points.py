"""Where the trials of a grid and of a random search lie."""

from __future__ import annotations

import math
from typing import Any

import pytest

from thalweg.optim.catalogue import RULES
from thalweg.search import grid, random
from thalweg.search.space import Range, Values, space


def test_a_grid_has_equal_factors_and_exact_ends() -> None:
    rates = [choice.learning_rate for choice in grid.points(space("sgd", 0.01, 1.0, None), 5)]
    assert (rates[0], rates[-1]) == (0.01, 1.0)
    assert rates[1:] == pytest.approx([rate * math.sqrt(10) for rate in rates[:-1]])


def test_the_bracket_is_the_rules_own_where_none_is_given() -> None:
    rates = [choice.learning_rate for choice in grid.points(space("auto", None, None, None))]
    assert (rates[0], rates[-1]) == RULES["adamw"].range
    assert len(rates) == grid.RATES


def test_a_grid_has_every_combination() -> None:
    where = space("momentum", 0.01, 0.1, {"weight_decay": (1e-4, 1e-2), "momentum": [0.8, 0.9]})
    choices = grid.points(where, 2)
    assert len({(choice.learning_rate, choice.options) for choice in choices}) == len(choices) == 2 * 3 * 2
    assert {dict(choice.options)["weight_decay"] for choice in choices} == {1e-4, 1e-3, 1e-2}


def test_a_budget_makes_a_grid_coarser() -> None:
    where = space("sgd", 0.01, 0.1, {"momentum": [0.8, 0.9]})
    assert len(grid.points(where, 11, budget=9)) == 8
    with pytest.raises(ValueError, match="a grid of two rates is 4 trainings: give a budget of at least 4, got 3.5"):
        grid.points(where, 11, budget=3.5)


def test_a_random_trial_follows_from_seed_and_number_alone() -> None:
    where = space("sgd", 0.01, 1.0, {"weight_decay": (1e-4, 1e-2), "nesterov": [True, False]})
    drawn = [random.point(where, 0, number) for number in range(200)]
    assert drawn[7] == random.point(where, 0, 7) != random.point(where, 1, 7)
    assert all(0.01 <= choice.learning_rate <= 1.0 for choice in drawn)
    # Evenly over the logarithm: a mean of 200 draws lies within 4 of its deviations, 1/√12/√200 each.
    places = [math.log(choice.learning_rate / 0.01) / math.log(100) for choice in drawn]
    assert abs(sum(places) / 200 - 0.5) < 4 / math.sqrt(12 * 200)
    assert {dict(choice.options)["nesterov"] for choice in drawn} == {True, False}


def test_dimensions_are_ranges_or_values() -> None:
    also = space("sgd", None, None, {"momentum": [0.8, 0.9], "weight_decay": (1e-4, 1e-2)}).also
    assert also == {"momentum": Values((0.8, 0.9)), "weight_decay": Range(1e-4, 1e-2)}


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        ({"low": 1.0, "high": 0.1}, ValueError, "low must be below high, got low=1 and high=0.1"),
        ({"low": 0.1, "high": 0.1}, ValueError, "low must be below high"),
        ({"low": 0.1}, ValueError, "got low=0.1 and high=0.03 .adamw's own high."),
        ({"low": 0.0}, ValueError, "low must be a number above 0, got 0"),
        ({"high": math.inf}, ValueError, "high must be a number above 0, got inf"),
        ({"high": "1"}, TypeError, "high takes a learning rate, got '1'"),
        ({"optimizer": "momentun"}, ValueError, "did you mean 'momentum'"),
        ({"optimizer": object()}, TypeError, "a search makes an optimizer for each rate: give a rule's name"),
        ({"also": {"weight_deca": (0.1, 0.2)}}, TypeError, "did you mean 'weight_decay'"),
        ({"also": {"weight_decay": 0.1}}, TypeError, "weight_decay in also takes a pair .low, high."),
        ({"also": {"weight_decay": (0.2, 0.1)}}, ValueError, "the lower first, got .0.2, 0.1."),
        ({"also": {"weight_decay": (0, 0.1)}}, ValueError, "a range of numbers above 0"),
        ({"also": {"weight_decay": [0.1]}}, TypeError, "a list of at least two values"),
        ({"also": ["weight_decay"]}, TypeError, "also takes a dict"),
    ],
)
def test_what_is_no_space_is_said_in_a_sentence(words: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    given = {"optimizer": "adamw", "low": None, "high": None, "also": None, **words}
    with pytest.raises(kind, match=sentence):
        space(**given)
