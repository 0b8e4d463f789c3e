"""What the gradients of single examples say: their norms, their mean and variance, the noise in the gradient.

With J_i the loss of example i by itself and g_i = ∂J_i/∂θ. How g_i is known without being formed: `sweeps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.pieces import squared_norms, squared_sum
from thalweg.gradients.sweeps import Measurement, Sweep
from thalweg.step.data import Batch, num_examples

_NORMS = Measurement(squared_norms, lambda g: g.flatten(1).square().sum(1), by_example=True)
_SQUARES = Measurement(squared_sum, lambda g: g.square().sum(0), by_example=False)


def per_example_norms(
    model: nn.Module, data: Batch, loss: Any = None, *, by_name: bool = False
) -> Tensor | dict[str, Tensor]:
    """‖∂J_i/∂θ‖ of each example's own loss J_i.

    For a loss that is a mean over several terms of an example (tokens), J_i is the mean over its own terms; an example
    whose terms are all ignored has norm 0. A loss of the model's own (`loss=None`) is taken as a mean over examples.
    Random layers (dropout) draw as they do in training; where a fallback is needed they draw for it anew.

    Args:
        model: any module; it is left as it was, gradients included.
        data: (x, y), examples along axis 0.
        loss: a name, a callable, or None where the model returns its loss.
        by_name: for each parameter that trains instead of for all together.

    Returns:
        Norms [batch], or a dict of them by parameter name (a tied parameter once), in the units of the gradient.

    Raises:
        ValueError: examples depend on each other (batch norm in training mode).

    Source: Goodfellow 2015 (arXiv 1510.01799), with the forms of `layers.py` for what is not dense.
    """
    sweep = Sweep(model, data, loss)
    squares = {name: square.clamp_min(0) for name, square in sweep.measured(_NORMS).items()}
    if by_name:
        return {name: square.sqrt() for name, square in squares.items()}
    return torch.stack(list(squares.values())).sum(0).sqrt()


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of the examples' gradients, by parameter name."""

    mean: dict[str, Tensor]
    """(1/n) Σ g_i, in the shape of the parameter."""
    variance: dict[str, Tensor]
    """Σ (g_i − mean)² / (n − 1), in the shape of the parameter, or a scalar: their sum, a part of tr Σ."""
    num_examples: int

    @property
    def signal_to_noise(self) -> dict[str, Tensor]:
        """mean² / variance of a single example's gradient; a batch of n has n times as much.

        By element, or for the whole tensor (‖mean‖² / tr Σ) where variances are sums.
        """
        return {
            name: (_squared_norm(self.mean[name]) if v.ndim == 0 else self.mean[name].square()) / v
            for name, v in self.variance.items()
        }


def gradient_moments(model: nn.Module, data: Batch, loss: Any = None, *, summed: bool = False) -> Moments:
    """Mean and variance of the gradients of the examples' own losses.

    Args:
        model: any module.
        data: (x, y), at least two examples along axis 0.
        loss: as for `per_example_norms`.
        summed: one variance for each parameter tensor, which costs no more than the norms.

    Raises:
        ValueError: one example only, or examples depend on each other.
    """
    count = num_examples(data)
    if count < 2:
        raise ValueError("a variance over examples needs at least two of them, got 1")
    sweep = Sweep(model, data, loss, with_mean=True)
    if summed:
        squares = {name: norms.sum() for name, norms in sweep.measured(_NORMS).items()}
    else:
        squares = sweep.measured(_SQUARES)
    variance = {}
    for name, square in squares.items():
        mean = sweep.mean[name]
        ours = _squared_norm(mean) if summed else mean.square()
        variance[name] = ((square - count * ours) / (count - 1)).clamp_min(0)
    return Moments(sweep.mean, variance, count)


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """How much the gradient varies from example to example, against its size. Scalars on the model's device."""

    trace: Tensor
    """Estimate of tr Σ, the variance of one example's gradient summed over all parameters; unbiased."""
    squared_norm: Tensor
    """Estimate of |G|², the squared norm of the true gradient; unbiased, so that it can come out negative."""
    num_examples: int

    @property
    def simple(self) -> Tensor:
        """B_simple = tr Σ / |G|², in examples; infinite where noise hides the gradient altogether."""
        return torch.where(self.squared_norm > 0, self.trace / self.squared_norm, torch.inf)

    @property
    def critical_batch_size(self) -> Tensor:
        """The batch beyond which larger batches save few steps: B_crit ≈ B_simple (section 2.2), at least one example.

        Equal where the Hessian is a multiple of the identity; in the paper's experiments, right within a factor of a
        few.
        """
        return self.simple.clamp_min(1)

    @property
    def signal_to_noise(self) -> Tensor:
        """|G|² / (tr Σ / n): the true gradient's squared norm over the variance of the mean over this batch."""
        return self.squared_norm.clamp_min(0) * self.num_examples / self.trace


def noise_scale(model: nn.Module, data: Batch, loss: Any = None) -> NoiseScale:
    """The simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1, with B_small = 1, B_big = n:

        |G|² ≈ (n |G_n|² − |G_1|²) / (n − 1)      tr Σ ≈ (|G_1|² − |G_n|²) / (1 − 1/n)

    where |G_1|² is the mean of ‖g_i‖² and G_n the mean of g_i. Both are unbiased; their ratio is not, as in the paper:
    average the two over several batches before dividing, where batches are small.

    Args:
        model: any module.
        data: (x, y), at least two examples along axis 0.
        loss: as for `per_example_norms`.

    Raises:
        ValueError: one example only, or examples depend on each other.
    """
    moments = gradient_moments(model, data, loss, summed=True)
    mean = torch.stack([_squared_norm(m) for m in moments.mean.values()]).sum()
    trace = torch.stack(list(moments.variance.values())).sum()
    return NoiseScale(trace, mean - trace / moments.num_examples, moments.num_examples)


def _squared_norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t).square()
