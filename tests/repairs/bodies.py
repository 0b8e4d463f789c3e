"""Networks that every change is tried on, as bodies with a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.records.settings import Settings
from thalweg.repairs.change import Body
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve


class Named(nn.Module):
    """Layers as attributes, one activation used twice, one as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.act, self.head = nn.ReLU(), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.first(x))))
        return self.head(F.relu(self.third(x)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(5, 8, batch_first=True)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(1, len(x), self.cell.hidden_size)
        return self.head(self.cell(x, state)[0][:, -1])


class Transformer(nn.Module):
    """Of numbers [batch, length, 5]: projection, a block of torch's and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(5, 8)
        self.stock = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stock(self.into(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x + self.dense(x)).mean(1)


class Words(nn.Module):
    """Class numbers [batch, length]; the embedding is the last layer's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dense = nn.Embedding(11, 8), nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dense(self.embedding(x)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid(), nn.Linear(16, 3)
    )


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def tied() -> nn.Module:
    """One layer at three places."""
    layer = nn.Linear(8, 8)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), layer, nn.Tanh(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 3)
    )


@dataclass(frozen=True)
class Kind:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 3
    words: bool = False


KINDS = {
    "mlp": Kind(mlp, (6,)),
    "images": Kind(images, (2, 8, 8)),
    "named": Kind(Named, (6,)),
    "recurrent": Kind(Recurrent, (7, 5)),
    "transformer": Kind(Transformer, (4, 5)),
    "words": Kind(Words, (5,), 11, words=True),
    "bare": Kind(lambda: nn.Linear(6, 3), (6,)),
    "tied": Kind(tied, (6,)),
}


def body_of(kind: str, loss: str = "cross_entropy", seed: int = 0, **settings: Any) -> Body:
    """A body in double precision, with inputs that want scaling and statistics that are not those of a fresh model."""
    case = KINDS[kind]
    torch.manual_seed(seed)
    model = case.make().double()
    drawn = torch.Generator().manual_seed(1)
    if case.words:
        x = torch.randint(0, 11, (64, *case.shape), generator=drawn)
    else:
        x = 3 + 5 * torch.randn(64, *case.shape, generator=drawn, dtype=torch.float64)
    if loss == "cross_entropy":
        y = torch.randint(0, case.classes, (64,), generator=drawn)
        y[:40] = 0
    else:
        y = 200 + 50 * torch.randn(64, case.classes, generator=drawn, dtype=torch.float64)
    model.train()
    with torch.no_grad():
        model(x)
    return Body(Forward(model), resolve(loss), Settings(**settings), (x, y), 0.1)


def body(model: nn.Module, x: Tensor, y: Any, loss: Any = "mse", rate: float = 0.1, **settings: Any) -> Body:
    return Body(Forward(model), resolve(loss), Settings(**settings), (x, y), rate)


def predicted(body: Body, x: Any = None) -> Tensor:
    """In evaluation, with modes left as they are."""
    modes = [(m, m.training) for m in body.model.modules()]
    for module, _ in modes:
        module.training = False
    with torch.no_grad():
        output = body.forward(body.sample[0] if x is None else x, False)
    for module, mode in modes:
        module.training = mode
    return output
