"""A way is tried before it is taken: what is wrong is found, and nothing of a trial stays."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import NAMES, Case, case
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.loop.metrics import resolve_metrics
from thalweg.optim.schedule_free import ScheduleFree
from thalweg.run.inputs import trial as before_training
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Batch, read
from thalweg.step.forward import Forward
from thalweg.step.kernels import layout
from thalweg.step.losses import resolve
from thalweg.step.snapshot import Snapshot
from thalweg.step.trial import Gradients, difference, ratio, same, timed
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


class Odd(nn.Module):
    """Counts its calls, keeps a list of them, and makes a buffer at the first, which grows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls, self.seen = nn.Linear(4, 3), 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        if not hasattr(self, "history"):
            self.register_buffer("history", torch.zeros(1))
        self.history = torch.cat([self.history, x.detach().mean().reshape(1)])
        return self.inner(x)


class Around(Optimizer):
    """A rule around another one; it counts in Python, in its groups, and for all parameters together."""

    def __init__(self, parameters: Any) -> None:
        self.base = torch.optim.Adam(parameters, 0.01)
        super().__init__(self.base.param_groups, {"lr": 0.01})
        self.calls, self.steps = 0, [0]
        for group in self.param_groups:
            group["sum"], group["d"] = 0.0, torch.ones(())

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.calls += 1
        self.steps.append(self.calls)
        for group in self.param_groups:
            group["sum"] += group["lr"] ** 2
            group["d"] = group["d"] * 2
            group["begun"] = True
        kept: Any = self.state
        kept.setdefault("together", torch.zeros(())).add_(1)
        self.base.step()


def held(value: Any) -> Any:
    """Tensors and containers as plain values."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return [(name if isinstance(name, str) else id(name), held(part)) for name, part in value.items()]
    if isinstance(value, Optimizer):
        return held(vars(value))
    return [held(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("steps", [0, 2])
def test_whatever_model_and_rule_keep_is_as_it_was(steps: int) -> None:
    """A head that is the rule's and not the model's, groups, attributes, buffers that come and grow, a rule inside."""
    torch.manual_seed(0)
    model, head, x = Odd(), nn.Linear(3, 2), torch.randn(5, 4)
    optimizer = Around([*model.parameters(), *head.parameters()])

    def step() -> None:
        head(model(x)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def everything() -> Any:
        of_model = (model.calls, model.seen, sorted(vars(model)), list(model._buffers), model.state_dict())
        return held([*of_model, head.state_dict(), optimizer])

    for _ in range(steps):
        step()
    before, tensors = everything(), [id(t) for t in model.state_dict(keep_vars=True).values()]
    d = optimizer.param_groups[0]["d"]
    snapshot = Snapshot(Forward(model), optimizer)
    ends = []
    for _ in range(2):
        for _ in range(3):
            step()
        ends.append(everything())
        snapshot.restore()
        assert everything() == before
        assert [id(t) for t in model.state_dict(keep_vars=True).values()] == tensors
        assert optimizer.param_groups[0]["d"] is d
    assert ends[0] == ends[1] != before


def test_what_a_schedule_free_rule_sums_up_is_as_it_was() -> None:
    found = trial("dense", steps=0)
    rule = ScheduleFree(torch.optim.SGD(found.model.parameters(), 0.05))
    found.step.update = Update(rule)
    for steps in (0, 2):
        for batch in found.batches[:steps]:
            found.step(batch)
        before = held([rule, found.step.forward.state()])
        snapshot = Snapshot(found.step.forward, rule)
        found.step(found.batches[3])
        assert held([rule, found.step.forward.state()]) != before
        snapshot.restore()
        assert held([rule, found.step.forward.state()]) == before


def test_what_lies_channels_last_since_stays_so() -> None:
    found = trial("cnn")
    optimizer = found.step.update.optimizer
    before = found.everything()
    snapshot = Snapshot(found.step.forward, optimizer)
    laid = layout.Layout(found.model.parameters(), optimizer)
    laid.apply()
    found.step(found.batches[3])
    snapshot.restore()
    after = found.everything()
    assert all(map(torch.equal, after[0], before[0])) and after[1] == before[1]
    assert all(v.stride() == p.stride() for p in laid.parameters for v in optimizer.state[p].values() if v.ndim)
    laid.undo()


def test_a_trial_before_training_leaves_no_buffer_behind() -> None:
    model, data = Odd(), (torch.randn(9, 4), torch.randn(9, 3))
    before = held([model.calls, model.seen, sorted(vars(model)), model.state_dict()])
    batches = Batches(read(data), Order(4), torch.float32, torch.device("cpu"))
    before_training(Forward(model), resolve("mse"), batches, resolve_metrics((), None))
    assert held([model.calls, model.seen, sorted(vars(model)), model.state_dict()]) == before


def test_a_parameter_that_the_first_call_makes_is_refused() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), None

        def forward(self, x: Tensor) -> Tensor:
            if self.last is None:
                self.last = nn.Linear(4, 3)
            return self.last(self.inner(x))

    data = torch.randn(9, 4), torch.randn(9, 3)
    batches = Batches(read(data), Order(4), torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"makes the parameter 'last.bias' in its first call: make it in __init__"):
        before_training(Forward(Late()), resolve("mse"), batches, resolve_metrics((), None))


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
