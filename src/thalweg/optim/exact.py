"""A rule's state comes back as it was saved: torch casts floating state to the dtype of its parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from thalweg.tensors.named import mapped


def load(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """`torch.optim.Optimizer.load_state_dict`, every tensor in the dtype it was saved in.

    Raises:
        ValueError: it is the state of other parameters.
    """
    Optimizer.load_state_dict(optimizer, dict(saved))
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, p in zip(numbers, parameters, strict=True):

        def own(t: torch.Tensor, device: torch.device = p.device) -> torch.Tensor:
            return t.detach().to(device, copy=True)

        if number in saved["state"]:
            optimizer.state[p] = {name: mapped(own, value) for name, value in saved["state"][number].items()}
