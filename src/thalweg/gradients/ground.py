"""A model on some examples of its data, to be measured and moved about: at the point itself and at points beside it.

The measurements are made on a float64 copy of the model where that is cheap, else on the model itself, whose weights
are put back to the bit.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.products import Curvature, LossLike, twice_differentiable
from thalweg.step.data import Arrays, Batch, Stream, cast, num_examples, read
from thalweg.step.forward import Forward
from thalweg.step.keras import is_keras
from thalweg.step.losses import Loss
from thalweg.tensors import seeds
from thalweg.tensors.named import copied, leaves, mapped, state
from thalweg.tensors.vector import flat

#: Parameters up to which the measurements are made in float64, on a copy.
COPIED_PARAMETERS = 1_000_000
#: Parts of the examples that the gradient's noise is estimated from.
NOISE_PARTS = 32


@dataclass(frozen=True, slots=True)
class Slope:
    """Loss and gradient at a point, and how much the gradient differs between parts of the examples."""

    loss: float
    loss_scale: float
    """The loss with each output standing for another example, or the loss itself if that is larger; 0 where an exact
    fit has all outputs alike."""
    gradient: Tensor
    """[parameters]"""
    example_variance: float
    """tr Σ: the summed variance of a single example's gradient; NaN from one part."""
    num_examples: int

    @property
    def norm(self) -> float:
        """‖g‖."""
        return float(torch.linalg.vector_norm(self.gradient))

    @property
    def standard_error(self) -> float:
        """√(tr Σ/n): how far the gradient may lie from that of the distribution the examples come from."""
        return math.sqrt(self.example_variance / self.num_examples)

    @property
    def noise_scale(self) -> float:
        """Simple noise scale tr Σ/|G|² [examples] (McCandlish et al. 2018, eq. 2.9).

        |G|² is estimated without bias, ‖g‖² − tr Σ/n; infinite where nothing of the gradient stands out of its noise.
        """
        signal = self.norm**2 - self.example_variance / self.num_examples
        if math.isnan(signal):
            return math.nan
        return self.example_variance / signal if signal > 0 else math.inf


class Ground:
    """Losses, slopes and curvature around the point at which the model stands."""

    def __init__(self, model: nn.Module, examples: Examples, loss: LossLike) -> None:
        self.examples = examples
        self.curvature = Curvature(model, examples.together, loss)
        self.forward, self.loss = self.curvature.forward, self.curvature.loss
        self.parameters = self.curvature.parameters
        self.origin = flat(p.detach() for p in self.parameters)
        self.is_mean = self.loss is None or self.loss.reduction == "mean"

    def place(self, offset: Tensor | None) -> None:
        """Stand at origin + offset `[parameters]`, or exactly at the origin."""
        point = self.origin if offset is None else self.origin + offset
        with torch.no_grad():
            for p, value in zip(self.parameters, self.curvature.layout.unflatten(point).values(), strict=True):
                p.copy_(value)

    def loss_at(self, offset: Tensor | None) -> float:
        """The loss at origin + offset."""
        self.place(offset)
        return self.loss_here()

    def loss_here(self) -> float:
        """The loss where it stands."""
        total, terms = 0.0, 0.0
        with twice_differentiable(self.forward.model), torch.no_grad():
            for index, batch in enumerate(self.curvature.batches.epoch(0)):
                value, weight, _ = self._value(batch, index)
                total += float(value) * weight if weight else 0.0
                terms += weight
        return total / terms if self.is_mean else total

    def slope(self) -> Slope:
        """Loss and gradient where it stands, with their noise, in one pass over the examples.

        The variance is Σ n_m‖g_m − g‖²/(M − 1) over M parts of n_m terms, gathered by Welford's recurrence.
        """
        mean = torch.zeros_like(self.origin)
        loss = terms = spread = 0.0
        parts, shuffled = 0, _Shuffled(self.loss)
        with twice_differentiable(self.forward.model):
            for index, part in enumerate(self.examples.parts):
                batch = cast(part, self.curvature.dtype, self.curvature.device)
                value, weight, output = self._value(batch, index)
                if not weight:
                    continue
                if not self.is_mean:  # a sum is put as the mean over its rows until the end
                    weight = float(num_examples(batch))
                    value = value / weight
                gradient = flat(torch.autograd.grad(value, self.parameters, materialize_grads=True))
                parts, terms = parts + 1, terms + weight
                off = gradient - mean
                mean += off * (weight / terms)
                spread += weight * float(torch.dot(off, gradient - mean))
                loss += weight * value.item()
                shuffled.add(output, batch[1], weight if self.is_mean else 1.0)
        rows = self.examples.count
        factor = 1.0 if self.is_mean else float(rows)
        # per term, then for an example of several terms
        variance = spread / (parts - 1) * rows / terms * factor**2 if parts > 1 else math.nan
        scale = max(abs(loss), abs(shuffled.total())) / terms * factor
        return Slope(loss / terms * factor, scale, mean * factor, variance, rows)

    def _value(self, batch: Batch, index: int) -> tuple[Tensor, float, Any]:
        """Loss of a batch, the terms it is a mean over, and the outputs."""
        x, y = batch
        output, weight = None, 1.0
        if self.loss is None:
            value, weight = self.forward.own_loss(x, y, training=False), float(num_examples(batch))
        else:
            output = self.forward(x, training=False)
            value = self.loss(output, y)
            if self.is_mean:
                weight = float(self.loss.num_terms(output, y))
        added = self.forward.added_loss()
        if added is not None and (self.is_mean or index == 0):
            value = value + added
        return value, weight, output


class _Shuffled:
    """The loss with the outputs moved on by one example; 0 where there is nothing to move.

    A part of several rows goes round in itself; one of a single row takes the last output of the part before it, the
    first part that of the last one.
    """

    def __init__(self, loss: Loss | None) -> None:
        self.loss = loss
        self._sum = 0.0
        self._before: Any = None
        self._first: tuple[Any, Any, float] | None = None

    def add(self, output: Any, y: Any, weight: float) -> None:
        """Count a part."""
        if self.loss is None:
            return
        moved = mapped(lambda t: t.detach().roll(1, 0), output)
        if any(t.ndim and len(t) > 1 for t in leaves(moved)):
            self._sum += self._loss(moved, y) * weight
        elif self._before is None:
            self._first = (moved, y, weight)
        else:
            self._sum += self._of_another(moved, y) * weight
        self._before = mapped(lambda t: t[:1], moved)  # rolled: the last row stands first

    def total(self) -> float:
        """Over all parts."""
        if self._first is None:
            return self._sum
        output, y, weight = self._first
        return self._sum + self._of_another(output, y) * weight

    def _of_another(self, output: Any, y: Any) -> float:
        fits = [t.shape for t in leaves(output)] == [t.shape for t in leaves(self._before)]
        return self._loss(self._before, y) if fits else 0.0

    def _loss(self, output: Any, y: Any) -> float:
        assert self.loss is not None
        value = float(self.loss(output, y))
        return value if math.isfinite(value) else 0.0


@dataclass(frozen=True, slots=True)
class Examples:
    """What is measured on."""

    together: Any
    """`(x, y)`, or a list of batches."""
    parts: list[Batch]
    """The same examples in the parts that the gradient's noise is estimated from."""
    count: int
    complete: bool
    """Whether these are all the data there is."""


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Of the model's weights: what its inputs are to be."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def sample(data: Any, dtype: torch.dtype, count: int, seed: int) -> Examples:
    """At most `count` examples: of arrays and datasets drawn by the seed, of ready batches the first ones."""
    form = read(data, dtype)
    if isinstance(form, Stream):
        return _first_batches(form, count)
    chosen = torch.randperm(len(form), generator=seeds.generator(seed, "landscape"))[:count]
    held = Arrays(*form.take(chosen))
    size = math.ceil(len(held) / NOISE_PARTS)
    parts = [held.take(rows) for rows in torch.arange(len(held)).split(size)]
    return Examples((held.x, held.y), parts, len(held), len(held) == len(form))


def _first_batches(form: Stream, count: int) -> Examples:
    parts: list[Batch] = []
    rows = 0
    batches = form.batches()
    for batch in batches:
        parts.append(batch)
        rows += num_examples(batch)
        if rows >= count:
            break
    if not parts:
        raise ValueError("the data is empty: the iterable yields no batch; give at least one")
    return Examples(parts, parts, rows, next(batches, None) is None)


@contextlib.contextmanager
def standing(model: nn.Module, examples: Examples, loss: LossLike, in_double: bool = True) -> Iterator[Ground]:
    """The ground around a model; afterwards the model is as before, weights, buffers and counters.

    `in_double`: on a copy in float64 where that is cheap.
    """
    own = _copy(model) if in_double else None
    if own is not None:
        yield Ground(own, examples, loss)
        return
    tensors = {**state(model), **Forward(model).state()}
    before = copied(tensors)
    try:
        yield Ground(model, examples, loss)
    finally:
        with torch.no_grad():
            for name, t in tensors.items():
                t.copy_(before[name])


def _copy(model: nn.Module) -> nn.Module | None:
    """The model in float64, or None where it is large, its device knows no float64, or it cannot be copied."""
    parameters = list(model.parameters())
    unfit = is_keras(model) or any(p.device.type == "mps" or not p.is_floating_point() for p in parameters)
    if unfit or sum(p.numel() for p in parameters) > COPIED_PARAMETERS:
        return None
    try:
        return copy.deepcopy(model).double()
    except (RuntimeError, TypeError):  # tensors with a history, locks, handles: whatever cannot be copied
        return None
