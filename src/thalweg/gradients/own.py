"""Each example's own loss J_i: the sum of all at once, and their gradients formed one beside the other."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from thalweg.step.data import Batch, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.tensors.named import leaves, mapped

#: Elements of gradients that the fallback forms at once: 64 MB of float32.
FORMED_ELEMENTS = 1 << 24


def own_losses(loss: Loss, output: Any, target: Any) -> Tensor:
    """A scalar whose gradient is that of Σ_i J_i, from the loss J of the batch.

    J = Σ n_i J_i / N for a mean over n_i terms of each example, N in all: the gradient at the outputs of example i is
    multiplied by N / n_i.
    """
    if loss.reduction == "sum":
        return loss(output, target)
    terms = _terms(loss, output, target)
    if not isinstance(terms, Tensor):
        return loss(output, target) * (loss.num_terms(output, target) / terms)

    def weighted(t: Tensor) -> Tensor:
        if not t.requires_grad:
            return t
        counts = terms.to(torch.promote_types(t.dtype, torch.float32)).view(-1, *[1] * (t.ndim - 1))
        factor = counts.sum() / counts
        t = t.view_as(t)
        t.register_hook(lambda g: torch.where(counts > 0, g * factor, 0).to(g.dtype))
        return t

    return loss(mapped(weighted, output), target)


def example_gradients(
    forward: Forward, data: Batch, loss: Loss | None, names: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """The gradients of the examples' own losses, formed: dicts of [n, *shape], some examples at a time."""
    parameters = forward.parameters()
    chosen = {name: parameters[name].detach() for name in names}
    size = max(1, FORMED_ELEMENTS // sum(p.numel() for p in chosen.values()))
    # Recurrent layers keep a list of their weights, which `functional_call` does not replace.
    slowly = forward.is_keras or any(isinstance(m, nn.RNNBase) for m in forward.model.modules())
    for start in range(0, num_examples(data), size):
        part = mapped(itemgetter(slice(start, start + size)), data)
        gradients: dict[str, Tensor] | None = None
        if not slowly:
            try:
                gradients = _mapped_gradients(forward, part, loss, chosen)
            except (RuntimeError, NotImplementedError):
                slowly = True
        if gradients is None:
            gradients = _looped_gradients(forward, part, loss, {name: parameters[name] for name in names})
        yield gradients


class _Objective(nn.Module):
    """The loss of one example, and how many terms it has, as one module, so that parameters can be put in."""

    def __init__(self, forward: Forward, loss: Loss | None) -> None:
        super().__init__()
        self.model = forward.model
        self._call = forward
        self._loss = loss

    def forward(self, x: Any, y: Any) -> tuple[Tensor, Tensor]:
        x, y = mapped(lambda t: t.unsqueeze(0), (x, y))
        training, one = self.model.training, torch.ones(())
        if self._loss is None:
            return self._call.own_loss(x, y, training), one
        output = self._call(x, training)
        terms = one if self._loss.reduction == "sum" else torch.as_tensor(self._loss.num_terms(output, y))
        return self._loss(output, y), terms


def _mapped_gradients(forward: Forward, part: Batch, loss: Loss | None, chosen: dict[str, Tensor]) -> dict[str, Tensor]:
    objective = _Objective(forward, loss)

    def own(parameters: dict[str, Tensor], x: Any, y: Any) -> tuple[Tensor, Tensor]:
        return functional_call(objective, {f"model.{name}": p for name, p in parameters.items()}, (x, y))

    axes = tuple(None if tree is None else mapped(lambda t: 0, tree) for tree in part)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # an operator not yet batched
        gradients, terms = vmap(grad(own, has_aux=True), (None, *axes), randomness="different")(chosen, *part)
    return {name: _unless_empty(g, terms) for name, g in gradients.items()}


def _looped_gradients(
    forward: Forward, part: Batch, loss: Loss | None, parameters: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    objective, rows = _Objective(forward, loss), []
    counts = []
    with torch.enable_grad():
        for i in range(num_examples(part)):
            value, terms = objective(*mapped(itemgetter(i), part))
            rows.append(
                torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
            )
            counts.append(terms)
    terms = torch.stack(counts)
    stacked = (torch.stack(column) for column in zip(*rows, strict=True))
    return {name: _unless_empty(g, terms) for name, g in zip(parameters, stacked, strict=True)}


def _unless_empty(gradients: Tensor, terms: Tensor) -> Tensor:
    """An example whose terms are all ignored has loss 0/0, and counts for nothing."""
    kept = (terms > 0).to(gradients.device).view(-1, *[1] * (gradients.ndim - 1))
    return torch.where(kept, gradients, 0)


def _terms(loss: Loss, output: Any, target: Any) -> float | Tensor:
    """Terms of each example: a number where it is the same by its shape, else a tensor [batch]."""
    one = loss.num_terms(*mapped(lambda t: t[:1], (output, target)))
    if not isinstance(one, Tensor):
        return one
    trees = mapped(Tensor.detach, (output, target))
    try:
        axes = tuple(mapped(lambda t: 0, tree) for tree in trees)
        return vmap(lambda o, t: loss.num_terms(*mapped(lambda s: s.unsqueeze(0), (o, t))), axes)(*trees)
    except RuntimeError:
        rows = range(len(next(leaves(target))))
        return torch.stack([loss.num_terms(*mapped(itemgetter(slice(i, i + 1)), trees)) for i in rows])  # type: ignore
