"""The Gauss–Newton step from the side of the outputs: a system of as many rows as a batch has outputs.

With J [outputs, parameters], r = ∂J/∂z and H = ∂²J/∂z² at the outputs, pushing J through the inverse,

    d = −(JᵀHJ + λI)⁻¹ Jᵀr = −Jᵀ a,      (H K + λI) a = r,      K = J Jᵀ

so that n parameters cost no more than one gradient Jᵀa, and J itself is never made: of a dense layer with inputs a_i,
and gradients g_ic of output c of example i at the layer's output, K is Σ (a_i·a_j + 1)(g_ic·g_je), the 1 for the bias
(Zhang, Martens & Grosse 2019, arXiv 1905.10961; Guzmán-Cordero et al. 2025, arXiv 2505.12149).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.layers import Layout, kind, pieces
from thalweg.gradients.pieces import Outer, Piece, as_float, formed
from thalweg.gradients.taps import Tap, Taps
from thalweg.gradients.uses import Graph

#: Numbers of J that are made at once, for layers whose K is not a product of two small ones: 256 MB in float32.
MOST_FORMED = 1 << 26


class Unsuited(Exception):  # what is said by it is no fault
    """The examples' gradients are not known layer by layer."""


class Sensitivities:
    """Reads what each output of each example changes at each layer, output by output."""

    def __init__(self) -> None:
        self.dense: dict[tuple[str, int], tuple[Tensor, list[Tensor], bool, bool]] = {}
        """Input [batch, in], gradients [batch, out] output by output, whether weight and bias are trained."""
        self.others: dict[tuple[int, int], list[list[Piece]]] = {}
        """Pieces by parameter and first row of it, output by output."""
        self.uses: Counter[int] = Counter()
        """How often each parameter stands in the graph, by `id`; set before the sweeps."""
        self.heard: Counter[int] = Counter()
        """How often the first sweep has come by each."""
        self.output = 0

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """Input and gradient of every layer of a known kind."""
        if not kind(module) or not any(p.requires_grad for p in module.parameters(recurse=False)):
            return ()
        return () if kind(module) == "attention" else ("input", "gradient")

    def read(self, tap: Tap) -> None:
        """A call of a layer, in the sweep of one output."""
        assert tap.input is not None and tap.gradient is not None
        weight, bias = tap.module._parameters["weight"], tap.module._parameters.get("bias")
        trained = [p for p in (weight, bias) if p is not None and p.requires_grad]
        is_alone = all(self.uses[id(p)] == 1 for p in trained)
        if kind(tap.module) == "dense" and tap.input.ndim == 2 and is_alone:
            has = [any(p is t for t in trained) for p in (weight, bias)]
            held = self.dense.setdefault((tap.layer, tap.call), (as_float(tap.input), [], has[0], has[1]))
            held[1].append(as_float(tap.gradient))
            self.heard.update(id(p) for p in trained if not self.output)
            return
        for parameter, row, piece in pieces(tap, Layout()):
            self.heard[id(parameter)] += not self.output
            sweeps = self.others.setdefault((id(parameter), row), [])
            while len(sweeps) <= self.output:
                sweeps.append([])
            sweeps[self.output].append(piece)


class SampleSpace:
    """K of one batch, and gradients from the side of the outputs."""

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
        """`parameters`: all that are trained."""
        self.model = model
        self.parameters = parameters
        self.reader = Sensitivities()
        self.taps = Taps(model, self.reader, keep=True)

    def kernel(self, output: Tensor) -> Tensor:
        """K [batch · outputs, batch · outputs] of an output that was computed within the taps.

        Raises:
            Unsuited: a parameter is used where no tap hears it, or the layers' K would be too large.
        """
        z = output if output.ndim == 2 else output.unsqueeze(1)
        graph = Graph(output, self.parameters)
        ends = graph.ends(set())
        self.reader.uses = graph.uses
        for c in range(z.shape[1]):
            self.reader.output = c
            column = torch.zeros_like(output)
            column.view(z.shape)[:, c] = 1
            torch.autograd.grad(output, ends, column, retain_graph=True, allow_unused=True)
        if any(self.reader.heard[id(p)] != graph.uses[id(p)] for p in self.parameters):
            raise Unsuited
        batch, outputs = z.shape
        total = as_float(z.detach()).new_zeros(batch, outputs, batch, outputs)
        for a, gradients, has_weight, has_bias in self.reader.dense.values():
            inputs = (a @ a.T if has_weight else a.new_zeros(batch, batch)).add_(float(has_bias))
            g = torch.stack(gradients, 1).flatten(0, 1)
            total += (g @ g.T).view(batch, outputs, batch, outputs) * inputs.view(batch, 1, batch, 1)
        flat = total.view(batch * outputs, batch * outputs)
        for sweeps in self.reader.others.values():
            rows = _jacobian(sweeps, batch, outputs)
            flat += rows @ rows.T
        return flat

    def pulled(self, output: Tensor, a: Tensor, keep: bool = False) -> list[Tensor]:
        """Jᵀa, parameter by parameter."""
        found = torch.autograd.grad(
            output, list(self.parameters), a.view_as(output).to(output.dtype), allow_unused=True, retain_graph=keep
        )
        return [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]


def solved(kernel: Tensor, curvature: Tensor, r: Tensor, damping: float) -> Tensor:
    """A of (H K + λI) a = r.

    Args:
        kernel: K [batch · outputs, batch · outputs].
        curvature: H [batch, outputs, outputs], or its diagonal [batch, outputs].
        r: [batch, outputs].
        damping: λ.

    Raises:
        torch.linalg.LinAlgError: the system is singular in this arithmetic.
    """
    batch, outputs = r.shape
    if curvature.ndim == 2 and bool((curvature > 0).all()):
        # With H diagonal, H^½ K H^½ + λI is symmetric: a = H^½ (…)⁻¹ H^−½ r.
        root = curvature.sqrt().flatten()
        system = kernel * root.unsqueeze(1) * root
        system.diagonal().add_(damping)
        factor = torch.linalg.cholesky(system)
        return (root * torch.cholesky_solve((r.flatten() / root).unsqueeze(1), factor).squeeze(1)).view_as(r)
    if curvature.ndim == 2:
        system = curvature.reshape(-1, 1) * kernel
    else:
        system = torch.bmm(curvature, kernel.view(batch, outputs, -1)).view_as(kernel)
    system.diagonal().add_(damping)
    return torch.linalg.solve(system, r.flatten()).view_as(r)


def bent(curvature: Tensor, u: Tensor) -> Tensor:
    """H u of changes u [batch, outputs]."""
    return curvature * u if curvature.ndim == 2 else torch.bmm(curvature, u.unsqueeze(2)).squeeze(2)


def _jacobian(sweeps: list[list[Piece]], batch: int, outputs: int) -> Tensor:
    """Rows of J [batch · outputs, …] for one parameter."""
    first: Any = sweeps[0][0] if sweeps and sweeps[0] else None
    if len(sweeps) != outputs or first is None or len(first.gradient) != batch:
        raise Unsuited
    one = next(formed([_cut(piece) for piece in sweeps[0]]))
    if one[0].numel() * batch * outputs > MOST_FORMED:
        raise Unsuited
    return torch.stack([torch.cat([g.flatten(1) for g in formed(parts)]) for parts in sweeps], 1).flatten(0, 1)


def _cut(piece: Any) -> Any:
    """The same piece of the first example alone."""
    if isinstance(piece, Outer):
        return replace(piece, gradient=piece.gradient[:1], input=piece.input[:1])
    extra = {"index": piece.index[:1]} if hasattr(piece, "index") else {}
    return replace(piece, gradient=piece.gradient[:1], **extra)
