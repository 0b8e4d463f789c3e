"""Step four: gradients → parameters, θ ← θ − α·(direction of the rule); with the gradient clipped where asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.step.backward import gradient_norm


@dataclass(frozen=True, slots=True)
class Clip:
    """Bounds on the gradient: on its norm as a whole (its direction stays), or on each entry by itself."""

    norm: float | None = None
    value: float | None = None


class Update:
    """Clips, lets the rule move the parameters, and clears the gradients."""

    def __init__(self, optimizer: Optimizer, clip: Clip | None = None) -> None:
        self.optimizer = optimizer
        self.clip = clip or Clip()
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, measure: bool = False) -> Tensor | None:
        """Make the update; returns the norm of the gradient before clipping if it is to be measured."""
        norm = self.clipped(measure)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def clipped(self, measure: bool) -> Tensor | None:
        """Clip the gradients as they stand; the norm before it, if measured."""
        if self.clip.norm is not None:
            return nn.utils.clip_grad_norm_(self.parameters, self.clip.norm)
        norm = gradient_norm(self.parameters) if measure else None
        if self.clip.value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.clip.value)
        return norm

    @property
    def needs_closure(self) -> bool:
        """Whether the rule evaluates the loss by itself, several times a step, as L-BFGS does."""
        return type(self.optimizer).__name__ == "LBFGS"

    def with_closure(self, gradients: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
        """One step of a rule that wants to re-evaluate: loss at the first evaluation, and the gradient's norm there."""
        first: list[tuple[Tensor, Tensor | None]] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            value = gradients()
            norm = self.clipped(measure=not first)
            first.append((value, norm))
            return value.item()  # a line search decides on the host

        self.optimizer.step(closure)
        self.optimizer.zero_grad()
        return first[0]
