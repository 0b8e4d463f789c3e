"""The networks and data that are measured: weights and rows always the same, nothing random in a forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES, WORDS, LENGTH = 10, 1000, 64


def _dense(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [nn.ReLU()] if i else []
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def _convolutional() -> nn.Module:
    """Cockpit's 2c2d shape on 3 × 32 × 32: two convolutions with pooling, two dense layers."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, CLASSES),
    )  # fmt: skip


class Attention(nn.Module):
    """Self-attention by dense layers, as people write it themselves: every peer knows dense layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projection, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.projection(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A Transformer block, norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = x + self.attention(self.norm1(x))
        return x + self.dense(self.norm2(x))


class Reads(nn.Module):
    """Embedding `[batch, length, width]`, a body that ends at another width or the same, the mean over positions."""

    def __init__(self, body: nn.Module, width: int, ends: int | None = None) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(WORDS, width), body, nn.Linear(ends or width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.body(self.embedding(x))
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))


def _torch_transformer(width: int = 128) -> nn.Module:
    block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    return Reads(nn.TransformerEncoder(block, 2, enable_nested_tensor=False), width)


@dataclass(frozen=True)
class Network:
    """A network, the shape of one example (words where it is whole numbers), and a batch size."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    reads_words: bool = False

    def model(self) -> nn.Module:
        """In training mode; its first weights always the same."""
        torch.manual_seed(0)
        return self.make()

    def data(self, rows: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and labels, always the same."""
        generator = torch.Generator().manual_seed(0)
        size = (rows or self.batch, *self.shape)
        if self.reads_words:
            x = torch.randint(0, WORDS, size, generator=generator)
        else:
            x = torch.randn(size, generator=generator)
        return x, torch.randint(0, CLASSES, size[:1], generator=generator)

    def trained(self, updates: int) -> nn.Module:
        """After some updates by Adam, on batches that never come again: labels are noise, to be learned by heart."""
        model, (x, y) = self.model(), self.data(updates * self.batch)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for rows in torch.arange(len(x)).split(self.batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        return model


SEED = Network("seed 784-10-10", lambda: _dense(784, 10, 10), (784,), 32)
SHORT = Network("MLP 784-256-256-10", lambda: _dense(784, 256, 256, 10), (784,), 64)
MLP = Network("MLP 784-512-512-10", lambda: _dense(784, 512, 512, 10), (784,), 128)
CNN = Network("CNN 2 conv 2 dense", _convolutional, (3, 32, 32), 64)
SMALL_CNN = Network("CNN, batch 8", _convolutional, (3, 32, 32), 8)
TRANSFORMER = Network("Transformer nn.", _torch_transformer, (LENGTH,), 16, reads_words=True)
OWN_TRANSFORMER = Network(
    "Transformer own",
    lambda: Reads(nn.Sequential(Block(128, 4), Block(128, 4)), 128),
    (LENGTH,),
    16,
    reads_words=True,
)
LSTM = Network("LSTM 128", lambda: Reads(nn.LSTM(64, 128, batch_first=True), 64, 128), (LENGTH,), 32, reads_words=True)
