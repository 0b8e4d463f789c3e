from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thalweg.records.settings import Settings


def test_defaults_are_the_contract() -> None:
    settings = Settings()
    assert settings.optimizer == settings.learning_rate == settings.batch_size == settings.patience == "auto"
    assert (settings.epochs, settings.steps, settings.run_dir, settings.accumulate) == (None, None, None, 1)
    assert (settings.repair, settings.precision, settings.seed) == ("safe", "exact", 0)


def test_two_words_for_one_thing() -> None:
    with pytest.raises(TypeError, match="'learning_rate' and 'lr' mean the same"):
        Settings.of({"learning_rate": 0.1, "lr": 0.1})
    with pytest.raises(TypeError, match="'max_epochs' and 'num_epochs' mean the same"):
        Settings.of({"max_epochs": 2, "num_epochs": 5})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("batch_size", np.int64(16), int),
        ("epochs", np.int32(2), int),
        ("seed", np.uint8(2), int),
        ("patience", np.int64(3), int),
        ("learning_rate", np.float32(0.5), float),
        ("clip_norm", np.float64(1.5), float),
        ("validation_split", np.float32(0.25), float),
    ],
)
def test_numbers_of_numpy_are_numbers(name: str, value: Any, kind: type) -> None:
    kept = getattr(Settings.of({name: value})[0], name)
    assert kept == value
    assert type(kept) is kind


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"repair": "all"}, ValueError, "Known are: off, advise, safe, full"),
    ({"precision": "half"}, ValueError, "exact, fast"),
    ({"weight_average": "emma"}, ValueError, "did you mean 'ema'"),
    ({"schedule": "linear"}, ValueError, "one_cycle"),
    ({"batch_size": True}, TypeError, "whole number"),
    ({"accumulate": 0}, ValueError, "at least 1"),
    ({"seed": 1.5}, TypeError, "whole number"),
    ({"time_budget": float("nan")}, ValueError, "above 0"),
    ({"clip_norm": -1}, ValueError, "above 0"),
    ({"clip_norm": 1, "clip_value": 1}, ValueError, "not both"),
    ({"target": 0.97}, TypeError, "validation_accuracy"),
    ({"patience": 0}, ValueError, "at least 1"),
    ({"checkpoint_every": "often"}, TypeError, "whole number"),
    ({"validation_split": -0.1}, ValueError, r"\[0, 1\)"),
    ({"device": 3}, TypeError, "device takes a word"),
    ({"seed": np.arange(99)}, TypeError, "whole number, got a value of type ndarray"),
    ({"batch_size": np.bool_(True)}, TypeError, "whole number"),
    ({"callbacks": [dict]}, TypeError, r"dict is a class: write dict\(\)"),
    ({"callbacks": dict}, TypeError, r"dict is a class: write dict\(\)"),
    ({"shuffel": False}, TypeError, "did you mean 'shuffle'"),
]


@pytest.mark.parametrize(("given", "kind", "words"), BAD, ids=lambda value: str(value)[:30])
def test_what_cannot_be_is_refused(given: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Settings.of(given)
