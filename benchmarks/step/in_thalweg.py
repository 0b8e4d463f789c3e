"""Thalweg: the step as it is planned for this model on this machine, called one at a time and for fifty batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch_models
from worker import AtOnce, Contender, Stepping
from workloads import LEARNING_RATE, Workload

STEPS_TO_COME = None
"""Of a long training: what compiling costs is not the question here, and stands beside the figures."""


class Several(AtOnce, Stepping):
    """As many batches with each call as JAX's scan takes."""

    number = 50

    def call(self) -> torch.Tensor:
        losses: torch.Tensor = self.step.several(itertools.islice(self.batches, self.number))
        return losses


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
