"""A search in a Keras model leaves it as it was: weights, moving statistics, seed generators."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")
if keras.config.backend() != "torch":
    pytest.skip(f"Keras is set to the {keras.config.backend()} backend here", allow_module_level=True)

from thalweg.run.find_lr import find_lr  # noqa: E402
from thalweg.step.forward import Forward  # noqa: E402
from thalweg.tensors import seeds  # noqa: E402
from thalweg.tensors.named import copied  # noqa: E402


def test_a_keras_model_is_left_as_it_was() -> None:
    layers = keras.layers
    parts = [
        keras.Input((6,)),
        layers.Dense(8),
        layers.BatchNormalization(),
        layers.Dropout(0.4, seed=7),
        layers.Dense(2),
    ]
    model = keras.Sequential(parts)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    before, drawn = copied(Forward(model).state()), seeds.capture()
    found = find_lr(model, (x, (x[:, 0] > 0).long()), "cross_entropy", method="grid", trials=2, epochs=2)
    assert all(loss < 10 for _, loss in found.curve)
    after = Forward(model).state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(seeds.capture()["torch"], drawn["torch"])
