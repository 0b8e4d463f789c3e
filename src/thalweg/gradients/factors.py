"""Kronecker factors A = E[aaᵀ] and G = E[ggᵀ] of each layer, whose product A ⊗ G stands for its block of the Fisher.

With a row a for each position that a weight is applied to (an example; or a time step, a pixel of it) and g the
gradient at the output there, taken not from the loss J but from columns s of its curvature at the outputs,

    A = (1/R) Σ_rows a aᵀ          G = Σ_rows Σ_s g gᵀ,      Σ_s s sᵀ = curvature of J at the outputs.

J is the loss of the whole batch, with its own mean or sum, so that for a mean over examples G is a mean over examples,
and A ⊗ G is in the units of ∇²J, nothing left to scale: with one row an example, the expectation of a product is
replaced by the product of expectations and by nothing else. It is exact for a single layer and for deep linear
networks with the squared error. In the order of `weight.T.flatten()` the block is `kron(A, G)`; of `weight.flatten()`,
`kron(G, A)`.

Sources: Martens & Grosse 2015 (arXiv 1503.05671); Eschenhagen et al. 2023 (arXiv 2311.00636) for weight sharing;
Dangel et al. 2025 (arXiv 2507.05127) for the scales.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.columns import columns
from thalweg.gradients.layers import Layout, kind, projection_bias
from thalweg.gradients.layouts import Layouts, layouts
from thalweg.gradients.pieces import as_float, patches, windows
from thalweg.gradients.sweeps import attention_parameters
from thalweg.gradients.taps import Tap, Taps, eager
from thalweg.gradients.uses import Graph
from thalweg.step.data import Batch, num_examples
from thalweg.step.forward import Forward

FISHERS = ("true", "monte_carlo", "empirical")
SHARINGS = ("expand", "reduce")

#: Columns of a panel of a symmetric product.
PANEL = 256
#: Rows of a product begin at a multiple of so many numbers: 4096 × 64 × 4096 written to rows of 4097 takes half as long
#: again as to rows of 4112 (one thread).
ALIGNED = 16
#: Numbers of the patches that are laid out at once: 4 MB in float32.
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class KroneckerFactors:
    """The two factors of one weight, or of some rows of it."""

    A: Tensor
    """[in, in], or [in + 1, in + 1] with a last row and column for the bias; [words] of an embedding: the diagonal."""
    G: Tensor
    """[out, out]; of an embedding [width, width]."""
    weight: str
    """The weight's name in the model."""
    bias: str | None
    """The name of the bias that is in A, or None."""
    rows: slice
    """The rows of weight and bias that are meant: all, but for the projections of attention."""
    bias_rows: slice
    num_rows: int = 0
    """Rows that A is a mean over."""


@dataclass(frozen=True, slots=True)
class FactorSampling:
    """From what the factors are estimated."""

    fisher: str = "true"
    """"true": every column of the curvature at the outputs, a backward pass for each class. "monte_carlo": labels
    drawn from the model's own predictions. "empirical": the targets themselves, not an estimate of the true one."""
    sharing: str = "expand"
    """Where a weight is applied at several positions: "expand" takes each as a row; "reduce" one row an example, the
    mean of the inputs and the sum of the gradients."""
    samples: int = 1
    """Draws of labels for "monte_carlo"."""
    rows: int | None = None
    """This many rows of each call of a layer, drawn without replacement, stand for all of them; None: all."""
    generator: torch.Generator | None = None
    """What is drawn is drawn from here (a CPU generator)."""

    def __post_init__(self) -> None:
        if self.fisher not in FISHERS:
            raise ValueError(f"unknown fisher {self.fisher!r}: known are {', '.join(FISHERS)}")
        if self.sharing not in SHARINGS:
            raise ValueError(f"unknown sharing {self.sharing!r}: known are {', '.join(SHARINGS)}")
        if self.samples < 1 or (self.rows is not None and self.rows < 1):
            raise ValueError(f"samples and rows are at least 1, got samples={self.samples}, rows={self.rows}")


def kronecker_factors(
    model: nn.Module, data: Batch, loss: Any, sampling: FactorSampling | None = None, **options: Any
) -> dict[str, KroneckerFactors]:
    """The Kronecker factors of every layer that has them, by its name.

    These are dense layers, convolutions without groups, embeddings, and the projections of `nn.MultiheadAttention`
    (`attention.in_proj_weight`; slices of it by their first row, `attention.in_proj_weight[64]`). Left out are frozen
    weights, weights that several layers share, and all other layers. A layer that is called several times has the rows
    of all calls. For "true" with positions at the output (tokens), columns of all positions go back at once with
    random signs, so that products between positions vanish on average.

    Args:
        model: any module; it is left as it was.
        data: (x, y), examples along axis 0.
        loss: `cross_entropy`, `mse`, `binary_cross_entropy` by name or as torch has them; any loss for "empirical".
        sampling: how they are estimated; or its fields as keywords (`fisher="monte_carlo", samples=4`).

    Raises:
        ValueError: the curvature of this loss at its outputs is not known here, or an option is unknown.
    """
    model, sampling = eager(model), sampling or FactorSampling(**options)
    forward = Forward(model)
    with torch.enable_grad():
        placed = layouts(forward, data, loss is None) if sampling.sharing == "reduce" else None
        reader = _Reading(model, sampling, placed)
        readers = (reader,) if placed is None else (placed, reader)
        with Taps(model, *readers, keep=True):
            for root, cotangent in _roots(forward, data, loss, sampling):
                if not reader.ends:
                    reader.ends = Graph(root, forward.parameters().values()).ends(attention_parameters(model))
                torch.autograd.grad(root, reader.ends, cotangent, retain_graph=True, allow_unused=True)
                reader.num_passes += 1
    return reader.factors()


def _roots(forward: Forward, data: Batch, loss: Any, sampling: FactorSampling) -> Iterator[tuple[Tensor, Tensor]]:
    """What is propagated back: outputs, and columns at them."""
    x, y = data
    training = forward.model.training
    if loss is not None:
        yield from columns(forward(x, training), y, loss, sampling.fisher, sampling.samples, sampling.generator)
        return
    if sampling.fisher != "empirical":
        raise ValueError(f"fisher={sampling.fisher!r} needs the loss, and this model makes its own: give loss=")
    value = forward.own_loss(x, y, training)
    yield value, torch.full_like(value, num_examples(data) ** 0.5)


class _Reading:
    """Adds up the outer products of the rows of every layer."""

    def __init__(self, model: nn.Module, sampling: FactorSampling, placed: Layouts | None) -> None:
        self.sampling = sampling
        self.placed = placed
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.sharers = _sharers(model)
        self.ends: list[Any] = []
        self.num_passes = 0
        self._sums: dict[str, _Sum] = {}

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """Input and gradient of the layers that have Kronecker factors."""
        found = kind(module)
        if found == "attention":
            return ("projections",)
        weight = module._parameters.get("weight")
        if weight is None or not weight.requires_grad or self.sharers[id(weight)] > 1:
            return ()
        known = found in ("dense", "embedding") or (found == "convolution" and module.groups == 1)
        return ("input", "gradient") if known else ()

    def read(self, tap: Tap) -> None:
        """One call of a layer, in one of the passes back."""
        weight = tap.module.get_parameter(tap.part or "weight")
        if self.sharers[id(weight)] > 1 or not weight.requires_grad:
            return
        name = f"{tap.layer}.{tap.part}" if tap.part else tap.layer
        assert tap.gradient is not None
        partial = tap.part and tap.gradient.shape[-1] < len(weight)
        key = f"{name}[{tap.offset}]" if partial else name
        bias, bias_row = projection_bias(tap) if tap.part else (tap.module._parameters.get("bias"), 0)
        bias = bias if bias is not None and bias.requires_grad else None
        held = self._sums.get(key)
        if held is None:
            names = self.names[id(weight)], None if bias is None else self.names[id(bias)]
            held = self._sums[key] = _Sum(names, slice(tap.offset, None) if partial else slice(None), bias_row)
        picks = held.picks(tap, self.sampling) if self.sampling.rows else None
        is_known = self.num_passes > 0 and held.has(tap)
        if kind(tap.module) == "convolution" and picks is None and self.placed is None:
            held.add_images(tap, bias is not None, is_known)
            return
        a, g = self._rows(tap, picks)
        held.add(a, g, tap, bias is not None, is_known)

    def factors(self) -> dict[str, KroneckerFactors]:
        """The factors, when all passes are through."""
        return {key: held.factors() for key, held in self._sums.items()}

    def _rows(self, tap: Tap, picks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows a [rows, in] (indices [rows] of an embedding) and g [rows, out]."""
        assert tap.gradient is not None and tap.input is not None
        a, g, found = tap.input, as_float(tap.gradient), kind(tap.module)
        if found == "convolution":
            return _convolved(as_float(a), g, tap.module, picks)
        if found == "embedding":
            a, g = a.flatten(), g.flatten(0, -2)
        elif self.placed is not None:
            a, g = self._reduced(as_float(a), g, tap)
        else:
            a, g = as_float(a).flatten(0, -2), g.flatten(0, -2)
        return (a, g) if picks is None else (a[picks], g[picks])

    def _reduced(self, a: Tensor, g: Tensor, tap: Tap) -> tuple[Tensor, Tensor]:
        assert self.placed is not None
        layout = Layout(1) if tap.part else self.placed.of(tap)
        if layout is None:
            raise ValueError(
                f"layer {tap.layer!r} has no axis that is the examples', so that its positions cannot be reduced: use "
                "sharing='expand'"
            )
        a, g = layout.batch_first(a), layout.batch_first(g)
        if a.ndim == 2:
            return a, g
        return a.flatten(1, -2).mean(1), g.flatten(1, -2).sum(1)


class _Sum:
    """Sums of outer products of one weight."""

    def __init__(self, names: tuple[str, str | None], rows: slice, bias_row: int) -> None:
        self.names, self.rows, self.bias_row = names, rows, bias_row
        self.A: Tensor | None = None
        self.G: Tensor | None = None
        self.num_rows = 0
        self._calls: set[int] = set()
        self._picks: dict[int, Tensor] = {}
        self._scale = 1.0

    def picks(self, tap: Tap, sampling: FactorSampling) -> Tensor | None:
        """The rows of this call that stand for all of them, the same in every pass."""
        assert tap.gradient is not None and sampling.rows is not None
        g = tap.gradient
        reduced = sampling.sharing == "reduce" and kind(tap.module) != "embedding"
        features = 1 if kind(tap.module) == "convolution" else g.ndim - 1
        if reduced:
            raise ValueError("sharing='reduce' has one row an example: give fewer examples instead of rows=")
        count = g.numel() // g.shape[features]
        if sampling.rows >= count:
            return None
        if tap.call not in self._picks:
            self._picks[tap.call] = torch.randperm(count, generator=sampling.generator)[: sampling.rows].to(g.device)
        self._scale = count / sampling.rows
        return self._picks[tap.call]

    def has(self, tap: Tap) -> bool:
        """Whether the inputs of this call have been added."""
        return tap.call in self._calls

    def add(self, a: Tensor, g: Tensor, tap: Tap, with_bias: bool, is_known: bool) -> None:
        """Add one call's rows; the inputs are the same in every pass and added in the first."""
        if kind(tap.module) == "embedding":
            module: Any = tap.module
            if module.padding_idx is not None:
                g = g * (a != module.padding_idx).unsqueeze(1)
        self._add_to_g(gram([g]))
        if is_known:
            return
        is_embedding = kind(tap.module) == "embedding"
        self._add_to_a(_counts(a, tap.module, g.dtype) if is_embedding else gram([a], with_bias), len(a), tap)

    def add_images(self, tap: Tap, with_bias: bool, is_known: bool) -> None:
        """Add one call of a convolution, every position a row; its patches are laid out some images at a time."""
        assert tap.gradient is not None and tap.input is not None
        g = as_float(tap.gradient).flatten(2)  # [batch, channels, positions]
        if g.shape[1] <= g.shape[2]:  # a product an image reads g as it lies
            self._add_to_g(torch.bmm(g, g.mT).sum(0))
        else:
            self._add_to_g(gram([g.mT.flatten(0, 1)]))
        if not is_known:
            blocks = _patch_rows(as_float(tap.input), tap.module, g.shape[2])
            self._add_to_a(gram(blocks, with_bias), g.shape[0] * g.shape[2], tap)

    def _add_to_g(self, part: Tensor) -> None:
        part = part if self._scale == 1.0 else part.mul_(self._scale)
        self.G = part if self.G is None else self.G.add_(part)

    def _add_to_a(self, part: Tensor, num_rows: int, tap: Tap) -> None:
        self._calls.add(tap.call)
        self.A = part if self.A is None else self.A.add_(part)
        self.num_rows += num_rows

    def factors(self) -> KroneckerFactors:
        """Their means."""
        assert self.A is not None and self.G is not None
        bias_rows = self.rows
        if self.rows.start is not None:
            out = len(self.G)
            self.rows = slice(self.rows.start, self.rows.start + out)
        if self.names[1] is not None:
            bias_rows = slice(self.bias_row, self.bias_row + len(self.G))
        return KroneckerFactors(self.A.div_(self.num_rows), self.G, *self.names, self.rows, bias_rows, self.num_rows)


def gram(blocks: Iterable[Tensor], with_bias: bool = False) -> Tensor:
    """Σ aᵀa over blocks of rows a [rows, width], without copying them; beside a column of ones where there is a bias.

    It is symmetric: with as many rows as columns, panels above the diagonal are mirrored instead of multiplied.
    """
    total, num_rows = torch.empty(0), 0
    for a in blocks:
        width = a.shape[1]
        keep = 1 if num_rows else 0  # of what stands there already
        if not num_rows:
            size = width + with_bias
            total = a.new_empty(size, -(-size // ALIGNED) * ALIGNED)[:, :size]
            panel = PANEL if len(a) >= width else width
        for start in range(0, width, panel):
            part = total[start:width, start : min(start + panel, width)]
            part.addmm_(a[:, start:].T, a[:, start : start + panel], beta=keep)
        if with_bias:
            of_ones = a.sum(0)
            total[width, :width] = of_ones + total[width, :width] if keep else of_ones
        num_rows += len(a)
    for stop in range(panel, width, panel):
        total[stop - panel : stop, stop:width] = total[stop:width, stop - panel : stop].T
    if with_bias:
        total[:width, width] = total[width, :width]
        total[width, width] = num_rows
    return total


def _counts(index: Tensor, module: Any, dtype: torch.dtype) -> Tensor:
    """How often each word was looked up."""
    counts = torch.bincount(index, minlength=module.num_embeddings).to(dtype)
    if module.padding_idx is not None:
        counts[module.padding_idx] = 0
    return counts


def _convolved(a: Tensor, g: Tensor, conv: Any, picks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of a convolution: the patch that a position sees, and the gradient of the channels there.

    The chosen ones, or one an example: their mean, and the sum of the gradients.
    """
    if picks is None:
        return patches(a, conv).squeeze(1).mean(-1), g.flatten(2).sum(-1)
    g = g.movedim(1, -1)
    places = torch.unravel_index(picks, g.shape[:-1])
    return _patches_last(a, conv)[places].flatten(1), g[places]


def _patches_last(a: Tensor, conv: Any) -> Tensor:
    """What each position sees, as a view [batch, *out, channels, *kernel]."""
    dims = len(conv.kernel_size)
    return windows(a, conv).permute(0, *range(2 + dims, 2 + 2 * dims), *range(1, 2 + dims))


def _patch_rows(a: Tensor, conv: Any, positions: int) -> Iterator[Tensor]:
    """The patches of all positions as rows [rows, in], of so many images at a time that they stay in the cache."""
    view = _patches_last(a, conv)
    images = max(1, BLOCK // (positions * conv.weight[0].numel()))
    for some in view.split(images):
        yield some.reshape(len(some) * positions, -1)


def _sharers(model: nn.Module) -> Counter[int]:
    """In how many known layers each parameter is, by `id`; the output projection of attention is a layer by itself."""
    return Counter(id(p) for m in model.modules() if kind(m) for p in m._parameters.values() if p is not None)
