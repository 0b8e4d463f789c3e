"""Keras `fit` on arrays, on the backend that KERAS_BACKEND names: the second of two epochs, begin to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import keras_models
import numpy as np
from worker import Contender
from workloads import Workload


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self.started)


class Losses(keras.callbacks.Callback):
    """The mean loss of an epoch so far, after each of its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.means.append(float(logs["loss"]))


class Fit:
    """A compiled model and a ring of batches, laid end to end as `fit` wants them."""

    def __init__(self, workload: Workload, ring: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.batch, self.ring, self.taken = workload.batch, ring, 0
        self.model = keras_models.model(workload.name)
        self.model.compile(optimizer=keras_models.optimizer(), loss=keras_models.loss())

    def _fit(self, steps: int, epochs: int, callback: Any) -> None:
        batches = [self.ring[(self.taken + i) % len(self.ring)] for i in range(steps)]
        self.taken += steps * epochs
        x, y = (np.concatenate(part) for part in zip(*batches, strict=True))
        self.model.fit(x, y, batch_size=self.batch, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback])

    def losses(self, steps: int) -> list[float]:
        kept = Losses()
        self._fit(steps, 1, kept)
        sums = np.arange(1, steps + 1) * np.array(kept.means)
        return np.diff(sums, prepend=0.0).tolist()

    def seconds(self, steps: int) -> float:
        clock = Clock()
        self._fit(steps, 2, clock)
        return clock.seconds[1] / steps


def fit(workload: Workload) -> Callable[[], Contender]:
    ring = keras_models.ring(workload)
    return lambda: Fit(workload, ring)
