"""L-BFGS for the whole data set: `torch.optim.LBFGS` with what it lacks to be left alone.

With s_i = θ_{i+1} − θ_i, y_i = g_{i+1} − g_i and ρ_i = 1/(y_iᵀs_i) of the last iterations, the direction is

    q ← g;  for i from new to old:  a_i = ρ_i s_iᵀq,  q ← q − a_i y_i
    r ← γ q, γ = sᵀy/yᵀy;  for i from old to new:  r ← r + s_i (a_i − ρ_i y_iᵀr);  d = −r

and θ ← θ + t d with t from a line search for the strong Wolfe conditions (Nocedal 1980; Liu & Nocedal 1989; Nocedal &
Wright 2006, algorithms 7.4 and 3.5). Direction and search are torch's own; here are added several parameter groups, a
state in float32 under half precision, and a way on after what is not finite.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.optim import exact

#: A value of the loss that is not finite is told to the line search as one so much above the start's: it goes back.
WALL = 1e6
#: Pairs (s, y) that are kept, at least and at most, and numbers that all of them together may come to: 64 MB.
FEWEST, MOST, ROOM = 10, 100, 1 << 24


class LBFGS(Optimizer):
    """Limited-memory BFGS with a line search, for a loss that is the same function at every call.

    Letters: see the module. A step is up to `max_iter` iterations, each of a gradient or a few.

    Groups: with rates α_k the variables of group k are measured in units of √(α_k/α_1), so that the first direction is
    −α_k/α_1 g_k there; α_1 is the length that each search tries first.

    What is not finite: in a line search it is a wall to go back from. A step that found nothing else forgets the
    history, which may be what has overflown; one that begins there goes back to where the last step ended.

    Cost: a gradient over the whole batch for each evaluation, 2 `max_iter` at most; 4 `history_size` n operations
    beside. Memory: (2 `history_size` + 5) n numbers, n the number of parameters.

    For full batches of smooth losses, networks that are small or convex: logistic regression, least squares, physics-
    informed networks. Not for mini-batches or dropout: gradients then differ for reasons that it takes for curvature.

    Args:
        params: parameters or groups of them.
        lr: the first length of each search; 1 is Newton's (Nocedal & Wright 2006, section 6.1).
        max_iter: iterations of a step (20: torch).
        history_size: pairs (s, y) that are kept; None for what 64 MB hold, from 10 (Nocedal & Wright 2006, section 7.2,
            have 3 to 20) to 100 (torch), for on a badly conditioned loss each more saves iterations.
        tolerance_grad: a step ends where no entry of the gradient is larger.
        tolerance_change: a step ends where the loss or every parameter changes by less; both tolerances are near zero,
            for what is small depends on the loss's unit.

    Raises:
        ValueError: a rate or a count is out of range.
    """

    clips = False
    """Whether gradients may be clipped before it sees them."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        max_iter: int = 20,
        history_size: int | None = None,
        tolerance_grad: float = 1e-20,
        tolerance_change: float = 1e-20,
    ) -> None:
        if max_iter < 1 or (history_size is not None and history_size < 1):
            raise ValueError(f"max_iter and history_size are at least 1, got {max_iter} and {history_size}")
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "history_size": history_size,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            if not 0 < group["lr"] < math.inf:
                raise ValueError(f"a learning rate is a number above 0, got {group['lr']!r}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Some iterations; returns the loss at the start of them.

        Args:
            closure: clears the gradients, computes loss and gradients anew, and returns the loss.
        """
        first = self.param_groups[0]
        rates = [group["lr"] / first["lr"] for group in self.param_groups if group["params"]]
        inner = _Scaled([p for group in self.param_groups for p in group["params"]], first)
        if not inner._numel():
            return torch.enable_grad()(closure)()
        inner.state = self.state
        counts = [len(group["params"]) for group in self.param_groups if group["params"]]
        inner.scales = [math.sqrt(rate) for rate, count in zip(rates, counts, strict=True) for _ in range(count)]
        state = self.state[inner._params[0]]
        if state.get("rates", rates) != rates:  # the history is in other units
            _forget(state)
        state["rates"] = rates
        guard = _Guard(closure, inner)
        try:
            loss = inner.step(guard)
        except _LostError as lost:
            return self._recovered(state, inner, lost.value)
        if guard.num_walls and not guard.has_fallen:
            _forget(state)
        state["good"] = inner._clone_param()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, exactly."""
        exact.load(self, state_dict)

    def _recovered(self, state: dict[str, Any], inner: _Scaled, value: Any) -> Any:
        """Back to the last point that is known to be good, without a history."""
        _forget(state)
        if "good" in state:
            warnings.warn(
                "L-BFGS stood where loss or gradient is not finite, and went back to where its last step had ended",
                RuntimeWarning,
                stacklevel=3,
            )
            inner._set_param(state["good"])
        return value


class _Scaled(torch.optim.LBFGS):
    """Torch's own over variables θ/s, gathered in float32 at least."""

    def __init__(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        words = ("lr", "max_iter", "history_size", "tolerance_grad", "tolerance_change")
        given = {word: group[word] for word in words}
        if given["history_size"] is None:
            count = sum(p.numel() for p in parameters)
            given["history_size"] = min(MOST, max(FEWEST, ROOM // (2 * max(count, 1))))
        super().__init__(parameters, max_eval=2 * group["max_iter"], line_search_fn="strong_wolfe", **given)
        self.scales: list[float] = []
        self._gathered: Tensor | None = None

    def gather(self) -> Tensor:
        """The gradient that a closure has left, which torch's code will ask for once."""
        parts = []
        for p, scale in zip(self._params, self.scales, strict=True):
            wide = torch.promote_types(p.dtype, torch.float32)
            g = torch.zeros_like(p, dtype=wide) if p.grad is None else p.grad.to_dense().to(wide)
            g = g if scale == 1 else g * scale
            parts.append((torch.view_as_real(g) if g.is_complex() else g).reshape(-1))
        self._gathered = torch.cat(parts)
        return self._gathered

    def _gather_flat_grad(self) -> Tensor:
        found, self._gathered = self._gathered, None
        return self.gather() if found is None else found

    def _add_grad(self, step_size: Any, update: Tensor) -> None:
        offset = 0
        for p, scale in zip(self._params, self.scales, strict=True):
            real = torch.view_as_real(p) if p.is_complex() else p
            part = update[offset : offset + real.numel()].view(real.shape)
            real.add_(part, alpha=float(step_size) * scale)
            offset += real.numel()


class _LostError(Exception):
    """The step begins where nothing is finite."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


class _Guard:
    """A closure whose values are finite."""

    def __init__(self, closure: Callable[[], Any], inner: _Scaled) -> None:
        self.closure = closure
        self.inner = inner
        self.num_evaluations = self.num_walls = 0
        self.first = 0.0
        self.has_fallen = False

    def __call__(self) -> Any:
        value = self.closure()
        value = value.detach() if isinstance(value, Tensor) else value
        number = float(value)
        largest = torch.linalg.vector_norm(self.inner.gather(), math.inf)
        is_finite = math.isfinite(number) and math.isfinite(largest)
        self.num_evaluations += 1
        if is_finite:
            if self.num_evaluations == 1:
                self.first = number
            self.has_fallen |= number < self.first
            return value
        if self.num_evaluations == 1:
            raise _LostError(value)
        self.num_walls += 1
        for p in self.inner._params:
            p.grad = None
        self.inner.gather()
        return self.first + WALL * (1.0 + abs(self.first))


def _forget(state: dict[str, Any]) -> None:
    """Begin anew, with the gradient as the first direction; counts and the good point stay."""
    for word in list(state):
        if word not in ("good", "rates", "func_evals"):
            del state[word]
