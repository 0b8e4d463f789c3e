"""One table of small float64 models, each with data and a loss, for the tests of `thalweg.gradients`.

`case(name)` makes one of `NAMES` afresh; models are in evaluation mode, parameters number at most a few
hundred, so that dense Hessians and Jacobians can stand beside whatever is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Case:
    model: nn.Module
    x: Any
    y: Tensor
    loss: str

    @property
    def data(self) -> tuple[Any, Tensor]:
        return self.x, self.y


class Recurrent(nn.Module):
    """A recurrent layer over [batch, time, features]; classes from its last state."""

    def __init__(self, layer: nn.Module, hidden: int, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Tied(nn.Module):
    """Embedding and output layer share one weight; logits [batch, time, words]."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embedding(tokens))))


class Residual(nn.Module):
    """x + W₂ gelu(W₁ norm(x)), twice with the same block, so that each weight is used more than once."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 5)
        self.down = nn.Linear(5, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class Attention(nn.Module):
    """A Transformer block over embedded tokens with a causal mask; logits [batch, time, words]."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 6, dropout=0.1, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
        return self.head(self.block(self.embedding(tokens), src_mask=mask, is_causal=True))


def _dense() -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))
    return _case(model, torch.randn(10, 4), torch.randint(3, (10,)), "cross_entropy")


def _dense_soft() -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3))
    return _case(model, torch.randn(9, 4), torch.rand(9, 3).double().softmax(-1), "cross_entropy")


def _regression() -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 2))
    return _case(model, torch.randn(10, 4), torch.randn(10, 2), "mse")


def _binary() -> Case:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    return _case(model, torch.randn(11, 4), torch.randint(2, (11,)).double(), "binary_cross_entropy")


def _cnn() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, stride=2, groups=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return _case(model, torch.randn(8, 1, 6, 6), torch.randint(3, (8,)), "cross_entropy")


def _cnn_batch_norm() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return _case(model, torch.randn(8, 1, 6, 6), torch.randint(3, (8,)), "cross_entropy")


def _gru() -> Case:
    return _case(
        Recurrent(nn.GRU(3, 4, batch_first=True), 4, 3), torch.randn(7, 5, 3), torch.randint(3, (7,)), "cross_entropy"
    )


def _lstm() -> Case:
    return _case(Recurrent(nn.LSTM(3, 4, batch_first=True), 4, 2), torch.randn(7, 5, 3), torch.randn(7, 2), "mse")


def _transformer() -> Case:
    tokens = torch.randint(5, (6, 5))
    return _case(Attention(5, 4), tokens[:, :-1], _ignored(tokens[:, 1:]), "cross_entropy")


def _tied() -> Case:
    tokens = torch.randint(6, (7, 5))
    return _case(Tied(6, 4), tokens[:, :-1], _ignored(tokens[:, 1:]), "cross_entropy")


def _residual() -> Case:
    return _case(Residual(4, 2), torch.randn(9, 4), torch.randn(9, 2), "mse")


def _ignored(targets: Tensor) -> Tensor:
    """Some targets count for nothing, not as many in each part of the data."""
    targets = targets.clone()
    targets[0, 1:] = -100
    targets[3, 0] = -100
    return targets


def _case(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> Case:
    return Case(model.double().eval(), x.double() if x.is_floating_point() else x, y, loss)


_MAKERS: dict[str, Callable[[], Case]] = {
    "dense": _dense,
    "dense_soft": _dense_soft,
    "regression": _regression,
    "binary": _binary,
    "cnn": _cnn,
    "cnn_batch_norm": _cnn_batch_norm,
    "gru": _gru,
    "lstm": _lstm,
    "transformer": _transformer,
    "tied": _tied,
    "residual": _residual,
}

NAMES = tuple(_MAKERS)


def case(name: str) -> Case:
    """A fresh case, the same at each call; the global generator is left alone, and so is the default dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1 + NAMES.index(name))
        made = _MAKERS[name]()
    if made.y.is_floating_point():
        made.y = made.y.double()
    return made
