"""Gauss–Newton: the minimum of the loss's damped quadratic model, by conjugate gradients or from its outputs' side.

    d minimises  gᵀd + ½ dᵀBd + ½ λ‖d‖²,  B = JᵀHJ,      θ ← θ + t d,  t = α, α/2, α/4, … until the loss falls

Hessian-free (Martens 2010): B is known by its products with vectors, (B + λI)d = −g is solved by conjugate gradients
that begin at 0.95 times the last d. In sample space (`samples.py`) the same d is exact, where a batch has few outputs.
λ by Levenberg–Marquardt (`damping.py`), with M(δ) = gᵀδ + ½ δᵀBδ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.gradients.columns import blocks
from thalweg.gradients.products import Curvature, Sampling
from thalweg.gradients.taps import eager
from thalweg.optim import exact
from thalweg.optim.conjugate import solve
from thalweg.optim.damping import Outputs, Replay, adapted, positive, require_outputs
from thalweg.optim.samples import SampleSpace, Unsuited, bent, solved
from thalweg.step.backward import gradient, objective
from thalweg.step.batches import Parts
from thalweg.step.data import Batch, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.tensors import seeds
from thalweg.tensors.vector import Layout, flat

#: The factor of λ (Martens 2010, section 4.1), and the share of the last d that conjugate gradients begin at (4.8).
FACTOR, WARM = 1 / 3, 0.95
#: Armijo's share of the slope that the loss has to fall by, and the shortest t tried, beside α.
SUFFICIENT, SHORTEST = 1e-2, 2**-8
#: The least λ, in roundings of the curvature along the gradient; and the least fall of the loss that it is told by.
ROUNDINGS, SEEN = 100.0, 10.0


class GaussNewton(Optimizer):
    """Gauss–Newton with Levenberg–Marquardt damping.

    Letters: see the module; α is `lr`.

    Cost of a step, in gradients: by conjugate gradients, 2 to 3 for each of their iterations, `max_iterations` at most.
    In sample space, for N examples of C outputs: a third for each output, and 1; beside N²C² times the widths of the
    layers and (NC)³/3 operations. Both: a third for each t that is tried. Memory: three vectors of parameters and the
    graph of a batch, or (NC)² numbers.

    For full or large batches of a smooth loss, small networks, regression, where accuracy counts. Not for small batches
    of noisy data, whose model of the loss says little about the rest; nor large networks. With batch norm or dropout
    the gradient is that of training and the curvature that of evaluation. What is frozen on the way stands still; to
    train what was frozen when it was made, make it anew.

    Args:
        model: any module whose operations can be differentiated twice; it is called by `.step`, in the mode it is in.
        loss: a name or function.
        lr: α; 1 is the model's minimum.
        damping: λ of the first step, in units of the curvature along the gradient, gᵀBg/gᵀg (0.01: ours; after that it
            is Levenberg–Marquardt's).
        max_iterations: of conjugate gradients (50: ours; Martens 2010, section 4.4, goes on as long as they gain).
        samples: outputs of a batch, N·C, up to which the step is made in sample space; 0 for never (1,024: ours, whose
            K and its root take (NC)³/3, a third of a billion operations).

    Raises:
        ValueError: an option is out of range, or nothing is to be trained.
        TypeError: the loss is None, or the model is of Keras.
    """

    clips = False
    """Whether gradients may be clipped before it sees them."""

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        lr: float = 1.0,
        *,
        damping: float = 1e-2,
        max_iterations: int = 50,
        samples: int = 1024,
    ) -> None:
        positive(lr=lr, damping=damping, max_iterations=max_iterations)
        self.model = eager(model)
        self.forward = Forward(self.model)
        require_outputs("gauss_newton", self.forward, loss)
        self.loss = resolve(loss)
        self.first_damping, self.max_iterations, self.samples = damping, max_iterations, samples
        self._owned = {name: p for name, p in self.forward.parameters().items() if p.numel()}
        self._named = self._trained()
        super().__init__([{"params": list(self.forward.parameters().values()), "lr": lr}], {"lr": lr})

    def step(self, x: Any, y: Any = None) -> Tensor:  # type: ignore[override]
        """One update from a batch; returns the loss on it before, a detached scalar."""
        return self.descend((x, y))

    def descend(self, batch: Batch | Parts, graded: Callable[[], None] | None = None, watcher: Any = None) -> Tensor:
        """One update; `graded` is called when gradients are in `.grad`, to be looked at; they are cleared after."""
        self.zero_grad()
        self._named = self._trained()
        whole = self._whole
        whole["step"] += 1
        replay, seen = Replay(self.forward, self.loss, batch), Outputs(watcher)
        with torch.enable_grad():
            way = self._from_samples(batch, seen, graded) if self.samples and not isinstance(batch, Parts) else None
            if way is None:
                way = self._from_products(batch, seen, graded)
        self._take(way, replay, seen)
        self._opt_called = True  # or torch's schedules warn of no step
        self.zero_grad()
        return way.loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: d is of all that the model trains.

        Raises:
            ValueError: always, but for the group that it makes itself.
        """
        if self.param_groups:
            raise ValueError(
                "gauss_newton takes no further group of parameters, for it moves all that its model trains as one "
                "vector: make it anew of a model that holds them"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, exactly."""
        exact.load(self, state_dict)

    def _trained(self) -> dict[str, nn.Parameter]:
        """What d is of, by name: not what has been frozen since."""
        trained = {name: p for name, p in self.forward.parameters().items() if p.numel()}
        if not trained:
            raise ValueError("nothing to train: no parameter requires a gradient")
        if foreign := [name for name in trained if name not in self._owned]:
            raise ValueError(f"{foreign[0]!r} was frozen when gauss_newton was made, and now is not: make it anew")
        return trained

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return list(self._named.values())

    @property
    def _whole(self) -> dict[str, Any]:
        """What is not of one parameter, kept with the first."""
        state = self.state[next(iter(self._owned.values()))]
        if "step" not in state:
            state.update(step=0, damping=0.0, scale=0.0, is_suited=None)
        return state

    def _damped(self, bend: Callable[[], float], square: float) -> float:
        """λ, beside gᵀBg / gᵀg of the first step, which is asked for then."""
        whole = self._whole
        if not whole["scale"] and math.isfinite(square):
            ratio = bend() / square if square > 0 else 0.0
            whole["scale"] = ratio if 0 < ratio < math.inf else 1.0
            whole["damping"] = self.first_damping * whole["scale"]
        least = ROUNDINGS * torch.finfo(_wide(self._parameters[0])).eps * whole["scale"]
        whole["damping"] = max(whole["damping"], least)
        return float(whole["damping"])

    # ── two ways to a direction ──────────────────────────────────────────────────────────────────────────────────

    def _from_samples(self, batch: Batch, seen: Outputs, graded: Callable[[], None] | None) -> _Way | None:
        """In sample space; None where that is not known for this model, or there are too many outputs."""
        whole = self._whole
        if whole["is_suited"] is False or self._too_many(batch):
            return None
        space = SampleSpace(self.model, self._parameters)
        put_back = seeds.as_found()
        buffers = [b.clone() for b in self.model.buffers()]
        with space.taps:
            value, output = objective(self.forward, self.loss, batch)
            count = output.numel() if isinstance(output, Tensor) else 0
            whole["outputs"] = count / num_examples(batch)  # positions too, where they lie on the first axis
            found = None if self._too_many(batch) else self._suited(space, output, batch, value)
        if found is None:
            whole["is_suited"] = whole["is_suited"] if self._too_many(batch) else False
            put_back()
            for b, kept in zip(self.model.buffers(), buffers, strict=True):
                b.detach().copy_(kept)
            return None
        whole["is_suited"] = True
        seen.update(output, batch[1])
        kernel, curvature, r = found
        if graded is not None:
            for p, g in zip(self._parameters, space.pulled(output, r, keep=True), strict=True):
                p.grad = g
            graded()
        with torch.no_grad():
            through = (kernel @ r.flatten()).view_as(r)
            square = float((r * through).sum())
            damping = self._damped(lambda: float((through * bent(curvature, through)).sum()), square)
            a = _robustly(kernel, curvature, r, damping)
            u = -(kernel @ a.flatten()).view_as(r)
            slope, bend = float((r * u).sum()), float((u * bent(curvature, u)).sum())
        move = [-g for g in space.pulled(output, a)]
        return _Way(value.detach(), move, slope, bend)

    def _too_many(self, batch: Batch) -> bool:
        """Whether outputs an example, as the last forward pass had them, times examples are too many."""
        per_example = self._whole.get("outputs")
        return per_example is not None and per_example * num_examples(batch) > self.samples

    def _suited(
        self, space: SampleSpace, output: Any, batch: Batch, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """K, H and r of a batch; None where they are not known. K is compared with autograd's own at the first step."""
        if not isinstance(output, Tensor) or not output.requires_grad or not output.numel():
            return None
        curvature = blocks(output, batch[1], self.loss)
        if curvature is None or any(p.is_complex() for p in self._parameters):
            return None
        try:
            kernel = space.kernel(output)
        except Unsuited:
            return None
        (r,) = torch.autograd.grad(value, output, retain_graph=True)
        if self._whole["is_suited"] is None and not _agrees(space, output, kernel):
            return None
        return kernel, curvature, r.to(kernel.dtype).reshape(len(r), -1)

    def _from_products(self, batch: Batch | Parts, seen: Outputs, graded: Callable[[], None] | None) -> _Way:
        """By conjugate gradients."""
        loss = gradient(self.forward, self.loss, batch, seen)
        if graded is not None:
            graded()
        layout = Layout.of(self._named)
        wide = _wide(self._parameters[0])
        with torch.no_grad():
            g = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters).to(wide)
            square = float(g @ g)
            if not 0 < square < math.inf:
                return _Way(loss, [], 0.0, 0.0)
            source = list(batch) if type(batch) is Parts else [batch]
            curvature = Curvature(self.model, source, self.loss, "ggn", Sampling(micro_batch=1 << 62))

            def product(v: Tensor) -> Tensor:
                return curvature.matvec(v).to(wide)

            damping = self._damped(lambda: float(g @ product(g)), square)
            states = [self.state[p].get("move") for p in self._parameters]
            start = None if any(m is None for m in states) else WARM * flat(states)  # type: ignore[arg-type]
            found = solve(lambda v: product(v) + damping * v, -g, start, self.max_iterations)
            for p, m in zip(self._parameters, layout.unflatten(found.x).values(), strict=True):
                self.state[p]["move"] = m.clone()
        move = [self.state[p]["move"] for p in self._parameters]
        return _Way(loss, move, float(g @ found.x), float(found.x @ (found.product - damping * found.x)))

    # ── the step itself ──────────────────────────────────────────────────────────────────────────────────────────

    @torch.no_grad()
    def _take(self, way: _Way, replay: Replay, seen: Outputs) -> None:
        """Go along a direction as far as the loss falls, and see what that says of λ."""
        whole, loss = self._whole, float(way.loss)
        if not way.move or not math.isfinite(loss):
            return  # which says nothing of the model
        if -way.slope <= SEEN * torch.finfo(self._parameters[0].dtype).eps * abs(loss):
            # Less than this arithmetic tells apart: at the minimum, or for a λ that has grown so large.
            first = self.first_damping * whole["scale"]
            if whole["damping"] > first:
                whole["damping"] = max(first, whole["damping"] * FACTOR)
                self._forget_move()  # whose rounding is more than what such a λ leaves of d
            return
        if not (way.slope < 0 and math.isfinite(way.bend)):
            whole["damping"] /= FACTOR
            return
        first = t = float(self.param_groups[0]["lr"])
        after = math.inf
        while t >= SHORTEST * first:
            _, after = replay.change(self._parameters, way.move, t, seen)
            if after <= loss + SUFFICIENT * t * way.slope:
                for p, d in zip(self._parameters, way.move, strict=True):
                    p.add_(d, alpha=t)
                break
            if t == first:
                whole["damping"] /= FACTOR
            t /= 2
        else:
            self._forget_move()
            whole["damping"] /= FACTOR**4
            return
        if t == first:
            whole["damping"] = adapted(whole["damping"], after - loss, t * way.slope + t * t * way.bend / 2, FACTOR)

    def _forget_move(self) -> None:
        """Conjugate gradients begin at zero again."""
        for p in self._parameters:
            self.state[p].pop("move", None)


@dataclass(frozen=True, slots=True)
class _Way:
    """A direction d and what the model says of it."""

    loss: Tensor
    move: list[Tensor]
    slope: float
    """gᵀd"""
    bend: float
    """dᵀBd"""


def _robustly(kernel: Tensor, curvature: Tensor, r: Tensor, damping: float) -> Tensor:
    """The solution, with more damping where this arithmetic has none."""
    for _ in range(8):
        try:
            a = solved(kernel, curvature, r, damping)
            if bool(torch.isfinite(a).all()):
                return a
        except torch.linalg.LinAlgError:
            pass
        damping *= 10
    return torch.full_like(r, math.nan)


def _agrees(space: SampleSpace, output: Tensor, kernel: Tensor) -> bool:
    """Whether K v is J(Jᵀv) for random v: not where examples depend on each other, or lie on another axis."""
    source = torch.Generator().manual_seed(0)
    v, w = (torch.randn(output.shape, generator=source).to(output) for _ in range(2))
    left, right = (space.pulled(output, t, keep=True) for t in (v, w))
    expected = sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
    sizes = [sum(float(t.double().square().sum()) for t in side) ** 0.5 for side in (left, right)]
    found = float(v.flatten().to(kernel) @ kernel @ w.flatten().to(kernel))
    allowed = max(1e-3, 4 * torch.finfo(output.dtype).eps)
    return abs(found - expected) <= allowed * sizes[0] * sizes[1]


def _wide(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)
