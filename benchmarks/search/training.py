"""One contender's work on one workload: trainings by hand, and the clock and count that everything is measured by.

The loop is the one of those who know that a DataLoader is slow: batches are gathered from tensors. Rule and schedule
are `thalweg`'s own (AdamW without decay on vectors; warm-up over a twentieth, then a cosine to a hundredth), so that
contenders differ in how they find a rate and in nothing else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from cells import rounded
from torch import Tensor, nn
from workloads import LOSSES, Data, Workload

from thalweg.optim import catalogue, schedules

EVALUATED = 256
"""Examples at once without gradients, as in `thalweg`."""
BATCHES_OF_NORM = 50
"""By which batch norm's statistics are taken anew, where weights are not those that were trained with."""


class Trace:
    """What was seen, and when: seconds and updates since the start."""

    def __init__(self, level: float) -> None:
        self.level = level
        self.steps = 0
        self.first: dict[str, Any] | None = None
        """Where any training first reached the level, those of a search as well."""
        self.reached: dict[str, Any] | None = None
        """Where the one that counts did."""
        self.best = math.inf
        """Of the one that counts."""
        self._started, self._processor = time.perf_counter(), time.process_time()

    @property
    def now(self) -> dict[str, Any]:
        return {"seconds": round(time.perf_counter() - self._started, 3), "steps": self.steps}

    @property
    def processor_seconds(self) -> float:
        return round(time.process_time() - self._processor, 3)

    def saw(self, loss: float, counts: bool, now: dict[str, Any] | None = None) -> None:
        """A validation loss, of the training that counts or of another one; now, or when it was seen."""
        if loss <= self.level and self.first is None:
            self.first = now or self.now
        if counts and loss <= self.level and self.reached is None:
            self.reached = now or self.now
        if counts and loss < self.best:
            self.best = loss


@dataclass
class Case:
    """What a contender is asked: a good training of this network with this rule, from the weights of this seed."""

    workload: Workload
    rule: str
    seed: int
    data: Data
    trace: Trace
    total: int = field(init=False)
    """Updates of a whole training."""

    def __post_init__(self) -> None:
        """Data in the precision of the network, as `fit` brings them: a hand-written loop takes them as they are."""
        self.data = tuple(tuple(t.float() if t.is_floating_point() else t for t in part) for part in self.data)
        self.total = self.workload.steps(self.data[0])

    def model(self) -> nn.Module:
        return self.workload.make_model(self.seed)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return LOSSES[self.workload.loss](output, y)

    def optimizer(self, model: nn.Module, rate: float) -> torch.optim.Optimizer:
        return catalogue.build(self.rule, model.named_parameters(), rate)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        (x, y), size = self.data[0], self.workload.batch_size
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        return ((x[rows], y[rows]) for rows in order.split(size))

    def by_rate(
        self, rate: float, counts: bool = False, after_epoch: Callable[[int, float], None] = lambda epoch, loss: None
    ) -> float:
        """Train with the workload's rule at a rate; the best validation loss, infinite where it diverged.

        `after_epoch` may raise to end it.
        """
        model = self.model()
        optimizer = self.optimizer(model, rate)
        return self.train(model, optimizer, schedules.build("auto", optimizer, self.total), counts, after_epoch)

    def train(
        self,
        model: nn.Module,
        optimizer: Any,
        schedule: Any = None,
        counts: bool = False,
        after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
    ) -> float:
        step, best = 0, math.inf
        for epoch in range(self.workload.epochs):
            self._mode(model, optimizer, training=True)
            for x, y in self.batches(epoch):
                if schedule is not None:
                    schedule.apply(optimizer, step)
                optimizer.zero_grad()
                self.loss(model(x), y).backward()
                optimizer.step()
                step += 1
                self.trace.steps += 1
            self._mode(model, optimizer, training=False)
            loss = self.validation_loss(model)
            self.trace.saw(loss, counts)
            after_epoch(epoch, loss)
            best = min(best, loss)
            if not math.isfinite(loss):
                return math.inf
        return best

    def _mode(self, model: nn.Module, optimizer: Any, training: bool) -> None:
        """Of the network, and of a rule (Schedule-Free) that trains with other weights than it hands over."""
        has_modes = hasattr(optimizer, "train")
        if has_modes:
            optimizer.train() if training else optimizer.eval()
        if has_modes and not training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            model.train()
            with torch.no_grad():
                for _, (x, _) in zip(range(BATCHES_OF_NORM), self.batches(0), strict=False):
                    model(x)
        model.train(training)

    @torch.inference_mode()
    def validation_loss(self, model: nn.Module) -> float:
        model.eval()
        x, y = self.data[1]
        parts = zip(x.split(EVALUATED), y.split(EVALUATED), strict=True)
        return sum(self.loss(model(a), b).item() * len(a) for a, b in parts) / len(x)


def summary(case: Case, found: dict[str, Any], searched: dict[str, Any]) -> dict[str, Any]:
    """What a cell says of a contender: `searched` is the clock when its search was over, `found` what came of it.

    A level that was not reached within the whole training counts as the search and twice a whole training.
    """
    trace = case.trace
    whole = {word: trace.now[word] - searched[word] for word in ("seconds", "steps")}
    if whole["steps"]:  # one that diverged was cut short
        whole["seconds"] *= case.total / whole["steps"]
    missed = {
        "seconds": round(searched["seconds"] + 2 * whole["seconds"], 3),
        "steps": searched["steps"] + 2 * case.total,
    }
    return found | {
        "loss": rounded(trace.best),
        "search": searched,
        "cost": round(searched["steps"] / case.total, 4),
        "whole": trace.now,
        "target": trace.reached or missed,
        "is_missed": trace.reached is None,
        "first": trace.first,
        "processor_seconds": trace.processor_seconds,
    }
