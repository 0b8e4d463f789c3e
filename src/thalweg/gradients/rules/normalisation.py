"""Normalisation: x̂ = (x − μ) r with r = 1/√(σ² + ε), y = γ x̂ + β.

With g = ∂J/∂y, ∂J/∂β = Σ g and ∂J/∂γ = Σ g x̂ over what shares a β and a γ. Where μ and σ are of x itself, and h = γ g,

    ∂J/∂x = r (h − mean(h) − x̂ mean(h x̂))

with means over what shares a μ (Ioffe & Szegedy 2015, §3); where they are stored statistics, ∂J/∂x = r h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, composed, rule


def _through_statistics(h: Tensor, x_hat: Tensor, r: Tensor, dims: list[int]) -> Tensor:
    mean = h.mean(dims, keepdim=True)
    slope = (h * x_hat).mean(dims, keepdim=True)
    return r * (h - mean - x_hat * slope)


@rule("batch_norm")
def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[Tensor, Pull]:
    """X `[batch, channels, ...]`; μ and σ of each channel, of the batch in training and stored in evaluation."""
    y, mean, r = torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    dims = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    if not training:
        assert running_mean is not None and running_var is not None, "stored statistics"
        mean, r = running_mean, (running_var + eps).rsqrt()

    def pull(g: Tensor) -> list[Any]:
        R, M = r.reshape(shape), mean.reshape(shape)
        scale = R if weight is None else R * weight.reshape(shape)
        x_hat = (x - M).mul_(R)
        d_weight, d_bias = (g * x_hat).sum(dims), g.sum(dims)
        n = g.numel() / g.shape[1]

        def back() -> Tensor:
            # mean(h) and mean(h x̂) are γ/n times the gradients of β and γ, which have been summed up already.
            d = torch.addcmul(g, x_hat, d_weight.reshape(shape), value=-1 / n)
            return d.sub_(d_bias.reshape(shape) / n).mul_(scale)

        return [
            (x, back if training else lambda: g * scale),
            (weight, lambda: d_weight),
            (bias, lambda: d_bias),
        ]

    return y, pull


@rule("layer_norm")
def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[Tensor, Pull]:
    """X `[..., *normalized_shape]`; μ and σ of each row."""
    y, mean, r = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
    inner = list(range(x.ndim - len(normalized_shape), x.ndim))
    outer = list(range(x.ndim - len(normalized_shape)))

    def pull(g: Tensor) -> list[Any]:
        x_hat = (x - mean) * r
        h = g if weight is None else g * weight
        over_rows = lambda t: t.sum(outer) if outer else t  # noqa: E731
        return [
            (x, lambda: _through_statistics(h, x_hat, r, inner)),
            (weight, lambda: over_rows(g * x_hat)),
            (bias, lambda: over_rows(g)),
        ]

    return y, pull


@rule("group_norm")
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[Tensor, Pull]:
    """X `[batch, channels, ...]`; μ and σ of each example's groups of channels."""
    n, channels, places = x.shape[0], x.shape[1], x[0, 0].numel()
    y, mean, r = torch.native_group_norm(x.contiguous(), weight, bias, n, channels, places, num_groups, eps)
    shape = [1, -1] + [1] * (x.ndim - 2)
    dims = [axis for axis in range(x.ndim) if axis != 1]

    def pull(g: Tensor) -> list[Any]:
        groups = (n, num_groups, -1)
        R = r.reshape(n, num_groups, 1)
        x_hat = (x.reshape(groups) - mean.reshape(n, num_groups, 1)) * R
        h = (g if weight is None else g * weight.reshape(shape)).reshape(groups)
        return [
            (x, lambda: _through_statistics(h, x_hat, R, [2]).reshape(x.shape)),
            (weight, lambda: (g * x_hat.reshape(x.shape)).sum(dims)),
            (bias, lambda: g.sum(dims)),
        ]

    return y, pull


@composed("instance_norm")
def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Of each example's channels: groups of one channel; with stored statistics a batch norm in evaluation."""
    if use_input_stats:
        return torch.group_norm(x, x.shape[1], weight, bias, eps)
    return torch.nn.functional.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)


@composed("rms_norm")
def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """X / √(mean(x²) + ε) · γ (Zhang & Sennrich 2019)."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    dims = list(range(-len(normalized_shape), 0))
    y = x * ((x * x).mean(dims, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


@composed("normalize")
def normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    """X / max(|x|_p, ε)."""
    return x / torch.linalg.vector_norm(x, p, dim, keepdim=True).clamp_min(eps)


@composed("_weight_norm")
def weight_norm(v: Tensor, magnitude: Tensor, dim: int = 0) -> Tensor:
    """W = m v / |v|, the norm over all but one dimension (Salimans & Kingma 2016)."""
    dims = [axis for axis in range(v.ndim) if axis != dim]
    return v * (magnitude / torch.linalg.vector_norm(v, 2, dims, keepdim=True))
