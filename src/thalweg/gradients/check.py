"""Backpropagation against the definition of a derivative, in float64.

The slope of the loss along a unit direction u is measured by central differences, extrapolated once (Richardson 1911):

    D(h) = (J(w + hu) − J(w − hu)) / 2h,      slope = (4 D(h/2) − D(h)) / 3,      error O(h⁴) + O(ε |J| / h)

The difference is relative, |gᵀu − slope| / max(|gᵀu|, |slope|, floor), where the floor keeps what rounding alone can
explain below the tolerance.

Where units switch between w − hu and w + hu (ReLU, max pooling, |·|), no formula holds. A difference that disagrees
with the gradient is measured again with smaller steps; if it still disagrees and the slopes on both sides of w differ
by as much, w lies on a kink, where any value between them is a right gradient: the place is left out and counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.chain import Snapshot, first_batch
from thalweg.gradients.taps import eager, uncompiled
from thalweg.records.gradient_check import TOLERANCE, GradientCheck, ParameterCheck
from thalweg.step.backward import objective
from thalweg.step.data import Batch, cast
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss, resolve
from thalweg.tensors.seeds import generator, untouched

#: Examples: enough for every layer to matter, few because the loss is computed four times a place.
BATCH_SIZE = 32
#: Entries of a tensor that are compared one by one, all of them where it has no more.
ENTRIES = 64
#: Further directions for larger tensors, over all their entries at once; the gradient itself is another.
DIRECTIONS = 2
#: Steps from the largest, which has the least rounding, down to where a kink nearby is out of reach.
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)
#: Rounding of a loss that sums up many terms, in units in the last place.
ROUNDING = 64


def check_gradients(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = None
) -> GradientCheck:
    """Compare the backpropagated gradient of every trained parameter with what the loss does.

    Done on a copy of the model in float64, in the mode the model is in, on the first (at most 32) examples. Dropout
    draws the same masks at each evaluation, batch norm sees the same batch. Of a tensor with more than 64 entries, 64
    are compared, and all together along the gradient and along two random directions; where only such a direction
    disagrees, the place is found by halving it. What is drawn follows from the parameter's name.

    Raises:
        ValueError: the model gives another loss each time (it draws from a generator of its own), or a loss that is
            not finite, or cannot be copied.

    >>> check_gradients(nn.Linear(3, 2), (torch.ones(4, 3), torch.zeros(4, 2)), "mse").ok
    True
    """
    with untouched(), uncompiled():
        measured = _Measured(_in_double(model), first_batch(model, data, BATCH_SIZE), loss)
        rows = tuple(_checked(measured, name, p) for name, p in measured.parameters())
    return GradientCheck(rows, measured.value)


def _in_double(model: nn.Module) -> nn.Module:
    if Forward(model).is_keras:
        raise ValueError("check_gradients computes in float64, which a Keras model casts away; give a torch module")
    try:
        return copy.deepcopy(eager(model)).double()
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the model cannot be copied ({str(error).splitlines()[0]}): check_gradients needs one"
        ) from error


class _Measured:
    """The loss as a function of the parameters: the same random numbers and the same buffers at each call."""

    def __init__(self, model: nn.Module, batch: Batch, loss: str | Callable[[Any, Any], Tensor] | None) -> None:
        self.forward = Forward(model)
        self.loss: Loss | None = None if loss is None else resolve(loss)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.batch = cast(batch, torch.float64, device)
        self._start = Snapshot(self.forward)
        self.gradient = self._gradients()
        self.value = self()
        if self.value != self():
            raise ValueError(
                "the model gives another loss each time it is called on the same batch: it draws random numbers from a "
                "generator of its own, or counts its calls"
            )

    def __call__(self) -> float:
        """The loss at the parameters as they are."""
        with torch.no_grad():
            return float(self._objective())

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What is trained, by name; a tied parameter once."""
        return list(self.forward.parameters().items())

    def _objective(self) -> Tensor:
        self._start.restore()
        return objective(self.forward, self.loss, self.batch)[0]

    def _gradients(self) -> dict[str, Tensor]:
        """By autograd, as training has them; zeros for what is not used."""
        named = self.parameters()
        with torch.enable_grad():
            value = self._objective()
            if not bool(torch.isfinite(value)):
                raise ValueError(f"the loss is {float(value.detach())}: a gradient needs a finite one")
            found = torch.autograd.grad(value, [p for _, p in named], allow_unused=True)
        return {n: torch.zeros_like(p) if g is None else g.detach() for (n, p), g in zip(named, found, strict=True)}

    def along(self, p: nn.Parameter, u: Tensor, steps: tuple[float, ...]) -> list[float]:
        """The loss at w + tu for each t; w is put back exactly."""
        kept = p.detach().clone()
        try:
            values = []
            for t in steps:
                with torch.no_grad():
                    p.copy_(kept + t * u)
                values.append(self())
            return values
        finally:
            with torch.no_grad():
                p.copy_(kept)


@dataclass(frozen=True, slots=True)
class _Compared:
    """One direction: gᵀu, the slope of the loss along u, and their relative difference; or a kink."""

    gradient: float
    slope: float
    error: float
    is_kink: bool = False


def _compare(measured: _Measured, p: nn.Parameter, g: Tensor, u: Tensor) -> _Compared:
    """Measure along the unit direction u, with smaller steps until gradient and slope agree or no step is left."""
    a = float((g * u).sum())
    best = _Compared(a, math.nan, math.inf)
    for h in STEPS:
        up, half_up, half_down, down = measured.along(p, u, (h, h / 2, -h / 2, -h))
        slope = (4 * (half_up - half_down) / h - (up - down) / (2 * h)) / 3
        floor = ROUNDING * torch.finfo(torch.float64).eps * abs(measured.value) / (h * TOLERANCE)
        error = abs(a - slope) / max(abs(a), abs(slope), floor)
        # NaN compares false: a loss that is not finite nearby counts as disagreement.
        if error < best.error:
            best = _Compared(a, slope, error)
        if error <= TOLERANCE:
            return best
    jump = abs((up - measured.value) - (measured.value - down)) / h
    is_kink = not jump < abs(a - slope)
    return _Compared(a, slope, best.error, is_kink)


def _checked(measured: _Measured, name: str, p: nn.Parameter) -> ParameterCheck:
    """Entries one by one, and for a large tensor directions; the worst of them is the row."""
    g = measured.gradient[name]
    entries = _entries(name, p)
    found: list[tuple[_Compared, int | None]] = [(_compare(measured, p, g, _unit(p, i)), i) for i in entries]
    if p.numel() > len(entries):
        for u in _directions(name, g):
            compared = _compare(measured, p, g, u)
            if compared.error > TOLERANCE and not compared.is_kink:
                found.append(_located(measured, p, g, u, compared))
            else:
                found.append((compared, None))
    counted = [(compared, entry) for compared, entry in found if not compared.is_kink]
    if not counted:
        return ParameterCheck(name, tuple(p.shape), 0.0, None, 0.0, 0.0, 0, len(found))
    worst, entry = max(counted, key=lambda pair: pair[0].error)
    place = None if entry is None else tuple(int(i) for i in torch.unravel_index(torch.tensor(entry), p.shape))
    numbers = (worst.gradient, worst.slope)
    return ParameterCheck(name, tuple(p.shape), worst.error, place, *numbers, len(counted), len(found) - len(counted))


def _located(
    measured: _Measured, p: nn.Parameter, g: Tensor, u: Tensor, compared: _Compared
) -> tuple[_Compared, int | None]:
    """Halve a direction that disagrees, keep the half that differs more, until one entry is left."""
    inside = u.flatten().nonzero().flatten()
    while len(inside) > 1:
        halves = inside.tensor_split(2)
        results = [_compare(measured, p, g, _part(u, half)) for half in halves]
        lengths = [float(_length(u, half)) for half in halves]
        differences = [abs(r.gradient - r.slope) * m for r, m in zip(results, lengths, strict=True)]
        place = differences.index(max(differences))
        if results[place].is_kink or results[place].error <= TOLERANCE:
            return compared, None
        inside, compared = halves[place], results[place]
    return compared, int(inside[0])


def _length(u: Tensor, part: Tensor) -> Tensor:
    return torch.linalg.vector_norm(u.flatten()[part])


def _part(u: Tensor, part: Tensor) -> Tensor:
    """The unit direction of some of its entries."""
    v = torch.zeros_like(u).flatten()
    v[part] = u.flatten()[part] / _length(u, part)
    return v.reshape(u.shape)


def _entries(name: str, p: Tensor) -> list[int]:
    if p.numel() <= ENTRIES:
        return list(range(p.numel()))
    return torch.randperm(p.numel(), generator=generator("check_gradients", name))[:ENTRIES].tolist()


def _unit(p: Tensor, entry: int) -> Tensor:
    u = torch.zeros_like(p).flatten()
    u[entry] = 1.0
    return u.reshape(p.shape)


def _directions(name: str, g: Tensor) -> list[Tensor]:
    """Unit directions over all entries: the gradient, along which the loss changes most, and random signs."""
    draw = generator("check_gradients", name, "directions")
    signs = torch.randint(2, (DIRECTIONS, *g.shape), generator=draw).to(g) * 2 - 1
    norm = torch.linalg.vector_norm(g)
    along = [g / norm] if float(norm) > 0 else []
    return [*along, *(signs / g.numel() ** 0.5)]
