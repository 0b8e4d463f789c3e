"""How far a quadratic model of the loss is to be trusted, and what it says along a direction.

With the model M(δ) = gᵀδ + ½ δᵀBδ, B = JᵀHJ the Gauss–Newton matrix, and ρ = (J(θ+δ) − J(θ)) / M(δ): where the loss
fell by more than three quarters of what the model promised, the damping λ shrinks by a factor, where it fell by less
than a quarter, it grows by it (Levenberg 1944; Marquardt 1963; Martens & Grosse 2015, section 6.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.columns import bend
from thalweg.step.backward import objective
from thalweg.step.batches import Parts
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss

#: Reduction ratios below and above which the model is too bold and too timid.
POOR, GOOD = 0.25, 0.75


def adapted(damping: float, actual: float, predicted: float, factor: float) -> float:
    """λ after a step that was predicted to change the loss by M(δ) and did by J(θ+δ) − J(θ); 0 < factor < 1."""
    if not predicted < 0 or not math.isfinite(actual):
        return damping / factor
    ratio = actual / predicted
    if ratio < POOR:
        return damping / factor
    return damping * factor if ratio > GOOD else damping


class Outputs:
    """What a forward pass over a batch gave, part by part; a watcher that hands on to another."""

    def __init__(self, further: Any = None) -> None:
        self.parts: list[tuple[Tensor, Any]] = []
        self._further = further

    def update(self, output: Any, target: Any) -> None:
        """Outputs of a (micro-)batch, and its target."""
        self.parts.append((output.detach(), target))
        if self._further is not None:
            self._further.update(output, target)


class Replay:
    """The same batch once more at other weights, by the same function: the same random numbers, buffers put back."""

    def __init__(self, forward: Forward, loss: Loss, batch: Batch | Parts) -> None:
        """Made before the first pass over the batch."""
        self.forward, self.loss, self.batch = forward, loss, batch
        self._holders = [module for module in forward.model.modules() if module._buffers]
        self._then = self._now()

    def change(self, parameters: Sequence[nn.Parameter], v: Sequence[Tensor], step: float, seen: Outputs) -> Any:
        """(f(θ + step·v) − f(θ)) / step for each part, and J(θ + step·v)."""
        now = self._now()
        self._put_back(*self._then)
        moved, values, weights = [], [], []
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            try:
                along = [t.to(p.dtype) for p, t in zip(parameters, v, strict=True)]
                torch._foreach_add_(list(parameters), along, alpha=step)
                for batch, (first, target) in zip(parts_of(self.batch), seen.parts, strict=True):
                    value, output = objective(self.forward, self.loss, batch)
                    moved.append((output.detach() - first) / step)
                    values.append(value.double())
                    weights.append(self._weight(output, target))
            finally:
                torch._foreach_copy_(list(parameters), before)
                self._put_back(*now)
        return moved, float(_combined(self.loss, values, weights))

    def bend(self, moved: Sequence[Tensor], seen: Outputs) -> float:
        """uᵀHu of u = Jv, v by what `change` gave."""
        values = [bend(z, y, self.loss, u) for (z, y), u in zip(seen.parts, moved, strict=True)]
        return float(_combined(self.loss, values, [self._weight(z, y) for z, y in seen.parts]))

    def _weight(self, output: Any, target: Any) -> Any:
        return self.loss.num_terms(output, target)

    def _now(self) -> tuple[list[Tensor], list[Tensor]]:
        """What torch's generators stand at, and copies of the buffers: all that a pass of a model may change."""
        drawn = [torch.get_rng_state()]
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            drawn += torch.cuda.get_rng_state_all()
        return drawn, [b.clone() for b in self._buffers()]

    def _buffers(self) -> list[Tensor]:
        """Those that the model holds now: a forward pass may put others in their place."""
        return [b for module in self._holders for b in module._buffers.values() if b is not None]

    def _put_back(self, drawn: list[Tensor], buffers: list[Tensor]) -> None:
        torch.set_rng_state(drawn[0])
        if drawn[1:]:
            torch.cuda.set_rng_state_all(drawn[1:])
        for b, value in zip(self._buffers(), buffers, strict=True):
            b.copy_(value)


def parts_of(batch: Batch | Parts) -> Iterable[Batch]:
    """The micro-batches of a batch, or the batch."""
    return batch if type(batch) is Parts else [batch]  # type: ignore[list-item]


def _combined(loss: Loss, values: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
    """The value over all parts, from each part's."""
    if len(values) == 1:
        return values[0]
    if loss.reduction != "mean":
        return torch.stack(list(values)).sum()
    share = torch.tensor([float(weight) for weight in weights], dtype=torch.float64)
    return (torch.stack([v.double().cpu() for v in values]) * share).sum() / share.sum()


def require_outputs(rule: str, forward: Forward, loss: Any) -> None:
    """Refuse what a rule that needs loss and outputs cannot be built on.

    Raises:
        TypeError: no loss, or a Keras model.
    """
    if loss is None:
        raise TypeError(f"{rule} needs the model's outputs: give loss=, for a model that returns its loss use adamw")
    if forward.is_keras:
        raise TypeError(f"{rule} reads torch's own layers, and this model's are Keras's: use adamw")


def positive(**numbers: float) -> None:
    """Refuse what is no number above 0.

    Raises:
        ValueError: the message names it.
    """
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is a number above 0, got {value!r}")
