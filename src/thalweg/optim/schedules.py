"""The learning rate over the updates: each schedule a pure function step → factor of the rate that was asked for.

Letters: t the update's number from 0, T the number of updates of the training, w the number of warm-up updates.
Past T every factor stays where it ended.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from thalweg.step.losses import unknown

NAMES = (
    "auto",
    "constant",
    "cosine",
    "one_cycle",
    "warmup_stable_decay",
    "exponential",
    "step",
    "plateau",
    "warm_restarts",
)

Factor = Callable[[int], float]

#: One update in so many is of the warm-up of `warmup_stable_decay`.
WARMUP = 20


class Schedule(Protocol):
    """Sets the learning rates of an optimizer's groups."""

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set each group's "lr" before update number `step`, from 0."""

    def validated(self, loss: float) -> None:
        """Take note of a validation loss."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, as JSON holds it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the optimizer's own state holds the rates themselves."""


def build(
    schedule: str | Callable[[torch.optim.Optimizer], LRScheduler] | LRScheduler,
    optimizer: torch.optim.Optimizer,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
) -> Schedule:
    """The schedule of a name, or of a torch scheduler or a function that makes one of an optimizer.

    Build it before the optimizer's saved state is loaded: a torch scheduler sets the rates when it is made.

    Args:
        schedule: one of `NAMES`, or optimizer → scheduler; that is stepped after each update, a `ReduceLROnPlateau` at
            each validation.
        optimizer: its groups' rates are the ones that factors multiply ("initial_lr", set where absent).
        total_steps: updates of the training, None if unknown.
        steps_per_epoch: updates of an epoch, None if unknown (then a thousand updates stand for one).

    Raises:
        ValueError: an unknown name, or a schedule that needs the length of the training, where it is unknown.
        TypeError: neither a name nor a torch scheduler.
    """
    if not isinstance(schedule, str):
        return TorchSchedule(_scheduler(schedule, optimizer))
    if schedule not in NAMES:
        raise ValueError(unknown("schedule", schedule, NAMES))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", float(group["lr"]))
    if schedule == "plateau":
        # A tenth after 10 validations without gain: the defaults of torch, and of Keras.
        return TorchSchedule(ReduceLROnPlateau(optimizer))
    factor = _factor(schedule, total_steps, steps_per_epoch)
    return Constant() if factor is constant else ByStep(factor)


def _factor(name: str, total: int | None, epoch: int | None) -> Factor:
    if name in ("cosine", "one_cycle", "warmup_stable_decay") and total is None:
        raise ValueError(f"the schedule {name!r} needs the length of the training: give epochs= or steps=")
    if name == "auto":
        if total is None:
            return partial(warmup_constant, warmup=min(epoch or 100, 100))
        return partial(warmup_cosine, total=total, warmup=min(total // 20, 1000))
    if total is not None:
        known: dict[str, Factor] = {
            "cosine": partial(cosine, total=total),
            "one_cycle": partial(one_cycle, total=total),
            "warmup_stable_decay": partial(warmup_stable_decay, total=total),
            # Down to a hundredth at the end; by ten at each third (He et al. 2016); three cycles 1 + 2 + 4.
            "exponential": partial(exponential, gamma=0.01, period=total),
            "step": partial(stepped, gamma=0.1, period=math.ceil(total / 3)),
            "warm_restarts": partial(warm_restarts, period=math.ceil(total / 7)),
        }
        return known.get(name, constant)
    epoch = epoch or 1000
    unending: dict[str, Factor] = {
        "exponential": partial(exponential, gamma=0.95, period=epoch),
        "step": partial(stepped, gamma=0.1, period=30 * epoch),
        "warm_restarts": partial(warm_restarts, period=10 * epoch),
    }
    return unending.get(name, constant)


# ── step → factor ──


def constant(t: int) -> float:
    """1."""
    return 1.0


def warmup_constant(t: int, warmup: int) -> float:
    """(t+1)/(w+1) while t < w, then 1 (Goyal et al. 2017, section 2.2)."""
    return (t + 1) / (warmup + 1) if t < warmup else 1.0


def warmup_cosine(t: int, total: int, warmup: int, floor: float = 0.01) -> float:
    """(t+1)/(w+1) while t < w, then f + (1−f)(1 + cos π(t−w)/(T−w))/2 (Goyal et al. 2017; Loshchilov & Hutter 2017)."""
    if t < warmup:
        return (t + 1) / (warmup + 1)
    return floor + (1 - floor) * cosine(t - warmup, total - warmup)


def cosine(t: int, total: int) -> float:
    """(1 + cos πt/T)/2 (Loshchilov & Hutter 2017, equation 5, without restarts)."""
    return (1 + math.cos(math.pi * t / total)) / 2 if t < total else 0.0


def one_cycle(t: int, total: int) -> float:
    """From 1/25 up to 1 over the first 0.3 T, then down to 1/250000, both along a cosine (Smith & Topin 2018).

    The constants are those of torch's `OneCycleLR`; the momentum is left alone.
    """
    top, end = 0.3 * total - 1, total - 1
    if t <= top:
        return 1 + (1 / 25 - 1) * (1 + math.cos(math.pi * t / top)) / 2 if top > 0 else 1.0
    top = max(top, 0.0)
    return 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * (min(t, end) - top) / (end - top))) / 2 if end > top else 1.0


def warmup_stable_decay(t: int, total: int) -> float:
    """Up over 0.05 T, then 1, then down along a line over the last 0.2 T (Hu et al. 2024; Hägele et al. 2024)."""
    warmup, decay = total // WARMUP, total // 5
    if t < warmup:
        return (t + 1) / (warmup + 1)
    return min(1.0, max(total - t, 1) / (decay + 1))


def exponential(t: int, gamma: float, period: int) -> float:
    """γ^(t/period)."""
    return float(gamma ** (t / period))


def stepped(t: int, gamma: float, period: int) -> float:
    """γ^⌊t/period⌋."""
    return float(gamma ** (t // period))


def warm_restarts(t: int, period: int) -> float:
    """Cosines, each twice as long as the one before (SGDR, Loshchilov & Hutter 2017, T_mult = 2)."""
    cycle = (t // period + 1).bit_length() - 1
    return cosine(t - period * (2**cycle - 1), period * 2**cycle)


# ── schedules ──


class ByStep:
    """A factor of the step alone, so nothing is to be saved."""

    def __init__(self, factor: Factor) -> None:
        self.factor = factor

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:  # noqa: D102
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def validated(self, loss: float) -> None:  # noqa: D102
        pass

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        pass


class Constant(ByStep):
    """Sets the rates once."""

    def __init__(self) -> None:
        super().__init__(constant)
        self._is_set = False

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:  # noqa: D102
        if not self._is_set:
            self._is_set = True
            super().apply(optimizer, step)


class TorchSchedule:
    """A torch scheduler: stepped once after each update, or at each validation if it waits for a plateau."""

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler
        self.is_plateau = isinstance(scheduler, ReduceLROnPlateau)
        self._num_steps = 0

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:  # noqa: D102
        if not self.is_plateau:
            # An update that was skipped, or made by another process, is one that torch warns it has not seen.
            self.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]
            while self._num_steps < step:
                self._num_steps += 1
                self.scheduler.step()

    def validated(self, loss: float) -> None:  # noqa: D102
        if self.is_plateau:
            self.scheduler.step(loss)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, as JSON holds it.

        Raises:
            ValueError: the scheduler's state holds something else.
        """
        return {"num_steps": self._num_steps, "scheduler": _to_json(self.scheduler.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: D102
        self._num_steps = state["num_steps"]
        self.scheduler.load_state_dict(_from_json(state["scheduler"]))


def _scheduler(given: Any, optimizer: torch.optim.Optimizer) -> LRScheduler:
    made = given if isinstance(given, LRScheduler) or not callable(given) else given(optimizer)
    if not isinstance(made, LRScheduler):
        raise TypeError(f"schedule takes a name ({', '.join(NAMES)}) or optimizer -> torch scheduler, got {made!r}")
    if made.optimizer is not optimizer:
        raise ValueError("the scheduler belongs to another optimizer: give a function, as lambda o: StepLR(o, 10)")
    return made


def _to_json(value: Any) -> Any:
    """JSON has no infinity (`ReduceLROnPlateau`) and no counter (`MultiStepLR`)."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Counter):
        return {"counter": sorted(value.items())}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _to_json(part) for key, part in value.items()}}
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return _to_json(value.item())
    raise ValueError(f"the scheduler's state holds a {type(value).__name__}, which JSON cannot: it cannot be resumed")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind == "counter":
        return Counter(dict(content))
    return {key: _from_json(part) for key, part in content.items()}
