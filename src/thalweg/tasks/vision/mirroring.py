"""Whether images may be mirrored while training: digits may not, animals may."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
