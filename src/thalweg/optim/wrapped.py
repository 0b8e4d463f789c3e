"""A rule around a rule: groups and state are those of the rule inside, beside which the outer one keeps its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Wrapped(Optimizer):
    """What wrappers share. Save and load the wrapper, not the rule inside.

    Raises:
        TypeError: the rule evaluates the loss by itself.
    """

    def __init__(self, optimizer: Optimizer, options: dict[str, Any]) -> None:
        if hasattr(optimizer, "descend") or type(optimizer).__name__ == "LBFGS":
            raise TypeError(
                f"{type(self).__name__} goes around a rule whose step needs gradients alone, and "
                f"{type(optimizer).__name__} evaluates the loss by itself: use it without a wrapper"
            )
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, options)
        self._follow()
        for group in self.param_groups:
            self._begin(group)

    def _follow(self) -> None:
        """A rule that was loaded has new groups and a new state."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: D102
        if all(group is not param_group for group in self.optimizer.param_groups):
            begun = len(self.param_groups)
            self.optimizer.add_param_group(param_group)
            self._follow()
            try:
                for group in self.param_groups[begun:]:
                    self._begin(group)
            except ValueError:
                del self.param_groups[begun:]
                raise

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"optimizer": self.optimizer}  # type: ignore[no-any-return,no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._follow()

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        self._follow()
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.optimizer.load_state_dict(state_dict)
        self._follow()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make a step of the rule inside and what goes with it; returns what `closure` returns, called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow()
        pairs = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        self._around(pairs)
        return loss

    def _begin(self, group: dict[str, Any]) -> None:
        """Give a group of the rule inside what the outer one keeps of it."""
        raise NotImplementedError

    def _around(self, pairs: list[tuple[dict[str, Any], Tensor]]) -> None:
        """The step of parameters that have a gradient, each with its group, by way of `self.optimizer.step()`."""
        raise NotImplementedError
