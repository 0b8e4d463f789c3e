"""A detector without anchors: each place of three grids says what it lies on, and how far the borders of it are.

Tian et al. 2019, FCOS (arXiv:1904.01355), on a residual network with a feature pyramid (Lin et al. 2017,
arXiv:1612.03144). Fully convolutional: images of any size whose sides are multiples of 32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.tasks.vision.residual import Pixels, stage, stem

#: Pixels between the places of each grid.
STRIDES = (8, 16, 32)
#: How sure a place is of each class before it has learned: most places lie on nothing (Lin et al. 2017,
#: arXiv:1708.02002, section 4.1).
PRIOR = 0.01
#: Bounds of the logarithm of a distance in strides, which keep an untrained network finite.
LARGEST_LOG = 6.0


class Jitter(nn.Module):
    """Images at other places and scales, mirrored or not, brighter or darker; in training mode only.

    New coordinates are `a · old + t`, for each image and axis its own: scales from 1/`scale` to `scale`, shifts of up
    to `shift` of a side. What comes in at the border is of the mean colour.
    """

    def __init__(self, mirror: bool, scale: float = 1.25, shift: float = 0.1, light: float = 0.2) -> None:
        super().__init__()
        self.mirror = mirror
        self.scale = scale
        self.shift = shift
        self.light = light

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised images `[batch, 3, rows, columns]` → the same, and (a_x, a_y, t_x, t_y) `[batch, 4]`."""
        batch, _, rows, columns = x.shape

        def drawn(*shape: int) -> Tensor:
            return torch.rand(*shape, device=x.device, dtype=x.dtype) * 2 - 1

        # Both axes grow together, and a little apart: a cell may be oval.
        a = torch.exp(math.log(self.scale) * (0.8 * drawn(batch, 1) + 0.2 * drawn(batch, 2)))
        if self.mirror:
            side = torch.where(drawn(batch, 1) < 0, -1.0, 1.0)
            a = a * torch.cat([side, torch.ones_like(side)], 1)
        t = self.shift * drawn(batch, 2)  # in halves of the sides, from the middle
        # grid_sample asks where a new pixel comes from, in coordinates from −1 to 1: old = (new − t) / a.
        zero = torch.zeros_like(a[:, 0])
        back = torch.stack([1 / a[:, 0], zero, -t[:, 0] / a[:, 0], zero, 1 / a[:, 1], -t[:, 1] / a[:, 1]], 1)
        grid = F.affine_grid(back.reshape(batch, 2, 3), [batch, 3, rows, columns], align_corners=False)
        moved = F.grid_sample(x, grid, align_corners=False)
        moved = moved * torch.exp(self.light * drawn(batch, 1, 1, 1)) + self.light * drawn(batch, 3, 1, 1)
        half = torch.tensor([columns / 2, rows / 2], device=x.device, dtype=x.dtype)
        return moved, torch.cat([a, half * (1 + t - a)], 1)


class Pyramid(nn.Module):
    """Each level of a residual network, and what the coarser ones say of it: the same number of channels everywhere."""

    def __init__(self, widths: list[int], channels: int) -> None:
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in widths)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """`[batch, width, rows, columns]` of each level, finest first → `[batch, channels, rows, columns]`."""
        across = [layer(level) for layer, level in zip(self.across, levels, strict=True)]
        for i in range(len(across) - 2, -1, -1):
            across[i] = across[i] + F.interpolate(across[i + 1], scale_factor=2.0, mode="nearest")
        return [layer(level) for layer, level in zip(self.smooth, across, strict=True)]


class Head(nn.Module):
    """What each place says. The convolutions are shared by all levels; each level has batch norms of its own.

    Levels differ in their statistics, and norms shared by them would fit none (Ghiasi et al. 2019, arXiv:1904.07392).
    """

    def __init__(self, channels: int, num_classes: int, depth: int = 2) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth)) for _ in STRIDES)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(channels, 4, 3, padding=1)
        nn.init.normal_(self.classes.weight, std=0.01)
        assert self.classes.bias is not None and self.distances.bias is not None
        nn.init.constant_(self.classes.bias, math.log(PRIOR / (1 - PRIOR)))
        nn.init.normal_(self.distances.weight, std=0.01)
        nn.init.constant_(self.distances.bias, math.log(2.0))  # two strides each way

    def forward(self, x: Tensor, level: int) -> Tensor:
        """`[batch, channels, rows, columns]` → `[batch, rows · columns, 4 + classes]`: logs of distances, scores."""
        norms = self.norms[level]
        assert isinstance(norms, nn.ModuleList)
        for convolution, norm in zip(self.convolutions, norms, strict=True):
            x = torch.relu(norm(convolution(x)))
        return torch.cat([self.distances(x), self.classes(x)], 1).flatten(2).transpose(1, 2)


class Detector(nn.Module):
    """Images → boxes and scores of every place.

    Args:
        num_classes: kinds of objects.
        width: channels at a quarter of the input's side; twice as many at each further halving.
        blocks: residual blocks of each stage.
        mirror: whether images are mirrored while training.
    """

    def __init__(self, num_classes: int, width: int, blocks: int, mirror: bool) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.pixels = Pixels(3)
        self.jitter = Jitter(mirror)
        self.stem = stem(3, width // 2, stride=2)
        self.stages = nn.ModuleList(stage(i, o, blocks) for i, o in zip([width // 2, *widths], widths, strict=False))
        channels = 2 * width
        self.pyramid = Pyramid(widths[1:], channels)
        self.head = Head(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images `[batch, 3, rows, columns]` in grey levels → `[batch, places, 4 + classes]`.

        Of each place: left, top, right, bottom [pixels], and a score (before a sigmoid) for each class. In training
        mode also how each image was moved, `[batch, 4]`, as `Jitter` says; targets have to be moved like it.
        """
        moves = None
        x = self.pixels(x)
        if self.training:
            x, moves = self.jitter(x)
        rows, columns = x.shape[2:]
        x = self.stem(x)
        levels = []
        for layer in self.stages:
            x = layer(x)
            levels.append(x)
        said = torch.cat([self.head(level, i) for i, level in enumerate(self.pyramid(levels[1:]))], 1)
        places, strides = grid(rows, columns, x.device, x.dtype)
        away = said[..., :4].clamp(-LARGEST_LOG, LARGEST_LOG).exp() * strides[:, None]
        boxes = torch.cat([places - away[..., :2], places + away[..., 2:]], -1)
        found = torch.cat([boxes, said[..., 4:]], -1)
        return found if moves is None else (found, moves)


def grid(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where the places of all levels lie `[places, 2]` (x, y in pixels), and the stride of each `[places]`."""
    places, strides = [], []
    for stride in STRIDES:
        y = (torch.arange(rows // stride, device=device, dtype=dtype) + 0.5) * stride
        x = (torch.arange(columns // stride, device=device, dtype=dtype) + 0.5) * stride
        places.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2))
        strides.append(torch.full((len(x) * len(y),), float(stride), device=device, dtype=dtype))
    return torch.cat(places), torch.cat(strides)
