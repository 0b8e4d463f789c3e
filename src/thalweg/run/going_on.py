"""What a run that is gone on with takes from its earlier part: decisions, the last whole checkpoint, rates."""

from __future__ import annotations

from dataclasses import replace

from torch.optim import Optimizer

from thalweg.loop.checkpoint import Checkpoint, Checkpoints, Damaged
from thalweg.loop.train import Training
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings
from thalweg.run.choices import Chosen, again
from thalweg.run.telling import Telling
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss


def settled(settings: Settings, record: RunRecord) -> Settings:
    """Settings with what a race has chosen in the place of what was left open."""
    found = record.decided.get("search")
    if found is None:
        return settings
    if settings.optimizer == "auto":
        settings = replace(settings, optimizer=found["optimizer"])
    if settings.learning_rate == "auto":
        settings = replace(settings, learning_rate=found["learning_rate"])
    return settings


def as_decided(chosen: Chosen, forward: Forward, loss: Loss | None, settings: Settings, record: RunRecord) -> Chosen:
    """What was left open as an earlier part of the run has chosen it, so that its state fits."""
    if record.decided.get("search") is None:
        return chosen
    parts = again(chosen, forward, loss, settled(settings, record))
    record.decided |= {**parts.decided, "plan": record.decided.get("plan")}
    return parts


def go_on(
    training: Training, checkpoints: Checkpoints, checkpoint: Checkpoint | None, settings: Settings, telling: Telling
) -> None:
    """Go on from a checkpoint, if there is one, at the rates that are asked for now."""
    optimizer = training.setup.optimizer
    rates = [float(group["initial_lr"]) for group in optimizer.param_groups]
    _go_back(training, checkpoints, checkpoint, telling)
    if settings.learning_rate != "auto":
        _set_rates(optimizer, rates)


def _go_back(training: Training, checkpoints: Checkpoints, checkpoint: Checkpoint | None, telling: Telling) -> None:
    """Set a training to its last whole checkpoint, and its history with it."""
    history = training.setup.history
    if checkpoint is None:
        telling.warn("There is no whole checkpoint yet; the run starts from its beginning.")
        history.truncate(-1)
        return
    training.restore(checkpoint)
    at = training.at
    if at.best_step is not None:
        try:
            best = checkpoint if at.best_step == checkpoint.step else checkpoints.at(at.best_step)
            training.best = dict(best.model)
        except (FileNotFoundError, Damaged) as error:
            telling.warn(f"{error}; the best weights so far are lost, from here on they are looked for anew.")
            at.best_step = at.best_value = None
    checkpoints.go_back_to(checkpoint.step, at.best_step)
    history.truncate(checkpoint.step, at.evaluated_at)
    if "ended_at" in history.facts:
        history.note({"ended_at": None})  # it goes on
    if not training.setup.batches.repeatable and training.at.position:
        telling.warn(
            f"Resumed inside epoch {training.at.epoch + 1}: the data is an iterable of its own, and the first "
            f"{training.at.position} batches it gives are skipped; whether they are the same is up to it."
        )


def _set_rates(optimizer: Optimizer, rates: list[float]) -> None:
    """Rates that were asked for now go before those that were saved; a schedule's part in them stays."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if group["initial_lr"] != rate:
            group["lr"] *= rate / group["initial_lr"]
            group["initial_lr"] = rate
