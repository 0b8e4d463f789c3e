"""Where to compute."""

from __future__ import annotations

import threading

import torch

#: Held by a thread that waits for a GPU beside the training (it saves tensors), and by one that forbids all waiting
#: for a moment: torch can forbid it only for the whole process.
WAITING = threading.Lock()


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; of the CPU what the system can give; None where it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    try:
        with open("/proc/meminfo") as file:
            available = next(line for line in file if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def begin(device: torch.device) -> None:
    """Have the device's generators there, so that they can be put back to what they were before it was used."""
    if device.type == "cuda":
        torch.cuda.init()


def wait(device: torch.device) -> None:
    """Until what was asked of a device is computed: a CPU has done so when it returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose(device: str) -> torch.device:
    """The device by name; `"auto"` is the first accelerator, else the CPU.

    Raises:
        ValueError: no such device on this machine.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({first}); try device='auto'") from error
    return chosen
