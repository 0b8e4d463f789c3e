"""What holds for a whole training, told to its history before the first update; diagnosis reads it there."""

from __future__ import annotations

from typing import Any

from thalweg.records.settings import Settings
from thalweg.run.choices import Chosen
from thalweg.signals.data import of_data, sample
from thalweg.signals.start import of_start
from thalweg.step.data import cast
from thalweg.step.kinds import kind_of
from thalweg.step.whole import Step
from thalweg.tensors.seeds import untouched

#: Examples of the pass before training: it is to cost no more than a step. A stream's first batch is taken as it is.
ROWS = 64


def facts(step: Step, chosen: Chosen, settings: Settings) -> dict[str, Any]:
    """Facts of the settings, the data, the model and its first batch, by the names of docs/signals.md."""
    kind = kind_of(step.loss)  # type: ignore[arg-type]
    batches = chosen.batches
    found = of_settings(chosen, settings)
    own = chosen.decided["loss"] or "own"
    found |= {"loss": kind.name if kind is not None else own, "task": kind.task if kind else "other"}
    with untouched():
        found |= of_data(batches, chosen.validation, kind)
        found |= of_start(step, cast(sample(batches, ROWS), batches.dtype, batches.device), kind)
    terms = found.pop("terms_per_example", 1)
    if "expected_initial_loss" in found:  # that of a term
        found["expected_initial_loss"] *= terms
    if getattr(step.loss, "weighs", False):  # terms count differently, and the best answer for all is another one
        found["expected_initial_loss"] = None
    return found


def of_settings(chosen: Chosen, settings: Settings) -> dict[str, Any]:
    """What was asked for and decided."""
    decided = chosen.decided
    words = ("optimizer", "learning_rate", "schedule", "batch_size", "num_parameters", "num_examples")
    found: dict[str, Any] = {word: decided[word] for word in words}
    if found["batch_size"] == "full":
        found["batch_size"] = decided["num_examples"]
    found["optimizer"] = str(found["optimizer"]).lower()
    found |= {
        "num_validation_examples": decided["num_validation_examples"],
        "steps_per_epoch": decided["steps_per_epoch"],
        "planned_steps": decided["total_steps"],
        "accumulate": settings.accumulate,
        "clip_norm": settings.clip_norm,
        "clip_value": settings.clip_value,
        "precision": settings.precision,
    }
    return {**found, **of_rule(chosen.optimizer)}


def of_rule(optimizer: Any) -> dict[str, float]:
    """The settings of a torch optimizer's first parameter group, of those that are numbers."""
    group = optimizer.param_groups[0]
    found = {name: float(group[name]) for name in ("momentum", "eps", "weight_decay", "alpha") if _number(group, name)}
    betas = group.get("betas")
    if isinstance(betas, tuple | list) and len(betas) > 1:
        found |= {"beta1": float(betas[0]), "beta2": float(betas[1])}
    return found


def _number(group: dict[str, Any], name: str) -> bool:
    return isinstance(group.get(name), int | float) and not isinstance(group[name], bool)
