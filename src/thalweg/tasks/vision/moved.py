"""Images moved while training: a network that has seen a cat two pixels further left knows more about cats.

Layers that act in training mode only, on all images of a batch at once, and draw from torch's global generator; a
training that is resumed draws on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Mirroring:
    """How well images and their mirror images are recognised by one and the same simple classifier, as shares."""

    straight: float
    mirrored: float
    examples: int

    @property
    def harmless(self) -> bool:
        """Whether a class is as good as ever in the mirror: at most a tenth of the recognised ones are lost."""
        return self.mirrored >= 0.9 * self.straight

    @property
    def sentence(self) -> str:
        """The decision and what it stands on."""
        decided = "Images are mirrored while training" if self.harmless else "Images are not mirrored while training"
        return (
            f"{decided}: of {self.examples:,} held out, ridge regression on the others recognises "
            f"{self.straight:.0%}, and {self.mirrored:.0%} of their mirror images."
        )


def mirroring(images: Tensor, labels: Tensor, num_classes: int, most: int = 6000) -> Mirroring:
    """Measure whether mirror images still show their class: digits do not, animals do.

    Ridge regression of classes on pixels, of at most 16 × 16 and at most `most` images; a third of them is asked about.
    It sees nothing but where pixels lie, so that it misses no asymmetry that matters; and it takes no training.

    Args:
        images: `[examples, channels, rows, columns]`, of the training part, in random order.
        labels: `[examples]`.
        num_classes: how many there are.
        most: how many images are looked at.
    """
    size = (min(16, images.shape[2]), min(16, images.shape[3]))
    small = nn.functional.adaptive_avg_pool2d(images[:most].double(), size) / 255
    x, mirrored = small.flatten(1), small.flip(-1).flatten(1)
    y = nn.functional.one_hot(labels[:most], num_classes).double()
    known = 2 * len(x) // 3
    mean, wanted = x[:known].mean(0), y[:known].mean(0)
    centred = x[:known] - mean
    covariance = centred.T @ centred / known
    strength = 0.01 * covariance.diagonal().mean() + 1e-9  # of the mean variance of a pixel
    covariance.diagonal().add_(strength)
    weights = torch.linalg.solve(covariance, centred.T @ (y[:known] - wanted) / known)

    def recognised(inputs: Tensor) -> float:
        scores = (inputs[known:] - mean) @ weights + wanted
        return float((scores.argmax(1) == labels[known : len(x)]).double().mean())

    return Mirroring(recognised(x), recognised(mirrored), len(x) - known)
