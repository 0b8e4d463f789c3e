"""What our own reverse sweep costs beside autograd's forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from networks import CNN, LSTM, MLP, OWN_TRANSFORMER, SEED, TRANSFORMER
from passes import forward_and_backward
from timing import Effort, Row, interleaved, milliseconds, ratio

TARGET, UNIT = 2.0, "× forward and backward"


def measure(effort: Effort) -> list[Row]:
    """The sweep alone, and with the norms that make a row of each layer."""
    from thalweg.gradients.chain import backprop, gradients

    rows = []
    for network in (SEED, MLP, CNN, TRANSFORMER, OWN_TRANSFORMER, LSTM):
        model, batch = network.model(), network.data()
        contenders: dict[str, Callable[[], Any]] = {
            "forward and backward": forward_and_backward(model, batch),
            "gradients (the sweep)": partial(gradients, model, batch, "cross_entropy"),
            "backprop (and its table)": partial(backprop, model, batch, "cross_entropy"),
        }
        times = interleaved(contenders, effort)
        base = times.pop("forward and backward")
        for name, seconds in times.items():
            details = {"ms": milliseconds(seconds), "forward and backward [ms]": milliseconds(base)}
            measured = ratio(seconds, base)
            rows.append(
                Row("backprop's sweep", network.name, name, unit=UNIT, target=TARGET, details=details, **measured)
            )
    return rows
