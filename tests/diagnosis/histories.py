"""Histories written by hand: a training that looks like a real one, with whatever is to be wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from thalweg.records.history import History
from thalweg.records.step import StepRecord

Course = Callable[[float], float]

HEALTHY_FACTS: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "learning_rate": 0.05,
    "batch_size": 64,
    "num_examples": 3200,
    "steps_per_epoch": 50,
    "planned_steps": 1000,
    "loss": "cross_entropy",
    "task": "classification",
    "num_classes": 10,
    "largest_class_share": 0.11,
    "smallest_class_share": 0.09,
    "label_entropy": 2.3,
    "expected_initial_loss": 2.3,
    "initial_loss": 2.35,
}
LAYERS = ("0", "2", "4")


def sampled(step: int) -> bool:
    return step in (1, 10, 20, 50) or step % 100 == 0


def reported(step: int) -> bool:
    return step <= 20 or step % 10 == 0


def falling(end: float = 0.2, start: float = 2.35, over: float = 120.0) -> Course:
    """A healthy course: an exponential fall that ends at a floor."""
    return lambda step: end + (start - end) * float(np.exp(-step / over))


def training(
    loss: Course | None = None,
    *,
    steps: int = 1000,
    noise: float = 0.1,
    facts: Mapping[str, Any] | None = None,
    layers: Sequence[str] = LAYERS,
    gradient: Mapping[str, float] | float = 1.0,
    weights: float = 8.0,
    validation: Course | None = None,
    accuracy: tuple[Course, Course] | None = None,
    score: str = "accuracy",
    learning_rate: Course = lambda step: 0.05,
    seed: int = 0,
    **sampled_series: Course | float,
) -> History:
    """A training of so many steps: `loss` is its course, single batches scatter by `noise` of it.

    `accuracy` has the courses of training and validation, by the name of `score`; `gradient` is the norm of the layers'
    gradients, of each or of all; `sampled_series` are numbers or courses of series that are taken on sampled steps,
    with "__" for the "/" before a layer.
    """
    draw = np.random.default_rng(seed)
    course = loss or falling()
    series = {"descent_ratio": 0.8, "update_cosine": 0.3, **sampled_series}
    history = History()
    history.note({**HEALTHY_FACTS, "planned_steps": steps, **(facts or {})})
    window: list[float] = []
    for step in range(1, steps + 1):
        window.append(course(step) * float(1 + noise * draw.standard_normal()))
        if reported(step):
            values = {"loss": float(np.mean(window)), "learning_rate": learning_rate(step)}
            if len(window) >= 5:
                values["loss_spread"] = float(np.std(window))
            window.clear()
            values |= _gradients(layers, gradient, draw)
            if sampled(step):
                for layer in layers:
                    values[f"weight_norm/{layer}"] = weights
                    values.setdefault(f"update_ratio/{layer}", 1e-3)
                for name, value in series.items():
                    base = value(step) if callable(value) else value
                    jitter = 0.02 * draw.standard_normal() if name in ("descent_ratio", "update_cosine") else 0.0
                    if name == "update_ratio":
                        values |= {f"update_ratio/{layer}": base for layer in layers}
                    else:
                        values[name.replace("__", "/")] = base + min(jitter, 0.0)
            history.append(StepRecord(step, step / 50, step / 100, values))
        if step % 50 == 0:
            measured = {"epoch_loss": course(step - 25)}
            if validation is not None:
                measured["validation_loss"] = validation(step) * float(1 + 0.02 * draw.standard_normal())
            if accuracy is not None:
                names = (score, f"validation_{score}")
                measured |= {
                    name: of(step) + 0.01 * float(draw.standard_normal())
                    for name, of in zip(names, accuracy, strict=True)
                }
            history.evaluate(StepRecord(step, step / 50, step / 100, measured))
    return history


def _gradients(
    layers: Sequence[str], gradient: Mapping[str, float] | float, draw: np.random.Generator
) -> dict[str, float]:
    sizes = gradient if isinstance(gradient, Mapping) else dict.fromkeys(layers, gradient)
    norms = {layer: sizes[layer] * float(np.exp(0.2 * draw.standard_normal())) for layer in layers}
    return {
        "gradient_norm": float(np.sqrt(sum(n**2 for n in norms.values()))),
        **{f"gradient_norm/{layer}": norm for layer, norm in norms.items()},
    }
