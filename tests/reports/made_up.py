"""A made-up training that looks like a real one: 45 epochs of a classification, told by hand."""

from __future__ import annotations

import math

import numpy as np

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord

EPOCHS, LENGTH = 45, 45


def history() -> History:
    result = History()
    draw = np.random.default_rng(3)
    total = EPOCHS * LENGTH
    for step in range(1, total + 1):
        done = step / total
        course = 0.06 + 2.3 * math.exp(-9 * done)
        values = {
            "loss": course * math.exp(0.22 * draw.standard_normal()),
            "learning_rate": 1e-3 * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * done)),
        }
        if step % 10 == 0:
            values["gradient_norm"] = 1.4 * course**0.7 * math.exp(0.35 * draw.standard_normal())
        if step == 610:
            values["loss"] *= 9
        result.append(StepRecord(step, step / LENGTH, 0.002 * step, values))
        if step % LENGTH == 0:
            held_out = 0.13 + 2.2 * math.exp(-8 * done) + 0.008 * draw.standard_normal()
            measured = {
                "accuracy": min(1.0, 0.985 - 0.75 * math.exp(-9 * done) + 0.002 * draw.standard_normal()),
                "validation_loss": held_out,
                "validation_accuracy": 0.963 - 0.7 * math.exp(-8 * done) + 0.004 * draw.standard_normal(),
            }
            result.evaluate(StepRecord(step, step / LENGTH, 0.002 * step, measured))
    result.found(
        Finding(
            code="unscaled_inputs",
            severity="note",
            step=0,
            place="input",
            sentence="The inputs have a spread of 6.02 where rules expect about 1.",
            advice="Divide them by their standard deviation.",
            evidence={"standard_deviation": 6.02},
            confidence=0.8,
        ),
        0,
    )
    result.found(
        Finding(
            code="oscillating_loss",
            severity="warning",
            step=605,
            sentence="The loss jumped to nine times its course and came back within a step.",
            advice="Clip the gradient's norm at 5, or halve the learning rate.",
            evidence={"loss": 3.1, "usual_loss": 0.34},
        ),
        612,
    )
    result.acted(
        Action("clip_gradient", 620, {"clip_norm": "off"}, {"clip_norm": 5.0}, True, "A gradient far off the usual.")
    )
    return result


def layers(told: History, growth: float, names: list[str], steps: range) -> History:
    """Add what layers in forward order report: going down, each gradient is `growth` times the one above."""
    draw = np.random.default_rng(5)
    for step in steps:
        values = {}
        for depth, name in enumerate(reversed(names)):
            noise = math.exp(0.3 * draw.standard_normal())
            values[f"gradient_norm/{name}"] = growth**depth * noise
            values[f"update_ratio/{name}"] = 1e-3 * growth**depth * noise
        told.append(StepRecord(step, step / LENGTH, 0.002 * step, {name: values[name] for name in reversed(values)}))
    return told


def record() -> RunRecord:
    told = history()
    return RunRecord(
        name="digits-3",
        asked={"loss": "cross_entropy", "validation_split": 0.2, "metrics": ["accuracy"], "model": "Network(784, 10)"},
        decided={
            "optimizer": "adamw",
            "learning_rate": 0.001,
            "schedule": "cosine",
            "batch_size": 32,
            "device": "cpu",
            "plan": "eager",
            "num_parameters": 7960,
            "num_examples": 1438,
            "total_epochs": EPOCHS,
            "total_steps": EPOCHS * LENGTH,
            "steps_per_epoch": LENGTH,
        },
        source={"task": "digits"},
        versions={"thalweg": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        machine={"system": "Linux", "processors": 2, "memory": "8 GiB"},
        started="2026-03-01T14:05:09+00:00",
        notes=["The batch size was chosen from the number of examples."],
        stopped_because="converged",
        verdict={
            "state": "converged",
            "sentence": "Converged at epoch 38: validation loss has been flat within its noise for 7 epochs.",
            "cause": None,
            "evidence": {},
        },
        metrics={
            name: told.last(name) or 0.0 for name in ("loss", "validation_loss", "accuracy", "validation_accuracy")
        },
        steps=EPOCHS * LENGTH,
        epochs=float(EPOCHS),
        seconds=4.3,
        best_step=38 * LENGTH,
    )
