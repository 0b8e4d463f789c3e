"""How long a call takes where what it reads comes from memory, what it starts on the device included."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

LONG = 0.02
"""Seconds of a call that is not made three times to be timed."""
CACHE = 1 << 24
"""Bytes that are written before a call is timed, to drive from the processor's caches what lies there."""


@cache
def bfloat16_may_pay(device: torch.device) -> bool:
    """Whether a product of 256 takes less than twice as long in bfloat16 as in float32.

    Where it takes longer, processors emulate it, and to find that out with large matrices would take seconds.
    """
    a = torch.ones(256, 256, device=device)
    low = a.bfloat16()
    return seconds(lambda: low @ low, device) < 2 * seconds(lambda: a @ a, device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The less of two calls after one that does not count, or of it and another: disturbances only add to it."""
    first = timed(call, device)
    return min(timed(call, device), first if first > LONG else timed(call, device))


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cpu":
        torch.ones(CACHE // 4)
    started = now(device)
    call()
    return now(device) - started


def now(device: torch.device) -> float:
    """The clock, when a device has done what it was given; on a CPU this thread's, which other programs do not move."""
    if device.type == "cpu":
        return time.thread_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
