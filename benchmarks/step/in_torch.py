"""PyTorch: eager with the fused rule, which everything is measured against; the rule as it comes; torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_models
from torch import Tensor, nn
from worker import Contender, Stepping
from workloads import LEARNING_RATE, Workload

Make = Callable[[], Contender]


def _stepping(workload: Workload, wrap: Callable[[nn.Module], Any], **rule: Any) -> Make:
    ring = torch_models.ring(workload)

    def make() -> Contender:
        module = torch_models.model(workload.name)
        optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE, **rule)
        model = wrap(module)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = torch_models.loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return Stepping(step, ring, wait=torch_models.wait, read=Tensor.item)

    return make


def eager(workload: Workload) -> Make:
    return _stepping(workload, lambda model: model, fused=True)


def default_adam(workload: Workload) -> Make:
    return _stepping(workload, lambda model: model)


def compiled(workload: Workload) -> Make:
    return _stepping(workload, torch.compile, fused=True)


def reduce_overhead(workload: Workload) -> Make:
    return _stepping(workload, lambda model: torch.compile(model, mode="reduce-overhead"), fused=True)


def max_autotune(workload: Workload) -> Make:
    return _stepping(workload, lambda model: torch.compile(model, mode="max-autotune"), fused=True)
