"""Handwritten digits without a download: the 1,797 scans that scikit-learn carries (UCI Optical Recognition, 1998)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.tasks.network import network

SIDE = 28  # [pixels], as in MNIST, so that the network is the same: 28 × 28 = 784 inputs


def make(seed: int = 0) -> dict[str, Any]:
    """The seed network on scikit-learn's digits, a fifth of them held out.

    The scans of 8 × 8 pixels in 17 grey levels are scaled up to 28 × 28 (bilinear). The seed decides which examples
    are held out (equal shares of each digit), the first weights, and the order of the batches.

    Returns:
        The keyword arguments of `fit`; inputs `[examples, 28, 28]` in grey levels 0 to 16, labels `[examples]`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = digits.target
    train, held_out = train_test_split(range(len(labels)), test_size=0.2, random_state=seed, stratify=labels)
    x, y = _enlarged(torch.from_numpy(digits.images)), torch.from_numpy(labels).to(torch.int64)
    return {
        "model": network(x[train], seed=seed),
        "data": (x[train], y[train]),
        "loss": "cross_entropy",
        "validation_data": (x[held_out], y[held_out]),
        "optimizer": "adam",
        "metrics": ("accuracy",),
        "seed": seed,
    }


def _enlarged(images: Tensor) -> Tensor:
    """`[examples, 8, 8]` → `[examples, 28, 28]` in float32."""
    return F.interpolate(images.float().unsqueeze(1), size=(SIDE, SIDE), mode="bilinear").squeeze(1)
