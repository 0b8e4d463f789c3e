"""One backward pass in which something is measured on the gradients of all single examples.

Examples do not touch each other in a forward pass, so one backward pass from Σ J_i (J_i: the loss of example i by
itself) brings ∂J_i/∂h to every layer. From it and the layer's input the gradients g_i = ∂J_i/∂θ are known as products
(`layers.py`), and are measured without being formed. The gradients of the weights themselves are not computed: this is
where the cost of the measure is won back.

Autograd's graph tells how often each parameter was used. Where the taps account for less (recurrent cells, layers not
known, a weight used outside its layer, a table that the examples share), g_i of just these parameters is formed, by
`torch.func.vmap(grad)`, or example by example where that fails.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.layers import kind, pieces
from thalweg.gradients.layouts import Layouts, check_independent, layouts
from thalweg.gradients.own import example_gradients, own_losses
from thalweg.gradients.pieces import Lookup, Outer, Piece
from thalweg.gradients.taps import Tap, Taps, eager
from thalweg.gradients.uses import Graph
from thalweg.step.data import Batch, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.tensors.named import leaves, mapped


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is taken of the gradients of the examples, parameter by parameter."""

    of_pieces: Callable[[Sequence[Piece]], Tensor]
    of_gradients: Callable[[Tensor], Tensor]
    """The same of gradients that are formed, [n, *shape]."""
    by_example: bool
    """[batch], one number an example; else a sum over examples in the shape of the parameter."""


class Sweep:
    """A forward and backward pass over a batch, for one measurement."""

    def __init__(self, model: nn.Module, data: Batch, loss: Any, with_mean: bool = False) -> None:
        self.forward = Forward(eager(model))
        check_independent(self.forward.model)
        self.loss = None if loss is None else resolve(loss)
        self.parameters = self.forward.parameters()
        device = next((p.device for p in self.parameters.values()), None)
        is_away = device is not None and any(t.device != device for t in leaves(data))
        self.data = mapped(lambda t: t.to(device), data) if is_away else data
        self.with_mean = with_mean
        self.mean: dict[str, Tensor] = {}
        """The mean of g_i by name, once measured, where it was asked for."""

    def measured(self, measurement: Measurement) -> dict[str, Tensor]:
        """The measurement by parameter name."""
        with torch.enable_grad():
            placed = layouts(self.forward, self.data, self.loss is None)
            reader = Measuring(placed, measurement)
            with Taps(self.forward.model, placed, reader):
                total = self._total(placed)
                graph = Graph(total, self.parameters.values())
                reader.uses = graph.uses
                self._back(total, graph)
        done = reader.finished(self.parameters, num_examples(self.data))
        left = [name for name in self.parameters if name not in done]
        if left:
            # Where random numbers are drawn, all parameters are to see the same draw.
            done.update(self._formed(list(self.parameters) if placed.stochastic else left, measurement))
        return {name: done[name] for name in self.parameters}

    def _total(self, placed: Layouts) -> Tensor:
        """A scalar with the gradient of Σ_i J_i."""
        x, y = self.data
        training = self.forward.model.training
        if self.loss is None:
            return self.forward.own_loss(x, y, training) * num_examples(self.data)
        output = self.forward(x, training)
        placed.check_apart(output)
        return own_losses(self.loss, output, y)

    def _back(self, total: Tensor, graph: Graph) -> None:
        """Back to the lowest layers; the gradients of parameters are computed only where they are wanted."""
        if not self.with_mean:
            torch.autograd.grad(total, graph.ends(attention_parameters(self.forward.model)), allow_unused=True)
            return
        found = torch.autograd.grad(total, list(self.parameters.values()), allow_unused=True)
        for (name, p), g in zip(self.parameters.items(), found, strict=True):
            self.mean[name] = torch.zeros_like(p) if g is None else g / num_examples(self.data)

    def _formed(self, names: list[str], measurement: Measurement) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        means = {name: torch.zeros_like(self.parameters[name]) for name in names}
        for gradients in example_gradients(self.forward, self.data, self.loss, names):
            for name, g in gradients.items():
                parts[name].append(measurement.of_gradients(g))
                means[name] += g.sum(0) / num_examples(self.data)
        if self.with_mean:
            self.mean.update(means)
        return {name: torch.cat(p) if measurement.by_example else torch.stack(p).sum(0) for name, p in parts.items()}


class Measuring:
    """Reads the taps of known layers and measures each parameter as soon as all its uses have come by."""

    def __init__(self, placed: Layouts, measurement: Measurement) -> None:
        self.placed = placed
        self.measurement = measurement
        self.uses: Counter[int] = Counter()
        """How often each parameter stands in the graph, by `id`; set before the backward pass."""
        self._arrived: Counter[int] = Counter()
        self._held: defaultdict[int, list[tuple[int, Piece]]] = defaultdict(list)
        self._totals: dict[int, Tensor] = {}

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """Input and gradient of every known layer that has a parameter to train."""
        if not kind(module) or not any(p.requires_grad for p in module.parameters()):
            return ()
        return ("projections",) if kind(module) == "attention" else ("input", "gradient")

    def read(self, tap: Tap) -> None:
        """A call of a layer, on the way back."""
        layout = self.placed.of(tap)
        if layout is None or (tap.part and not _in_place(layout, tap.module)):
            return
        for parameter, row, piece in pieces(tap, layout):
            key = id(parameter)
            self._arrived[key] += 1
            self._held[key].append((row, piece))
            if self._arrived[key] == self.uses[key]:
                self._measure(parameter)

    def finished(self, parameters: dict[str, nn.Parameter], batch: int) -> dict[str, Tensor]:
        """The measurements of the parameters that are accounted for in full; of one that was not used, zeros."""
        done = {}
        for name, p in parameters.items():
            if id(p) in self._totals:
                done[name] = self._totals[id(p)]
            elif self.uses[id(p)] == 0:
                done[name] = p.new_zeros(batch) if self.measurement.by_example else torch.zeros_like(p)
        return done

    def _measure(self, parameter: nn.Parameter) -> None:
        held = sorted(self._held.pop(id(parameter)), key=lambda entry: entry[0])
        groups = {row: [piece for _, piece in group] for row, group in itertools.groupby(held, key=lambda e: e[0])}
        ends = [row + max(_num_rows(piece) for piece in group) for row, group in groups.items()]
        if any(end > row for end, row in zip(ends, list(groups)[1:], strict=False)):
            return  # slices that overlap in part: their gradients add up neither as a whole nor apart
        total = self._totals[id(parameter)] = self._empty(parameter, held[0][1])
        for row, group in groups.items():
            measured = self.measurement.of_pieces(group)
            if self.measurement.by_example:
                total += measured
            else:
                total[row : row + len(measured)] = measured.reshape(-1, *parameter.shape[1:])

    def _empty(self, parameter: nn.Parameter, piece: Piece) -> Tensor:
        dtype = torch.promote_types(piece.gradient.dtype, torch.float32)
        shape = piece.gradient.shape[:1] if self.measurement.by_example else parameter.shape
        return parameter.new_zeros(shape, dtype=dtype)


def attention_parameters(model: nn.Module) -> set[int]:
    """Parameters of attention layers, whose products are heard as autograd computes their gradients."""
    return {id(p) for module in model.modules() if kind(module) == "attention" for p in module.parameters()}


def _in_place(layout: Any, attention: Any) -> bool:
    """Whether the examples are where an attention layer takes its batch to be."""
    return layout.fold == 1 and layout.axis == (0 if attention.batch_first else 1)


def _num_rows(piece: Piece) -> int:
    if isinstance(piece, Lookup):
        return piece.num_rows
    return piece.sizes[0] * piece.sizes[2] if isinstance(piece, Outer) else piece.gradient.shape[1]
