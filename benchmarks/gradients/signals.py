"""What the always-on signals add to a step, at their default cadence.

`thalweg.fit` makes its `Signals` by that name in `thalweg.run.fit`. Here another class is put in its place:

- `Off` takes part in nothing and reads nothing, so that a report holds loss and learning rate only. Whole trainings
  with and without signals are timed in turn, by `run.seconds`: the steps, the reports, their writing to the history;
  not the start, nor the report page at the end.
- `Switched` is the real one in every second window of 100 steps, `Off` in the others, in one training; windows next to
  each other are compared. A window holds 10 reports, one sample of activations and one look at the weights, which is
  the cadence of the signals, and whatever slows the machine for longer than a window slows both. It ends where the next
  one's first reported step begins, so that a report and its writing belong to the window of its step.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from networks import CNN, MLP, SEED, Network
from timing import Effort, Row, interleaved, ratio
from torch import nn

TARGETS = {SEED.name: 1.10, MLP.name: 1.02, CNN.name: 1.02}
#: Steps of one window: the least number that holds every signal as often as the next.
WINDOW = 100
ROWS = 50
FIGURE, UNIT = "always-on signals", "× the same without"


class Off:
    """Signals that take nothing."""

    def __init__(self, model: Any, parameters: Sequence[nn.Parameter]) -> None:
        self.model, self.parameters = model, parameters

    @contextlib.contextmanager
    def taking(self, step: int) -> Iterator[Off]:
        """A reported step, of which nothing is taken."""
        yield self

    def before(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing."""

    def after(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing."""

    def read(self) -> dict[str, float]:
        """Nothing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def _train(network: Network, steps: int, signals: type | None = None) -> float:
    """Seconds a step, with `signals` in place of the real ones."""
    import thalweg
    import thalweg.run.fit as room

    real = room.Signals
    room.Signals = signals or real  # type: ignore[misc]
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = thalweg.fit(
                network.model(), network.data(ROWS * network.batch), "cross_entropy", optimizer="adam",
                learning_rate=1e-3, batch_size=network.batch, steps=steps, patience=None, run_dir=folder, verbose=False,
            )  # fmt: skip
    finally:
        room.Signals = real  # type: ignore[misc]
    assert run.steps == steps
    reported = len(run.history.names)
    assert (reported > 4) == (signals is not Off), "the signals are what was asked for"
    return run.seconds / steps


def _windows(network: Network, steps: int) -> tuple[list[float], list[float]]:
    """Seconds a step of each window with signals, and of its neighbour without."""
    from thalweg.signals.signals import REPORT_EVERY, Signals

    marks: list[float] = []

    class Switched(Signals):
        """The real signals in every second window."""

        def __init__(self, model: Any, parameters: Sequence[nn.Parameter]) -> None:
            super().__init__(model, parameters)
            self.now: Any = self
            self.off = Off(model, parameters)

        @contextlib.contextmanager
        def taking(self, step: int) -> Iterator[Any]:
            if step >= WINDOW and step % WINDOW == REPORT_EVERY:
                marks.append(time.perf_counter())
                self.now = self.off if len(marks) % 2 else self
            if self.now is self:
                with super().taking(step):
                    yield self
            else:
                yield self.off

        def read(self) -> dict[str, float]:
            return super().read() if self.now is self else {}

    _train(network, steps, Switched)
    spans = [(b - a) / WINDOW for a, b in zip(marks, marks[1:], strict=False)]
    off, on = spans[0::2], spans[1::2]
    pairs = min(len(off), len(on))
    return on[:pairs], off[:pairs]


def measure(effort: Effort) -> list[Row]:
    """Both ways, on a network of short steps and on two whose step takes 1 ms or more."""
    rows = []
    for network in (SEED, MLP, CNN):
        step = _train(network, WINDOW)
        whole = max(WINDOW, round(6 * effort.seconds / step / WINDOW) * WINDOW)
        times = interleaved(
            {
                "on": lambda n=network, steps=whole: _train(n, steps),
                "off": lambda n=network, steps=whole: _train(n, steps, Off),
            },
            Effort(effort.blocks, 0),
        )
        windows = max(6, round(8 * effort.blocks * effort.seconds / step / WINDOW))
        on, off = _windows(network, (windows + 2) * WINDOW)
        details = {"step [ms]": round(step * 1e3, 3), "steps": whole, "windows": len(on)}
        target = TARGETS[network.name]
        for name, measured in (
            ("windows of one fit", ratio(on, off)),
            ("whole fits", ratio(times["on"], times["off"])),
        ):
            rows.append(Row(FIGURE, network.name, name, unit=UNIT, target=target, details=details, **measured))
    return rows
