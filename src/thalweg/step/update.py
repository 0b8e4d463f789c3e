"""Step four: gradients → parameters, θ ← θ − α·(direction of the rule); with the gradient clipped where asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class Clip:
    """Bounds on the gradient: on its norm as a whole (its direction stays), or on each entry by itself."""

    norm: float | None = None
    value: float | None = None
    skips: bool = False
    """Whether an update whose gradient is not finite is left out; to see that, the host waits for the device."""


class Probe(Protocol):
    """Looks at parameters and their gradients around an update; it must not wait for the device."""

    @property
    def listens(self) -> bool: ...  # noqa: D102  # whether it hears the model's own layers, which must then be called
    def before(self, parameters: Sequence[nn.Parameter]) -> None: ...  # noqa: D102  # ahead of the update
    def gradients(self, parameters: Sequence[nn.Parameter]) -> None: ...  # noqa: D102  # there, and not clipped yet
    def after(self, parameters: Sequence[nn.Parameter]) -> None: ...  # noqa: D102  # moved by the rule


#: Updates in a row that are left out at most: a training of which nothing is finite does not stand still in silence.
IN_A_ROW = 10


class Update:
    """Clips, lets the rule move the parameters, and clears the gradients."""

    def __init__(self, optimizer: Optimizer, clip: Clip | None = None) -> None:
        self.optimizer = optimizer
        self.clip = clip or Clip()
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        self.num_skipped = 0
        """Updates that were left out since these were counted last."""
        self._in_a_row = 0

    def __call__(self, probe: Probe | None = None) -> None:
        """Make the update."""
        if probe is not None:
            probe.before(self.parameters)
            probe.gradients(self.parameters)
        self.apply()
        if probe is not None:
            probe.after(self.parameters)
        self.optimizer.zero_grad()

    def apply(self) -> None:
        """Move the parameters by their gradients, clipped, and leave these."""
        if self.clip.skips and self._in_a_row < IN_A_ROW and not self._is_finite():
            self.num_skipped += 1
            self._in_a_row += 1
            return
        self._in_a_row = 0
        self.clip_gradients()
        self.optimizer.step()

    def _is_finite(self) -> bool:
        norms = [p.grad.norm() for p in self.parameters if p.grad is not None]
        return not norms or bool(torch.isfinite(torch.stack(norms)).all())

    def clip_gradients(self) -> None:
        """Bound the gradients as they stand."""
        if self.clip.norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip.norm)
        elif self.clip.value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.clip.value)

    @property
    def needs_closure(self) -> bool:
        """Whether the rule evaluates the loss by itself, several times a step, as L-BFGS does."""
        return type(self.optimizer).__name__ == "LBFGS"

    @property
    def needs_batch(self) -> bool:
        """Whether the rule takes gradient and curvature of a batch by itself, as K-FAC and Gauss–Newton do."""
        return hasattr(self.optimizer, "descend")

    def with_batch(self, batch: Any, probe: Probe | None = None, watcher: Any = None) -> Tensor:
        """One step of a rule that is a method `descend(batch, graded, watcher) -> loss`.

        It calls `graded`, where that is not None, when the gradients are in `.grad`: they are probed and clipped there.
        """

        def graded() -> None:
            if probe is not None:
                probe.before(self.parameters)
                probe.gradients(self.parameters)
            self.clip_gradients()

        needs_gradients = probe is not None or self.clip != Clip()
        rule: Any = self.optimizer
        loss: Tensor = rule.descend(batch, graded if needs_gradients else None, watcher)
        if probe is not None:
            probe.after(self.parameters)
        self.optimizer.zero_grad()
        return loss

    def with_closure(self, gradients: Callable[[], Tensor], probe: Probe | None = None) -> Tensor:
        """One step of a rule that wants to re-evaluate; the loss at its first evaluation, which is what is probed."""
        first: list[Tensor] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            value = gradients()
            if not first and probe is not None:
                probe.before(self.parameters)
                probe.gradients(self.parameters)
            first.append(value)
            self.clip_gradients()
            return value.item()  # a line search decides on the host

        self.optimizer.step(closure)
        if probe is not None:
            probe.after(self.parameters)
        self.optimizer.zero_grad()
        return first[0]
