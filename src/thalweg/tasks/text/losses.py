"""Losses over the tokens of an answer."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

#: Targets of this value are padding.
IGNORED = -100


class SmoothedCrossEntropy:
    """(1 − ε) · −log p_y + ε · mean over all tokens of −log p, the mean over real positions (Szegedy et al. 2016,
    section 7; Vaswani et al. 2017, section 5.4).
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits `[batch, length, tokens]`, targets `[batch, length]` → a scalar."""
        return F.cross_entropy(
            output.flatten(0, 1), target.flatten(), ignore_index=IGNORED, label_smoothing=self.smoothing
        )

    def num_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """How many positions are real."""
        return (target != IGNORED).sum()
