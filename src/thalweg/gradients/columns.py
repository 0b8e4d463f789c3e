"""The curvature of a loss at the model's outputs, as columns to be propagated back: Σ_s s sᵀ = ∂²J/∂z².

| loss | z | ∂²J/∂z² of a term of weight c | columns | drawn |
|---|---|---|---|---|
| cross_entropy | logits | c (diag p − p pᵀ) | √c (√p_k e_k − √p_k p), every class k | √c (p − e_y), y ~ p |
| mse | values | 2c I | √(2c) e_k | √(2c) ε, ε ~ N(0, I) |
| binary_cross_entropy | logits | c diag p(1 − p) | √(c p_k(1 − p_k)) e_k | √c (p − y), y ~ p |

A term is a class distribution, or an element; c is 1/N in a mean over N terms (class weights and ignored targets as
the loss counts them), 1 in a sum. For these losses the Fisher information equals the Gauss–Newton matrix (Martens
2020, section 9.2). The empirical column is ∂J/∂z / √c, from the targets themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.gradients.outputs import Map, loss_hessian
from thalweg.gradients.pieces import as_float
from thalweg.step.losses import Loss, resolve
from thalweg.step.targets import IGNORED, Classes, matched

_FUNCTIONS: dict[Any, str] = {
    F.cross_entropy: "cross_entropy",
    F.mse_loss: "mse",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy",
}
_MODULES = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.MSELoss: "mse",
    nn.BCEWithLogitsLoss: "binary_cross_entropy",
}


def columns(
    output: Any, target: Any, loss: Any, fisher: str, samples: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of an output tensor (in the graph) and a column of the same shape to propagate back from it.

    The terms of one example at different positions go back together, under random signs for "true".

    Args:
        output: [batch, …, classes] or as the loss takes it.
        target: what the loss takes.
        loss: a name, function or module.
        fisher: "true", "monte_carlo" or "empirical".
        samples: draws, for "monte_carlo".
        generator: where draws and signs come from; on the CPU.

    Raises:
        ValueError: the curvature of this loss is not known here.
    """
    known = family(loss)
    if fisher == "empirical":
        yield _empirical(output, target, loss, known)
        return
    if not known:
        raise ValueError(
            f"the curvature of the loss {resolve(loss).name!r} at its outputs is not known here: use cross_entropy, "
            "mse or binary_cross_entropy, or fisher='empirical'"
        )
    z, c, axis = _terms(output, target, loss, known)
    p = _predicted(z.detach(), known, axis)
    if fisher == "monte_carlo":
        for _ in range(samples):
            yield z, _drawn(p, c, known, axis, generator) * samples**-0.5
        return
    sign = _signs(z, axis, generator) if output.ndim > 2 else 1.0
    for k in range(z.shape[axis] if z.ndim > 1 else 1):
        yield z, _column(p, c, known, axis, k) * sign


def bend(output: Tensor, target: Any, loss: Any, u: Tensor) -> Tensor:
    """uᵀ (∂²J/∂z²) u, a scalar: in closed form for the three losses, else by differentiating twice.

    Args:
        output: [batch, …] as the loss takes it.
        target: what the loss takes.
        loss: a name, function or module.
        u: a change of the outputs, in their shape.
    """
    known = family(loss)
    if not known:
        with torch.enable_grad():
            (hu,) = loss_hessian(resolve(loss), output.detach().requires_grad_(), target)([u])
        return (u * hu).sum(dtype=torch.float64)
    z, c, axis = _terms(output, target, loss, known)
    is_placed = known == "cross_entropy" and isinstance(loss, str | Loss)
    z, u = as_float(z.detach()), as_float(Classes()(u, target)[0] if is_placed else u.reshape(z.shape))
    if known == "mse":
        return (2 * c * u.square()).sum(dtype=torch.float64)
    p = _predicted(z, known, axis)
    if known == "binary_cross_entropy":
        return (c * p * (1 - p) * u.square()).sum(dtype=torch.float64)
    mean = (p * u).sum(axis, keepdim=True)
    return (c * p * (u - mean).square()).sum(dtype=torch.float64)


def curved(output: Any, target: Any, loss: Any) -> Map | None:
    """The map u ↦ ∂²J/∂z² u in closed form, u in the form of the outputs; None where it is not known here."""
    known = family(loss)
    if not known or not isinstance(output, Tensor) or output.ndim == 0:
        return None
    z, c, axis = _terms(output, target, loss, known)
    if z.shape != output.shape:
        return None
    p = _predicted(z.detach(), known, axis)
    if known == "cross_entropy":
        weight = c * p
        return lambda u: [weight * (u[0] - (p * u[0]).sum(axis, keepdim=True))]
    weight = 2 * c if known == "mse" else c * p * (1 - p)
    return lambda u: [weight * u[0]]


def blocks(output: Tensor, target: Any, loss: Any) -> Tensor | None:
    """∂²J/∂z² example by example, for one row of outputs an example; None where it is not known here.

    Returns:
        [batch, outputs, outputs], or its diagonal [batch, outputs] where there is nothing beside it.
    """
    known = family(loss)
    if not known or output.ndim > 2 or output.ndim == 0:
        return None
    z, c, axis = _terms(output, target, loss, known)
    if z.shape != output.shape:
        return None
    p = _predicted(as_float(z.detach()), known, axis)
    if known == "mse":
        return (2 * c).expand_as(p).reshape(len(p), -1)
    if known == "binary_cross_entropy":
        return (c * p * (1 - p)).reshape(len(p), -1)
    if p.ndim != 2:
        return None
    return c.unsqueeze(-1) * (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))


def family(loss: Any) -> str:
    """Which of the three losses this is, whose curvature is known; "" if none."""
    if isinstance(loss, Loss):
        loss = loss.name
    if isinstance(loss, str):
        return loss if loss in _FUNCTIONS.values() else ""
    found = _MODULES.get(type(loss), "") or (_FUNCTIONS.get(loss, "") if callable(loss) else "")
    weighted = getattr(loss, "weight", None) is not None
    if getattr(loss, "pos_weight", None) is not None or (weighted and not _weighs_terms(loss, found)):
        return ""
    return found


def _weighs_terms(loss: Any, found: str) -> bool:
    return found == "cross_entropy" and not loss.label_smoothing


def _terms(output: Tensor, target: Tensor, loss: Any, known: str) -> tuple[Tensor, Tensor, int]:
    """The outputs as the loss sees them, the weight c of each term (broadcasts to them), the axis of classes."""
    is_mean = resolve(loss).reduction == "mean"
    if known != "cross_entropy":
        z, _ = matched(output, target)
        return z, torch.tensor(1 / z.numel() if is_mean else 1.0, dtype=z.dtype, device=z.device), z.ndim - 1
    z, y = Classes()(output, target) if isinstance(loss, str | Loss) else (output, target)
    axis = 1 if z.ndim > 1 else 0
    weight = getattr(loss, "weight", None)
    if y.is_floating_point():
        if weight is not None:
            raise ValueError("class weights with probabilities as targets: the weight of a term is not known here")
        c = torch.ones_like(z.detach().select(axis, 0))
    else:
        kept = y != getattr(loss, "ignore_index", IGNORED)
        c = kept.to(z.dtype) if weight is None else (weight[y.where(kept, 0)] * kept).to(z.dtype)
    return z, (c / c.sum() if is_mean else c).unsqueeze(axis), axis


def _predicted(z: Tensor, known: str, axis: int) -> Tensor:
    if known == "cross_entropy":
        return z.softmax(axis)
    return z.sigmoid() if known == "binary_cross_entropy" else z


def _column(p: Tensor, c: Tensor, known: str, axis: int, k: int) -> Tensor:
    chosen = (slice(None),) * axis + (slice(k, k + 1),) if p.ndim > 1 else (slice(None),)
    if known == "cross_entropy":
        root = p[chosen].sqrt()
        column = -root * p
        column[chosen] += root
        return column * c.sqrt()
    column = torch.zeros_like(p)
    squared = 2 * c.expand_as(p)[chosen] if known == "mse" else c * p[chosen] * (1 - p[chosen])
    column[chosen] = squared.sqrt()
    return column


def _drawn(p: Tensor, c: Tensor, known: str, axis: int, generator: torch.Generator | None) -> Tensor:
    if known == "mse":
        return torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) * (2 * c).sqrt()
    shape = p.narrow(axis, 0, 1).shape if known == "cross_entropy" else p.shape
    uniform = torch.rand(shape, generator=generator).to(p)
    if known == "binary_cross_entropy":
        return (p - (uniform < p).to(p.dtype)) * c.sqrt()
    label = (p.cumsum(axis) < uniform).sum(axis, keepdim=True).clamp_max(p.shape[axis] - 1)
    return (p - torch.zeros_like(p).scatter_(axis, label, 1)) * c.sqrt()


def _signs(z: Tensor, axis: int, generator: torch.Generator | None) -> Tensor:
    """±1 for each position of each example, so that products of two positions vanish on average."""
    shape = list(z.shape)
    shape[axis] = 1
    return (torch.randint(2, shape, generator=generator) * 2 - 1).to(z)


def _empirical(output: Any, target: Any, loss: Any, known: str) -> tuple[Tensor, Tensor]:
    resolved = resolve(loss)
    if not known:
        value = resolved(output, target)
        terms = resolved.num_terms(output, target) if resolved.reduction == "mean" else 1
        return value, torch.as_tensor(terms).to(value.detach()) ** 0.5
    z, c, _ = _terms(output, target, loss, known)
    leaf = output.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(resolved(leaf, target), leaf)
    return z, torch.where(c > 0, gradient.reshape(z.shape) / c.sqrt(), 0)
