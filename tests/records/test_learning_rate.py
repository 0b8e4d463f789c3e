"""A rate that was found, given to `fit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import thalweg
from thalweg.records.learning_rate import LearningRate
from thalweg.records.settings import Settings, expanded


def found(**options: Any) -> LearningRate:
    return LearningRate(0.02, (0.01, 0.03), ((0.02, 1.0),), 2.0, "grid", "", {"optimizer": "sgd", **options})


def test_the_rate_brings_its_rule_and_options() -> None:
    settings, _ = Settings.of({"learning_rate": found(momentum=0.9, batch_size=16)})
    assert (settings.learning_rate, settings.optimizer, settings.batch_size) == (0.02, "sgd", 16)
    assert settings.optimizer_options == {"momentum": 0.9}


def test_what_the_user_says_goes_before() -> None:
    words = {"optimizer": "sgd", "optimizer_options": {"momentum": 0.5, "nesterov": True}, "batch_size": 8}
    settings, hints = Settings.of({"lr": found(momentum=0.9, batch_size=16), **words})
    assert settings.optimizer_options == {"momentum": 0.5, "nesterov": True}
    assert settings.batch_size == 8
    assert len(hints) == 1


@pytest.mark.parametrize("optimizer", ["adam", torch.optim.SGD([torch.zeros(1)], 0.1)])
def test_a_rate_means_nothing_for_another_rule(optimizer: Any) -> None:
    with pytest.raises(ValueError, match="was searched for sgd, and optimizer is .*learning_rate=0.02"):
        Settings.of({"learning_rate": found(), "optimizer": optimizer})


def test_other_words_stay() -> None:
    words = {"learning_rate": 0.1, "epochs": 3}
    assert expanded(words) == words


def test_a_run_holds_the_number(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 32)[:, None]
    words = {"epochs": 1, "run_dir": tmp_path / "run", "verbose": False}
    run = thalweg.fit(torch.nn.Linear(1, 1), (x, x), "mse", learning_rate=found(momentum=0.9), **words)
    assert run.learning_rate == float(found()) == 0.02
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["asked"]
    assert asked["learning_rate"] == 0.02
    assert (asked["optimizer"], asked["optimizer_options"]) == ("sgd", {"momentum": 0.9})
    again = thalweg.resume(
        tmp_path / "run", model=torch.nn.Linear(1, 1), data=(x, x), loss="mse", epochs=2, learning_rate=found()
    )
    assert again.record.asked["learning_rate"] == 0.02
