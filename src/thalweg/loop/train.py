"""One training: step, report, evaluate, save, stop.

What is decided here is decided by counted steps and by numbers that were measured, never by the clock, so that a run
repeats and resumes exactly; the clock decides only when to save and when a time budget is spent.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.diagnosis.convergence import WINDOW, judge
from thalweg.loop.checkpoint import Checkpoint
from thalweg.loop.evaluate import measure
from thalweg.loop.metrics import Metrics, higher_is_better
from thalweg.loop.saver import Saver
from thalweg.loop.statistics import averaged_model
from thalweg.loop.tree import require_like
from thalweg.optim.averages import WeightAverage
from thalweg.optim.schedules import Schedule
from thalweg.records.history import History
from thalweg.records.step import StepRecord
from thalweg.records.verdict import Verdict
from thalweg.signals.signals import Signals, is_reported
from thalweg.step.batches import Batches
from thalweg.step.whole import Step
from thalweg.tensors import seeds
from thalweg.tensors.named import assign, copied

#: The series of reported steps, with those by layer ("gradient_norm/0"); all others come from evaluations.
REPORTED = ("loss", "learning_rate", "gradient_norm")
#: Updates between two evaluations where an epoch has no known end.
EVALUATE_EVERY = 500
SAVE_SECONDS = 30.0


class Events(Protocol):
    """Who is told what happens."""

    def step(self, record: StepRecord) -> None: ...  # noqa: D102
    def validated(self, record: StepRecord) -> None: ...  # noqa: D102


@dataclass(slots=True)
class Setup:
    """The parts of a training, all made for each other; none changes while it runs."""

    step: Step
    signals: Signals
    optimizer: Optimizer
    schedule: Schedule
    batches: Batches
    validation: Batches | None
    metrics: Metrics
    held_out_metrics: Metrics
    average: WeightAverage | None
    history: History
    saver: Saver
    events: Events
    has_norm: bool = False
    anneals: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop: updates, passes, seconds, a target reached, patience spent; None is no limit."""

    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    target: Mapping[str, float] = field(default_factory=dict)
    patience: int | str | None = "auto"
    save_every: int | str | None = "auto"


@dataclass(slots=True)
class Standing:
    """Where a training stands: what changes with every step, epoch or evaluation, and is saved with it."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    window: list[float] = field(default_factory=list)
    epoch_sum: float = 0.0
    epoch_count: int = 0
    evaluated_at: int = 0
    best_step: int | None = None
    best_value: float | None = None

    def check(self, step: int, per_epoch: int | None) -> None:
        """Refuse numbers that no training has; types are checked by `require_like`.

        Raises:
            ValueError: the message names the field.
        """
        if self.step != step:
            raise ValueError(f"it stands at step {self.step}")
        for name in ("step", "epoch", "position", "epoch_count", "evaluated_at", "best_step"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 0 <= value < 2**53):
                raise ValueError(f"{name} is {value!r:.40}, not a count")
        if per_epoch is not None and self.position > per_epoch:
            raise ValueError(f"it stands at batch {self.position} of an epoch, which has {per_epoch}")
        if not all(isinstance(value, float | int) for value in self.window):
            raise ValueError("a loss since the last report is no number")


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
        self._pending: list[Tensor] = []
        self._epoch_rng: dict[str, Any] | None = None
        self._started = self._saved = 0.0

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def run(self) -> str:
        """Train; returns why it stopped."""
        self._started = time.perf_counter() - self.at.seconds
        self._saved = time.perf_counter()
        reason = self._limit_reached() or self._decided_before()
        if self.at.step == 0:
            self.save()
        while reason is None:
            self.model.train()
            reason = self._epoch()
        if reason not in ("diverged", "interrupted") and self.setup.validation and self.at.evaluated_at < self.at.step:
            self._evaluate()
        self.at.seconds = time.perf_counter() - self._started
        if reason != "diverged":
            self.save(last=reason != "interrupted")
        self.setup.saver.finish()
        if self.verdict is None:
            self.verdict = self._judge()
        return reason

    def _epoch(self) -> str | None:
        """Train to the end of the epoch, from where it stands; why to stop, or None to go on."""
        at, setup = self.at, self.setup
        batches = self._batches()
        watcher = setup.metrics if setup.metrics.names else None
        optimizer, apply, step = setup.optimizer, setup.schedule.apply, setup.step
        average, last, signals = setup.average, self.limits.steps, setup.signals
        evaluate_every = EVALUATE_EVERY if setup.batches.per_epoch is None else 0
        save_every = self.limits.save_every if isinstance(self.limits.save_every, int) else 0
        wake = self._next_wake()
        for batch in batches:
            apply(optimizer, at.step)
            number = at.step + 1
            report = is_reported(number) or number == last
            try:
                if report:
                    with signals.taking(number):
                        loss = step(batch, signals, watcher)
                else:
                    loss = step(batch, None, watcher)
            except (RuntimeError, IndexError) as error:
                raise self._failed_on_batch(error) from error
            self._pending.append(loss)
            at.step = number
            at.position += 1
            if average is not None:
                average.update(number)
            reason = self._report() if report else None
            if evaluate_every and number % evaluate_every == 0:
                reason = reason or self._evaluate()
            if number == last:
                reason = reason or "steps"
            if self.interrupt:
                reason = reason or "interrupted"
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

    def _failed_on_batch(self, error: Exception) -> ValueError:
        """A batch that model or loss cannot take, as one sentence; what the trial before training could not see."""
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = f"batch {self.at.position + 1} of epoch {self.at.epoch + 1}"
        return ValueError(f"{where} cannot be trained on: {first}")

    def _batches(self) -> Any:
        """The batches still to come in this epoch; a stream that draws its own order sees the state it saw before."""
        at, setup = self.at, self.setup
        if setup.batches.repeatable:
            return setup.batches.epoch(at.epoch, at.position)
        if at.position == 0 or self._epoch_rng is None:
            self._epoch_rng = self._random()
            return setup.batches.epoch(at.epoch, at.position)
        now = seeds.capture()
        self._set_random(self._epoch_rng)
        batches = setup.batches.epoch(at.epoch, at.position)
        first = next(batches, None)
        seeds.restore(now)
        return iter(()) if first is None else _chain(first, batches)

    def _end_of_epoch(self, reason: str | None) -> str | None:
        at = self.at
        at.epoch += 1
        at.position = 0
        stop = self._evaluate(of_epoch=True)
        if reason is not None:
            return reason
        if stop is not None:
            return stop
        return self._limit_reached()

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
        values = {"loss": sum(at.window) / len(at.window), "learning_rate": self.learning_rate}
        values.update(self.setup.signals.read())
        at.window.clear()
        record = self._record(values)
        self.setup.history.append(record)
        self.setup.events.step(record)
        if values["loss"] - values["loss"] != 0 and not self._finite():  # NaN or Inf, and it has reached the weights
            return "diverged"
        return "target" if self._target_reached(values) else None

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
        if is_best and self.save(best=True):
            self.best = None  # a large model's best weights are on the disk, and need no memory
        return self._decide(values)

    def _decide(self, values: Mapping[str, float]) -> str | None:
        """Whether to stop, seen what an evaluation measured."""
        if self._target_reached(values):
            return "target"
        return self._patience_spent(values)

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
        return self._decide(now) if at.step and at.evaluated_at == at.step else None

    def _validate(self) -> tuple[dict[str, float], bool]:
        """Held-out loss and metrics of the weights that would be handed over now; kept if they are the best so far."""
        at, setup = self.at, self.setup
        assert setup.validation is not None
        with averaged_model(setup.average, self.forward, setup.batches, setup.has_norm):
            measured = measure(self.forward, setup.step.loss, setup.validation.epoch(0), setup.held_out_metrics)
            value = measured["loss"]
            is_best = value == value and (at.best_value is None or value < at.best_value)
            if is_best:
                self.best = copied(self.forward.state())
                at.best_value, at.best_step = value, at.step
        return {f"validation_{name}": number for name, number in measured.items()}, is_best

    def _patience_spent(self, values: Mapping[str, float]) -> str | None:
        """Whether nothing more is to be expected: by the verdict, or after so many epochs without a better one."""
        patience, history = self.limits.patience, self.setup.history
        watched = "validation_loss" if self.setup.validation is not None else "epoch_loss"
        if watched not in values or patience is None:
            return None
        series = history.series(watched)[1]
        if isinstance(patience, int):
            return "patience" if len(series) - 1 - int(series.argmin()) >= patience else None
        if len(series) < WINDOW or len(series) % max(1, len(series) // 20):
            return None
        self.verdict = self._judge()
        return {"converged": "converged", "stuck": "patience", "overfitting": "patience", "diverged": "diverged"}.get(
            self.verdict.state
        )

    def _judge(self) -> Verdict:
        setup = self.setup
        watched = "validation_loss" if setup.validation is not None else None
        return judge(setup.history, self.epochs, watched, annealing=setup.anneals and not self._annealed())

    def _annealed(self) -> bool:
        """Whether the learning rate has come down to a twentieth of its peak."""
        rates = self.setup.history.series("learning_rate")[1]
        return bool(rates[-1] <= 0.05 * rates.max())

    def _target_reached(self, values: Mapping[str, float]) -> bool:
        target = self.limits.target
        reached = [
            values[name] >= goal if higher_is_better(name) else values[name] <= goal
            for name, goal in target.items()
            if name in values
        ]
        return bool(target) and len(reached) == len(target) and all(reached)

    def _read_losses(self) -> None:
        """Bring the losses of the last steps to the host, in one read; they are added up one by one, so that sums do
        not depend on when they were read.
        """
        if not self._pending:
            return
        at = self.at
        losses = torch.stack(self._pending).tolist()
        self._pending.clear()
        at.window += losses
        at.epoch_count += len(losses)
        for loss in losses:
            at.epoch_sum += loss

    def _record(self, values: Mapping[str, float]) -> StepRecord:
        self.at.seconds = time.perf_counter() - self._started
        return StepRecord(self.at.step, self.epochs, self.at.seconds, values)

    @property
    def epochs(self) -> float:
        """Passes over the data so far; fractional inside one."""
        per_epoch = self.setup.batches.per_epoch
        return self.at.epoch + (self.at.position / per_epoch if per_epoch else 0.0)

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
        if not best and self.best is None and self.at.best_step == self.at.step:
            return True  # since the evaluation; it is the only place where the best weights are
        self._read_losses()
        self._saved = time.perf_counter()
        self.at.seconds = self._saved - self._started
        return self.setup.saver.save(self._checkpoint(measure=last), best)

    def _checkpoint(self, measure: bool = False) -> Checkpoint:
        setup, at = self.setup, self.at
        live, saved = self.forward.state(), self._state()
        if setup.average is None:
            return Checkpoint(at.step, live, saved, at.best_step)
        saved["live"] = copied(live)
        if self.best is not None and at.best_step == at.step:  # as they were measured, norms and all
            return Checkpoint(at.step, self.best, saved, at.best_step)
        with averaged_model(setup.average, self.forward, setup.batches, setup.has_norm and measure):
            return Checkpoint(at.step, copied(live), saved, at.best_step)

    def _state(self) -> dict[str, Any]:
        """All that the next step depends on but the weights."""
        setup = self.setup
        saved: dict[str, Any] = {
            "standing": {name: getattr(self.at, name) for name in Standing.__slots__},
            "optimizer": setup.optimizer.state_dict(),
            "schedule": setup.schedule.state_dict(),
            "metrics": setup.metrics.state_dict(),
            "signals": setup.signals.state_dict(),
            "random": self._random(),
            "epoch_random": self._epoch_rng,
        }
        if setup.average is not None:
            saved["average"] = setup.average.state_dict()
        return saved

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where a checkpoint was taken: weights, optimizer, schedule, random state, sums.

        Raises:
            ValueError: it is of another model or optimizer, or holds what no training has saved.
        """
        try:
            self._restore(checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            first = (str(error).splitlines() or [""])[0]
            what = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
            raise ValueError(f"the checkpoint of step {checkpoint.step} does not fit this training: {what}") from error

    def _restore(self, checkpoint: Checkpoint) -> None:
        setup, saved = self.setup, checkpoint.state
        like = self._state()
        del like["schedule"]  # whose numbers change their kind: it holds infinities, which JSON does not
        require_like(saved, like)
        standing = Standing(**saved["standing"])
        standing.check(checkpoint.step, setup.batches.per_epoch)
        assign(self.forward.state(), saved.get("live", checkpoint.model))
        _restore_optimizer(setup.optimizer, saved["optimizer"])
        setup.schedule.load_state_dict(saved["schedule"])
        setup.metrics.load_state_dict(saved["metrics"])
        setup.signals.load_state_dict(saved["signals"])
        if setup.average is not None and "average" in saved:
            setup.average.load_state_dict(saved["average"])
        for states in (saved["epoch_random"], saved["random"]):  # the first only to see that it is one
            if states is not None:
                self._set_random(states)
        self._epoch_rng = saved["epoch_random"]
        self.at = standing

    def _random(self) -> dict[str, Any]:
        """The state of everything that draws: the global generators, and those that a stream brings along."""
        return {**seeds.capture(), "own": [generator.get_state() for generator in self._generators]}

    def _set_random(self, states: dict[str, Any]) -> None:
        seeds.restore(states)
        for generator, state in zip(self._generators, states["own"], strict=True):
            generator.set_state(state)

    @property
    def _generators(self) -> list[torch.Generator]:
        """Those of a `DataLoader` and its sampler, if they have any of their own."""
        source = getattr(self.setup.batches.data, "source", None)
        found = [getattr(holder, "generator", None) for holder in (source, getattr(source, "sampler", None))]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def _next_wake(self) -> float:
        """The moment when the clock has something to say: a save is due, or the time is up."""
        save = self._saved + SAVE_SECONDS if self.limits.save_every == "auto" else float("inf")
        end = self._started + self.limits.seconds if self.limits.seconds is not None else float("inf")
        return min(save, end)

    def _wake(self) -> str | None:
        if self.limits.seconds is not None and time.perf_counter() - self._started >= self.limits.seconds:
            return "time"
        self.save()
        return None


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state in the dtype it was saved in: torch casts floating state to the parameter's."""
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise ValueError(f"the saved optimizer state is of another optimizer: {error}") from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not set(saved["state"]) <= set(range(len(parameters))):
        raise ValueError("the saved optimizer state is of another model")
    for number, entries in saved["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and optimizer.state[parameters[number]][name].dtype != value.dtype:
                optimizer.state[parameters[number]][name] = value.to(parameters[number].device)


def _chain(first: Any, rest: Any) -> Any:
    yield first
    yield from rest
