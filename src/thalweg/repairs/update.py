"""Repairs of the update: the rate, its schedule, the rule, what it remembers, the batch, the weights themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import Optimizer

from thalweg.optim import catalogue
from thalweg.repairs.change import Body, Undo, Words
from thalweg.step.data import Stream
from thalweg.tensors.named import assign, copied

#: Noise that leaves a saddle or a shallow minimum, in shares of each tensor's own root mean square, and at least so
#: much beside nothing (Jin et al. 2017 perturb gradient descent where its gradient is small).
SHARE, LEAST = 0.1, 0.01
#: Decay that is tried against overfitting: a tenth (Loshchilov & Hutter 2019 find 0.025 to 0.1 of Adam's best).
DECAY = 0.1


def _settings(body: Body, **words: Any) -> Undo:
    """Put other settings in the stead of those there are."""
    before = body.settings
    body.settings = replace(before, **words)

    def undo() -> None:
        body.settings = before

    return undo


@dataclass(frozen=True, slots=True)
class SetRate:
    """α ← α′, the number that the diagnosis gives."""

    code: str = "set_learning_rate"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """Nothing to do without a number."""
        return None

    def apply(self, body: Body, words: Words) -> Undo:
        """Change the rate that the schedule multiplies; an optimizer of the user's own has its groups' rates scaled."""
        rate, before = float(words["learning_rate"]), body.rate
        if not isinstance(body.settings.optimizer, Optimizer):
            undo_settings = _settings(body, learning_rate=rate)
        else:
            undo_settings = _scaled(body.settings.optimizer, rate / before)
        body.rate = rate

        def undo() -> None:
            body.rate = before
            undo_settings()

        return undo

    def lines(self, words: Words) -> list[str]:
        """As an argument of `fit`."""
        return [f"fit(…, learning_rate={float(words['learning_rate']):.3g})"]


def _scaled(optimizer: Optimizer, factor: float) -> Undo:
    before = [(group, group["lr"], group.get("initial_lr")) for group in optimizer.param_groups]
    for group, rate, initial in before:
        group["lr"] = rate * factor
        group["initial_lr"] = (rate if initial is None else initial) * factor

    def undo() -> None:
        for group, rate, initial in before:
            group["lr"], group["initial_lr"] = rate, initial

    return undo


@dataclass(frozen=True, slots=True)
class ChangeRule:
    """Another rule, with what it can take over of the old one's state; without the options that were given."""

    code: str = "change_rule"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """AdamW at its own rate: it asks least of the scale of things."""
        rate = catalogue.RULES[catalogue.AUTO].learning_rate
        return {"optimizer": catalogue.AUTO, "learning_rate": rate}

    def apply(self, body: Body, words: Words) -> Undo:
        """Rule and rate; the options of the old rule are no matter of the new one."""
        rate, before = float(words["learning_rate"]), body.rate
        undo_settings = _settings(body, optimizer=str(words["optimizer"]), learning_rate=rate, optimizer_options=None)
        body.rate = rate

        def undo() -> None:
            body.rate = before
            undo_settings()

        return undo

    def lines(self, words: Words) -> list[str]:
        """As arguments of `fit`."""
        return [f'fit(…, optimizer="{words["optimizer"]}", learning_rate={float(words["learning_rate"]):.3g})']


@dataclass(frozen=True, slots=True)
class DecayWeights:
    """AdamW with a decay that counts."""

    code: str = "decay_weights"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """Of rules that know a decay apart from the gradient."""
        return {"weight_decay": DECAY} if body.settings.optimizer in ("auto", "adam", "adamw") else None

    def apply(self, body: Body, words: Words) -> Undo:
        """Set the decay; Adam becomes AdamW."""
        options = dict(body.settings.optimizer_options or {}) | {"weight_decay": float(words["weight_decay"])}
        rate = body.rate if body.settings.learning_rate == "auto" else body.settings.learning_rate
        return _settings(body, optimizer="adamw", optimizer_options=options, learning_rate=rate)

    def lines(self, words: Words) -> list[str]:
        """As arguments of `fit`."""
        return [f'fit(…, optimizer="adamw", optimizer_options={{"weight_decay": {words["weight_decay"]}}})']


@dataclass(frozen=True, slots=True)
class RestartSchedule:
    """A schedule that begins now and ends low where the training does.

    Full for four fifths of what is left: what was mended has little time, and its rate may be too low for a cosine,
    which halves it on the mean. No warm-up: a trial would be over before it is.
    """

    code: str = "restart_schedule"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """Stable and then down, where the length is known."""
        limited = body.settings.steps is not None or body.settings.epochs is not None
        is_known = limited and not isinstance(body.data, Stream)
        return {"schedule": "warmup_stable_decay", "from": float(body.step)} if is_known else None

    def apply(self, body: Body, words: Words) -> Undo:
        """Name the schedule and where it begins."""
        before = body.restarted_at, body.is_warm
        undo_settings = _settings(body, schedule=str(words["schedule"]))
        body.restarted_at, body.is_warm = int(float(words["from"])), True

        def undo() -> None:
            body.restarted_at, body.is_warm = before
            undo_settings()

        return undo

    def lines(self, words: Words) -> list[str]:
        """As an argument of `fit`."""
        return [f'fit(…, schedule="{words["schedule"]}")']


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """More examples an update."""

    code: str = "change_batch"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """Eight times as many, at least 32 (a batch of which most is signal)."""
        size, brings_its_own = body.settings.batch_size, isinstance(body.data, Stream)
        is_small = isinstance(size, int) and size < 32 and not brings_its_own
        return {"batch_size": float(max(32, 8 * int(size)))} if is_small else None

    def apply(self, body: Body, words: Words) -> Undo:
        """Set the size of a batch; the epoch that was begun counts as passed."""
        before = body.recut_at
        if body.data is not None and not isinstance(body.data, Stream) and isinstance(body.settings.batch_size, int):
            count = len(body.data) if body.kept is None else len(body.kept)
            per_epoch = math.ceil(count / body.settings.batch_size)
            body.recut_at = body.step, math.ceil(body.step / per_epoch)
        undo_settings = _settings(body, batch_size=int(float(words["batch_size"])))

        def undo() -> None:
            body.recut_at = before
            undo_settings()

        return undo

    def lines(self, words: Words) -> list[str]:
        """As an argument of `fit`."""
        return [f"fit(…, batch_size={int(float(words['batch_size']))})"]


@dataclass(frozen=True, slots=True)
class ResetMoments:
    """The rule forgets: moments that one bad gradient has spoilt take 1/(1 − β₂) updates to recover."""

    code: str = "reset_moments"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """Always to be had."""
        return {"moments": "zero"}

    def apply(self, body: Body, words: Words) -> Undo:
        """Have the rule begin anew."""
        before, body.forgets = body.forgets, True

        def undo() -> None:
            body.forgets = before

        return undo

    def lines(self, words: Words) -> list[str]:
        """In a loop of the user's own."""
        return ["optimizer.state.clear()"]


@dataclass(frozen=True, slots=True)
class Perturb:
    """θ ← θ + ξ: noise that leaves a saddle point, a minimum that is shallow, or units that are twins."""

    code: str = "perturb"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """A tenth of each tensor's own size."""
        return {"share": SHARE}

    def apply(self, body: Body, words: Words) -> Undo:
        """Add noise drawn from torch's own generator, which the run has seeded."""
        state = body.forward.state()
        before = copied(state)
        with torch.no_grad():
            for p in body.forward.parameters().values():
                size = float(p.square().mean()) ** 0.5
                fan_in = max(1, p[0].numel()) if p.ndim > 1 else max(1, p.numel())
                least = fan_in**-0.5 if size == 0 else LEAST * size
                p.add_(torch.randn_like(p), alpha=max(float(words["share"]) * size, least))
        return lambda: assign(state, before)

    def lines(self, words: Words) -> list[str]:
        """In a loop of the user's own."""
        share = float(words["share"])
        noise = f"{share:g} * p.square().mean().sqrt() * torch.randn_like(p)"
        return [f"with torch.no_grad(): [p.add_({noise}) for p in model.parameters()]"]


CHANGES: dict[str, Any] = {
    change.code: change
    for change in (
        SetRate(), ChangeRule(), DecayWeights(), RestartSchedule(), ChangeBatch(), ResetMoments(), Perturb(),
    )
}  # fmt: skip
"""By code."""
