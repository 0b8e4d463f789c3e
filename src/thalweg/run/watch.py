"""Diagnosis for a loop that is not ours: what `fit` records and says, from one call after each update."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.diagnosis import engine
from thalweg.gradients.taps import eager
from thalweg.loop.watching import Watching
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord
from thalweg.reports.words import changed
from thalweg.run.directory import machine, now, versions
from thalweg.run.facts import of_rule
from thalweg.run.tending import Tending
from thalweg.signals.arrivals import Arrivals
from thalweg.signals.cadence import is_awaited, is_reported
from thalweg.signals.layers import Layers
from thalweg.signals.loss import loss_spread
from thalweg.signals.signals import Signals
from thalweg.signals.start import of_model
from thalweg.step.forward import Forward

WORDS = ("off", "advise", "safe")
#: Calls without an update after which the loss is looked at all the same: a scaler that skips each one says nothing.
SKIPPED = 20
#: Reports before which a parameter without a gradient may have its turn yet.
TURNS = 3


def watch(
    model: nn.Module, optimizer: Optimizer | Iterable[Optimizer] | None = None, *, repair: str = "advise"
) -> Watch:
    """Watch a training loop of your own, and say what is wrong with it while it runs.

    To be told after each update: `with thalweg.watch(model, optimizer) as w: …; w.step(loss)`. It hears gradients by
    hooks on the parameters, and activations where the model is not compiled; so it goes with compiled models, autocast,
    a gradient scaler and micro-batches. The model, the random state and the gradients are left as they are.

    Args:
        model: a module, compiled or not.
        optimizer: one or several; without one, what needs the moment of the update is not told (clipping).
        repair: `"advise"` prints each new finding once on standard error, `"off"` prints nothing. `"safe"` also mends:
            it may scale the rate, bound the gradient, leave updates out and go back to an earlier state, and takes
            back what does not bring the loss down.

    Raises:
        TypeError: not a module, or not a `torch.optim.Optimizer`.
        ValueError: another word for `repair`; a model without parameters that are trained, or of which the optimizer
            holds none; `"safe"` without optimizer.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> x, y = torch.randn(64, 2), torch.randn(64, 1)
    >>> with watch(model, optimizer, repair="off") as w:
    ...     for _ in range(30):
    ...         loss = nn.functional.mse_loss(model(x), y)
    ...         loss.backward()  # and never zero_grad
    ...         optimizer.step()
    ...         w.step(loss)
    >>> w.findings[0].code
    'stale_gradients'
    """
    return Watch(model, optimizer, repair)


class Watch:
    """What `watch` returns.

    Attributes:
        history: all that was reported, as of a run of `fit`: `w.history.series("loss")`.
    """

    def __init__(self, model: nn.Module, optimizer: Any = None, repair: str = "advise") -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"watch takes a torch.nn.Module, got {type(model).__name__}")
        if repair not in WORDS:
            raise ValueError(f"repair takes {' or '.join(map(repr, WORDS))} in a loop that is not ours, got {repair!r}")
        self._optimizers = _listed(optimizer)
        self._model = eager(model)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        _check_owned(self._optimizers, self._parameters)
        if not self._parameters:
            raise ValueError(
                f"{type(model).__name__} has no parameter that wants a gradient: there is nothing to watch"
            )
        self.history = History()
        self.repair = repair
        names = {id(p): name for name, p in self._model.named_parameters()}
        self._names = [names[id(p)] for p in self._parameters]
        self._arrivals = Arrivals(self._model, self._parameters, Layers.of(self._names))
        self._signals = Signals(Forward(self._model), self._parameters, taps=not _is_compiled(model))
        self._watching = Watching(self.history, self, repair != "off")
        if repair == "safe" and not self._optimizers:
            raise ValueError('repair="safe" works on the optimizer: give watch(model, optimizer, repair="safe")')
        tends = repair == "safe"
        self._tending = Tending(self._model, self._optimizers, self.history, self.event) if tends else None
        self._taking = ExitStack()
        self._hooks: list[Any] = []
        self._losses: list[Tensor | float] = []
        self._is_taken = self._has_stepped = False
        self._number = self._reports = 0
        self._started = time.perf_counter()
        self._began = now()

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Watch:
        self._started = time.perf_counter()
        self.history.note(self._facts())
        self._arrivals.attach()
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._about_to_step))
            self._hooks.append(optimizer.register_step_post_hook(self._stepped))
        self._watching.began()
        if self._tending is not None:
            self._tending.began()
        self._prepare()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taking.close()
        self._arrivals.detach()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if kind is None and self._number:
            if self._tending is not None:
                self._tending.ended(self._number)
            self.history.note({"planned_steps": self._number})  # now that the end is known
            self._watching.ended(self._number)

    def step(self, loss: Tensor | float | None = None) -> None:
        """After each `optimizer.step()`: `loss` of the batch, a tensor or a number.

        A call before the optimizer has stepped again (a micro-batch, an update that a scaler skipped) is counted to the
        update that comes.
        """
        if loss is not None:
            self._losses.append(_one_number(loss))
        if self._optimizers and not self._has_stepped and not self._is_skipped():
            return
        self._number += 1
        if self._is_taken:
            self._signals.after(self._parameters)
            self._taking.close()
        if is_reported(self._number):
            self._report()
        self._has_stepped = False
        self._prepare()

    def validated(self, validation_loss: float, **metrics: float) -> None:
        """After an evaluation on held-out data: overfitting is seen by it."""
        values = {"validation_loss": float(validation_loss)}
        values |= {f"validation_{name}": float(value) for name, value in metrics.items()}
        self.history.evaluate(self._record(values))
        self._watching.evaluated(self._number)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong with the training up to now, the likeliest cause first."""
        return engine.findings(self.history)

    def report(self, path: str | os.PathLike[str]) -> Path:
        """Write the page with all pictures."""
        from thalweg.reports.page import write

        name = type(self._model).__name__
        told = RunRecord(name, {}, dict(self.history.facts), None, versions(), machine(), self._began)
        told.decided = {word: told.decided.get(word) for word in ("optimizer", "learning_rate", "num_parameters")}
        told.steps, told.seconds = self._number, time.perf_counter() - self._started
        return write(told, self.history, Path(path))

    def event(self, event: Finding | Action) -> None:
        """Something is new: it is said, unless it is a note."""
        if isinstance(event, Action):
            done = "kept" if event.kept else "taken back, the loss did not come down"
            print(f"thalweg: step {event.step}: {changed(event.before, event.after)} ({done}).", file=sys.stderr)
        elif event.severity != "note":
            print(f"thalweg: step {self._number}: {event.sentence} {event.advice}", file=sys.stderr)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        """For the update that comes: listen if it is reported, keep the weights if it is sampled."""
        following = self._number + 1
        self._arrivals.begin(is_reported(following))
        self._is_taken = is_reported(following) or is_awaited(following)
        if self._is_taken:
            self._taking = ExitStack()
            self._taking.enter_context(self._signals.taking(following))
            self._signals.before(self._parameters)

    def _about_to_step(self, optimizer: Optimizer, *of: Any) -> None:
        self._arrivals.taken()
        if self._tending is not None:
            self._tending.before_update(optimizer)

    def _stepped(self, optimizer: Optimizer, *of: Any) -> None:
        self._has_stepped = True
        if self._tending is not None:
            self._tending.after_update(optimizer)

    def _is_skipped(self) -> bool:
        """Whether updates are left out since the loss is no number, which is to be told."""
        newest = self._losses[-SKIPPED:]
        return len(self._losses) % SKIPPED == 0 and bool(newest) and not any(math.isfinite(float(v)) for v in newest)

    def _report(self) -> None:
        """Read what waits on the device, and write it down."""
        values: dict[str, float] = {}
        if self._losses:
            losses = torch.stack([torch.as_tensor(v, dtype=torch.float32).cpu() for v in self._losses]).tolist()
            values = {"loss": sum(losses) / len(losses), **loss_spread(losses)}
            self._losses.clear()
        if self._optimizers:
            values["learning_rate"] = float(self._optimizers[0].param_groups[0]["lr"])
        values |= self._signals.read()
        values |= self._arrivals.read()
        self._reports += 1
        if self._reports == TURNS or (self._reports > TURNS and self.history.facts["unreached_parameters"]):
            self.history.note({"unreached_parameters": self._unreached()})
        self.history.append(self._record(values))
        self._watching.reported(self._number)
        if self._tending is not None:
            asked = self._watching.asked_at == self._number
            self._tending.reported(self._number, values.get("loss"), self._watching.current, asked)

    def _unreached(self) -> list[str]:
        reached = self._arrivals.reached
        return [name for place, name in enumerate(self._names) if place not in reached] if reached else []

    def _record(self, values: dict[str, float]) -> StepRecord:
        return StepRecord(self._number, 0.0, time.perf_counter() - self._started, values)

    def _facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"num_parameters": sum(p.numel() for p in self._model.parameters())}
        found |= of_model(self._model)
        if self._optimizers:
            first = self._optimizers[0]
            found |= {"optimizer": type(first).__name__.lower(), "learning_rate": float(first.param_groups[0]["lr"])}
            found |= of_rule(first)
        return found


def _listed(optimizer: Any) -> list[Optimizer]:
    """None, one or several optimizers."""
    found = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(found, list | tuple) or not all(isinstance(one, Optimizer) for one in found):
        raise TypeError(f"optimizer takes a torch.optim.Optimizer, or a list of them, got {type(optimizer).__name__}")
    return list(found)


def _check_owned(optimizers: list[Optimizer], parameters: list[nn.Parameter]) -> None:
    """Refuse optimizers of another model."""
    owned = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if optimizers and parameters and not any(id(p) in owned for p in parameters):
        raise ValueError("the optimizer holds none of the model's parameters; make it from model.parameters()")


def _one_number(loss: Any) -> Tensor | float:
    """The loss of a batch, cut off from its graph."""
    if not isinstance(loss, Tensor):
        return float(loss)
    if loss.numel() != 1:
        raise ValueError(f"step takes the loss of the batch, one number, got shape {list(loss.shape)}: average over it")
    return loss.detach().reshape(())


def _is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it was compiled: hooks on its modules would not be called, or break it up."""

    def compiled(module: nn.Module) -> bool:
        inner: Callable[..., Any] | None = getattr(module, "_compiled_call_impl", None)
        return hasattr(module, "_orig_mod") or inner is not None

    return any(compiled(module) for module in model.modules())
