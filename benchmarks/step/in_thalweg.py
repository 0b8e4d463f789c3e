"""Thalweg: the step as it is planned for this model on this machine, called one at a time and for fifty batches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_models
from worker import Contender, Stepping
from workloads import LEARNING_RATE, Workload

STEPS_TO_COME = None
"""Of a long training: what compiling costs is not the question here, and stands beside the figures."""


AT_ONCE = 50
"""As many as JAX's scan takes."""


class Several(Stepping):
    """Fifty batches with each call."""

    def _fifty(self) -> torch.Tensor:
        losses: torch.Tensor = self.step.several(itertools.islice(self.batches, AT_ONCE))
        return losses

    def losses(self, steps: int) -> list[float]:
        found: list[float] = []
        while len(found) < steps:
            found += self._fifty().tolist()
        return found

    def seconds(self, steps: int) -> float:
        times = max(1, round(steps / AT_ONCE))
        started = time.perf_counter()
        for _ in range(times):
            losses = self._fifty()
        self.wait(losses)
        return (time.perf_counter() - started) / (times * AT_ONCE)


def _stepping(workload: Workload, kind: type[Stepping] = Stepping, **options: Any) -> Callable[[], Contender]:
    import thalweg

    if not hasattr(thalweg, "fast_step"):
        raise ModuleNotFoundError("this Thalweg has no fast_step")
    ring = torch_models.ring(workload)

    def make() -> Contender:
        model = torch_models.model(workload.name)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
        step = thalweg.fast_step(model, "cross_entropy", optimizer, example=ring[0], steps=STEPS_TO_COME, **options)
        return kind(step, ring, wait=torch_models.wait, read=torch.Tensor.item, plan=lambda: str(step.plan))

    return make


def exact(workload: Workload) -> Callable[[], Contender]:
    return _stepping(workload)


def several(workload: Workload) -> Callable[[], Contender]:
    return _stepping(workload, Several)


def fast(workload: Workload) -> Callable[[], Contender]:
    return _stepping(workload, precision="fast")
