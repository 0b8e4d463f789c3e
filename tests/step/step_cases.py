"""One table of models, each with batches and a loss, for the tests of how a step is run.

`case(name, dtype)` makes one of `NAMES` afresh, in training mode. Widths are odd where that leaves a remainder in
loops over vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.step.backward import BatchLoss
from thalweg.step.data import Batch
from thalweg.step.losses import resolve
from thalweg.tensors.named import mapped

NUM_BATCHES = 6


@dataclass
class Case:
    model: nn.Module
    loss: BatchLoss | None
    batches: list[Batch]


class Residual(nn.Module):
    """x + W₂ gelu(W₁ norm(x)), twice with the same block, so that each weight is used more than once."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 11)
        self.down = nn.Linear(11, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class Transformer(nn.Module):
    """A block of attention and a dense one over embedded tokens; the head is the embedding. [batch, time, words]."""

    def __init__(self, words: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(words, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.joined = nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        parts = self.mixed(self.first(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(attended.transpose(1, 2).flatten(2))
        return self.head(x + self.dense(self.second(x)))


class Two(nn.Module):
    """Inputs by name; one of them is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 9), nn.Bilinear(3, 3, 9)
        self.head = nn.Linear(9, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor, aside: Tensor) -> Tensor:
        return self.head(torch.tanh(self.left(left)) * self.right(right, right))


class OwnLoss(nn.Module):
    """Returns its loss and the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(7, 13), nn.Softplus(), nn.Linear(13, 2))

    def forward(self, x: Tensor, target: Tensor) -> Any:
        output = self.inner(x)
        return {"loss": F.huber_loss(output, target), "output": output}


class Indexing(nn.Module):
    """Gathers, scatters, masks and writes in place; a buffer that follows the data; a table outside of the buffers."""

    running: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 5))
        self.head = nn.Linear(5, 3)
        self.register_buffer("running", torch.zeros(5))
        self.order = torch.tensor([4, 2, 0, 1, 3])

    def forward(self, index: Tensor, x: Tensor) -> Tensor:
        rows = self.table[index] * x[:, None]
        rows = rows.index_add(0, torch.tensor([0, 1]), rows[2:4])
        rows[:, 1:3] += rows[:, 3:]
        rows = torch.where(rows > 1, rows.log1p(), rows)[:, self.order]
        self.running.lerp_(rows.detach().mean(0), 0.1)
        top, _ = rows.topk(2, dim=1)
        return self.head(rows - top.sum(1, keepdim=True) * self.running.sigmoid())


def _classes(rows: int, classes: int) -> Tensor:
    return torch.randint(classes, (rows,))


def _images(model: nn.Module) -> Any:
    return model, "cross_entropy", lambda: (torch.randn(9, 3, 8, 8), _classes(9, 5))


def _dense() -> Any:
    model = nn.Sequential(nn.Linear(21, 33), nn.Tanh(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 5))
    return model, "cross_entropy", lambda: (torch.randn(19, 21), _classes(19, 5))


def _dropout() -> Any:
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Dropout(0.4), nn.Linear(40, 5), nn.AlphaDropout(0.1))
    return model, "cross_entropy", lambda: (torch.randn(16, 12), _classes(16, 5))


def _cnn() -> Any:
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 7, 3), nn.ReLU(), nn.Flatten()]
    return _images(nn.Sequential(*layers, nn.Linear(28, 5)))


def _batch_norm() -> Any:
    layers = [
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Dropout2d(0.2),
        nn.Conv2d(6, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.Flatten(),
    ]  # fmt: skip
    return _images(nn.Sequential(*layers, nn.Linear(4, 5)))


def _transposed() -> Any:
    layers = [nn.ConvTranspose2d(3, 6, 3, stride=2), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2)]
    return _images(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)))


def _transformer() -> Any:
    def batch() -> Batch:
        tokens = torch.randint(13, (6, 10))
        targets = tokens[:, 1:].clone()
        targets[0, 3:] = -100
        return tokens[:, :-1], targets

    return Transformer(13, 24, 3), "cross_entropy", batch


def _residual() -> Any:
    return Residual(18, 3), "mse", lambda: (torch.randn(14, 18), torch.randn(14, 3))


def _two() -> Any:
    def batch() -> Batch:
        inputs = {"left": torch.randn(10, 5), "right": torch.randn(10, 3), "aside": torch.randn(10, 2)}
        return inputs, torch.rand(10, 4).softmax(1)

    return Two(), "cross_entropy", batch


def _own_loss() -> Any:
    return OwnLoss(), None, lambda: (torch.randn(12, 7), torch.randn(12, 2))


def _in_place() -> Any:
    model = nn.Sequential(nn.Linear(9, 14), nn.ReLU(inplace=True), nn.Linear(14, 14), nn.SiLU(inplace=True))
    return model.append(nn.Linear(14, 1)), "binary_cross_entropy", lambda: (torch.randn(15, 9), torch.rand(15))


def _frozen() -> Any:
    model = nn.Sequential(nn.Linear(9, 14), nn.BatchNorm1d(14), nn.Tanh(), nn.Linear(14, 14), nn.ELU())
    model[0].requires_grad_(False)
    model[1].eval()
    model[3].bias.requires_grad_(False)
    return model.append(nn.Linear(14, 4)), "mae", lambda: (torch.randn(15, 9), torch.randn(15, 4))


def _indexing() -> Any:
    return Indexing(), "cross_entropy", lambda: ((torch.randint(6, (8,)), torch.randn(8)), _classes(8, 3))


_MAKERS: dict[str, Callable[[], Any]] = {
    "dense": _dense,
    "dropout": _dropout,
    "cnn": _cnn,
    "batch norm": _batch_norm,
    "transposed": _transposed,
    "transformer": _transformer,
    "residual": _residual,
    "two inputs": _two,
    "own loss": _own_loss,
    "in place": _in_place,
    "frozen": _frozen,
    "indexing": _indexing,
}

NAMES = tuple(_MAKERS)


def case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    """A fresh case, with the same numbers in each dtype; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1 + NAMES.index(name))
        model, loss, batch = _MAKERS[name]()
        batches = [batch() for _ in range(NUM_BATCHES)]
    cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
    return Case(model.to(dtype), resolve(loss) if loss else None, [mapped(cast, b) for b in batches])
