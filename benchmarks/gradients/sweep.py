"""What our own reverse sweep costs beside autograd's forward and backward."""

from __future__ import annotations

from networks import CNN, LSTM, MLP, OWN_TRANSFORMER, SEED, TRANSFORMER
from passes import forward_and_backward
from timing import Effort, Row, interleaved, milliseconds, ratio

TARGET = 2.0


def measured(effort: Effort) -> list[Row]:
    """The sweep alone, and with the norms that make a row of each layer."""
    from thalweg.gradients.chain import backprop, gradients

    rows = []
    for network in (SEED, MLP, CNN, TRANSFORMER, OWN_TRANSFORMER, LSTM):
        model, batch = network.model(), network.data()
        contenders = {
            "forward and backward": forward_and_backward(model, batch),
            "gradients (the sweep)": lambda model=model, batch=batch: gradients(model, batch, "cross_entropy"),
            "backprop (and its table)": lambda model=model, batch=batch: backprop(model, batch, "cross_entropy"),
        }
        times = interleaved(contenders, effort)
        base = times.pop("forward and backward")
        for name, seconds in times.items():
            rows.append(
                Row(
                    "backprop's sweep",
                    network.name,
                    name,
                    unit="× forward and backward",
                    target=TARGET,
                    **ratio(seconds, base),
                    details={"ms": milliseconds(seconds), "forward and backward [ms]": milliseconds(base)},
                )  # fmt: skip
            )
    return rows
