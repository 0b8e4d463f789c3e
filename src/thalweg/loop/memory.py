"""A training's memory: all that the next step depends on, taken to a checkpoint and put back from one."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.loop.checkpoint import Checkpoint
from thalweg.loop.saver import COPY_BYTES
from thalweg.loop.setup import Setup, Standing
from thalweg.loop.statistics import averaged_model
from thalweg.loop.tree import require_like
from thalweg.step.batches import Batches
from thalweg.tensors import seeds
from thalweg.tensors.named import assign, copied, mapped, num_bytes

#: Bytes of batches of a stream that are held for the arms of a trial; beyond it each arm reads them by itself.
AHEAD_BYTES = 256 << 20
#: Of a rule's group, which of torch's kernels it has; by these torch decides, too, where counts of steps lie.
KERNELS = ("fused", "foreach", "capturable")


class Opened:
    """An epoch of a stream while it is gone through: its next batches may be looked at ahead of their time."""

    def __init__(self, batches: Iterator[Any], epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        self._batches = batches
        self._ahead: deque[Any] = deque()

    def __iter__(self) -> Opened:
        return self

    def __next__(self) -> Any:
        batch = self._ahead.popleft() if self._ahead else next(self._batches)
        self.position += 1
        return batch

    def stands_at(self, at: Standing) -> bool:
        """Whether the next batch is the one that follows there."""
        return (self.epoch, self.position) == (at.epoch, at.position)

    def ahead(self, count: int) -> list[Any] | None:
        """The next batches of the epoch, so many at most; None where they are too many to hold."""
        while len(self._ahead) < count:
            batch = next(self._batches, None)
            if batch is None:
                break
            self._ahead.append(batch)
            if count * num_bytes(tuple(batch)) > AHEAD_BYTES:
                return None
        return list(itertools.islice(self._ahead, count))


class Memory:
    """Takes the state of a setup, and puts it back; it knows from which random state the epoch was begun."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.forward = setup.step.forward
        self._epoch_random: dict[str, Any] | None = None
        self.good: dict[str, Tensor] | None = None
        """The weights of the last state with which nothing was wrong, where that is kept."""
        self._opened: Opened | None = None

    def follow(self, other: Memory) -> None:
        """Know what another memory of the same training knows."""
        self._epoch_random = other._epoch_random
        self.good = other.good
        if self.setup.batches is other.setup.batches:
            self._opened = other._opened

    def batches(self, at: Standing) -> Iterator[Any]:
        """The batches still to come in this epoch; a stream goes on where it stands, or is read again up to there."""
        if self.setup.batches.repeatable:
            return self.setup.batches.epoch(at.epoch, at.position)
        if self._opened is None or not self._opened.stands_at(at):
            self._opened = Opened(self._read(at), at.epoch, at.position)
        return self._opened

    def ahead(self, at: Standing, count: int) -> list[Any] | None:
        """Of a stream in the midst of an epoch the next batches, to be looked at before they are trained on; None where
        they are too many to hold, and of other data, which can be had again.
        """
        if self.setup.batches.repeatable or at.position == 0:  # what draws its order draws it when the training does
            return None
        self.batches(at)
        assert self._opened is not None
        held = self._opened.ahead(count)
        if held is None:
            self.leave()  # the source will be gone through again
        return held

    def again(self, at: Standing) -> Iterator[Any]:
        """The batches still to come in this epoch, read from where it begins; the training's own are left alone."""
        return self.setup.batches.epoch(at.epoch, at.position) if self.setup.batches.repeatable else self._read(at)

    def leave(self) -> None:
        """What is read next of a stream is read from the beginning of its epoch."""
        self._opened = None

    def _read(self, at: Standing) -> Iterator[Any]:
        """An epoch of a stream from where it stands; one that draws its own order sees the state it saw before."""
        setup = self.setup
        if at.position == 0 or self._epoch_random is None:
            self._epoch_random = self.random()
            return setup.batches.epoch(at.epoch, at.position)
        now = seeds.capture()
        self.set_random(self._epoch_random)
        batches = setup.batches.epoch(at.epoch, at.position)
        first = next(batches, None)
        seeds.restore(now)
        return iter(()) if first is None else itertools.chain([first], batches)

    def checkpoint(self, at: Standing, best: Mapping[str, Tensor] | None, measure: bool = False) -> Checkpoint:
        """The training as it stands, in live tensors; `best` are the best weights so far where they are in memory.

        With `measure`, averaged weights have their norms measured, as those that are handed over have.
        """
        setup = self.setup
        live, saved = self.forward.state(), self._state(at)
        if setup.average is None:
            return Checkpoint(at.step, live, saved, at.best_step)
        saved["live"] = copied(live)
        if best is not None and at.best_step == at.step:  # as they were measured, norms and all
            return Checkpoint(at.step, best, saved, at.best_step)
        with averaged_model(setup.average, self.forward, setup.batches, setup.has_norm and measure):
            return Checkpoint(at.step, copied(live), saved, at.best_step)

    def _state(self, at: Standing) -> dict[str, Any]:
        """All that the next step depends on but the weights."""
        setup = self.setup
        saved: dict[str, Any] = {
            "standing": {name: getattr(at, name) for name in Standing.__slots__},
            "optimizer": setup.optimizer.state_dict(),
            "schedule": setup.schedule.state_dict(),
            "metrics": setup.metrics.state_dict(),
            "signals": setup.signals.state_dict(),
            "random": self.random(),
            "epoch_random": self._epoch_random,
        }
        if setup.average is not None:
            saved["average"] = setup.average.state_dict()
        if self.good is not None:
            saved["good"] = self.good
        return saved

    def keep_good(self, at: Standing, loss: float | None) -> None:
        """This state is one to go back to; of a large model none is kept."""
        state = self.forward.state()
        if num_bytes(state) <= COPY_BYTES:
            self.good, at.good_step, at.good_loss = copied(state), at.step, loss

    def restore(self, checkpoint: Checkpoint) -> Standing:
        """Go back to where a checkpoint was taken: weights, optimizer, schedule, random state; returns the standing.

        Raises:
            ValueError: it is of another model or optimizer, or holds what no training has saved.
        """
        try:
            return self._restore(checkpoint)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
            first = (str(error).splitlines() or [""])[0]
            what = first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"
            raise ValueError(f"the checkpoint of step {checkpoint.step} does not fit this training: {what}") from error

    def _restore(self, checkpoint: Checkpoint) -> Standing:
        setup, saved = self.setup, checkpoint.state
        like = self._state(Standing())
        del like["schedule"]  # whose numbers change their kind: it holds infinities, which JSON does not
        require_like(saved, like)
        standing = Standing(**saved["standing"])
        standing.check(checkpoint.step, setup.batches.per_epoch)
        assign(self.forward.state(), saved.get("live", checkpoint.model))
        _restore_optimizer(setup.optimizer, saved["optimizer"])
        setup.schedule.load_state_dict(saved["schedule"])
        setup.metrics.load_state_dict(mapped(lambda t: t.to(setup.step.device), saved["metrics"]))
        setup.signals.load_state_dict(saved["signals"])
        if setup.average is not None and "average" in saved:
            setup.average.load_state_dict(saved["average"])
        for states in (saved["epoch_random"], saved["random"]):  # the first only to see that it is one
            if states is not None:
                self.set_random(states)
        self._epoch_random = saved["epoch_random"]
        self.good = dict(saved["good"]) if "good" in saved else None
        setup.step.resumed(standing.step)
        return standing

    def random(self) -> dict[str, Any]:
        """The state of everything that draws."""
        return random_state(self.setup.batches)

    def set_random(self, states: dict[str, Any]) -> None:
        """Put back what `random` returned."""
        set_random_state(self.setup.batches, states)


def random_state(batches: Batches) -> dict[str, Any]:
    """The state of everything that draws: the global generators, and those that a stream brings along."""
    own = [generator.get_state() for generator in generators(getattr(batches.data, "source", None))]
    return {**seeds.capture(), "own": own}


def set_random_state(batches: Batches, states: dict[str, Any]) -> None:
    """Put back what `random_state` returned."""
    seeds.restore(states)
    own = generators(getattr(batches.data, "source", None))
    for generator, state in zip(own, states["own"], strict=True):
        generator.set_state(state)


def generators(source: Any) -> list[torch.Generator]:
    """Those that a data loader and its samplers have of their own."""
    samplers = [getattr(source, "sampler", None), getattr(source, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    found = [getattr(holder, "generator", None) for holder in (source, *samplers)]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextlib.contextmanager
def untouched(batches: Batches) -> Iterator[None]:
    """Batches may be drawn inside; what draws them is as before afterwards."""
    before = random_state(batches)
    try:
        yield
    finally:
        set_random_state(batches, before)


def _restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state in the dtype it was saved in: torch casts floating state to the parameter's.

    Which kernels it has is as it is here: it may have been saved on another device, whose kernels are others.
    """
    groups = saved["param_groups"]
    if len(groups) == len(optimizer.param_groups):
        kernels = [{word: group[word] for word in KERNELS if word in group} for group in optimizer.param_groups]
        groups = [{**group, **kernel} for group, kernel in zip(groups, kernels, strict=True)]
    try:
        optimizer.load_state_dict({**saved, "param_groups": groups})
    except ValueError as error:
        raise ValueError(f"the saved optimizer state is of another optimizer: {error}") from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not set(saved["state"]) <= set(range(len(parameters))):
        raise ValueError("the saved optimizer state is of another model")
    for number, entries in saved["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and optimizer.state[parameters[number]][name].dtype != value.dtype:
                optimizer.state[parameters[number]][name] = value.to(parameters[number].device)
