"""The loss's curvature in the space of the outputs: what stands between Jᵀ and J in a Gauss–Newton or Fisher matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

from thalweg.step.losses import Loss
from thalweg.step.targets import IGNORED, Classes
from thalweg.tensors.named import leaves

#: Losses that are −log p in the natural parameters of an exponential family, so that Fisher and Gauss–Newton are one
#: (Martens 2020, section 9.2). `mse` is a normal distribution of variance 1/2.
NATURAL = ("cross_entropy", "binary_cross_entropy", "mse")

#: A linear map of vectors in the form of several tensors.
Map = Callable[[Sequence[Tensor]], Sequence[Tensor]]

#: What autograd says of an operation whose derivative has none.
_NO_SECOND = ("is not implemented", "differentiate twice", "double backward")
#: The code that `once_differentiable` puts around a backward: what it computes is a constant to autograd.
_ONCE = once_differentiable(lambda ctx: None).__code__

_PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross_entropy": lambda z: z.softmax(-1),
    "nll": lambda z: z.exp(),
    "categorical_cross_entropy": lambda z: z,
}


#: Losses whose output is a distribution that targets can be drawn from.
DRAWN = ("mse", "binary_cross_entropy", *_PROBABILITIES)


def derivative(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], v: Sequence[Tensor] | None = None, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Σ ⟨outputs, v⟩ by each of the inputs; zero where nothing depends on it. The graph stays.

    Raises:
        ValueError: an operation has no second derivative.
    """
    pairs = [(t, None if v is None else v[i]) for i, t in enumerate(outputs) if t.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in inputs)
    try:
        return torch.autograd.grad(
            [t for t, _ in pairs],
            inputs,
            [weight for _, weight in pairs],
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    except RuntimeError as error:
        said = str(error).splitlines()[0] if str(error) else ""
        if any(words in said for words in _NO_SECOND):
            raise ValueError(f"the model or loss cannot be differentiated twice: {said}") from error
        raise


def require_second(ends: Sequence[Tensor]) -> None:
    """Refuse a graph whose gradient autograd would take for a constant, and the second derivative for zero.

    Raises:
        ValueError: a custom function in it is marked `@once_differentiable`.
    """
    waiting = [t.grad_fn for t in ends if t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if isinstance(node, BackwardCFunction):
            function: Any = getattr(type(node), "_forward_cls", None)
            if getattr(getattr(function, "backward", None), "__code__", None) is _ONCE:
                raise ValueError(
                    f"{function.__name__} cannot be differentiated twice: its backward is marked @once_differentiable; "
                    "write it in torch's operations and leave the mark out"
                )
        fresh = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= fresh
        waiting.extend(fresh)


def loss_hessian(loss: Loss, output: Any, target: Any) -> Map:
    """H_L, the Hessian of the loss by the outputs (a tree of leaves that require a gradient), as a map."""
    z = [t for t in leaves(output) if t.requires_grad]
    value = loss(output, target)
    require_second([value])
    slope = derivative([value], z, create_graph=True)
    return lambda u: derivative(slope, z, u)


def fisher_of_outputs(loss: Loss, output: Any, target: Any, draws: int, source: torch.Generator) -> Map:
    """F_f = E[g gᵀ] over the given target (`draws` 0), or over targets drawn from the output's own distribution.

    The loss is a mean over n terms, so that its derivative by an example's outputs is g/n: (1/n) Σ g gᵀ is
    n Σ (g/n)(g/n)ᵀ.
    """
    z = [t for t in leaves(output) if t.requires_grad]
    targets = [drawn_target(loss.name, output.detach(), target, source) for _ in range(draws)] or [target]
    scale = (loss.num_terms(output, target) if loss.reduction == "mean" else 1) / len(targets)
    return _outer_products([derivative([loss(output, t)], z) for t in targets], scale)


def drawn_target(name: str, output: Tensor, target: Tensor, source: torch.Generator) -> Tensor:
    """A target in the form of the given one, drawn from the distribution that the loss takes the output for."""
    if name == "mse":
        return output + torch.empty_like(output).normal_(0, 0.5**0.5, generator=source)
    if name == "binary_cross_entropy":
        return torch.bernoulli(output.sigmoid(), generator=source)
    scores, labels = Classes()(output, target)
    p = _PROBABILITIES[name](scores.movedim(1, -1))
    drawn = torch.multinomial(p.flatten(0, -2), 1, generator=source).view(p.shape[:-1])
    if labels.is_floating_point():
        return F.one_hot(drawn, p.shape[-1]).movedim(-1, 1).to(output.dtype).reshape(target.shape)
    return drawn.where(labels != IGNORED, IGNORED).view(target.shape)


def _outer_products(slopes: Sequence[Sequence[Tensor]], scale: float | Tensor) -> Map:
    """The map u ↦ scale · Σ over draws and examples of g ⟨g, u⟩; examples along axis 0."""

    def bend(u: Sequence[Tensor]) -> Sequence[Tensor]:
        result = [torch.zeros_like(t) for t in u]
        for slope in slopes:
            inner = torch.stack([(g * t).flatten(1).sum(1) for g, t in zip(_rows(slope), _rows(u), strict=True)]).sum(0)
            for i, g in enumerate(slope):
                result[i] += g * (inner * scale).view(-1, *[1] * (g.ndim - 1))
        return result

    return bend


def _rows(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.reshape(len(t), -1) for t in tensors]
