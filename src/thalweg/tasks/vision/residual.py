"""The residual network that both applications stand on (He et al. 2016, arXiv:1512.03385, and 1603.05027)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """y = ReLU(f(x) + s(x)): f two 3 × 3 convolutions, each with its batch norm; s the identity where shapes allow.

    Where the block halves the side or changes the number of channels, s is a mean over 2 × 2 pixels and a 1 × 1
    convolution with batch norm: a strided 1 × 1 convolution would leave out three pixels of four (He et al. 2019,
    arXiv:1812.01187, ResNet-D). The second norm's scale begins at zero, so that each block begins as s (Goyal et al.
    2017, arXiv:1706.02677, section 5.1).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut(inputs, outputs, stride)
        for convolution in (self.first, self.second):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", mode="fan_out")
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, inputs, rows, columns]` → `[batch, outputs, rows / stride, columns / stride]`, rounded up."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The way around a block."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    mean = [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if stride == 2 else []
    return nn.Sequential(*mean, nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def stage(inputs: int, outputs: int, blocks: int, stride: int = 2) -> nn.Sequential:
    """Blocks in a row; the first of them halves the side."""
    return nn.Sequential(Block(inputs, outputs, stride), *(Block(outputs, outputs) for _ in range(blocks - 1)))


def stem(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """The first convolution, on pixels."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", mode="fan_out")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Pixels(nn.Module):
    """(x − mean) / std of each channel, with the statistics of the training images as part of the weights.

    Images stay bytes in memory and in files; they become floating here.
    """

    mean: Tensor  # [channels, 1, 1], in grey levels 0 to 255
    std: Tensor  # [channels, 1, 1], likewise

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def measure(self, images: Tensor) -> None:
        """Take the statistics of images `[examples, channels, rows, columns]` in bytes.

        A channel without contrast is only centred.
        """
        counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
        for part in images.split(4096):  # a histogram of bytes is exact, and needs no copy as floats
            for channel, levels in enumerate(counts):
                levels += torch.bincount(part[:, channel].flatten(), minlength=256)
        levels = torch.arange(256, dtype=torch.float64)
        mean = counts @ levels / counts.sum(1)
        variance = (counts * (levels - mean[:, None]).square()).sum(1) / counts.sum(1)
        self.mean.copy_(mean[:, None, None])
        self.std.copy_(variance.sqrt().where(variance > 0, 1.0)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, rows, columns]` in grey levels → the same, standardised."""
        return (x.to(self.mean.dtype) - self.mean) / self.std


class Classifier(nn.Module):
    """Pixels → stem → stages, each of half the side and twice the width → mean over what is left → a score a class.

    The stem has half the channels of the first stage: at the full side it would cost as much as all that follows.
    """

    def __init__(self, channels: int, num_classes: int, width: int, stages: int, blocks: int, moved: nn.Module) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(stages)]
        self.moved = moved
        self.pixels = Pixels(channels)
        self.stem = stem(channels, width // 2)
        inputs = [width // 2, *widths]
        self.stages = nn.Sequential(*(stage(i, o, blocks) for i, o in zip(inputs, widths, strict=False)))
        self.last = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[batch, channels, rows, columns]` in grey levels → scores `[batch, classes]`."""
        return self.last(self.stages(self.stem(self.pixels(self.moved(x)))).mean((2, 3)))
