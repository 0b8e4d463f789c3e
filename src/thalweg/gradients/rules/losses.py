"""Losses: ∂J/∂z of an output z in closed form.

With `reduction="mean"` g is divided by the number of terms first, with `"sum"` it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, rule


def _of_elements(name: str, slope: Callable[..., Tensor]) -> None:
    """A loss ℓ(z, y) of single numbers, with its slope ∂ℓ/∂z(z, y, options); ∂ℓ/∂y is −∂ℓ/∂z: it sees z − y only."""
    loss = getattr(F, name)

    @rule(name)
    def apply(z: Tensor, y: Tensor, *options: Any, reduction: str = "mean", **named: Any) -> tuple[Tensor, Pull]:
        named = {key: value for key, value in named.items() if value is not None}
        if options or named.keys() - {"delta", "beta"}:
            raise ValueError(f"{name} with {', '.join(named) or 'positional options'}")

        def back(g: Tensor) -> Tensor:
            d = slope(z, y, **named)
            return g * d / d.numel() if reduction == "mean" else g * d

        return loss(z, y, reduction=reduction, **named), lambda g: [(z, lambda: back(g)), (y, lambda: -back(g))]


_of_elements("mse_loss", lambda z, y: 2 * (z - y))
_of_elements("l1_loss", lambda z, y: (z - y).sign())
_of_elements("huber_loss", lambda z, y, delta=1.0: (z - y).clamp(-delta, delta))
_of_elements("smooth_l1_loss", lambda z, y, beta=1.0: ((z - y) / beta).clamp(-1, 1) if beta else (z - y).sign())


@rule("cross_entropy", "cross_entropy_loss")
def cross_entropy(
    z: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Pull]:
    """J = −Σ_c k_c log p_c with p = softmax(z) and k the target distribution, weighted: ∂J/∂z = p Σ k − k.

    One-hot and unweighted it is p − y. z `[batch, classes, ...]`.
    """
    J = F.cross_entropy(z, target, weight, None, ignore_index, None, reduction, label_smoothing)
    axis = 1 if z.ndim > 1 else 0
    k, n = _target_distribution(z, target, weight, ignore_index, label_smoothing)

    def back(g: Tensor) -> Tensor:
        d = z.softmax(axis) * k.sum(axis, keepdim=True) - k
        if reduction == "none":
            return g.unsqueeze(axis) * d
        return d * (g / n if reduction == "mean" else g)

    return J, lambda g: [(z, lambda: back(g))]


def _target_distribution(z: Tensor, target: Tensor, weight: Any, ignored: int, smoothing: float) -> tuple[Tensor, Any]:
    """K in the shape of z, and the number of terms: rows, or class weights of the targets that are not ignored."""
    axis = 1 if z.ndim > 1 else 0
    classes = z.shape[axis]
    w = 1.0 if weight is None else weight.reshape(-1, *[1] * (z.ndim - 1 - axis))
    if target.is_floating_point():
        return w * (target * (1 - smoothing) + smoothing / classes), z.numel() // classes
    is_kept = (target != ignored).unsqueeze(axis)
    kept = is_kept.to(z.dtype)
    # One-hot, and nothing at all where the target is ignored.
    hot = torch.zeros_like(z).scatter_(axis, target.unsqueeze(axis) * is_kept, kept)
    k = hot * (1 - smoothing) + smoothing / classes * kept if smoothing else hot
    return (k, is_kept.sum()) if weight is None else (w * k, (w * hot).sum())


@rule("nll_loss", "nll_loss_nd")
def nll(
    z: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    ignore_index: int = -100,
    reduce: None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Pull]:
    """J = −Σ k z with k the weighted one-hot target: ∂J/∂z = −k."""
    k, n = _target_distribution(z, target, weight, ignore_index, 0.0)

    def back(g: Tensor) -> Tensor:
        if reduction == "none":
            return -k * g.unsqueeze(1 if z.ndim > 1 else 0)
        return -k * (g / n if reduction == "mean" else g)

    return F.nll_loss(z, target, weight, None, ignore_index, None, reduction), lambda g: [(z, lambda: back(g))]


@rule("binary_cross_entropy_with_logits")
def logistic(
    z: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> tuple[Tensor, Pull]:
    """J = −w (c y log σ(z) + (1−y) log(1−σ(z))): ∂J/∂z = w (σ(z)(1 − y + c y) − c y); σ(z) − y where w = c = 1."""
    w = 1.0 if weight is None else weight
    c = 1.0 if pos_weight is None else pos_weight
    J = F.binary_cross_entropy_with_logits(z, y, weight, None, None, reduction, pos_weight)
    n = z.numel() if reduction == "mean" else 1
    return J, lambda g: [(z, lambda: g * w * (z.sigmoid() * (1 - y + c * y) - c * y) / n)]


@rule("binary_cross_entropy")
def binary_cross_entropy(
    p: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Pull]:
    """J = −w (y log p + (1−y) log(1−p)): ∂J/∂p = w (p − y) / (p(1−p)), the divisor at least 1e-12 as in torch."""
    w = 1.0 if weight is None else weight
    n = p.numel() if reduction == "mean" else 1
    J = F.binary_cross_entropy(p, y, weight, None, None, reduction)
    return J, lambda g: [(p, lambda: g * w * (p - y) / (p * (1 - p)).clamp_min(1e-12) / n)]


@rule("kl_div")
def kl_divergence(
    z: Tensor,
    y: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> tuple[Tensor, Pull]:
    """J = Σ y (log y − z) of log-probabilities z: ∂J/∂z = −y."""
    n = {"mean": z.numel(), "batchmean": z.shape[0]}.get(reduction, 1)
    J = F.kl_div(z, y, reduction=reduction, log_target=log_target)
    return J, lambda g: [(z, lambda: -g * (y.exp() if log_target else y) / n)]
