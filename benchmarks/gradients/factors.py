"""Kronecker factors of all layers: beside what their operations cost, and amortised over training.

The operations: one forward pass; a pass back of the outputs' gradients (not the weights') for each column of the
curvature at the outputs (10 classes for "true", 1 for the others); and for each layer with R rows the products aᵀa,
once, and gᵀg, once a column: 2 R in² + 2 R out² C operations. The passes are timed as they are. The products are put

- at the rate of a product of two 1024 × 1024 matrices, measured beside them ("at the square rate"), and
- as the same products of ready matrices of these shapes, timed alone ("at their own rates"): long thin matrices reach
  less than the square rate whoever multiplies them.

Amortised: (period × step + factors) ÷ (period × step), a step being forward, backward and fused Adam on the same batch.
The period is that of sampled signals, `signals.cadence.EVERY`, for no rule that uses factors sets one yet; the least
period that stays within the target is written beside.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from networks import CLASSES, CNN, MLP, SEED, TRANSFORMER, Network
from passes import step_of_training
from timing import Effort, Row, interleaved, milliseconds, ratio
from torch import Tensor, nn

TARGET, AMORTISED = 1.3, 1.05
SQUARE = 1024
COLUMNS = {"true": CLASSES, "monte_carlo": 1, "empirical": 1}
SQUARES, OWN = "factors, products at the square rate", "factors, products at their own rates"


@dataclass(frozen=True)
class Shape:
    """Of one weight: rows that it is applied to, what it takes and gives; nothing taken by an embedding's A."""

    rows: int
    inputs: int
    outputs: int

    def operations(self, columns: int) -> int:
        """Multiplications and additions of aᵀa and, for each column, gᵀg."""
        return 2 * self.rows * (self.inputs**2 + columns * self.outputs**2)


def measure(effort: Effort) -> list[Row]:
    """Every network with every kind of Fisher matrix."""
    rows = []
    for network in (SEED, MLP, CNN, TRANSFORMER):
        for fisher in COLUMNS:
            rows += _of(network, fisher, effort)
    return rows


def _of(network: Network, fisher: str, effort: Effort) -> list[Row]:
    from thalweg.gradients.factors import kronecker_factors
    from thalweg.signals.cadence import EVERY

    model, batch, columns = network.model(), network.data(), COLUMNS[fisher]
    shapes = _shapes(model, batch)
    left, right = torch.randn(2, SQUARE, SQUARE).unbind()
    times = interleaved(
        {
            "step": step_of_training(network.model(), batch),
            "passes": _passes(model, batch[0], columns),
            "products": _products(shapes, columns),
            "square": lambda: left @ right,
            "thalweg": lambda: kronecker_factors(model, batch, "cross_entropy", fisher=fisher),
        },
        effort,
    )
    ours, step = times["thalweg"], times["step"]
    operations = sum(shape.operations(columns) for shape in shapes)
    counted = [operations / (2 * SQUARE**3) * seconds for seconds in times["square"]]
    details = {
        "ms": milliseconds(ours),
        "passes [ms]": milliseconds(times["passes"]),
        "products at the square rate [ms]": milliseconds(counted),
        "products alone [ms]": milliseconds(times["products"]),
        "products [Gflop]": operations / 1e9,
        "square rate [Gflop/s]": round(2 * SQUARE**3 / statistics.median(times["square"]) / 1e9, 1),
    }
    name, unit, rows = f"thalweg, {fisher}", "× passes and products", []
    for figure, products in ((SQUARES, counted), (OWN, times["products"])):
        bound = [a + b for a, b in zip(times["passes"], products, strict=True)]
        rows.append(Row(figure, network.name, name, unit=unit, target=TARGET, details=details, **ratio(ours, bound)))
    amortised = ratio([EVERY * a + b for a, b in zip(step, ours, strict=True)], [EVERY * a for a in step])
    share = statistics.median(b / a for a, b in zip(step, ours, strict=True))
    details = {"step [ms]": milliseconds(step), "steps that factors cost": round(share, 3), "period": EVERY}
    details["least period within the target"] = math.ceil(share / (AMORTISED - 1))
    rows.append(
        Row(
            f"factors every {EVERY} steps",
            network.name,
            name,
            unit="× step",
            target=AMORTISED,
            details=details,
            **amortised,
        )
    )
    return rows


def _passes(model: nn.Module, x: Tensor, columns: int) -> Callable[[], None]:
    """Forward, and so many passes back to the output of the first layer with weights, forming no weight's gradient."""
    first = next(m for m in model.modules() if m._parameters and any(True for _ in m.parameters(recurse=False)))
    column = torch.randn(len(x), CLASSES)

    def call() -> None:
        held: list[Tensor] = []
        handle = first.register_forward_hook(lambda module, args, y: held.append(y))
        z = model(x)
        handle.remove()
        for _ in range(columns):
            torch.autograd.grad(z, held, column, retain_graph=True)

    return call


def _products(shapes: list[Shape], columns: int) -> Callable[[], None]:
    """The products alone, of ready matrices."""
    ready = [(torch.randn(s.rows, s.inputs), torch.randn(s.rows, s.outputs)) for s in shapes]

    def call() -> None:
        for a, g in ready:
            if a.shape[1]:
                a.T @ a
            for _ in range(columns):
                g.T @ g

    return call


def _shapes(model: nn.Module, batch: Any) -> list[Shape]:
    """Rows and widths of every weight that has factors, seen in a forward pass."""
    found: list[Shape] = []

    def see(module: Any, args: Any, output: Any) -> None:
        if isinstance(module, nn.Linear):
            found.append(Shape(args[0].numel() // module.in_features, module.in_features, module.out_features))
        elif isinstance(module, nn.Conv2d):
            channels, inputs = module.out_channels, module.weight[0].numel()
            found.append(Shape(output.numel() // channels, inputs, channels))
        elif isinstance(module, nn.Embedding):
            found.append(Shape(args[0].numel(), 0, module.embedding_dim))
        elif isinstance(module, nn.MultiheadAttention):  # its output projection is no layer that is called
            rows, width = args[0].numel() // module.embed_dim, module.embed_dim
            found.extend((Shape(rows, width, 3 * width), Shape(rows, width, width)))

    handles = [module.register_forward_hook(see) for module in model.modules()]
    model(batch[0])
    for handle in handles:
        handle.remove()
    return found
