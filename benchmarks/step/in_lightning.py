"""Lightning's Trainer on batches that lie ready, nothing shown, logged or saved: the second of two epochs."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch
import torch_models
from torch import Tensor
from worker import Contender
from workloads import LEARNING_RATE, Workload


class Module(lightning.LightningModule):
    """The model and its step."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = torch_models.model(name)
        # One for all the trainers: its averages go on where the last one stopped.
        self.rule = torch.optim.Adam(self.parameters(), LEARNING_RATE, fused=True)

    def training_step(self, batch: Any, number: int) -> Tensor:
        return torch_models.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.rule


class Watching(lightning.Callback):
    """Seconds of each epoch; every loss where asked for."""

    def __init__(self, keep: bool) -> None:
        self.keep, self.losses, self.seconds = keep, [], []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        if self.keep:
            self.losses.append(outputs["loss"].item())


class Batches:
    """An iterable of batches: a list would be taken for a collection of loaders."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class Training:
    """A module and a ring of batches."""

    def __init__(self, workload: Workload, ring: list[tuple[Tensor, Tensor]]) -> None:
        self.module, self.ring, self.taken = Module(workload.name), ring, 0

    def _fit(self, steps: int, epochs: int, keep: bool = False) -> Watching:
        watching = Watching(keep)
        batches = [self.ring[(self.taken + i) % len(self.ring)] for i in range(steps)]
        self.taken += steps * epochs
        with tempfile.TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=[watching], logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(self.module, Batches(batches))
        return watching

    def losses(self, steps: int) -> list[float]:
        return self._fit(steps, 1, keep=True).losses

    def seconds(self, steps: int) -> float:
        return self._fit(steps, 2).seconds[1] / steps


def trainer(workload: Workload) -> Callable[[], Contender]:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ring = torch_models.ring(workload)
    return lambda: Training(workload, ring)
