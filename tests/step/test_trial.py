"""A way is tried before it is taken: what is wrong is found, and nothing of a trial stays."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import NAMES, Case, case
from torch import Tensor
from torch.optim import Optimizer

from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.trial import Gradients, Snapshot, difference, ratio, same, timed
from thalweg.step.update import Clip, Update
from thalweg.step.whole import Step

RULES: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.01),
}


class Trial:
    """A step with a second way to make it, which is the first one but for what a test puts in."""

    def __init__(self, of: Case, rule: str = "adam", clip: Clip | None = None, steps: int = 2) -> None:
        self.model = of.model
        self.step = Step(Forward(of.model), of.loss, Update(RULES[rule](of.model.parameters()), clip))
        self.batches = of.batches
        for batch in of.batches[:steps]:
            self.step(batch)

    def plain(self, batch: Batch) -> tuple[Tensor, Gradients]:
        loss = self.step.gradients(batch)
        return loss, {p: p.grad for p in self.step.update.parameters if p.grad is not None}

    def way(self, batch: Batch) -> tuple[Tensor, Gradients]:
        loss, found = self.plain(batch)
        found = {p: g.clone() for p, g in found.items()}
        self.step.update()
        return loss, found

    def differs(self, way: Callable[[Batch], tuple[Tensor, Gradients]] | None = None) -> str | None:
        return same(way or self.way, self.plain, self.step.update, self.batches[2:4], self.step.forward)

    def everything(self) -> tuple[list[Any], list[Any]]:
        """Tensors, and plain values, that a step changes."""
        state = self.step.update.optimizer.state
        kept = [(n, v) for values in state.values() for n, v in values.items()]
        tensors = [*self.step.forward.state().values(), *(v for _, v in kept if isinstance(v, Tensor))]
        numbers = [(n, v) for n, v in kept if not isinstance(v, Tensor)]
        sources = torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state(legacy=False))
        return [t.detach().clone() for t in tensors], [numbers, [len(v) for v in state.values()], sources]


def trial(name: str = "batch norm", **options: Any) -> Trial:
    return Trial(case(name), **options)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NAMES)
def test_the_plain_step_is_itself(name: str, rule: str) -> None:
    assert trial(name, rule=rule).differs() is None


@pytest.mark.parametrize("clip", [Clip(norm=0.01), Clip(value=0.001)], ids=str)
def test_a_clipped_step_is_itself(clip: Clip) -> None:
    assert trial(clip=clip).differs() is None


@pytest.mark.parametrize("name", ["dense", "batch norm", "transformer", "residual"])
def test_sums_in_another_order_are_the_same(name: str) -> None:
    found = trial(name)
    clean = found.way

    def way(batch: Batch) -> tuple[Tensor, Gradients]:
        """In double precision, as another order of sums would differ at most."""
        found.model.double()
        try:
            loss, gradients = found.plain(tuple(t.double() if t.is_floating_point() else t for t in batch))
            gradients = {p: g.float() for p, g in gradients.items()}
        finally:
            found.model.float()
        for p, g in gradients.items():
            p.grad = g.clone()
        found.step.update()
        return loss.float(), gradients

    assert found.differs(way) is None
    assert found.differs(clean) is None


@pytest.mark.parametrize(("off", "is_same"), [(0.0, True), (0.05, False)])
def test_what_is_nearer_to_the_exact_gradient_than_the_plain_step_is_taken(off: float, is_same: bool) -> None:
    """As with eager batch norms over many images, whose sums lose three digits."""
    found = trial()
    p = next(iter(found.step.update.parameters))
    clean = found.plain

    def astray(batch: Batch) -> tuple[Tensor, Gradients]:
        loss, gradients = clean(batch)
        if p.dtype == torch.float32:
            gradients[p].mul_(1.01)
        return loss, gradients

    def way(batch: Batch) -> tuple[Tensor, Gradients]:
        loss, gradients = clean(batch)
        gradients[p].mul_(1 + off)
        gradients = {q: g.clone() for q, g in gradients.items()}
        found.step.update()
        return loss, gradients

    before = found.everything()
    differs = same(way, astray, found.step.update, found.batches[2:4], found.step.forward)
    assert (differs is None) is is_same
    after = found.everything()
    assert all(map(torch.equal, after[0], before[0])) and after[1] == before[1]
    assert all(t.dtype == torch.float32 for t in found.model.parameters())


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────


def wrong_loss(t: Trial, batch: Batch) -> Any:
    loss, gradients = t.way(batch)
    return loss * 1.01, gradients


def wrong_gradient(t: Trial, batch: Batch) -> Any:
    loss, gradients = t.plain(batch)
    p = next(iter(gradients))
    p.grad = gradients[p] * 1.05
    gradients = {**{q: g.clone() for q, g in gradients.items()}, p: p.grad.clone()}
    t.step.update()
    return loss, gradients


def missing_gradient(t: Trial, batch: Batch) -> Any:
    loss, gradients = t.way(batch)
    gradients.popitem()
    return loss, gradients


def not_a_number(t: Trial, batch: Batch) -> Any:
    loss, gradients = t.way(batch)
    next(iter(gradients.values())).view(-1)[0] = float("nan")
    return loss, gradients


def loss_not_a_number(t: Trial, batch: Batch) -> Any:
    loss, gradients = t.way(batch)
    return loss * float("nan"), gradients


def no_update(t: Trial, batch: Batch) -> Any:
    loss, gradients = t.plain(batch)
    return loss, {p: g.clone() for p, g in gradients.items()}


def twice_the_update(t: Trial, batch: Batch) -> Any:
    found = t.way(batch)
    with torch.no_grad():
        for p, g in found[1].items():
            p.sub_(g, alpha=0.01)
    return found


def weight_forgotten(t: Trial, batch: Batch) -> Any:
    p = next(iter(t.step.update.parameters))
    before = p.detach().clone()
    found = t.way(batch)
    p.data.copy_(before)
    return found


def weight_not_a_number(t: Trial, batch: Batch) -> Any:
    found = t.way(batch)
    next(t.model.parameters()).data.view(-1)[0] = float("nan")
    return found


def statistic_forgotten(t: Trial, batch: Batch) -> Any:
    before = {name: b.clone() for name, b in t.model.named_buffers()}
    found = t.way(batch)
    for name, b in t.model.named_buffers():
        if b.is_floating_point():
            b.copy_(before[name])
    return found


def count_forgotten(t: Trial, batch: Batch) -> Any:
    found = t.way(batch)
    for _name, b in t.model.named_buffers():
        if not b.is_floating_point():
            b.sub_(1)
    return found


def state_forgotten(t: Trial, batch: Batch) -> Any:
    found = t.way(batch)
    for values in t.step.update.optimizer.state.values():
        values["exp_avg_sq"].mul_(1.05)
    return found


def steps_forgotten(t: Trial, batch: Batch) -> Any:
    found = t.way(batch)
    for values in t.step.update.optimizer.state.values():
        values["step"].sub_(1)
    return found


def other_masks(t: Trial, batch: Batch) -> Any:
    torch.rand(1)
    return t.way(batch)


def fewer_numbers(t: Trial, batch: Batch) -> Any:
    """Other masks, with no more numbers drawn."""
    then = torch.get_rng_state()
    torch.manual_seed(5)
    found = t.way(batch)
    torch.set_rng_state(then)
    t.model(batch[0])  # draws as many
    return found


WRONG: dict[Callable[[Trial, Batch], Any], str] = {
    wrong_loss: "the loss differs by 1.0e-02 of its size",
    wrong_gradient: "a gradient differs by 5.0e-02 of its size",
    missing_gradient: "a gradient differs by inf of its size",
    not_a_number: "a gradient differs by inf of its size",
    loss_not_a_number: "the loss differs by inf of its size",
    no_update: "the update differs by 1.0e+00 of its size",
    twice_the_update: "the update differs by",
    weight_forgotten: "the update differs by 1.0e+00 of its size",
    weight_not_a_number: "the update differs by inf of its size",
    statistic_forgotten: "a statistic differs by",
    count_forgotten: "a count differs",
    state_forgotten: "the rule's state differs by",
    steps_forgotten: "the rule's state differs by",
    other_masks: "it draws other random numbers",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_what_is_wrong_is_found_and_nothing_stays(wrong: Callable[[Trial, Batch], Any]) -> None:
    found = trial()
    before = found.everything()
    reason = found.differs(lambda batch: wrong(found, batch))
    assert reason is not None
    assert WRONG[wrong] in reason
    after = found.everything()
    assert all(map(torch.equal, after[0], before[0]))
    assert after[1] == before[1]
    assert all(p.grad is None for p in found.model.parameters())
    assert found.differs() is None


def test_wrong_on_the_second_batch_alone_is_found() -> None:
    found, calls = trial(), []

    def way(batch: Batch) -> Any:
        calls.append(batch)
        return (wrong_loss if len(calls) == 2 else Trial.way)(found, batch)

    assert found.differs(way) is not None
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["dropout", "transformer"])
def test_other_masks_are_found(name: str) -> None:
    found = trial(name)
    reason = found.differs(lambda batch: fewer_numbers(found, batch))
    assert reason is not None
    assert "differs by" in reason


# ── nothing stays ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", RULES)
def test_a_way_that_fails_leaves_nothing(rule: str) -> None:
    found = trial(rule=rule)
    before = found.everything()

    def way(batch: Batch) -> Any:
        random.random(), np.random.rand()
        found.way(batch)
        raise ArithmeticError("halfway")

    with pytest.raises(ArithmeticError, match="halfway"):
        found.differs(way)
    after = found.everything()
    assert all(map(torch.equal, after[0], before[0]))
    assert after[1] == before[1]
    assert all(p.grad is None for p in found.model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_begins_to_keep_is_forgotten(rule: str) -> None:
    found = trial(rule=rule, steps=0)
    before = found.everything()
    snapshot = Snapshot(found.step.forward, found.step.update.optimizer)
    for batch in found.batches:
        found.step(batch)
    held = list(found.model.parameters())
    snapshot.restore()
    after = found.everything()
    assert all(map(torch.equal, after[0], before[0]))
    assert after[1] == before[1]
    assert all(p is q for p, q in zip(found.model.parameters(), held, strict=True))


def test_a_snapshot_is_put_back_as_often_as_wanted_into_the_same_tensors() -> None:
    found = trial()
    state = found.step.update.optimizer.state
    first = next(iter(state.values()))["exp_avg"]
    snapshot = Snapshot(found.step.forward, found.step.update.optimizer)
    ends = []
    for _ in range(2):
        for batch in found.batches:
            found.step(batch)
        ends.append(found.everything())
        snapshot.restore()
    assert next(iter(state.values()))["exp_avg"] is first
    assert all(map(torch.equal, ends[0][0], ends[1][0]))
    assert ends[0][1] == ends[1][1]


# ── measures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_difference_is_of_the_size_of_what_is_expected() -> None:
    b = {"large": torch.full((4,), 100.0), "small": torch.full((4,), 1e-3)}
    shift = {name: t + torch.tensor([1e-3, 0, 0, 0]) for name, t in b.items()}
    assert difference(b, b) == 0
    assert difference(shift, b) == pytest.approx(0.5, rel=1e-3)
    assert difference(shift, b, floor=1e-3) == pytest.approx(0.005, rel=1e-2), (
        "a small one is looked at beside the rest"
    )
    assert difference(shift, b, allowed={"large": 1.0, "small": 1.0}) == 0
    assert difference({"large": b["large"]}, b) == float("inf")
    assert difference({**b, "small": b["small"] * float("nan")}, b) == float("inf")
    assert difference({0: torch.zeros(3)}, {0: torch.zeros(3)}) == 0


def test_ways_take_turns_and_their_ratio_is_a_median() -> None:
    order: list[str] = []
    times = timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, blocks=3)
    assert order == ["a", "b"] * 4
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert ratio({"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 2.0]}, "a", "b") == 2.0
