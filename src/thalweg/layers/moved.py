"""Images moved while training: a network that has seen a cat two pixels further left knows more about cats.

The layer acts in training mode only, on all images of a batch at once, and draws from torch's global generator; a
training that is resumed draws on where it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Moved(nn.Module):
    """Each image of a batch shifted by up to `shift` pixels each way, and mirrored or not, left for right.

    Pixels that come in at a border repeat it. One gather does both: it reads pixel (i + a, ±(j + b)).
    """

    def __init__(self, shift: int, mirror: bool) -> None:
        super().__init__()
        self.shift = shift
        self.mirror = mirror

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, channels, rows, columns]` of any type → the same."""
        if not self.training or not (self.shift or self.mirror):
            return x
        batch, _, rows, columns = x.shape
        down, right = torch.randint(-self.shift, self.shift + 1, (2, batch, 1), device=x.device)
        i = (torch.arange(rows, device=x.device) + down).clamp(0, rows - 1)
        j = (torch.arange(columns, device=x.device) + right).clamp(0, columns - 1)
        if self.mirror:
            j = torch.where(torch.rand(batch, 1, device=x.device) < 0.5, columns - 1 - j, j)
        examples = torch.arange(batch, device=x.device)[:, None, None]
        return x[examples, :, i[:, :, None], j[:, None, :]].permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """What it does, for a printed model."""
        return f"shift={self.shift}, mirror={self.mirror}"
