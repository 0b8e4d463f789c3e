"""Cautious weight decay: only the weights that the rule itself is making smaller decay.

    w′ from the rule, without decay;  w ← w′ − αλ w · [(w − w′) w > 0]

w weight, α learning rate, λ weight decay. Chen et al. 2025, "Cautious Weight Decay", algorithm 1: decay no longer pulls
against the gradient, so the point of rest is one of the loss, not of loss and decay together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.optim.schedule_free import ScheduleFree
from thalweg.optim.wrapped import Wrapped


class CautiousDecay(Wrapped):
    """Any rule, with cautious weight decay in place of its own.

    Each group's "weight_decay" becomes λ of this rule and the rule inside decays nothing. Cost of a step: four passes
    over the weights; memory: a copy of them while a step is made. When: where weight decay is used at all. When not:
    rules that evaluate the loss by themselves (L-BFGS, K-FAC, Gauss–Newton).

    Args:
        optimizer: a torch optimizer whose groups have a "weight_decay", or none, with `weight_decay` given.
        weight_decay: λ of all groups, those that are added later too; None: what each has.

    Raises:
        ValueError: a group has no weight decay, and none is given.
        TypeError: a rule that evaluates the loss by itself; `ScheduleFree`, whose weights are its average.

    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = CautiousDecay(torch.optim.SGD([weight], lr=0.1), weight_decay=1.0)
    >>> weight.grad = torch.tensor([1.0, 0.0, -1.0])
    >>> optimizer.step()
    >>> weight.detach()
    tensor([0.8000, 1.0000, 1.1000])
    """

    def __init__(self, optimizer: Optimizer, weight_decay: float | None = None) -> None:
        if isinstance(optimizer, ScheduleFree):
            raise TypeError(
                "CautiousDecay(ScheduleFree(rule)) would let the average decay instead of the weights that the rule "
                "moves: write ScheduleFree(CautiousDecay(rule))"
            )
        super().__init__(optimizer, {"cautious_decay": weight_decay})

    def _begin(self, group: dict[str, Any]) -> None:
        given = self.defaults["cautious_decay"]
        decay = group.get("weight_decay") if given is None else given
        if decay is None or not decay >= 0:
            raise ValueError(f"weight_decay is a number of 0 or more for each group, got {decay!r}")
        group["cautious_decay"], group["weight_decay"] = decay, 0.0

    def _around(self, pairs: list[tuple[dict[str, Any], Tensor]]) -> None:
        before = [p.detach().clone() for _, p in pairs]
        self.optimizer.step()
        for (group, p), w in zip(pairs, before, strict=True):
            if decay := group.get("cautious_decay", 0.0):
                p.sub_(torch.where((w - p) * w > 0, w, 0.0), alpha=group["lr"] * decay)
            self.state[p]["cautious"] = True  # a state of more than tensors is not recorded as a program
