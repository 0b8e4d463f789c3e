"""One training: step, report, evaluate, save, stop.

What is decided here is decided by counted steps and by numbers that were measured, never by the clock, so that a run
repeats and resumes exactly; the clock decides only when to save and when a time budget is spent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from thalweg.loop.checkpoint import Checkpoint
from thalweg.loop.evaluate import measure
from thalweg.loop.failures import first_line
from thalweg.loop.judging import Judging
from thalweg.loop.memory import Memory
from thalweg.loop.metrics import higher_is_better
from thalweg.loop.setup import Limits, Setup, Standing
from thalweg.loop.statistics import averaged_model
from thalweg.loop.watching import FIRST, Watching
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.step import REPORTED, StepRecord
from thalweg.records.verdict import Verdict
from thalweg.signals.cadence import is_awaited, is_reported
from thalweg.signals.loss import loss_spread
from thalweg.step.batches import num_rows
from thalweg.tensors.named import copied

#: Updates between two evaluations where an epoch has no known end.
EVALUATE_EVERY = 500
SAVE_SECONDS = 30.0
#: What ends a part of a training: no reason to stop.
PAUSED = "paused"
#: Something was found that may be mended before it goes on.
ILL = "ill"
#: A finding that a repair was tried against is tried once more, when so many times as many updates were made.
AGAIN_AFTER, TIMES = 2.5, 3
#: By such a share the loss must have come down for a state to be one to go back to.
LEARNED = 0.05


class BatchFailed(ValueError):
    """An update that could not be made, of which a part may have been."""


@contextmanager
def _broken_told(what: Callable[[], str]) -> Iterator[None]:
    """An error of a GPU, which is seen when something is read that it should have computed, as one sentence."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise BatchFailed(f"{what()}: {_of_gpu(error)}") from error


def _of_gpu(error: Exception) -> str:
    first = first_line(error)
    if "device-side assert" not in first:
        return first
    return (
        "an index is out of its range on the GPU (a label without a class, a token that the model does not know?); "
        "run it once with device='cpu', which says which one"
    )


class Training:
    """Runs a setup until a limit is reached. `interrupt` may be set at any time, by a signal's handler."""

    def __init__(self, setup: Setup, limits: Limits, standing: Standing | None = None) -> None:
        self.setup = setup
        self.limits = limits
        self.at = standing or Standing()
        self.forward = setup.step.forward
        self.model = self.forward.model
        self.interrupt = False
        self.verdict: Verdict | None = None
        self.best: dict[str, Tensor] | None = None
        self.memory = Memory(setup)
        self.judging = Judging(setup, limits)
        self.watching = Watching(setup.history, setup.events, setup.watched)
        self.watching.suspects = setup.mends
        self._pause: int | None = None
        self._pending: list[Tensor] = []
        loss = setup.step.loss
        self._is_summed = loss is not None and loss.reduction == "sum"
        """Its losses are told per example, as those that are held out are."""
        self._started = self._saved = 0.0

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> str:
        """Train; returns why it stopped.

        Raises:
            BatchFailed: model or loss cannot take a batch.
        """
        with _broken_told(lambda: f"update {self.at.step}, or one before it, failed"):
            return self._run()

    def _run(self) -> str:
        self._started = time.perf_counter() - self.at.seconds
        self._saved = time.perf_counter()
        reason = self._limit_reached() or self._decided_before()
        if self.at.step == 0 and self.watching.asked_at < 0:
            self.save()
            self.watching.began()
        elif self.watching.asked_at < 0:
            self.watching.again(self.at.step, self.at.evaluated_at == self.at.step)
        if self.setup.mends and self.memory.good is None:
            self.memory.keep_good(self.at, self._start())
        reason = self._ill(reason) or ("interrupted" if self.interrupt else None)
        while reason is None:
            self.model.train()
            reason = self._epoch()
        if reason == ILL:
            self.at.seconds = time.perf_counter() - self._started
            return ILL
        if reason not in ("diverged", "interrupted") and self.setup.validation and self.at.evaluated_at < self.at.step:
            self._evaluate()
        self.at.seconds = time.perf_counter() - self._started
        if reason != "diverged":
            self.save(last=reason != "interrupted")
        self.setup.saver.finish()
        self.verdict = self.judging.verdict(self.at)
        if reason not in ("interrupted", "diverged"):
            self.verdict = self.judging.looked_into(self.verdict, self.at)
        if reason != "interrupted":
            self.watching.ended(self.at.step)
        return reason

    @property
    def must_stop(self) -> bool:
        """Whether what is tried beside the training is to be left: it was interrupted, or its time is up."""
        return self.interrupt or self._is_late()

    def _is_late(self) -> bool:
        return self.limits.seconds is not None and time.perf_counter() - self._started >= self.limits.seconds

    def advance(self, to: int) -> str | None:
        """Train up to an update, as a part of a training that goes on from there; why it ended before, or None.

        Raises:
            BatchFailed: model or loss cannot take a batch.
        """
        with _broken_told(lambda: f"update {self.at.step}, or one before it, failed"):
            return self._advance(to)

    def _advance(self, to: int) -> str | None:
        self._started = time.perf_counter() - self.at.seconds
        self._saved = time.perf_counter()
        self._pause = to
        reason = self._limit_reached()
        while reason is None and self.at.step < to:
            self.model.train()
            reason = self._epoch()
        self._pause = None
        self.memory.leave()
        self.at.seconds = time.perf_counter() - self._started
        return None if reason == PAUSED else reason

    def moved(self, setup: Setup) -> Training:
        """This training as it stands, gone on with among other parts: another history, another way to step."""
        self._read_losses()
        training = Training(setup, self.limits, self.at)
        training._started = time.perf_counter() - self.at.seconds
        training.best = self.best
        training.memory.follow(self.memory)
        training.watching.since = self.at.mended_at
        return training

    def _epoch(self) -> str | None:
        """Train to the end of the epoch, from where it stands; why to stop, or None to go on."""
        at, setup = self.at, self.setup
        batches = self.memory.batches(at)
        watcher = setup.metrics if setup.metrics.names else None
        optimizer, apply, step = setup.optimizer, setup.schedule.apply, setup.step
        average, last, pause, signals = setup.average, self.limits.steps, self._pause, setup.signals
        evaluate_every = EVALUATE_EVERY if setup.batches.per_epoch is None else 0
        save_every = self.limits.save_every if isinstance(self.limits.save_every, int) else 0
        wake = self._next_wake()
        for batch in batches:
            apply(optimizer, at.step)
            number = at.step + 1
            report = is_reported(number) or number == last
            try:
                if report or is_awaited(number):
                    loss = signals.take(step, number, batch, watcher)
                else:
                    loss = step(batch, None, watcher)
            except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
                raise self._failed_on_batch(error) from error
            self._pending.append(loss / num_rows(batch) if self._is_summed else loss)
            at.step = number
            at.position += 1
            if average is not None:
                average.update(number)
            reason = self._ill(self._report()) if report else None
            if evaluate_every and number % evaluate_every == 0:
                reason = reason or self._ill(self._evaluate())
            if number == last:
                reason = "steps" if reason in (None, ILL) else reason
            if self.interrupt:
                reason = reason or "interrupted"
            if number == pause:
                reason = reason or PAUSED
            if save_every and number % save_every == 0 and reason is None:  # else it is saved when it has stopped
                self.save()
            if time.perf_counter() >= wake:
                reason = reason or self._wake()
                wake = self._next_wake()
            if reason is not None:
                return reason if at.position != setup.batches.per_epoch else self._end_of_epoch(reason)
        if at.position == 0:
            return "epochs"  # a stream that cannot start again has ended
        return self._end_of_epoch(None)

    def _failed_on_batch(self, error: Exception) -> BatchFailed:
        """A batch that model or loss cannot take, as one sentence; what the trial before training could not see."""
        first = first_line(error)
        if "does not require grad" in first:
            first = "the loss does not depend on the model's weights; do not detach it, or compute it under no_grad"
        where = f"batch {self.at.position + 1} of epoch {self.at.epoch + 1}"
        if isinstance(error, torch.AcceleratorError):  # the host was ahead of it
            where, first = f"{where}, or one before it,", _of_gpu(error)
        return BatchFailed(f"{where} cannot be trained on: {first}")

    def _end_of_epoch(self, reason: str | None) -> str | None:
        at = self.at
        at.epoch += 1
        at.position = 0
        stop = self._evaluate(of_epoch=True)
        if reason not in (None, PAUSED, ILL):
            return reason
        limit = self._limit_reached()
        return limit if limit is not None and stop in (None, ILL) else self._ill(stop) or reason

    def _ill(self, reason: str | None) -> str | None:
        """`ILL` where something stands that no repair was tried against yet, before a reason to give up; else it."""
        if not self.setup.mends or reason not in (None, "patience", "diverged"):
            return reason
        if reason is not None:
            self.watching.ask(self.at.step)
        if self.watching.asked_at != self.at.step:
            return reason
        if self.untreated():
            return ILL
        found = [finding for finding in self.watching.current if finding.severity != "note"]
        if reason is None and self.watching.is_suspicion(found):
            loss = self.setup.history.last("loss")
            if loss is not None and loss < self._nothing_new():
                self.memory.keep_good(self.at, loss)
        return reason

    def _nothing_new(self) -> float:
        """The loss that a state must be below to be one to go back to: otherwise it may be wrecked already, and what
        has learned nothing yet goes back to its start.
        """
        before, trivial = self.at.good_loss, self.setup.history.facts.get("expected_initial_loss")
        known = [float(loss) for loss in (before, trivial) if isinstance(loss, int | float) and math.isfinite(loss)]
        least = min(known, default=math.inf)
        return least - LEARNED * abs(least) if known else math.inf

    def _start(self) -> float | None:
        """The loss before the first update, where it was taken."""
        loss = self.setup.history.facts.get("initial_loss")
        return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None

    def untreated(self) -> list[Finding]:
        """What stands, above a note, and no repair was tried against; or not since long."""
        at = self.at
        is_soon = at.step < AGAIN_AFTER * max(at.treated_at, FIRST[0])
        tired = {code for code in at.treated if is_soon or at.treated.count(code) >= TIMES}
        found = [f for f in self.watching.current if f.severity != "note" and f.code not in tired]
        return [f for f in found if f.code not in at.treated or not self.watching.is_suspicion([f])]

    def _limit_reached(self) -> str | None:
        at, limits = self.at, self.limits
        if limits.steps is not None and at.step >= limits.steps:
            return "steps"
        if limits.epochs is not None and at.epoch >= limits.epochs:
            return "epochs"
        if limits.seconds is not None and at.seconds >= limits.seconds:
            return "time"
        return None

    # ── reports and evaluations ──────────────────────────────────────────────────────────────────────────────────

    def _report(self) -> str | None:
        """Read what the steps since the last report left on the device, and write it down."""
        at = self.at
        self._read_losses()
        loss = sum(at.window) / len(at.window) if at.window else math.nan
        values = {"loss": loss, "learning_rate": self.learning_rate}
        values.update(loss_spread(at.window))
        values.update(self.setup.signals.read())
        at.window.clear()
        self._tell_skipped()
        record = self._record(values)
        self.setup.history.append(record)
        self.setup.events.step(record)
        self.watching.reported(at.step)
        if values["loss"] - values["loss"] != 0 and not self._finite():  # NaN or Inf, and it has reached the weights
            return "diverged"
        return "target" if self._target_reached(values) else None

    def _tell_skipped(self) -> None:
        """Updates that were left out are told of when there are twice as many as before."""
        self.count_skipped()
        at = self.at
        if at.num_skipped < 2 * at.skipped_told or not at.num_skipped:
            return
        at.skipped_told = at.num_skipped
        why = f"The gradient of a batch was not finite: such updates are left out, {at.num_skipped:,} so far."
        action = Action("skip_batches", at.step, {}, {"skipped": at.num_skipped}, True, why)
        self.setup.history.acted(action)
        self.setup.events.event(action)

    def count_skipped(self) -> None:
        """Take over how many updates were left out since the last count."""
        update = self.setup.step.update
        self.at.num_skipped, update.num_skipped = self.at.num_skipped + update.num_skipped, 0

    def _evaluate(self, of_epoch: bool = False) -> str | None:
        """Measure on held-out data and judge; why to stop, or None."""
        at, setup = self.at, self.setup
        self._read_losses()
        values: dict[str, float] = {}
        if of_epoch and at.epoch_count:
            values["epoch_loss"] = at.epoch_sum / at.epoch_count
            at.epoch_sum, at.epoch_count = 0.0, 0
            if setup.metrics.names:
                values.update(setup.metrics.compute())
                setup.metrics.reset()
        is_best = False
        if setup.validation is not None:
            measured, is_best = self._validate()
            values.update(measured)
        at.evaluated_at = at.step
        record = self._record(values)
        setup.history.evaluate(record)
        if setup.validation is not None:
            setup.schedule.validated(values["validation_loss"])
        setup.events.validated(record)
        self.watching.evaluated(at.step)
        if is_best and self.save(best=True):
            self.best = None  # a large model's best weights are on the disk, and need no memory
        return self._decide(values)

    def _decide(self, values: Mapping[str, float]) -> str | None:
        """Whether to stop, seen what an evaluation measured."""
        if self._target_reached(values):
            return "target"
        judged = "validation_loss" if self.setup.validation is not None else "epoch_loss"
        return self.judging.reason_to_stop(self.at) if judged in values else None

    def _decided_before(self) -> str | None:
        """What was decided at the step from which a run is resumed, seen what was reported and evaluated there: it was
        saved before it decided, or after it had stopped.
        """
        at, history = self.at, self.setup.history
        series = {name: history.series(name) for name in history.names}
        now = {name: float(v[-1]) for name, (steps, v) in series.items() if steps[-1] == at.step}
        reported = {name: now.pop(name) for name in list(now) if name in REPORTED or "/" in name}
        if self._target_reached(reported):
            return "target"
        if reported.get("loss", 0.0) - reported.get("loss", 0.0) != 0 and not self._finite():
            return "diverged"
        return self._decide(now) if at.step and at.evaluated_at == at.step else None

    def _validate(self) -> tuple[dict[str, float], bool]:
        """Held-out loss and metrics of the weights that would be handed over now; kept if they are the best so far."""
        at, setup = self.at, self.setup
        assert setup.validation is not None
        with averaged_model(setup.average, self.forward, setup.batches, setup.has_norm):
            with _broken_told(lambda: "the held-out data cannot be measured"):
                measured = measure(self.forward, setup.step.loss, setup.validation.epoch(0), setup.held_out_metrics)
            value = measured["loss"]
            is_best = value == value and (at.best_value is None or value < at.best_value)
            if is_best:
                self.best = copied(self.forward.state())
                at.best_value, at.best_step = value, at.step
        return {f"validation_{name}": number for name, number in measured.items()}, is_best

    def _target_reached(self, values: Mapping[str, float]) -> bool:
        target = self.limits.target
        reached = [
            values[name] >= goal if higher_is_better(name) else values[name] <= goal
            for name, goal in target.items()
            if name in values
        ]
        return bool(target) and len(reached) == len(target) and all(reached)

    def _read_losses(self) -> None:
        """Bring the losses of the last steps to the host, in one read."""
        if not self._pending:
            return
        losses = torch.stack(self._pending).tolist()
        self._pending.clear()
        if self.setup.step.update.clip.skips:  # of an update that was not made
            losses = [loss for loss in losses if math.isfinite(loss)]
        self.at.add(losses)

    def _record(self, values: Mapping[str, float]) -> StepRecord:
        self.at.seconds = time.perf_counter() - self._started
        return StepRecord(self.at.step, self.epochs, self.at.seconds, values)

    @property
    def epochs(self) -> float:
        """Passes over the data so far; fractional inside one."""
        return self.at.passes(self.setup.batches.per_epoch)

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in self.forward.state().values() if t.is_floating_point())

    @property
    def learning_rate(self) -> float:
        """The rate of the first parameter group, now."""
        return float(self.setup.optimizer.param_groups[0]["lr"])

    # ── saving ───────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, best: bool = False, last: bool = False) -> bool:
        """Have the training as it stands brought to the disk; True if it is there already.

        The last one may be handed over: averaged weights in it have their norms measured.
        """
        is_mended_here = self.at.mended > 0 and self.at.mended_at == self.at.step
        if not best and self.at.best_step == self.at.step and (self.best is None or is_mended_here):
            return True  # since the evaluation; it is the only place where the best weights are
        self._read_losses()
        self._saved = time.perf_counter()
        self.at.seconds = self._saved - self._started
        self.count_skipped()
        return self.setup.saver.save(self.memory.checkpoint(self.at, self.best, measure=last), best)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was taken.

        Raises:
            ValueError: it is of another model or optimizer, or holds what no training has saved.
        """
        self.at = self.memory.restore(checkpoint)
        self.watching.since = self.at.mended_at

    def _next_wake(self) -> float:
        """The moment when the clock has something to say: a save is due, or the time is up."""
        save = self._saved + SAVE_SECONDS if self.limits.save_every == "auto" else float("inf")
        end = self._started + self.limits.seconds if self.limits.seconds is not None else float("inf")
        return min(save, end)

    def _wake(self) -> str | None:
        if self._is_late():
            return "time"
        self.save()
        return None
