"""The safe repairs for a loop that is not ours: what can be done around its `optimizer.step()`, and taken back.

There is no control arm here: the loop's batches are its own, and come once. A repair is held against the losses of
before it: after as many updates as these were measured over it is kept where the loss is lower by more than their
noise, and else undone, weights and all; where the loop ends before a loss is reported, nothing speaks against it. What
is done is a factor on the rate, a bound on the gradient's norm, updates left out whose gradient is not finite, and the
weights of the last state with which nothing was wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.repairs.trial import UNKNOWN

#: Updates after which a repair is judged.
UPDATES = 2 * UNKNOWN
#: Standard errors that the loss must have come down by.
SURE = 2.0
#: Repairs that are tried against findings of one code.
TIMES = 2


@dataclass(slots=True)
class Treatment:
    """What is done around each update."""

    rate: float = 1.0
    """Factor of the rate that the loop, or its scheduler, sets."""
    norm: float | None = None
    """Largest norm of the gradient."""
    skips: bool = False
    """Whether updates are left out whose gradient is not finite."""


@dataclass(slots=True)
class State:
    """Weights, statistics and what the rules keep."""

    tensors: dict[str, Tensor]
    rules: list[dict[str, Any]]


@dataclass(slots=True)
class Tried:
    """A repair that waits to be judged."""

    code: str
    step: int
    finding: Finding
    before: Treatment
    state: State
    losses: list[float]
    """Of the reports before it."""
    after: list[float] = field(default_factory=list)


class Tending:
    """Treats one model and its optimizers."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], history: History, tell: Callable[[Any], None]
    ):
        self._model = model
        self._optimizers = list(optimizers)
        self._history = history
        self._tell = tell
        self.treatment = Treatment()
        self._good: State | None = None
        """The last state with which nothing was wrong: first that of where the loop begins."""
        self._left_out: State | None = None
        self._tried: Tried | None = None
        self._count: dict[str, int] = {}
        self._rates: list[list[float]] = []

    def began(self) -> None:
        """The loop begins from here."""
        self._good = self._state()

    # ── around an update ─────────────────────────────────────────────────────────────────────────────────────────

    def before_update(self, optimizer: Optimizer) -> None:
        """The rule is about to step: bound its gradients, and have it take the rate that was found."""
        treatment = self.treatment
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if treatment.norm is not None and grads:
            nn.utils.clip_grads_with_norm_(
                [p for group in optimizer.param_groups for p in group["params"]],
                treatment.norm,
                nn.utils.get_total_norm(grads),
            )
        if treatment.skips and grads and not math.isfinite(float(nn.utils.get_total_norm(grads))):
            for grad in grads:
                grad.zero_()
            self._left_out = self._state()  # zero still moves weights, by momentum and by decay
        self._rates = [[group["lr"] for group in o.param_groups] for o in self._optimizers]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * treatment.rate

    def after_update(self, optimizer: Optimizer) -> None:
        """The rule has stepped: the rate is the loop's own again, and an update that is left out is taken back."""
        if self._left_out is not None:
            self._put(self._left_out)
            self._left_out = None
        for o, rates in zip(self._optimizers, self._rates, strict=True):
            if o is optimizer:
                for group, rate in zip(o.param_groups, rates, strict=True):
                    group["lr"] = rate

    # ── judging and treating ─────────────────────────────────────────────────────────────────────────────────────

    def reported(self, step: int, loss: float | None, findings: Sequence[Finding], is_asked: bool) -> None:
        """A step was reported; `findings` are what stands, where it was just asked."""
        tried = self._tried
        if tried is not None:
            if loss is not None:
                tried.after.append(loss)
            is_worse = loss is not None and not math.isfinite(loss) and not self.treatment.skips
            if step - tried.step >= UPDATES or is_worse:
                self._judge(step)
            return
        if not is_asked:
            return
        weighty = [f for f in findings if f.severity != "note"]
        if not weighty:
            self._good = self._state()
            return
        for finding in weighty:
            found = self._prescribed(finding)
            if found is not None and found[0] != self.treatment and self._count.get(finding.code, 0) < TIMES:
                self._count[finding.code] = self._count.get(finding.code, 0) + 1
                self._begin(step, finding, *found)
                return

    def ended(self, step: int) -> None:
        """The loop is over: what waits to be judged is judged by what there is."""
        if self._tried is not None:
            self._judge(step, is_over=True)

    def _prescribed(self, finding: Finding) -> tuple[Treatment, bool] | None:
        """How it would be treated, and whether from the last good state; None where nothing here answers it."""
        now = copy.copy(self.treatment)
        rate, wanted = (finding.evidence.get(w) for w in ("learning_rate", "suggested_learning_rate"))
        factor = wanted / (rate * now.rate) if rate and wanted else None
        if finding.code in ("learning_rate_too_high", "learning_rate_too_low") and factor:
            now.rate *= factor
            return now, finding.severity == "critical"
        if finding.code in ("diverging_loss", "oscillating_loss", "noise_floor"):
            now.rate *= 0.1
            return now, finding.code == "diverging_loss"
        if finding.code == "exploding_gradient":
            norms = [v for v in self._history.series("gradient_norm")[1] if math.isfinite(v)]
            now.norm = float(torch.tensor(norms).quantile(0.1)) if norms else 1.0
            return now, True
        if finding.code == "non_finite":
            now.skips, now.norm = True, now.norm or 1.0
            return now, True
        return None

    def _begin(self, step: int, finding: Finding, treatment: Treatment, goes_back: bool) -> None:
        losses = self._history.series("loss")[1][-8:].tolist() if "loss" in self._history.names else []
        self._tried = Tried(finding.code, step, finding, self.treatment, self._state(), losses)
        self.treatment = treatment
        if goes_back and self._good is not None:
            self._put(self._good)

    def _judge(self, step: int, is_over: bool = False) -> None:
        tried = self._tried
        assert tried is not None
        kept = is_lower(tried.losses, tried.after) or (is_over and not tried.after)
        after = self.treatment
        if not kept:
            self.treatment = tried.before
            self._put(tried.state)
        self._tried = None
        words = _words(tried.before), _words(after)
        changed = {word: value for word, value in words[1].items() if words[0].get(word) != value}
        action = Action(
            f"treat {tried.code}", tried.step, {w: v for w, v in words[0].items() if w in changed}, changed, kept,
            tried.finding.sentence, _lines(changed),
        )  # fmt: skip
        self._history.acted(action)
        self._tell(action)

    def _state(self) -> State:
        named = self._model.state_dict().items()  # what modules add of their own may be no tensors
        tensors = {name: t.detach().clone() for name, t in named if isinstance(t, Tensor)}
        return State(tensors, [copy.deepcopy(o.state_dict()["state"]) for o in self._optimizers])

    def _put(self, state: State) -> None:
        with torch.no_grad():
            live = self._model.state_dict()
            for name, t in state.tensors.items():
                live[name].copy_(t)
        for optimizer, kept in zip(self._optimizers, state.rules, strict=True):
            optimizer.load_state_dict(
                {"state": copy.deepcopy(kept), "param_groups": optimizer.state_dict()["param_groups"]}
            )


def is_lower(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether losses have come down by their ranks (Mann & Whitney 1947); any that are finite have, from some that are
    not. Ranks, because a training that diverges has losses of any size.

    >>> is_lower([2.3, 2.4, 2.2, 2.5], [1.1, 1.0, 0.9]), is_lower([2.3, 2.4, 2.2, 2.5], [2.4, 2.3, 2.35])
    (True, False)
    """
    if not after or not all(map(math.isfinite, after)):
        return False
    if not before or not all(map(math.isfinite, before)):
        return True
    pairs = len(before) * len(after)
    lower = sum((b < a) + 0.5 * (b == a) for a in before for b in after)
    return lower - pairs / 2 > SURE * (pairs * (len(before) + len(after) + 1) / 12) ** 0.5


def _words(treatment: Treatment) -> dict[str, float | str]:
    words: dict[str, float | str] = {"rate times": float(f"{treatment.rate:.3g}")}
    if treatment.norm is not None:
        words["clip_norm"] = float(f"{treatment.norm:.3g}")
    if treatment.skips:
        words["skipped"] = "not finite"
    return words


def _lines(changed: Mapping[str, float | str]) -> tuple[str, ...]:
    """The same in the loop itself: the rate where the optimizer is made, the others ahead of its step."""
    code = {
        "rate times": "for group in optimizer.param_groups: group['lr'] *= {:g}  # once, where it was made",
        "clip_norm": "torch.nn.utils.clip_grad_norm_(model.parameters(), {:g})",
        "skipped": "if torch.isfinite(loss): optimizer.step()",
    }
    return tuple(code[word].format(value) for word, value in changed.items())
