"""What kind of point a training ended at, measured in float64 on the whole of its (small) data."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from families import Case
from torch import Tensor, nn

import thalweg
from thalweg.step.losses import resolve

FIELDS = (
    "kind", "loss", "loss_scale", "gradient_norm", "gradient_error", "largest_eigenvalue", "smallest_eigenvalue",
    "smallest_eigenvalue_error", "descent", "escape", "flatness", "num_examples", "num_products",
)  # fmt: skip
TRIALS, STEPS, RATE = 3, 300, 0.005
"""Of descents from beside a minimum, by Adam."""
BESIDE = 0.01
"""How far beside, as a share of a unit's usual weight vector."""
LOWER = 0.01
"""Share of the loss's scale by which a descent must end lower to say that it was no minimum."""


def certificate(model: nn.Module, case: Case) -> dict[str, Any]:
    """The kind of point and the numbers that say so; `refused` and why where the weights are not finite.

    `left` says how many of `TRIALS` descents from beside a minimum found something lower: at a degenerate saddle, where
    curvature is nothing, they do.
    """
    found = _measured(model, case)
    if found.get("kind") == "minimum":
        found["left"] = sum(_descended(model, case, seed) < found["loss"] - LOWER * found["loss_scale"]
                            for seed in range(TRIALS))  # fmt: skip
    return found


def _measured(model: nn.Module, case: Case) -> dict[str, Any]:
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return {"refused": "weights are not finite"}
    try:
        found = thalweg.landscape(model, case.train, case.loss, picture=False)
    except ValueError as error:
        return {"refused": str(error)}
    return {name: getattr(found, name) for name in FIELDS}


def _descended(model: nn.Module, case: Case, seed: int) -> float:
    """The lowest loss of a descent from weights a little beside those of the model."""
    trial = copy.deepcopy(model).double().eval()
    drawn, loss = torch.Generator().manual_seed(seed), resolve(case.loss)
    x, y = (part.double() if part.is_floating_point() else part for part in case.train)
    with torch.no_grad():
        for p in trial.parameters():
            beside = torch.randn(p.shape, generator=drawn, dtype=torch.float64)
            p.add_(BESIDE * beside / math.sqrt(p.shape[-1]))
    optimizer = torch.optim.Adam([p for p in trial.parameters() if p.requires_grad], RATE)
    lowest = math.inf
    for _ in range(STEPS):
        optimizer.zero_grad()
        value: Tensor = loss(trial(x), y)
        value.backward()
        optimizer.step()
        lowest = min(lowest, value.item())
    return lowest
