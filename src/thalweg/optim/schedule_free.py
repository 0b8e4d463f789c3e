"""Schedule-free: the rule goes its way, gradients are taken near the average of it, and the average is the result.

    y = (1−β) z + βx        where the gradient is taken: the model's weights while it trains
    z ← rule(z, ∇J(y))      at a constant rate
    x ← (1−c) x + c z       c = α²/Σα², α the largest rate so far: 1/t at a constant one

Defazio et al. 2024, "The Road Less Scheduled", equations 3 to 5; weights of x as in section 4.2. No end has to be known
beforehand: x is at any time about what a schedule that ends there would have given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.optim.averages import WeightAverage
from thalweg.optim.wrapped import Wrapped


class ScheduleFree(Wrapped):
    """Any rule, without a schedule. Between `averaged()` and its end the model holds x; `adopt()` leaves it there.

    In `fit` this is done wherever the model is measured, saved or handed over; give it `schedule="constant"`. A rule's
    own momentum and that of y add up: give rules without one (`betas=(0, …)`, `momentum=0`) where both are not meant.

    When: the length of the training is not known. When not: weights of half precision, where x cannot be had back from
    y and z; rules that evaluate the loss by themselves (L-BFGS, K-FAC, Gauss–Newton). Cost of a step: five passes over
    the weights; memory: z, one number a weight.

    Args:
        optimizer: the rule.
        momentum: β (section 4: 0.9; 0.95 to 0.98 for long trainings).

    Raises:
        ValueError: β out of range, or weights of half precision.
        TypeError: a rule that evaluates the loss by itself.

    >>> weight = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = ScheduleFree(torch.optim.SGD([weight], lr=0.5))
    >>> for _ in range(200):
    ...     weight.grad = weight.detach() * (1 + 0.5 * torch.randn(1))
    ...     optimizer.step()
    >>> with optimizer.averaged():
    ...     bool(weight.abs() < 0.1)
    True
    """

    def __init__(self, optimizer: Optimizer, momentum: float = 0.9) -> None:
        if not 0 < momentum < 1:
            raise ValueError(f"momentum lies between 0 and 1, got {momentum!r}")
        super().__init__(optimizer, {"free_momentum": momentum})

    def _begin(self, group: dict[str, Any]) -> None:
        if any(p.dtype.itemsize < 4 for p in group["params"]):
            raise ValueError("schedule-free needs weights of float32 or wider")
        group |= {"free_momentum": self.defaults["free_momentum"], "free_rate": 0.0, "free_sum": 0.0}

    def _around(self, pairs: list[tuple[dict[str, Any], Tensor]]) -> None:
        β = self.param_groups[0]["free_momentum"]
        averages = []
        for _, p in pairs:
            kept = self.state.get(p, {})
            x = torch.lerp(p, kept["free_z"], 1 - 1 / β) if "free_z" in kept else p.detach().clone()
            averages.append(x)
            if "free_z" in kept:
                p.copy_(kept["free_z"])
        self.optimizer.step()
        shares = {}
        for group in self.param_groups:
            group["free_rate"] = rate = max(group["free_rate"], float(group["lr"]))
            group["free_sum"] += rate**2
            shares[id(group)] = rate**2 / group["free_sum"] if rate else 1.0
        for (group, p), x in zip(pairs, averages, strict=True):
            kept = self.state[p]
            if "free_z" not in kept:  # after the rule's first step, which finds an empty state
                kept["free_z"], kept["free_steps"] = torch.empty_like(p), 0
            kept["free_z"].copy_(p)
            kept["free_steps"] += 1
            x.lerp_(kept["free_z"], shares[id(group)])
            p.copy_(torch.lerp(x, kept["free_z"], 1 - β))

    @torch.no_grad()
    def adopt(self) -> None:
        """Put x into the weights for good."""
        for group in self.param_groups:
            for p in group["params"]:
                if (z := self.state.get(p, {}).get("free_z")) is not None:
                    p.lerp_(z, 1 - 1 / group["free_momentum"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights hold x; after it what they held before, bit for bit."""
        self._follow()
        before = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}
        try:
            self.adopt()
            yield
        finally:
            with torch.no_grad():
                for p, y in before.items():
                    p.copy_(y)


class FreeAverage(WeightAverage):
    """x as the average that a training reads out. Norm layers are measured anew for it, as for `"swa"`."""

    def __init__(self, optimizer: ScheduleFree) -> None:
        super().__init__("swa", [])
        self._optimizer = optimizer

    def update(self, step: int) -> None:  # noqa: D102
        self.num_averaged += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:  # noqa: D102
        with self._optimizer.averaged():
            yield

    def adopt(self) -> None:  # noqa: D102
        self._optimizer.adopt()
