"""What the tests of mending share: data, a network for it, and Ctrl-C at an update."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn

Data = tuple[Tensor, Tensor]


def made_data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 20, generator=generator)
    noise = 0.3 * torch.randn(1200, 3, generator=generator)
    return x, (x @ torch.randn(20, 3, generator=generator) + noise).argmax(1)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))


class Stops:
    """Interrupts after an update, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, run: Any, record: Any) -> None:
        if record.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
