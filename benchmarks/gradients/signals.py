"""What the always-on signals add to a step, at their default cadence.

`thalweg.fit` makes its `Signals` by that name in `thalweg.run.candidates`. Here another class is put in its place:

- `Off` takes part in nothing and reads nothing, so that a report holds loss and learning rate only. Whole trainings
  with and without signals are timed in turn, by `run.seconds`: the steps, the reports, their writing to the history;
  not the start, nor the report page at the end. For networks of short steps: it takes 1,000 steps to see every signal.
- `Switched` is the real one in every second window of 100 steps, `Off` in the others, in one training; each is compared
  with the mean of its two neighbours. A window holds 10 reports, one sample of activations and one look at the weights;
  whatever slows the machine for longer than a window slows all three. It ends where the next one's first reported step
  begins, so that a report and its writing belong to the window of its step. The noise scale, once in 1,000 steps, is
  left out of the windows, timed by itself, and its share of 1,000 steps added.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

from networks import MLP, SEED, SHORT, SMALL_CNN, Network
from passes import step_of_training
from timing import Effort, Row, interleaved, middle, ratio

TARGETS = {SEED: 1.10, SHORT: 1.02, MLP: 1.02, SMALL_CNN: 1.02}
#: Steps of one window; and of one whole fit, which holds every signal at least once.
WINDOW, WHOLE = 100, 1000
#: Networks whose whole fits are short enough.
WHOLE_FITS = (SEED, SHORT)
#: Batches in the data.
BATCHES = 50
FIGURE, UNIT = "always-on signals", "× the same without"


class Off:
    """Signals that take nothing."""

    def __init__(self, *made_of: Any) -> None:
        pass

    def take(self, step: Any, number: int, batch: Any, watcher: Any = None) -> Any:
        """Make a step, of which nothing is taken."""
        return step(batch, None, watcher)

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
    import thalweg.run.candidates as room

    with patch.object(room, "Signals", signals or room.Signals), tempfile.TemporaryDirectory() as folder:
        run = thalweg.fit(
            network.model(), network.data(BATCHES * network.batch), "cross_entropy", optimizer="adam",
            learning_rate=1e-3, batch_size=network.batch, steps=steps, patience=None, run_dir=folder, verbose=False,
        )  # fmt: skip
    assert run.steps == steps
    assert ("gradient_norm" in run.history.names) == (signals is not Off), "the signals are what was asked for"
    return run.seconds / steps


def _windows(network: Network, steps: int) -> tuple[list[float], list[float]]:
    """Seconds a step of each window with signals, and of its two neighbours without."""
    from thalweg.signals import noise
    from thalweg.signals.cadence import REPORT_EVERY
    from thalweg.signals.signals import Signals

    marks: list[float] = []

    class Switched(Signals):
        """The real signals in every second window."""

        is_on = True

        def take(self, step: Any, number: int, batch: Any, watcher: Any = None) -> Any:
            if number >= WINDOW and number % WINDOW == REPORT_EVERY:
                marks.append(time.perf_counter())
                self.is_on = len(marks) % 2 == 0
            return super().take(step, number, batch, watcher) if self.is_on else step(batch, None, watcher)

        def read(self) -> dict[str, float]:
            return super().read() if self.is_on else {}

    with patch.object(noise, "EVERY", sys.maxsize):
        _train(network, steps, Switched)
    spans = [(b - a) / WINDOW for a, b in itertools.pairwise(marks)]
    off, on = spans[0::2], spans[1::2]
    beside = [(before + after) / 2 for before, after in itertools.pairwise(off)]
    return on[: len(beside)], beside


def _noise_share(network: Network, effort: Effort) -> float:
    """Seconds of one look at the noise scale, over those of the steps from one to the next."""
    from thalweg.signals.noise import EVERY, Noise
    from thalweg.step.forward import Forward
    from thalweg.step.losses import resolve

    model, batch, loss = network.model(), network.data(), resolve("cross_entropy")
    noise = Noise(Forward(model))
    assert noise.taken(batch, loss) is not None, "these networks have it"
    contenders = {"step": step_of_training(network.model(), batch), "noise": lambda: noise.taken(batch, loss)}
    times = interleaved(contenders, effort)
    return statistics.median(a / b for a, b in zip(times["noise"], times["step"], strict=True)) / EVERY


def measure(effort: Effort) -> list[Row]:
    """On a network of short steps and on three whose step takes 1 ms or more."""
    rows = []
    for network, target in TARGETS.items():
        _train(network, WINDOW)
        step, share = _train(network, 2 * WINDOW), _noise_share(network, effort)
        windows = min(200, max(4, round(14 * effort.blocks * effort.seconds / step / WINDOW)))
        on, off = _windows(network, (windows + 2) * WINDOW)
        measured = middle([a / b + share for a, b in zip(on, off, strict=True)])
        details = {"windows with": len(on), "step [ms]": round(step * 1e3, 3), "of it the noise scale": share}
        rows.append(
            Row(FIGURE, network.name, "windows of a fit", unit=UNIT, target=target, details=details, **measured)
        )
        if network not in WHOLE_FITS:
            continue
        steps = WHOLE * max(1, round(4 * effort.seconds / step / WHOLE))
        fits: dict[str, Callable[[], Any]] = {
            "on": partial(_train, network, steps),
            "off": partial(_train, network, steps, Off),
        }
        times = interleaved(fits, Effort(effort.blocks, 0))
        details = {"steps of one": steps}
        measured = ratio(times["on"], times["off"])
        rows.append(Row(FIGURE, network.name, "whole fits", unit=UNIT, target=target, details=details, **measured))
    return rows
