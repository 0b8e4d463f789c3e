"""K-FAC: the gradient times the inverse of the Fisher matrix, each layer's taken for A ⊗ G.

    D = (G + √λ/π I)⁻¹ ∇ (A + π√λ I)⁻¹      m ← μ m + (1−μ) D      δ = −α β m
    β = ∇·m / uᵀHu,  u = Jm                 so that β is best for M(δ) = ∇·δ + ½ δᵀBδ,  B = JᵀHJ, where α = 1
    ½ β² uᵀHu ≤ κ J̄                         which bounds β

with A, G as in `gradients/factors.py`, labels drawn from the model's own predictions; J̄ the running mean of the loss;
λ by Levenberg–Marquardt (`damping.py`). The layers' blocks say only where to go; how far is said by the whole matrix B,
at the price of one forward pass: u = (f(θ + εm) − f(θ))/ε. Sources: Martens & Grosse 2015 (arXiv 1503.05671), sections
6.4 and 6.5; Ba, Grosse & Martens 2017 for a bound on the change of the predictions; Eschenhagen et al. 2023 (arXiv
2311.00636) for weights that are shared over positions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.gradients.columns import family
from thalweg.gradients.factors import FactorSampling
from thalweg.gradients.taps import Taps, eager
from thalweg.optim import exact
from thalweg.optim.blocks import covered, described, owned, remembered, renewed
from thalweg.optim.damping import Outputs, Replay, adapted, positive, require_outputs
from thalweg.optim.elementwise import adamw
from thalweg.optim.estimate import Estimate
from thalweg.optim.kronecker import LONGEST_FACTORS, LONGEST_INVERSES, Block, mean_curvature, periods
from thalweg.optim.rows import Rows
from thalweg.step.backward import gradient
from thalweg.step.batches import Parts
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.step.moment import Moment

#: Steps between two looks at the damping, and its factor for each of them (Martens & Grosse 2015, 6.5).
LOOK_EVERY, OMEGA = 5, 19 / 20
#: Looks that move the damping between two inversions, before which it is not used (ours: with 4, as many as theirs for
#: inverses of every 20th step, an autoencoder whose inverses last 100 steps lost 1 to 6 % in 200 steps, three seeds).
MOST_LOOKS = 8
#: Factors and inverses get as old as this share of the steps before they were made (ours: with all of these steps,
#: autoencoders and a CNN were at losses 4 to 7 % higher after equal steps, one seed).
AGED = 0.5
#: The least damping, in roundings of the mean curvature.
LEAST_DAMPING = 0.1


class KFAC(Optimizer):
    """Kronecker-factored approximate curvature.

    Letters: see the module; α is `lr`, a share of the step that the quadratic model takes for best, μ `momentum`, κ
    `trust`.

    Covered are dense layers, convolutions without groups, embeddings and the projections of attention, each weight in
    one layer only (called as often as it likes). The rest (norms, biases of their own, recurrent cells, weights that
    layers share) goes to AdamW with the rate `rest_lr`, a parameter group of its own, which schedules scale alike. So
    does, until it is heard, a layer that no estimate of the factors has seen in use, and for good a weight that is used
    without its layer. A group that is added is AdamW's. What is frozen, or has no gradient in a step, stands still.

    Factors and inverses are computed anew every so many steps that both together take a share `budget` of the gradient,
    by the number of multiplications, or every 20 and every 100 where that is more often; before, at steps 1, 2, 3, 4,
    6, 9, 13 and so on, which is up to 8 estimates and 11 inversions more in all.

    Cost of a step, in gradients, for layers of m inputs and n outputs and R rows of a batch: 1, a third for the length,
    (m+n)/3R for the direction, or (m² + n² + mn)/3mn where that is less, and `budget`: 2 to 5 in time (measured:
    `benchmarks/rules/parts.py`), for small products take longer than their multiplications. Memory: A, G and their
    inverses, 2(m² + n²) numbers, in float32 where parameters are in half precision.

    For networks of dense and convolutional layers whose loss is badly conditioned: autoencoders, regression; batches of
    some hundred and more. Not where layers are much wider than the batch has rows, nor for networks that are mostly
    recurrent cells or norms.

    Args:
        model: any module; it is called by `.step`, in the mode that it is in.
        loss: a name or function.
        lr: α; 1 is the model's own step.
        momentum: μ; 0 where the length is the model's own, for the best length along an old direction is short
            (measured: docs/decisions/0017).
        damping: λ of the first step, in units of the mean curvature tr(A)tr(G)/dim(A)dim(G) over all layers; less where
            batches are large, 0.01 say for all of the data (10: ours, for noisy mini-batches).
        trust: κ, what a step may change the predictions by, beside the loss; 1 would be as much as explains all of it
            (0.3: ours, docs/decisions/0017).
        weight_decay: w in θ ← θ − α w θ, of matrices, apart from the gradient; of what AdamW moves, too, at its rate
            (0: ours; the length is the best for the loss alone).
        budget: what factors and inverses may cost (0.25: ours).
        fisher: "monte_carlo", "true" or "empirical", as in `gradients.kronecker_factors`; "auto" is the first where it
            is known of the loss (`cross_entropy`, `mse`, `binary_cross_entropy`), else the last.
        sharing: "expand" takes each position that a weight is applied to as a row, "reduce" their mean.
        rest_lr: AdamW's rate (1e-3: Kingma & Ba 2015, section 2, as AdamW's in `catalogue.py`).
        seed: what is drawn follows from it and the number of the step.

    Raises:
        ValueError: nothing in the model has Kronecker factors, or an option is out of range.
        TypeError: the loss is None, or the model is of Keras.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any,
        lr: float = 1.0,
        *,
        momentum: float = 0.0,
        damping: float = 10.0,
        trust: float = 0.3,
        weight_decay: float = 0.0,
        budget: float = 0.25,
        fisher: str = "auto",
        sharing: str = "expand",
        rest_lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        positive(lr=lr, damping=damping, budget=budget, rest_lr=rest_lr, trust=trust)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is in [0, 1), got {momentum!r}")
        self.model = eager(model)
        self.forward = Forward(self.model)
        require_outputs("kfac", self.forward, loss)
        self.loss = resolve(loss)
        if fisher == "auto":
            fisher = "monte_carlo" if family(self.loss) else "empirical"
        self.estimate = Estimate(FactorSampling(fisher, sharing, rows=None), seed)
        self.budget, self.first_damping, self.trust, self.rest_lr = budget, damping, trust, rest_lr
        self._blocks: list[Block] | None = None
        self._has_warned = False
        ours = covered(self.model)
        if not ours:
            raise ValueError("kfac finds no layer with Kronecker factors (dense, convolution, embedding): use adamw")
        known = {id(p) for p in ours}
        rest = [p for p in self.forward.parameters().values() if id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": ours, "lr": lr},
            *([{"params": rest, "lr": rest_lr}] if rest else []),
        ]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def step(self, x: Any, y: Any = None) -> Tensor:  # type: ignore[override]
        """One update from a batch; returns the loss on it before, a detached scalar."""
        return self.descend((x, y))

    def descend(self, batch: Batch | Parts, graded: Callable[[], None] | None = None, watcher: Any = None) -> Tensor:
        """One update; `graded` is called when gradients are in `.grad`, and may change them; they are cleared after."""
        self.zero_grad()
        whole = self._whole
        whole["step"] += 1
        replay, seen = Replay(self.forward, self.loss, batch), Outputs(watcher)
        with torch.enable_grad():
            loss, rows = self._gradient(batch, seen, is_changed=graded is not None)
            if graded is not None:
                graded()
            if self._is_due("factors"):
                self._take_factors(batch)
        with torch.no_grad():
            if self._known() and self._is_due("inverses"):
                self._invert()
            move = self._direction(rows)
            step = self._length(move, replay, seen, float(loss))
            self._move(move, step, replay, seen, float(loss))
        self._opt_called = True  # or torch's schedules warn of no step
        self.zero_grad()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A further group, for AdamW: at `rest_lr`, unless it has an "lr" of its own."""
        super().add_param_group({"lr": self.rest_lr} | param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, exactly."""
        exact.load(self, state_dict)
        self._blocks = None

    # ── what is kept of the whole ────────────────────────────────────────────────────────────────────────────────

    @property
    def _whole(self) -> dict[str, Any]:
        """What is not of one parameter, kept with the first."""
        state = self.state[self.param_groups[0]["params"][0]]
        if "step" not in state:
            state.update(step=0, factors=0, inverses=0, looked=0, looks=0)
            state.update(periods=[LONGEST_FACTORS, LONGEST_INVERSES], damping=0.0, loss=None, blocks=[])
        return state

    def _known(self) -> list[Block]:
        """The blocks; made again where the state came from elsewhere."""
        words = self._whole["blocks"]
        stale = self._blocks is None or len(self._blocks) != len(words)
        if stale or any(b.state is not self.state[b.weight] for b in self._blocks or []):
            self._blocks = remembered(self.model, words, self.state)
        assert self._blocks is not None
        return self._blocks

    def _is_due(self, what: str) -> bool:
        """Whether factors, or inverses, are new at this step: at 1, 2, 3, 4, 6, 9, 13, … until that is their period.

        Inverses wait for new factors, for of old ones there are inverses.
        """
        whole = self._whole
        if what == "inverses" and whole["factors"] != whole["step"]:
            return False
        last, period = whole[what], whole["periods"][what == "inverses"]
        return not last or bool(whole["step"] - last >= min(period, max(1, int(AGED * last))))

    # ── parts of a step ──────────────────────────────────────────────────────────────────────────────────────────

    def _gradient(self, batch: Batch | Parts, seen: Outputs, is_changed: bool) -> tuple[Tensor, Rows | None]:
        """The gradient in `.grad`, the loss; and rows of layers whose direction is made from them."""
        layers = {b.layer for b in self._known() if b.is_by_rows and b.weight.requires_grad}
        if is_changed or not layers or type(batch) is Parts:
            return gradient(self.forward, self.loss, batch, seen), None
        rows = Rows(layers)
        modules = {name: self.model.get_submodule(name) for name in layers}
        with Taps(self.model, rows, modules=modules):
            return gradient(self.forward, self.loss, batch, seen), rows

    def _take_factors(self, batch: Batch | Parts) -> None:
        whole = self._whole
        whole["factors"] = whole["step"]
        moment = Moment(self.forward)
        found = self.estimate(self.model, batch, self.loss, whole["step"])
        moment.put_back()
        found = owned(self.model, found, self.param_groups[0]["params"])
        known = self._known()
        self._blocks = renewed(self.model, known, found, self.state)
        whole["blocks"] = described(self.model, self._blocks)
        for block in self._blocks:
            if block.layer in found:
                block.observe(found[block.layer])
        if any(b not in known for b in self._blocks):  # which have no inverses yet
            whole["periods"], whole["inverses"] = periods(self._blocks, self.budget), 0

    def _invert(self) -> None:
        whole = self._whole
        whole["inverses"], whole["looks"] = whole["step"], 0
        scale = mean_curvature(self._known())
        least = LEAST_DAMPING * torch.finfo(self._known()[0].get("A").dtype).eps * scale
        whole["damping"] = max(whole["damping"] or self.first_damping * scale, least)
        failed = [block.layer for block in self._known() if not block.invert(whole["damping"])]
        if failed and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"K-FAC could not invert the factors of {failed[0]!r} and goes on with the inverse it had: the damping "
                "is too small for this arithmetic, or a factor is not finite",
                RuntimeWarning,
                stacklevel=4,
            )

    def _direction(self, rows: Rows | None) -> dict[nn.Parameter, Tensor]:
        """M of every parameter that is covered and has a gradient: not of one that is frozen, or not in use."""
        found: dict[nn.Parameter, Tensor] = {}
        for block in self._known():
            if (own := self._told(block, rows)) is not None:
                d = block.direction_of_rows(own)
            elif (g := block.gradient()) is not None:
                d = block.direction(g)
            else:
                continue
            for p, of_rows, part in block.parts(d):
                if p.grad is None:
                    continue
                if part.shape == p.shape:
                    found[p] = part
                    continue
                if p not in found:
                    found[p] = torch.zeros(p.shape, dtype=part.dtype, device=p.device)
                found[p][of_rows] = part
        mu = self.param_groups[0]["momentum"]
        if mu and all_finite(found.values()):
            for p, d in found.items():
                state = self.state[p]
                state["momentum"] = d.clone() if "momentum" not in state else state["momentum"].lerp_(d, 1 - mu)
                found[p] = state["momentum"]
        return found

    def _told(self, block: Block, rows: Rows | None) -> tuple[Tensor, Tensor] | None:
        """The rows that a block's direction is made from; None where that is its gradient.

        Looked at again with each inversion: a penalty may come later.
        """
        if rows is None or not block.is_by_rows or (own := rows.of(block.layer)) is None:
            return None
        if any(p is not None and p.grad is None for p in (block.weight, block.bias)):
            return None  # rows would tell a gradient of what is frozen
        whole = self._whole
        if block.get("is_told_by_rows") is None or whole["inverses"] == whole["step"]:
            block.set("is_told_by_rows", rows.suffice(block))
        return own if block.get("is_told_by_rows") else None

    def _length(self, move: dict[nn.Parameter, Tensor], replay: Replay, seen: Outputs, loss: float) -> Step | None:
        """β, and what the model says of it; None where nothing is to move."""
        if not move:
            return None
        whole, parameters, directions = self._whole, list(move), list(move.values())
        slope = total([(d * p.grad).sum() for p, d in move.items() if p.grad is not None])
        norm, size = length(directions), length(parameters)
        if not (slope > 0 and 0 < norm < math.inf):
            return None
        epsilon = torch.finfo(parameters[0].dtype).eps ** 0.5 * (size or 1.0) / norm
        moved, _ = replay.change(parameters, directions, epsilon, seen)
        bent = replay.bend(moved, seen)
        if not 0 < bent < math.inf or not math.isfinite(loss):
            return None
        whole["loss"] = (
            abs(loss) if whole["loss"] is None else 0.9 * whole["loss"] + 0.1 * min(abs(loss), 10 * whole["loss"])
        )
        beta = min(slope / bent, math.sqrt(2 * self.trust * whole["loss"] / bent))
        beta *= self.param_groups[0]["lr"]
        predicted = -beta * slope + beta**2 * bent / 2
        return Step(beta, predicted) if beta > 0 else None

    def _move(
        self, move: dict[nn.Parameter, Tensor], step: Step | None, replay: Replay, seen: Outputs, loss: float
    ) -> None:
        group = self.param_groups[0]
        if step is not None:
            if self._is_time_to_look():
                _, after = replay.change(list(move), list(move.values()), -step.length, seen)
                self._learn(after - loss, step.predicted)
                if not after < loss:
                    step = Step(0.0, 0.0)
            for p in move if group["weight_decay"] else ():
                if p.ndim >= 2:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(list(move), list(move.values()), alpha=-step.length)
        moving = [block for block in self._known() if block.weight.grad is not None]
        ours = {id(p) for block in moving for p in (block.weight, block.bias)}
        for group in self.param_groups:
            rate = self._rate_of_rest(group)
            for p in group["params"]:
                if id(p) not in ours and p.grad is not None and p.numel():
                    adamw(p, self.state[p], rate, group["weight_decay"] if p.ndim >= 2 else 0.0)

    def _is_time_to_look(self) -> bool:
        whole = self._whole
        is_due = whole["step"] - whole["looked"] >= LOOK_EVERY
        whole["looked"] = whole["step"] if is_due else whole["looked"]
        return bool(is_due)

    def _learn(self, actual: float, predicted: float) -> None:
        """λ from what a step has brought; not so often that it runs away from the inverses, made with an older one."""
        whole = self._whole
        whole["looks"] += 1
        if whole["looks"] <= MOST_LOOKS:
            whole["damping"] = adapted(whole["damping"], actual, predicted, OMEGA**LOOK_EVERY)

    def _rate_of_rest(self, group: dict[str, Any]) -> float:
        """AdamW's rate for what has no block; the first group's own is a share of K-FAC's step."""
        if group is not self.param_groups[0]:
            return float(group["lr"])
        return float(self.rest_lr * group["lr"] / group.get("initial_lr", self.defaults["lr"]))


@dataclass(frozen=True, slots=True)
class Step:
    """How far to go along a direction, and what the loss is to change by."""

    length: float
    predicted: float


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether no entry is NaN or infinite; their sums tell, and are read but once."""
    return math.isfinite(total([t.sum() for t in tensors]))


def total(scalars: Sequence[Tensor]) -> float:
    """Their sum, on the host."""
    return float(torch.stack(list(scalars)).double().sum()) if scalars else 0.0


def length(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all of them."""
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))).double()))
