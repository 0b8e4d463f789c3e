"""What is trained, the same in every framework: shapes, batches, and how large a network it is. Needs numpy alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

CHARACTERS = 65
CLASSES = 10
LEARNING_RATE = 1e-3
INPUTS, RING = 8, 64
"""Batches of inputs, and batches in all: each input comes again under other labels.

Labels that can be learned by heart would take the gradients, and with them Adam's averages, to denormal numbers, which
some frameworks flush to zero and others compute slowly.
"""


@dataclass(frozen=True)
class Workload:
    """A network by its name in each framework's `MODELS`, and one batch of what it reads."""

    name: str
    batch: int
    shape: tuple[int, ...]
    """Of one example: numbers, channels first; or the length of a text where `reads_text`."""
    reads_text: bool = False

    def ring(self, size: int = RING) -> list[tuple[np.ndarray, np.ndarray]]:
        """Batches `(x [batch, *shape], y [batch] or [batch, length])`, float32 and int64, always the same."""
        random = np.random.default_rng(0)
        inputs = [self._input(random) for _ in range(INPUTS)]
        return [(inputs[i % INPUTS], self._labels(random)) for i in range(size)]

    def _input(self, random: np.random.Generator) -> np.ndarray:
        if self.reads_text:
            return random.integers(0, CHARACTERS, (self.batch, *self.shape))
        return random.standard_normal((self.batch, *self.shape), dtype=np.float32)

    def _labels(self, random: np.random.Generator) -> np.ndarray:
        if self.reads_text:
            return random.integers(0, CHARACTERS, (self.batch, *self.shape))
        return random.integers(0, CLASSES, self.batch)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("seed", 32, (784,)),
        Workload("mlp", 128, (784,)),
        Workload("cnn", 64, (1, 28, 28)),
        Workload("resnet", 64, (3, 32, 32)),
        Workload("transformer", 16, (128,), reads_text=True),
        Workload("lstm", 32, (64,), reads_text=True),
    )
}
"""784-10-10 with ReLU; 784-512-512-10; two convolutions with pooling and two dense layers; a residual network with
batch norm, 16-32-64 channels, a block each; a causal Transformer of characters, 4 layers, width 128, 4 heads; an
LSTM of 128 units over characters."""


def named(name: str) -> Workload:
    """One of the six; one at another batch size (`mlp@512`); or a dense network of a width (`dense-577`, batch 32)."""
    network, _, batch = name.partition("@")
    kind, _, width = network.partition("-")
    known = Workload(network, 32, (int(width),)) if kind == "dense" else WORKLOADS[network]
    return replace(known, batch=int(batch)) if batch else known


WIDTH, HEADS, LAYERS = 128, 4, 4
STAGES, BLOCKS = (16, 32, 64), 1
