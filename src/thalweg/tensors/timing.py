"""How long a call takes, what it starts on the device included."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

LONG = 0.02
"""Seconds of a call that is not made four times to be timed."""


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The least of three calls after one that does not count, or a second long one: disturbances only add to it."""
    first = timed(call, device)
    return min(timed(call, device) for _ in range(1 if first > LONG else 3))


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, what it starts on the device included."""
    started = now(device)
    call()
    return now(device) - started


def now(device: torch.device) -> float:
    """The clock, when a device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
