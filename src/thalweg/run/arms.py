"""The arms of a trial: a training as it would go on, with a prescription or without, from one state and over the same
batches.

Nothing of an arm stays: model, rule, random state and data are afterwards as they were.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from thalweg.loop.evaluate import evaluating
from thalweg.loop.memory import untouched
from thalweg.loop.setup import Setup, Standing
from thalweg.loop.train import Training
from thalweg.optim import schedules
from thalweg.repairs.change import Body, Undo
from thalweg.repairs.prescriptions import CHANGES, Prescription
from thalweg.repairs.trial import Measured, cool_down
from thalweg.run.choices import Chosen, again
from thalweg.run.placing import follow_parameters
from thalweg.search.candidate import endless
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Batch, Stream
from thalweg.step.trial import Snapshot
from thalweg.step.update import Update
from thalweg.step.whole import Step
from thalweg.tensors.named import assign, copied, leaves, mapped
from thalweg.tensors.seeds import generator

#: Examples that arms are measured on, and the groups whose losses are compared pair by pair.
EXAMPLES, GROUPS = 2048, 16
#: Changes that change what is measured: the control is measured in their terms too.
OF_MEASURE = ("drop_head", "weigh_classes")

Done = list[tuple[str, dict[str, float | str]]]


class Later(schedules.ByStep):
    """A schedule that begins at an update, from one of its own on."""

    def __init__(self, schedule: schedules.Schedule, begin: int, first: int = 0) -> None:
        assert isinstance(schedule, schedules.ByStep)
        super().__init__(lambda t: schedule.factor(max(0, t - begin) + first))


def parts_of(body: Body, chosen: Chosen, old: Setup | None) -> Chosen:
    """What a training is made of as the body stands; rule and schedule keep what they can of the old ones' state."""
    given, schedule = body.settings.optimizer, body.settings.schedule
    before = [(float(g["initial_lr"]), float(g["lr"])) for g in old.optimizer.param_groups] if old is not None else []
    if isinstance(given, Optimizer):  # a scheduler begins from where the rates began
        for group in given.param_groups:
            group["lr"] = group["initial_lr"]
    parts = again(chosen, body.forward, body.loss, body.settings)
    parts.batches = _batches(body, chosen, parts)
    parts.decided["total_steps"] = _total(body, parts)
    if isinstance(schedule, str) and (body.restarted_at or body.is_warm) and schedule != "plateau":
        parts.schedule = _restarted(schedule, body, parts)
    elif old is not None:
        _go_on(old.schedule, parts, before)
    if body.skips:
        parts.update = Update(parts.optimizer, replace(parts.update.clip, skips=True))
    if old is not None:
        _carry(old.optimizer, parts.optimizer, body.forgets)
    return parts


def _restarted(schedule: str, body: Body, parts: Chosen) -> Later:
    """A schedule over what is left of the training."""
    total, first = parts.decided["total_steps"], 0
    left = max(1, total - body.restarted_at) if total is not None else None
    if left is not None and body.is_warm and schedule == "warmup_stable_decay":
        first = left // (schedules.WARMUP - 1)
        left += first
    return Later(schedules.build(schedule, parts.optimizer, left, parts.batches.per_epoch), body.restarted_at, first)


def _go_on(old: schedules.Schedule, parts: Chosen, before: list[tuple[float, float]]) -> None:
    """A torch scheduler goes on from where it stands, where it is the same one or its rates are.

    `before` are the rates that its groups began with, and those they had come to.
    """
    new, groups = parts.schedule, parts.optimizer.param_groups
    if not (isinstance(old, schedules.TorchSchedule) and isinstance(new, schedules.TorchSchedule)):
        return
    is_same = [float(group["initial_lr"]) for group in groups] == [first for first, _ in before]
    if is_same or old.scheduler is new.scheduler:
        new.load_state_dict(old.state_dict())
        if hasattr(new.scheduler, "base_lrs"):  # which may have been scaled since
            new.scheduler.base_lrs = [group["initial_lr"] for group in groups]
        for group, (first, now) in zip(groups, before, strict=False):
            group["lr"] = group["initial_lr"] * (now / first if first else 1.0)


def _total(body: Body, parts: Chosen) -> int | None:
    """Updates in all, those counted that were made of other batches."""
    total: int | None = parts.decided["total_steps"]
    epochs, per_epoch = parts.limits.epochs, parts.batches.per_epoch
    if total is None or body.recut_at is None or epochs is None or per_epoch is None:
        return total
    made, passed = body.recut_at
    whole = made + max(0, epochs - passed) * per_epoch
    return whole if parts.limits.steps is None else min(whole, parts.limits.steps)


def _batches(body: Body, chosen: Chosen, parts: Chosen) -> Batches:
    """The very batches there were, unless they are cut otherwise now."""
    whole = body.data
    if body.kept is not None and whole is not None and chosen.batches.num_examples != len(body.kept):
        assert not isinstance(whole, Stream)
        before = parts.batches
        return Batches(whole.part(body.kept), before.order, before.dtype, before.device)
    return chosen.batches if parts.batches.order == chosen.batches.order else parts.batches


def _carry(old: Optimizer, new: Optimizer, forgets: bool) -> None:
    """Moments of tensors that are trained on by a rule of the same family."""
    if forgets:
        new.state.clear()
    elif old is not new and _family(old) == _family(new):
        for group in new.param_groups:
            for p in group["params"]:
                kept = old.state.get(p)
                if kept and all(not isinstance(v, torch.Tensor) or _fits(v, p) for v in kept.values()):
                    new.state[p] = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in kept.items()}
        _completed(new)
        follow_parameters(new)


def _completed(new: Optimizer) -> None:
    """The fused kernel of SGD wants the momentum of all tensors or of none; zero is what one begins with."""
    if type(new) is torch.optim.SGD and new.state:
        for group in new.param_groups:
            for p in group["params"]:
                if group["momentum"] and new.state[p].get("momentum_buffer") is None:
                    new.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _fits(kept: torch.Tensor, p: torch.Tensor) -> bool:
    return (kept.ndim == 0 or kept.shape == p.shape) and bool(torch.isfinite(kept).all())


def _family(optimizer: Optimizer) -> str:
    return {"AdamW": "Adam"}.get(type(optimizer).__name__, type(optimizer).__name__)


@contextlib.contextmanager
def applied(
    body: Body, prescription: Prescription, good: Any = None, only: Sequence[str] | None = None
) -> Iterator[Done]:
    """The body is changed inside; what was done, in words, is handed out, and undone afterwards."""
    undos: list[Undo] = []
    try:
        yield administer(body, prescription, good, undos, only)
    finally:
        for undo in reversed(undos):
            undo()


def administer(
    body: Body, prescription: Prescription, good: Any, undos: list[Undo], only: Sequence[str] | None = None
) -> Done:
    """Make the changes of a prescription; how to undo each is added to `undos`."""
    if prescription.is_from_the_start and good is not None:
        assign(body.forward.state(), good)
    if prescription.begins_anew or prescription.is_from_the_start:  # what the rule kept is of other weights
        undos.append(CHANGES["reset_moments"].apply(body, {}))
    done: Done = []
    for code, given in prescription.changes:
        if only is not None and code not in only:
            continue
        words = given if given is not None else CHANGES[code].words(body)
        if words is not None:
            undos.append(CHANGES[code].apply(body, words))
            done.append((code, dict(words)))
    return done


def given_back(body: Body, prescription: Prescription, at: Standing, per_epoch: int | None) -> dict[str, int]:
    """What a training is given more that goes back: with fresh weights its full length, with earlier ones what they had
    before them, to the nearest epoch.
    """
    if prescription.begins_anew:
        given = {"epochs": at.epoch + (at.position > 0), "steps": at.step, "from": at.step}
    elif prescription.is_from_the_start:
        lost = at.step - at.good_step
        given = {"epochs": round(lost / per_epoch) if per_epoch else 0, "steps": lost}
    else:
        return {}
    extend(body, given)
    return given


def extend(body: Body, given: Mapping[str, int]) -> None:
    """Give a training more epochs or updates, and its schedule another beginning."""
    settings = body.settings
    limits = {word: getattr(settings, word) for word in ("epochs", "steps")}
    longer = {word: limit + given.get(word, 0) for word, limit in limits.items() if limit is not None}
    body.settings = replace(settings, **longer)
    body.restarted_at = given.get("from", body.restarted_at)


class Arms:
    """Trains and measures arms from where a training stands."""

    def __init__(self, training: Training, chosen: Chosen, body: Body, updates: int) -> None:
        self._training = training
        self._chosen = chosen
        self._body = body
        self._updates = updates
        # Once for all arms, and not undone afterwards: what draws its batches has drawn these.
        self._held = training.memory.ahead(training.at, updates + cool_down(updates))
        self._groups = groups(chosen, body.settings.seed, self._held or None)
        self._end: dict[str, torch.Tensor] | None = None
        """The control's weights, cooled down."""

    def before(self) -> Measured:
        """The training as it stands, cooled down as arms are: what that alone brings is nobody's gain."""
        with self._from_here():
            parts = parts_of(self._body, self._chosen, self._training.setup)
            self._train(parts, 0)
            return self._measured()

    def control(self) -> Measured:
        """Nothing is changed."""
        with self._from_here():
            parts = parts_of(self._body, self._chosen, self._training.setup)
            self._train(parts, self._updates)
            self._end = copied(self._body.forward.state())
            return self._measured()

    def in_terms_of(self, prescription: Prescription) -> Measured | None:
        """The control, measured as an arm with this prescription is; None where that is no other measure."""
        only = [code for code, _ in prescription.changes if code in OF_MEASURE]
        if not only:
            return None
        assert self._end is not None
        with self._from_here():
            assign(self._body.forward.state(), self._end)
            with applied(self._body, prescription, only=only):
                return self._measured()

    def treated(self, prescription: Prescription) -> Measured:
        """An arm with a prescription."""
        good = self._training.memory.good
        with self._from_here(), applied(self._body, prescription, good), self._lengthened(prescription):
            parts = parts_of(self._body, self._chosen, self._training.setup)
            self._train(parts, self._updates)
            return self._measured()

    @contextlib.contextmanager
    def _lengthened(self, prescription: Prescription) -> Iterator[None]:
        """As long as the training will be with a prescription: the arm's schedule is that of what would be kept."""
        body, before = self._body, (self._body.settings, self._body.restarted_at)
        given_back(body, prescription, self._training.at, self._training.setup.batches.per_epoch)
        try:
            yield
        finally:
            body.settings, body.restarted_at = before

    @contextlib.contextmanager
    def _from_here(self) -> Iterator[None]:
        training, setup = self._training, self._training.setup
        rates = [dict(group) for group in setup.optimizer.param_groups]
        schedule = copy.deepcopy(setup.schedule.state_dict())
        snapshot = Snapshot(training.forward, setup.optimizer)
        try:
            with untouched(self._chosen.batches):
                yield
        finally:
            for group, before in zip(setup.optimizer.param_groups, rates, strict=True):
                group.update({word: value for word, value in before.items() if word != "params"})
            setup.schedule.load_state_dict(schedule)
            snapshot.restore()

    def _train(self, parts: Chosen, updates: int) -> None:
        """So many updates, and a cool-down."""
        step = Step(self._body.forward, self._body.loss, parts.update)
        first, cool = self._training.at.step, cool_down(self._updates)
        self._body.model.train()
        for i, batch in enumerate(itertools.islice(self._batches(parts), updates + cool)):
            if self._training.must_stop:
                return
            parts.schedule.apply(parts.optimizer, first + i)
            left = min(1.0, (updates + cool - i) / (cool + 1))
            rates = [group["lr"] for group in parts.optimizer.param_groups]
            for group, rate in zip(parts.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * left
            step(batch)
            for group, rate in zip(parts.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _batches(self, parts: Chosen) -> Iterator[Any]:
        at, here = self._training.at, self._training.setup.batches
        if parts.batches is here:
            yield from self._training.memory.again(at) if self._held is None else self._held
        yield from endless(parts.batches, at.epoch + 1)

    def _measured(self) -> Measured:
        body, found = self._body, []
        with evaluating(body.model), torch.no_grad():
            for x, y in self._groups:
                if body.loss is None:
                    value = body.forward.own_loss(x, y, training=False)
                else:
                    value = body.loss(body.forward(x, training=False), y)
                found.append(value)
        values = torch.stack(found).tolist()
        return Measured(tuple(v if math.isfinite(v) else math.inf for v in values))


def groups(chosen: Chosen, seed: int, held: Sequence[Any] | None = None) -> list[Batch]:
    """Held-out examples, or else some of those that are trained on, in groups; rows with NaN are left out.

    Of a stream that is being gone through those that are `held`: to begin it again may end the pass that is open.
    """
    batches = _some(chosen.validation or chosen.batches, seed)
    found: list[Batch] = []
    count = 0
    with untouched(batches):
        for batch in batches.epoch(0) if held is None or chosen.validation is not None else held:
            parts = [batch] if isinstance(batch, tuple) else list(batch)
            found += [part for part in map(_finite, parts) if part is not None]
            count = sum(len(next(leaves(x))) for x, _ in found)
            if count >= EXAMPLES:
                break
    return _drawn(found, seed) or found


def _drawn(batches: list[Batch], seed: int) -> list[Batch]:
    """The same examples in groups that are drawn, so that none holds one class alone; none where they do not join."""
    trees = [list(leaves(batch)) for batch in batches]
    if not trees or any(t.ndim == 0 or len(t) != len(b[0]) for b in trees for t in b):
        return []  # rows are not examples
    if any(t.shape[1:] != f.shape[1:] for b in trees for t, f in zip(b, trees[0], strict=True)):
        return []
    joined = [torch.cat(parts) for parts in zip(*trees, strict=True)]
    order = torch.randperm(len(joined[0]), generator=generator(seed, "groups")).to(joined[0].device)
    size = max(1, math.ceil(len(order) / GROUPS))
    return [_like(batches[0], [t[rows] for t in joined]) for rows in order.split(size)]


def _like(batch: Batch, tensors: list[torch.Tensor]) -> Batch:
    """Tensors in the places of those of a batch."""
    left = iter(tensors)
    made: Batch = mapped(lambda t: next(left), batch)
    return made


def _some(batches: Batches, seed: int) -> Batches:
    """Some of the examples, drawn once for all: the first ones may be of one class."""
    if isinstance(batches.data, Stream):
        return batches
    count = len(batches.data)
    drawn = torch.randperm(count, generator=generator(seed, "trial"))[:EXAMPLES].tolist()
    size = max(1, math.ceil(len(drawn) / GROUPS))
    return Batches(batches.data.part(drawn), Order(size, shuffle=False), batches.dtype, batches.device)


def _finite(batch: Batch) -> Batch | None:
    """The rows without NaN or Inf."""
    rows: torch.Tensor | None = None
    for t in leaves(batch):
        if t.is_floating_point() and t.ndim:
            good = torch.isfinite(t).reshape(len(t), -1).all(1)
            rows = good if rows is None else rows & good if len(good) == len(rows) else rows
    if rows is None or bool(rows.all()):
        return batch
    if not bool(rows.any()):
        return None
    count = len(rows)
    kept: Batch = mapped(lambda t: t[rows] if t.ndim and len(t) == count else t, batch)
    return kept
