"""The end of a run: the weights that are handed over, the final numbers, the record on the disk."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from thalweg.loop.checkpoint import Checkpoints
from thalweg.loop.statistics import averaged_model
from thalweg.loop.train import Training
from thalweg.records.step import REPORTED
from thalweg.run.run import Run
from thalweg.tensors.named import assign, copied


def finish(run: Run, training: Training, checkpoints: Checkpoints) -> None:
    """Put the best weights into the model, else the averaged, else leave the last; write down how it ended."""
    _hand_over(run, training, checkpoints)
    record, at = run.record, training.at
    run.verdict = training.verdict
    record.verdict = asdict(run.verdict) if run.verdict is not None else None
    record.steps, record.epochs, record.seconds = at.step, training.epochs, at.seconds
    record.best_step = at.best_step
    record.metrics = _final(training)
    training.setup.history.flush()
    with contextlib.suppress(OSError):  # a full disk: the run in memory has it all
        record.write(run.directory)


def _hand_over(run: Run, training: Training, checkpoints: Checkpoints) -> None:
    forward, setup = training.forward, training.setup
    if run.record.stopped_because == "interrupted":
        return  # as it stands: it is to be gone on with
    best = training.best
    if best is None and training.at.best_step is not None:
        saved = checkpoints.best()
        best = dict(saved.model) if saved is not None else None
    if best is None and setup.average is not None:
        with averaged_model(setup.average, forward, setup.batches, setup.has_norm):
            best = copied(forward.state())
    if best is not None:
        assign(forward.state(), best)


def _final(training: Training) -> dict[str, float]:
    """Final numbers: held-out ones at the best evaluation, training ones of the last epoch."""
    history = training.setup.history
    final: dict[str, float] = {}
    best = training.at.best_step
    for name in history.names:
        steps, values = history.series(name)
        if name == "epoch_loss" or (name == "loss" and "epoch_loss" not in history.names):
            final["loss"] = float(values[-1])
        elif name.startswith("validation_"):
            at_best = values[steps == best] if best is not None else values[-1:]
            final[name] = float(at_best[-1] if len(at_best) else values[-1])
        elif name not in REPORTED and "/" not in name:  # of layers
            final[name] = float(values[-1])
    return final
