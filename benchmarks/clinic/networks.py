"""The networks of the clinic: small, and with every part that a sickness may change as a keyword.

Everything that computes is a module, so that signals hear it; the model's first weights follow from the global seed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Exponential(nn.Module):
    """eˣ."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU, "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU, "silu": nn.SiLU, "exponential": Exponential, "linear": nn.Identity,
}  # fmt: skip

HEADS: dict[str, type[nn.Module]] = {
    "softmax": lambda: nn.Softmax(-1), "log_softmax": lambda: nn.LogSoftmax(-1), "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU, "tanh": nn.Tanh,
}  # fmt: skip
"""What may stand behind the last layer, where nothing belongs."""


def initialised(model: nn.Module, init: str, gain: float) -> nn.Module:
    """Weights drawn anew: `he` (He et al. 2015), `xavier` (Glorot & Bengio 2010), or torch's own; then times `gain`."""
    if init == "torch" and gain == 1:
        return model
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2:
                continue
            if init == "he":
                nn.init.kaiming_normal_(p, nonlinearity="relu")
            elif init == "xavier":
                nn.init.xavier_normal_(p)
            p.mul_(gain)
        if init != "torch":
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                    module.bias.zero_()
    return model


def dense(
    inputs: int,
    outputs: int,
    widths: tuple[int, ...],
    activation: str = "relu",
    norm: str = "",
    dropout: float = 0.0,
    head: str = "",
    init: str = "torch",
    gain: float = 1.0,
) -> nn.Sequential:
    """Layers of these widths, each with norm, activation and dropout behind it, and a last one."""
    layers: list[nn.Module] = []
    norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    for before, width in zip((inputs, *widths), widths, strict=False):
        layers.append(nn.Linear(before, width))
        layers += [norms[norm](width)] if norm else []
        layers.append(ACTIVATIONS[activation]())
        layers += [nn.Dropout(dropout)] if dropout else []
    layers.append(nn.Linear((inputs, *widths)[-1], outputs))
    layers += [HEADS[head]()] if head else []
    return initialised(nn.Sequential(*layers), init, gain)


def even(inputs: int, outputs: int, width: int, depth: int, **words: object) -> nn.Sequential:
    """`depth` hidden layers of one width."""
    return dense(inputs, outputs, (width,) * depth, **words)


def plain(
    channels: int = 8,
    depth: int = 5,
    activation: str = "relu",
    norm: str = "",
    head: str = "",
    init: str = "torch",
    gain: float = 1.0,
) -> nn.Sequential:
    """`depth` − 1 convolutions on 14 × 14 images, halved after the first and the third, and a dense layer."""
    layers: list[nn.Module] = []
    for i in range(depth - 1):
        layers.append(nn.Conv2d(channels if i else 1, channels, 3, padding=1))
        layers += [nn.BatchNorm2d(channels)] if norm else []
        layers.append(ACTIVATIONS[activation]())
        layers += [nn.MaxPool2d(2)] if i in (0, 2) else []
    layers += [nn.Flatten(), nn.Linear(channels * 9, 10)]
    layers += [HEADS[head]()] if head else []
    return initialised(nn.Sequential(*layers), init, gain)


class Block(nn.Module):
    """x + convolutions of x, with batch norm."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.act1 = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.act2 = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(x + self.norm2(self.conv2(y)))


def residual(
    channels: int = 8, blocks: int = 2, activation: str = "relu", head: str = "", init: str = "torch", gain: float = 1.0
) -> nn.Sequential:
    """A convolution, residual blocks at 7 × 7, the mean over the image, a dense layer."""
    layers = [
        nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), ACTIVATIONS[activation](),
        nn.MaxPool2d(2), *(Block(channels, activation) for _ in range(blocks)),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(channels * 9, 10),
    ]  # fmt: skip
    layers += [HEADS[head]()] if head else []
    return initialised(nn.Sequential(*layers), init, gain)


class Recurrent(nn.Module):
    """`[batch, frames, bands]` to scores `[batch, 10]`: the last state of a recurrent layer, and dense layers."""

    def __init__(
        self,
        cell: str = "gru",
        width: int = 24,
        bands: int = 16,
        depth: int = 0,
        activation: str = "relu",
        head: str = "",
        init: str = "torch",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        kinds = {"gru": nn.GRU, "lstm": nn.LSTM}
        self.cell = kinds[cell](bands, width, batch_first=True) if cell in kinds else nn.RNN(
            bands, width, batch_first=True, nonlinearity=cell
        )  # fmt: skip
        self.head = even(width, 10, width, depth, activation=activation, head=head)
        initialised(self, init, gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class Attention(nn.Module):
    """A causal Transformer block, norms first."""

    def __init__(self, width: int, heads: int, activation: str, dropout: float, norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width) if norm else nn.Identity() for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.projection, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), ACTIVATIONS[activation](), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.projection(self.norm1(x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.drop(self.dense(self.norm2(x)))


class Transformer(nn.Module):
    """Characters `[batch, length]` to scores `[batch, length, characters]`."""

    def __init__(
        self,
        characters: int = 65,
        length: int = 16,
        width: int = 32,
        blocks: int = 2,
        heads: int = 2,
        activation: str = "gelu",
        dropout: float = 0.0,
        norm: bool = True,
        head: str = "",
        init: str = "torch",
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(characters, width), nn.Embedding(length, width)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.normal_(self.position.weight, std=0.1)
        self.blocks = nn.Sequential(*(Attention(width, heads, activation, dropout, norm) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, characters)
        self.output = HEADS[head]() if head else nn.Identity()
        initialised(self, init, gain)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device))
        return self.output(self.head(self.norm(self.blocks(x))))


def hourglass(pixels: int = 196, width: int = 64, code: int = 16, **words: object) -> nn.Sequential:
    """Pixels to a code and back."""
    return dense(pixels, pixels, (width, code, width), **words)
