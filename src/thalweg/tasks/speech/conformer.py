"""Conformer layers: attention hears the whole utterance, convolution its neighbourhood (Gulati et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.tasks.speech.features import within

HEADS = 4

#: Frames that a convolution spans: the paper's 31 at 25 frames/s would be most of a word here.
KERNEL = 15


class Conformer(nn.Module):
    """`[batch, time, width]` → the same, through so many layers; sines of the place are added first."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, dropout) for _ in range(layers))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames past the end are never attended to."""
        inside = within(x, lengths)
        x = x + positions(x)
        for layer in self.layers:
            x = layer(x, inside)
        return x


class Layer(nn.Module):
    """x + ½ feed-forward, + attention, + convolution, + ½ feed-forward, normalised (equation 1).

    Where the paper has batch norm, this has layer norm: it does not count what lies past the end.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.before, self.after = _feed_forward(width, dropout), _feed_forward(width, dropout)
        self.attention = Attention(width, dropout)
        self.convolution = Convolution(width, dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """`inside` `[batch, time, 1]`: 1 for frames of the utterance."""
        x = x + 0.5 * self.before(x)
        x = x + self.attention(x, inside)
        x = x + self.convolution(x, inside)
        return self.norm(x + 0.5 * self.after(x))


class Attention(nn.Module):
    """Every frame looks at every other one of its utterance, through several heads."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        if width % HEADS:
            raise ValueError(f"width must be a multiple of {HEADS} for the conformer, got {width}")
        self.norm = nn.LayerNorm(width)
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """`[batch, time, width]` → the same."""
        parts = self.inputs(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = (inside > 0).transpose(1, 2)[:, None]  # [batch, 1, 1, time]
        x = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=seen)
        return self.dropout(self.output(x.transpose(1, 2).flatten(2)))


class Convolution(nn.Module):
    """Gated, then along time in each channel by itself (figure 2)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GLU(-1))
        self.along = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """`[batch, time, width]` → the same; what lies past the end is 0 for the convolution."""
        return self.last(self.along((self.first(x) * inside).transpose(1, 2)).transpose(1, 2))


def positions(x: Tensor) -> Tensor:
    """Sines and cosines of each frame's place, `[time, width]` (Vaswani et al. 2017, section 3.5)."""
    time = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None]
    half = x.shape[2] // 2
    rates = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=x.dtype, device=x.device) / half)
    return torch.cat([(time * rates).sin(), (time * rates).cos()], -1)


def _feed_forward(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width),
        nn.SiLU(),
        nn.Dropout(dropout),
        nn.Linear(4 * width, width),
        nn.Dropout(dropout),
    )
