"""One table of models, and how each of the three rules takes a step on a batch of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.loop.tree import pack, unpack
from thalweg.optim import KFAC, LBFGS, GaussNewton
from thalweg.step.losses import resolve


class Tied(nn.Module):
    """Decodes by the transpose of nothing: two layers that are one weight, and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.twice = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x))))))[:, :3]


class Odd(nn.Module):
    """A scalar, an empty and a frozen parameter, one that is never used, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen, self.dense = nn.Linear(6, 5), nn.Linear(5, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.dense(torch.tanh(self.frozen(x))) + self.empty.sum()


class Words(nn.Module):
    """An embedding, attention, a norm and a head over the mean of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        h = self.norm(h + self.attention(h, h, h, need_weights=False)[0])
        return self.head(h.mean(1))


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.1), nn.Linear(48, 3),
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.view(-1, 3, 2))[0][:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": dense,
    "tied": Tied,
    "odd": Odd,
    "words": Words,
    "convolutional": convolutional,
    "recurrent": Recurrent,
}
RULES = ("lbfgs", "kfac", "gauss_newton")


def model_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name]().to(dtype)


def batch_of(name: str, dtype: torch.dtype = torch.float32, size: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 8, (size, 5), generator=g) if name == "words" else torch.randn(size, 6, generator=g).to(dtype)
    return x, torch.randint(0, 3, (size,), generator=g)


def rule_of(rule: str, model: nn.Module, loss: Any = "cross_entropy", **options: Any) -> Any:
    if rule == "lbfgs":
        return LBFGS(model.parameters(), **{"max_iter": 4, **options})
    return (KFAC if rule == "kfac" else GaussNewton)(model, loss, **options)


def step(optimizer: Any, model: nn.Module, batch: tuple[Tensor, Tensor], loss: Any = "cross_entropy") -> float:
    """One step; the loss before it."""
    x, y = batch
    if not isinstance(optimizer, LBFGS):
        return float(optimizer.step(x, y))

    def closure() -> float:
        optimizer.zero_grad()
        value = resolve(loss)(model(x), y)
        value.backward()
        return value.item()

    return float(optimizer.step(closure))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], loss: Any = "cross_entropy") -> float:
    was = model.training
    model.eval()
    with torch.no_grad():
        value = float(resolve(loss)(model(batch[0]).float(), batch[1]))
    model.train(was)
    return value


def saved(optimizer: Any) -> Any:
    """A state as it comes back from a checkpoint: through JSON's plain values and named tensors."""
    import json

    plain, tensors = pack(optimizer.state_dict())
    return unpack(json.loads(json.dumps(plain)), {name: t.clone() for name, t in tensors.items()})


def quietly(function: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()
