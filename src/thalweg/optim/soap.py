"""SOAP: Adam in the slowly turning basis of Shampoo's eigenvectors, of large matrices in that of the leading ones.

    L ← β₂L + (1−β₂) GGᵀ;  R ← β₂R + (1−β₂) GᵀG            every k_s steps, with β₂^k_s for β₂
    G′ = QₗᵀG Qᵣ;  M ← β₁M + (1−β₁)G′;  V ← β₂V + (1−β₂)G′²
    U = Qₗ (M̂ / (√V̂ + ε + r·rms)) Qᵣᵀ;  W ← (1−αλ)W − αU    with M̂ = M/(1−β₁ᵗ), V̂ = V/(1−β₂ᵗ), rms = √(mean V̂)

    every f steps: Qₗ ← qr(L Qₗ), columns sorted by diag QₗᵀLQₗ, V sorted with them, M ← (new Qₗ)ᵀ(old Qₗ) M; so Qᵣ

    a side longer than 8 k: L ≈ QₗΛQₗᵀ with Qₗ `[m, k]`, and Tₗ = [Qₗ, I − QₗQₗᵀ] `[m, k + m]` in the place of Qₗ
    above; every k_s steps: Qₗ ← qr((β₂^k_s QₗΛQₗᵀ + (1−β₂^k_s) GGᵀ) Qₗ), Λ ← diag QₗᵀLQₗ, M ← (new Tₗ)ᵀ(old Tₗ) M

W weight `[m, n]`, G its gradient, M and V `[m, n]` in the basis, L, Qₗ `[m, m]`, R, Qᵣ `[n, n]`; α learning rate, λ
weight decay, t steps. Vyas et al. 2024, "SOAP", algorithm 3 (β 0.95, f 10). What is different, and why:

- A long side has its k leading directions alone, and what is left of the gradient stays in the old coordinates, where
  Adam divides it as ever (`frames.py`): the small eigenvalues of a statistic of few gradients are mostly noise. What
  cost products with `[m, m]` costs some with `[m, k]`, memory too. `rank=None` is the paper's rule.
- M lives in the basis and is turned with it: three products a step where the paper has four. It is the same M.
- Statistics every k_s steps, since two products go into them; their memory stays as long in steps.
- A basis that still fits (`bases.turned`) is left as it is; bases are turned in turns, no step does all of them.
- For the first `start` steps matrices are moved by AdamW at a tenth of the rate; then an eigendecomposition. Adam's
  first steps move every weight alike, which along the leading direction adds up to α√(mn): at a rate that is right for
  what follows they do damage that hundreds of steps do not mend (the authors' code leaves its first step out). V starts
  there as λᵢcⱼ/Σc, with λ the eigenvalues of rows and c those of columns: the sums that V must have, and no more.
- r = 10⁻³: where a gradient has no part at all, √V̂ is rounding noise, which ε alone would blow up to full steps.
- With all directions, one side only where the other is long (`ASPECT` times as long or more, or above `LONGEST`).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from thalweg.optim.averages import wide
from thalweg.optim.budget import FEWEST, Choice, decided
from thalweg.optim.matrices import MatrixRule
from thalweg.optim.rotation import SIDES, begun, direction, learn, refresh, refreshed, settled, sides
from thalweg.optim.stacks import Stack, gradient, words
from thalweg.tensors.timing import now

GENTLE = 0.1
"""Of the rate, what AdamW moves a matrix at while it has no basis yet."""


class SOAP(MatrixRule):
    """Adam in the eigenbasis of the gradient's row and column statistics, of its leading directions where it is large.

    A convolution `[out, in, k, k]` is the matrix `[out, in·k·k]`. AdamW (fused) moves vectors and scalars, groups with
    `adamw=True`, the embeddings of a module, and every layer whose basis would cost more than a budget that is given.

    When: ill-conditioned layers (autoencoders, regression, physics), convolutions, large batches; it needs half the
    steps of AdamW or less where directions of very different curvature are mixed, and takes AdamW's learning rate. When
    not: batches of fewer rows than a few times k, whose steps cost several of AdamW's; few steps.

    Cost of a step beside AdamW's, for a matrix `[m, n]` with k leading directions on both sides: 16mnk multiplications
    and additions for the projections, or 8k/3R of a forward and backward pass over R rows; 24mnk/k_s to follow them;
    and some ten passes over what is kept, which on a CPU take as long again. Memory in float32 numbers:
    2(m+k)(n+k) + k(m+n), of wide layers little more than AdamW's. With all directions: 4mn(m+n), or
    2(m+n)/3R of a pass; 2mn(m+n)/k_s for the statistics; about 7(m³+n³)/f for new bases, the larger part of them in
    decompositions, several times as slow as products; memory 2mn + 2m² + 2n² (square: 3 times AdamW's).

    Args:
        params: a module, or parameters, pairs (name, parameter) or groups as for any torch optimizer.
        lr: α; the learning rate that AdamW likes is a good start.
        betas: β₁ and β₂, also of AdamW inside.
        eps: ε.
        weight_decay: λ. From a module, of matrices and embeddings only.
        adamw: leave a group's matrices to AdamW.
        rank: k, the leading directions of a side longer than 8 k, or than k and 1024; a shorter one has all. None: all
            directions, of every side that is not long.
        period: f, steps from one look at a basis of all directions to the next.
        statistics_period: k_s.
        tolerance: a basis of all directions is turned where it is off by more than this (0: always).
        start: steps in which statistics are gathered and AdamW moves all matrices, decay included, at a tenth of the
            rate; with a budget some more, where there are too few times yet to judge by.
        budget: what all that AdamW does not do may cost, as a share of the time between two steps (forward, backward,
            data) in which this thread computes. After `start` steps the products and decompositions are timed once,
            and each shape gets both sides, one, or none. `None`, or `torch.use_deterministic_algorithms(True)`: no
            clock decides, every shape gets what it can have, in its own dtype. `inf`: the same, in the faster
            arithmetic.
        choices: what a shape gets, by words, instead of a decision: {"512x784": "both bfloat16", "512x512": "left",
            "10x512": "none"}. What was decided stands in `choices` of the optimizer and in `state[p]["choice"]`, so
            that a resumed run goes on with it and another can be told the same.

    Raises:
        ValueError: an option out of its range, a parameter of complex numbers, nothing to train.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    >>> optimizer = SOAP(model, lr=0.01, start=1)
    >>> model(torch.randn(32, 8)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer.choices
    {'16x8': 'both', '8x16': 'both'}
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        adamw: bool = False,
        rank: int | None = 16,
        period: int = 10,
        statistics_period: int = 5,
        tolerance: float = 0.1,
        start: int = 5,
        budget: float | None = None,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in {"period": period, "statistics_period": statistics_period, "start": start}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a number of steps, 1 or more, got {value!r}")
        if not 0 <= tolerance < 1:
            raise ValueError(f"tolerance lies in 0 to below 1, got {tolerance!r}")
        if budget is not None and (budget < 0 or start < FEWEST):
            raise ValueError(
                f"a budget is a share of 0 or more and is judged after {FEWEST} steps or more, "
                f"got budget={budget!r}, start={start!r}; budget=None lets no clock decide"
            )
        for text in (choices or {}).values():
            Choice.of(text)
        self._gaps: deque[float] = deque(maxlen=32)
        self._left_at: float | None = None
        self._young: list[tuple[dict[str, Any], nn.Parameter]] = []
        self._has_warned = False
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adamw": adamw}
        mine = {"rank": rank, "period": period, "statistics_period": statistics_period, "tolerance": tolerance}
        super().__init__(params, {**options, **mine, "start": start, "budget": budget, "choices": dict(choices or {})})

    @property
    def choices(self) -> dict[str, str]:
        """What each shape has got so far, as the argument of that name takes it."""
        return {words(p): kept["choice"] for p, kept in self.state.items() if "choice" in kept}

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: D102
        rank = param_group.get("rank", self.defaults["rank"])
        if rank is not None and (not isinstance(rank, int) or rank < 1):
            raise ValueError(f"rank is a number of directions, 1 or more, or None for all, got {rank!r}")
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("rank", None)  # as it was where it is not said
        self.__dict__.setdefault("_has_warned", False)
        self._gaps, self._left_at, self._young = deque(maxlen=32), None, []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient; returns what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        device = next(p.device for group in self.param_groups for p in group["params"])
        if self._left_at is not None:
            self._gaps.append(now(device) - self._left_at)
        super().step()
        self._left_at = None
        if self._young:
            self._learn()
            if self._young and self._by_clock:
                self._left_at = now(device)
        return loss

    # ── the first steps ──────────────────────────────────────────────────────────────────────────────────────────

    def _decide(self, matrices: list[tuple[dict[str, Any], nn.Parameter]]) -> None:
        self._young = [(group, p) for group, p in matrices if "choice" not in self.state[p]]

    def _learn(self) -> None:
        """Statistics of matrices that have no basis yet, and bases for those whose time has come."""
        grown = []
        for group, p in self._young:
            kept, rank = self.state[p], group["rank"]
            G = gradient(p).flatten(1).to(wide(p.dtype))
            self._warn(begun(kept, G, group["betas"][1], rank, sides(p, rank)))
            if kept["step"] >= group["start"]:
                grown.append((group, p))
        if grown and (not self._by_clock or len(self._gaps) >= FEWEST - 1):
            self._grow(grown)
            self._active = None

    @property
    def _by_clock(self) -> bool:
        return self.defaults["budget"] is not None and not torch.are_deterministic_algorithms_enabled()

    def _grow(self, matrices: list[tuple[dict[str, Any], nn.Parameter]]) -> None:
        """Decide what each gets, and find the bases of those that get one; nothing is kept of sides that go unused."""
        spent = sum(kept.get("seconds", 0.0) for kept in self.state.values())
        limit = self.defaults["budget"] * min(self._gaps) - spent if self._by_clock else None
        given = {shape: Choice.of(text) for shape, text in self.defaults["choices"].items()}
        kept = [self.state[p] for _, p in matrices]
        for state, choice in zip(kept, decided(matrices, kept, limit, given), strict=True):
            state |= {"choice": choice.words, "seconds": choice.seconds}
            for side in {"left", "right"} - set(choice.sides):
                state.pop(side, None)
                state.pop(f"{side}_basis", None)
            if choice.sides:
                found, failed = settled(state, choice.sides)
                del state["exp_avg"], state["exp_avg_sq"]
                state |= found
                self._warn(failed)

    def _warn(self, failed: bool) -> None:
        if failed and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "SOAP could not find the eigenvectors of some gradient statistics and keeps the old basis there; "
                "gradients that are not finite are the usual cause. This is said once.",
                stacklevel=2,
            )

    # ── every step after ─────────────────────────────────────────────────────────────────────────────────────────

    def _names(self, p: nn.Parameter) -> list[str] | None:
        choice = Choice.of(self.state[p].get("choice", "none"))
        if not choice.sides:
            return None
        return ["momentum", "variance", *choice.sides, *(f"{side}_basis" for side in choice.sides)]

    def _share(self, p: nn.Parameter) -> float:
        return GENTLE if any(p is young for _, young in self._young) else 1.0

    def _shared(self, p: nn.Parameter) -> Hashable:
        kept = self.state[p]
        shapes = [kept[side].shape for side in SIDES if side in kept]  # in full, or of leading directions
        return kept["choice"], *shapes

    def _move(self, stack: Stack, number: int) -> None:
        G = stack.gradients()
        stack.apply(*direction(stack, G))
        if (stack.step + number) % stack.group["statistics_period"] == 0:
            self._warn(learn(stack, G))
        self._warn(refresh(stack, self._due(stack, number)))

    def _due(self, stack: Stack, number: int) -> dict[str, slice]:
        """The matrices whose basis is looked at in this step, by side: one in f of all there are."""
        before = sum(len(other.parameters) * len(refreshed(other)) for other in self._stacks[:number])
        period, due = stack.group["period"], {}
        for side in refreshed(stack):
            due[side] = slice((stack.step - before) % period, None, period)
            before += len(stack.parameters)
        return due
