"""A plan as words, numbers and JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thalweg.step.plan import Plan

FULL = Plan(
    layout="channels_last",
    arithmetic="bfloat16",
    threads=2,
    keep_memory=True,
    compiled_after=12,
    batch=((32, 1, 28, 28), (32,)),
    products={"2x3:3,1 3x4:4,1": "onednn"},
    gain=2.126,
    notes=("One thing was not taken.",),
    is_settled=True,
)

WORDS = {
    "eager": Plan(),
    "channels last": Plan(layout="channels_last"),
    "channels last: 1.5 times as fast as eager": Plan(layout="channels_last", gain=1.5),
    "1 thread, compiled from step 15 on: 7.1 times as fast as eager": Plan(threads=1, compiled_after=14, gain=7.08),
    "channels last, products in bfloat16, 2 threads, compiled from step 13 on: 2.1 times as fast as eager": FULL,
}


@pytest.mark.parametrize("words", WORDS)
def test_a_plan_in_words(words: str) -> None:
    assert str(WORDS[words]) == words
    assert WORDS[words].to_dict()["words"] == words


@pytest.mark.parametrize("plan", WORDS.values(), ids=str)
def test_through_json_and_back(plan: Plan) -> None:
    assert Plan.of(json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_part_of_a_plan_is_enough_and_a_plan_is_itself() -> None:
    assert Plan.of({"threads": 1}) == Plan(threads=1)
    assert Plan.of("eager") == Plan.of({}) == Plan()
    assert Plan.of(FULL) is FULL


def test_eager_is_what_changes_no_number() -> None:
    assert Plan(threads=1, keep_memory=True, is_settled=True).is_eager
    for part in ({"layout": "channels_last"}, {"arithmetic": "bfloat16"}, {"compiled_after": 3}):
        assert not Plan.of(part).is_eager


REFUSED: dict[str, tuple[Any, str]] = {
    "a layout": ({"layout": "rows_last"}, "layout is one of as_is, channels_last, got 'rows_last'"),
    "an arithmetic": ({"arithmetic": "float8"}, "arithmetic is one of exact, tf32, bfloat16, got 'float8'"),
    "a field": ({"treads": 2}, "a plan has no 'treads'; it has layout, .*, threads, .*is_settled"),
    "no threads": ({"threads": 0}, "threads is a whole number of at least 1, or None; got 0"),
    "half a thread": ({"threads": 1.5}, "threads is a whole number of at least 1, or None; got 1.5"),
    "yes": ({"threads": True}, "threads is a whole number of at least 1, or None; got True"),
    "step 0": ({"compiled_after": 0}, "compiled_after is a whole number of at least 1, or None; got 0"),
    "a step in words": ({"compiled_after": "3"}, "compiled_after is a whole number .*; got '3'"),
    "batch no shapes": ({"batch": [32, 10]}, r"batch .*\(32, 10\)"),
    "batch a number": ({"batch": 32}, "batch .* 32"),
    "products no words": ({"products": {"2x3:3,1 3x4:4,1": "fast"}}, "products .*'fast'"),
    "products a list": ({"products": ["onednn"]}, "products .*onednn"),
    "gain a word": ({"gain": "much"}, "gain .*'much'"),
    "a word": ("fastest", 'plan takes "auto", "eager", or a plan such as run.plan; got \'fastest\''),
    "a number": (3, "plan takes .*; got 3"),
    "nothing": (None, "plan takes .*; got None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plan_is_refused_in_one_sentence(name: str) -> None:
    value, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        Plan.of(value)
