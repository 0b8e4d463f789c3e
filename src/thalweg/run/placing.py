"""What is the user's own goes where the model is, and a GPU that has broken is told of by what broke it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.loop.train import BatchFailed


def follow_parameters(optimizer: Optimizer) -> None:
    """State that was made before the model was moved, as Adagrad's is, goes where the parameters are.

    Counts of steps stay on the host, but where a kernel of the device reads them.
    """
    for group in optimizer.param_groups:
        reads_counts = bool(group.get("fused") or group.get("capturable"))
        for p in group["params"]:
            kept: Any = optimizer.state.get(p)
            for name, value in kept.items() if isinstance(kept, dict) else ():
                if isinstance(value, Tensor) and value.device != p.device and (value.ndim or reads_counts):
                    kept[name] = value.to(p.device)


@contextmanager
def told_once() -> Iterator[None]:
    """A GPU that a batch has broken fails again where things are put back: the first error is the one to tell."""
    try:
        yield
    except torch.AcceleratorError as error:
        first: BaseException | None = error
        while first is not None and not isinstance(first, BatchFailed):
            first = first.__context__
        if first is None:
            raise
        raise first  # noqa: B904 (it is what came first)
