"""Averages of the weights over the updates: exponential (EMA) or equal (SWA), by `torch.optim.swa_utils`.

EMA: a ← d a + (1−d) θ with d = min(0.999, (1+t)/(10+t)) at the t-th average, so that early weights are soon forgotten
(Polyak & Juditsky 1992; the warm-up is that of TensorFlow's `ExponentialMovingAverage`).
SWA: a ← a + (θ−a)/(t+1) (Izmailov et al. 2018).
`AveragedModel` is not used: it copies the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

DECAY = 0.999
"""Of the exponential average: about the last thousand updates count."""


class WeightAverage:
    """The average of a list of tensors over updates.

    Integer tensors (counters) are copied. Averages of half-precision tensors are kept in float32, where a thousandth of
    a weight is not rounded away.

    Args:
        kind: "ema" or "swa".
        tensors: live tensors, parameters and buffers; they are never replaced, only written.
        start_step: the first update that counts.
        every: count one update in this many.
    """

    def __init__(self, kind: str, tensors: Sequence[Tensor], start_step: int = 0, every: int = 1) -> None:
        if kind not in ("ema", "swa"):
            raise ValueError(f'weight_average is "ema" or "swa", got {kind!r}')
        self.kind = kind
        self.start_step = start_step
        self.every = every
        self.num_averaged = 0
        self._live = [tensor.detach() for tensor in tensors]
        self._averages = [tensor.to(wide(tensor.dtype), copy=True) for tensor in self._live]
        self._floating = [i for i, tensor in enumerate(self._live) if tensor.is_floating_point()]
        self._swa = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step`, from 0."""
        if step < self.start_step or (step - self.start_step) % self.every:
            return
        t = self.num_averaged
        self.num_averaged += 1
        if t == 0 or len(self._floating) < len(self._live):
            for average, live in zip(self._averages, self._live, strict=True):
                if t == 0 or not live.is_floating_point():
                    average.copy_(live)
        if t == 0 or not self._floating:
            return
        averages = [self._averages[i] for i in self._floating]
        current = [self._live[i].to(self._averages[i].dtype) for i in self._floating]
        if self.kind == "swa":
            self._swa(averages, current, t)
        else:
            get_ema_multi_avg_fn(min(DECAY, (1 + t) / (10 + t)))(averages, current, t)  # type: ignore[no-untyped-call]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the live tensors hold the averages; after it what they held before, bit for bit."""
        before = [tensor.clone() for tensor in self._live]
        try:
            self.adopt()
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(self._live, before, strict=True):
                    tensor.copy_(value)

    @torch.no_grad()
    def adopt(self) -> None:
        """Write the averages into the live tensors for good; nothing, if nothing was averaged yet."""
        if self.num_averaged:
            for tensor, average in zip(self._live, self._averages, strict=True):
                tensor.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """The number "num_averaged", and the averages themselves (not copies) as "average.0", "average.1", ..."""
        return {"num_averaged": self.num_averaged} | {f"average.{i}": a for i, a in enumerate(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is the state of other tensors.
        """
        saved = [state.get(f"average.{i}") for i in range(len(self._averages))]
        if len(state) != len(saved) + 1 or any(
            s is None or s.shape != a.shape for s, a in zip(saved, self._averages, strict=True)
        ):
            raise ValueError("the saved weight average is of other tensors than this model's")
        self.num_averaged = int(state["num_averaged"])
        for average, value in zip(self._averages, saved, strict=True):
            average.copy_(value)  # type: ignore[arg-type]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of what is kept beside tensors of a dtype: float32 for those of fewer digits."""
    return torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
