"""The networks in PyTorch, first weights always the same, and the loss they are trained by."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from workloads import BLOCKS, CHARACTERS, CLASSES, HEADS, LAYERS, STAGES, WIDTH, WORKLOADS, Workload

DEVICE = torch.device(os.environ.get("STEP_DEVICE", "cpu"))
"""Where models and batches are; on_gpu.py sets it."""


def wait(loss: object = None) -> None:
    """Until what was asked for is computed."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def dense(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    """Two convolutions with batch norm beside a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def residual() -> nn.Module:
    layers: list[nn.Module] = [
        nn.Conv2d(3, STAGES[0], 3, padding=1, bias=False), nn.BatchNorm2d(STAGES[0]), nn.ReLU(),
    ]  # fmt: skip
    inputs = STAGES[0]
    for outputs in STAGES:
        for block in range(BLOCKS):
            layers.append(Residual(inputs, outputs, 2 if block == 0 and outputs != STAGES[0] else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


class Block(nn.Module):
    """A causal Transformer block, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projection, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dense = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.projection(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.dense(self.norm2(x))


class Transformer(nn.Module):
    """Characters `[batch, length]` to scores `[batch, length, characters]`."""

    def __init__(self, length: int = WORKLOADS["transformer"].shape[0]) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(x)))


class Recurrent(nn.Module):
    """Characters `[batch, length]` to scores `[batch, length, characters]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "seed": lambda: dense(784, 10, CLASSES),
    "mlp": lambda: dense(784, 512, 512, CLASSES),
    "cnn": convolutional,
    "resnet": residual,
    "transformer": Transformer,
    "lstm": Recurrent,
}


def model(name: str, seed: int = 0) -> nn.Module:
    """In training mode; the same first weights for the same seed. `dense-577`: two hidden layers of that width."""
    torch.manual_seed(seed)
    kind, _, width = name.partition("-")
    made = dense(*(int(width),) * 3, CLASSES) if kind == "dense" else MODELS[name]()
    return made.to(DEVICE)


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of `scores [..., classes]` and `labels [...]`, the mean over all of them."""
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten())


def ring(workload: Workload) -> list[tuple[Tensor, Tensor]]:
    return [(torch.from_numpy(x).to(DEVICE), torch.from_numpy(y).to(DEVICE)) for x, y in workload.ring()]
