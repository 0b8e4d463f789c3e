"""Hessian, Gauss–Newton and Fisher times a vector, over a whole data set in bounded memory.

With outputs f(θ), their Jacobian J = ∂f/∂θ, the loss L(f) and its Hessian H_L = ∂²L/∂f², per micro-batch m

    Hessian v      = ∂/∂θ ⟨∇L, v⟩                                    (Pearlmutter 1994)
    Gauss–Newton v = Jᵀ H_L J v                                      (Schraudolph 2002)
    Fisher v       = Jᵀ F_f J v,  F_f = E[g gᵀ], g = −∂ log p(y | f)/∂f

J v is the derivative of Jᵀu by u, so all three are ordinary backward passes through one recorded graph. The graph is
recorded once and kept where it fits: a product then costs about 2 (Hessian) or 4/3 (the others) of a gradient, against
3 and 7/3 where it is recorded anew. Micro-batches are put together as in `step.backward`: Σ n_m P_m v / Σ n_m.

Products are those of the model in evaluation mode. A Keras model's regularisers count in the Hessian only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.gradients.columns import curved
from thalweg.gradients.outputs import DRAWN, NATURAL, Map, derivative, fisher_of_outputs, loss_hessian, require_second
from thalweg.gradients.taps import uncompiled
from thalweg.step.backward import BatchLoss
from thalweg.step.batches import MICRO_BATCH, Batches, Order
from thalweg.step.data import Batch, Stream, num_examples, read
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss, resolve
from thalweg.tensors import seeds
from thalweg.tensors.named import leaves, mapped
from thalweg.tensors.vector import Layout, flat

MATRICES = ("hessian", "ggn", "fisher", "monte_carlo_fisher", "empirical_fisher")

#: Recorded graphs are kept up to this size altogether; what is beyond is recorded anew for each product.
KEEP_BYTES = 1 << 30

LossLike = str | Callable[..., Tensor] | None
Vector = Tensor | Mapping[str, Tensor]


class LinearOperator(Protocol):
    """A symmetric matrix known by its products."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102
    def matvec(self, v: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a curvature matrix is computed where there is a choice."""

    micro_batch: int = MICRO_BATCH
    """Examples in one pass."""
    keep_bytes: int = KEEP_BYTES
    """Size of the recorded graphs that may be kept from product to product."""
    draws: int = 1
    """Targets drawn for each example, for the Monte-Carlo Fisher."""
    seed: int = 0
    """What these draws follow from: the same seed is the same matrix."""


@dataclass(slots=True)
class _Part:
    """One micro-batch: v by parameter → product by parameter, and the number of terms it is a mean over."""

    product: Map
    terms: int | Tensor
    num_bytes: int


class Curvature:
    """A curvature matrix of a model's loss over data, as a linear operator: `.matvec(v)`, or `operator @ v`.

    It is always that of the model's parameters as they are at the product: what was recorded is dropped when an
    optimizer or a load has changed them.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> curvature = Curvature(model, ([[1.0], [2.0]], [[1.0], [2.0]]), "mse")
    >>> curvature @ torch.ones(1)  # d²/dw² of mean (w x − y)² is 2 mean x²
    tensor([5.])
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        loss: LossLike = None,
        matrix: str = "hessian",
        sampling: Sampling | None = None,
    ) -> None:
        if matrix not in MATRICES:
            raise ValueError(f"matrix takes one of {', '.join(MATRICES)}, got {matrix!r}")
        self.forward = Forward(model)
        self.loss: Loss | None = resolve(loss) if loss is not None else None
        self.matrix = matrix
        self.sampling = sampling or Sampling()
        _check(matrix, self.loss)
        named = self.forward.parameters()
        if not named:
            raise ValueError(
                "the model has no parameter that requires a gradient: there is nothing to differentiate by"
            )
        self.layout = Layout.of(named)
        self.parameters: list[nn.Parameter] = list(named.values())
        self.batches = batches_of(data, self.dtype, self.device, self.sampling.micro_batch)
        self.num_products = 0
        """Products made so far."""
        self._kept: list[_Part] = []
        self._room = self.sampling.keep_bytes
        self._versions: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        """Rows and columns: the number of trainable parameters."""
        return self.layout.size

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters, and of products."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters, and of products."""
        return self.parameters[0].device

    def matvec(self, v: Tensor) -> Tensor:
        """The matrix times a vector `[size]`, a new vector `[size]`; parameters in the order of the layout."""
        self.num_products += 1
        parts = self.layout.unflatten(v.detach()).values()
        tangents = [part.to(p) for part, p in zip(parts, self.parameters, strict=True)]
        is_mean = self.loss is None or self.loss.reduction == "mean"
        total: Tensor | None = None
        terms: int | Tensor = 0
        for part in self._parts():
            product = flat(part.product(tangents))
            if is_mean:
                product = product * part.terms
                if isinstance(part.terms, Tensor):  # no term counts in it: a mean over nothing is NaN
                    product = product.where(part.terms > 0, 0)
            total = product if total is None else total + product
            terms = terms + part.terms
        assert total is not None, "data has at least one batch"
        return total / terms if is_mean else total

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.matvec(v)

    def _parts(self) -> Iterator[_Part]:
        """Every micro-batch: the kept ones, then those recorded anew."""
        versions = [(p._version, p.data_ptr()) for p in self.parameters]
        if versions != self._versions:
            self._kept, self._room, self._versions = [], self.sampling.keep_bytes, versions
        yield from self._kept
        for index, batch in enumerate(self.batches.epoch(0, start=len(self._kept)), start=len(self._kept)):
            part = self._record(batch, index)
            if self._room > 0:
                self._room -= part.num_bytes
                if self._room >= 0:
                    self._kept.append(part)
            yield part

    def _record(self, batch: Batch, index: int) -> _Part:
        """The graph of one micro-batch."""
        with twice_differentiable(self.forward.model):
            if self.matrix == "hessian":
                return self._record_hessian(batch, first=index == 0)
            return self._record_outer(batch, index)

    def _record_hessian(self, batch: Batch, first: bool) -> _Part:
        x, y = batch
        terms: int | Tensor = num_examples(batch)
        if self.loss is None:
            value = self.forward.own_loss(x, y, training=False)
        else:
            output = self.forward(x, training=False)
            value, terms = self.loss(output, y), self.loss.num_terms(output, y)
        added = self.forward.added_loss()
        if added is not None and (first or self.loss is None or self.loss.reduction == "mean"):
            value = value + added
        require_second([value])
        gradient = derivative([value], self.parameters, create_graph=True)
        return self._part(lambda v: derivative(gradient, self.parameters, v), terms, gradient)

    def _record_outer(self, batch: Batch, index: int) -> _Part:
        """Jᵀ M J, with M the Hessian of the loss by the outputs or a Fisher matrix of the outputs."""
        x, y = batch
        assert self.loss is not None
        tree = self.forward(x, training=False)
        outputs = [t for t in leaves(tree) if t.requires_grad]
        require_second(outputs)
        terms = self.loss.num_terms(tree, y)
        output = mapped(lambda t: t.detach().requires_grad_(t.requires_grad), tree)
        if self.matrix in ("ggn", "fisher"):
            bend = curved(output, y, self.loss) or loss_hessian(self.loss, output, y)
        else:
            drawn = self.sampling.draws if self.matrix == "monte_carlo_fisher" else 0
            source = seeds.generator(self.sampling.seed, "fisher", index, device=self.device)
            bend = fisher_of_outputs(self.loss, output, y, drawn, source)
        u = [torch.zeros_like(t, requires_grad=True) for t in outputs]
        pulled = derivative(outputs, self.parameters, u, create_graph=True)

        def product(v: Sequence[Tensor]) -> Sequence[Tensor]:
            return derivative(outputs, self.parameters, bend(derivative(pulled, u, v)))

        return self._part(product, terms, pulled)

    def _part(self, product: Map, terms: int | Tensor, ends: Sequence[Tensor]) -> _Part:
        return _Part(product, terms, graph_bytes(ends) if self._room > 0 else 0)


def hessian_product(model: nn.Module, data: Any, loss: LossLike, v: Vector) -> Any:
    """∇²J v of the loss J over all data.

    Args:
        model: any module; taken in evaluation mode, left as it was.
        data: `(x, y)` or any form that `fit` takes.
        loss: a name, a function (output, target), or None where the model returns its loss.
        v: a vector `[parameters]`, or tensors by parameter name.

    Returns:
        The product in the form of `v`.

    Raises:
        ValueError: `v` does not fit the trainable parameters, or an operation cannot be differentiated twice.
    """
    return _applied(Curvature(model, data, loss, "hessian", Sampling(keep_bytes=0)), v)


def ggn_product(model: nn.Module, data: Any, loss: LossLike, v: Vector) -> Any:
    """The generalised Gauss–Newton matrix Jᵀ H_L J times v; arguments as in `hessian_product`."""
    return _applied(Curvature(model, data, loss, "ggn", Sampling(keep_bytes=0)), v)


def fisher_product(
    model: nn.Module, data: Any, loss: LossLike, v: Vector, *, kind: str = "true", draws: int = 1, seed: int = 0
) -> Any:
    """The Fisher matrix times v; arguments as in `hessian_product`.

    It has the scale of the loss: where the loss is a mean over n terms, (1/n) Σ over examples of E[g gᵀ], g the
    gradient of the example's terms summed.

    Args:
        kind: "true" is the expectation over the model's own distribution, in closed form; "monte_carlo" draws `draws`
            targets for each example from it, by `seed`; "empirical" takes the targets of the data.

    Raises:
        ValueError: the loss has no such distribution.
    """
    names = {"true": "fisher", "monte_carlo": "monte_carlo_fisher", "empirical": "empirical_fisher"}
    if kind not in names:
        raise ValueError(f"kind takes one of {', '.join(names)}, got {kind!r}")
    return _applied(Curvature(model, data, loss, names[kind], Sampling(keep_bytes=0, draws=draws, seed=seed)), v)


def batches_of(data: Any, dtype: torch.dtype, device: torch.device, micro_batch: int) -> Batches:
    """Data in its own order, in micro-batches; what can be read only once is held."""
    form = read(data, dtype)
    if isinstance(form, Stream) and form.once:
        held = list(form.batches())
        form = Stream(held, len(held))
    return Batches(form, Order(micro_batch, shuffle=False), dtype, device)


@contextlib.contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and records operations that have a second derivative.

    Fused attention, cuDNN's recurrent layers and compiled programs have none. Modes and random state are put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device.type for p in model.parameters()), "cpu")
    with contextlib.ExitStack() as stack:
        stack.enter_context(seeds.seeded(0))  # a layer that draws in evaluation too is then one fixed function
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast_path = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        if device == "cuda" and any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(uncompiled())
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def graph_bytes(ends: Sequence[Tensor]) -> int:
    """Bytes of the tensors that the graphs behind these tensors have saved, each storage once."""
    waiting = [t.grad_fn for t in ends if t.grad_fn is not None]
    seen = set(waiting)
    storages: dict[int, int] = {}
    while waiting:
        node = waiting.pop()
        for word in dir(node):
            if not word.startswith("_saved_") and word != "saved_tensors":
                continue
            for t in leaves(getattr(node, word)):
                storage = t.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        fresh = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= fresh
        waiting.extend(fresh)
    return sum(storages.values())


def _check(matrix: str, loss: BatchLoss | None) -> None:
    if matrix == "hessian":
        return
    if loss is None:
        raise ValueError(f"{matrix} needs the model's outputs: give loss=, the model returns only its loss")
    name = getattr(loss, "name", "the loss")
    known = {"fisher": NATURAL, "monte_carlo_fisher": DRAWN}
    if name not in known.get(matrix, (name,)):
        raise ValueError(
            f"{matrix} is known for {', '.join(known[matrix])} (by name), not for {name}: take the empirical Fisher"
        )


def _applied(curvature: Curvature, v: Vector) -> Any:
    if isinstance(v, Tensor):
        return curvature @ v
    return curvature.layout.unflatten(curvature @ curvature.layout.flatten(v))
