"""Random numbers that follow from a seed, and the user's own random state left as it was found."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that follows from the key alone, e.g. `(seed, "order", epoch)`; keys that differ are independent.

    >>> first, again = generator(0, "order", 3), generator(0, "order", 3)
    >>> torch.equal(torch.randperm(9, generator=first), torch.randperm(9, generator=again))
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def capture() -> dict[str, Any]:
    """The state of every global generator (torch's on each device, Python's, numpy's), as tensors and plain values."""
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "internal": torch.tensor(internal), "gauss": gauss},
    }
    numpy = np.random.get_state(legacy=False)
    states["numpy"] = {**numpy, "state": {name: _held(value) for name, value in numpy["state"].items()}}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore(states: dict[str, Any]) -> None:
    """Put back what `capture` returned."""
    torch.set_rng_state(states["torch"])
    python = states["python"]
    random.setstate((python["version"], tuple(python["internal"].tolist()), python["gauss"]))
    numpy = states["numpy"]
    np.random.set_state({**numpy, "state": {name: _freed(value) for name, value in numpy["state"].items()}})
    if "cuda" in states and torch.cuda.is_available():  # it may come from a machine with more of them
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])


def as_found() -> Callable[[], None]:
    """Look at every global generator; what comes back puts them as they are now, each time it is called.

    The states stay in the form their libraries gave them: no state to save, as that of `capture` is, but taken in a
    fraction of the time.
    """
    of_torch, of_python, of_numpy = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def put_back() -> None:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        if of_cuda is not None:
            torch.cuda.set_rng_state_all(of_cuda)

    return put_back


def _held(value: Any) -> Any:
    return torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value


def _freed(value: Any) -> Any:
    return value.numpy().astype(np.uint32) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every global generator inside; outside they are as if nothing had been drawn."""
    put_back = as_found()
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        put_back()


@contextlib.contextmanager
def untouched() -> Iterator[None]:
    """Whatever is drawn inside, the global generators are as before afterwards."""
    put_back = as_found()
    try:
        yield
    finally:
        put_back()
