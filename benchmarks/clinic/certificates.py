"""What kind of point a training ended at, measured in float64 on the whole of its (small) data."""

from __future__ import annotations

from typing import Any

import torch
from families import Case
from torch import nn

import thalweg

FIELDS = (
    "kind", "loss", "loss_scale", "gradient_norm", "gradient_error", "largest_eigenvalue", "smallest_eigenvalue",
    "smallest_eigenvalue_error", "descent", "escape", "flatness", "num_examples", "num_products",
)  # fmt: skip


def certificate(model: nn.Module, case: Case) -> dict[str, Any]:
    """The kind of point and the numbers that say so; `refused` and why where the weights are not finite."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        return {"refused": "weights are not finite"}
    try:
        found = thalweg.landscape(model, case.train, case.loss, picture=False)
    except ValueError as error:
        return {"refused": str(error)}
    return {name: getattr(found, name) for name in FIELDS}
