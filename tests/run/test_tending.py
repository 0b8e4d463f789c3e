"""watch(repair="safe"): a loop of one's own is mended around its optimizer.step(), and what does not help is undone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import thalweg
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.run import tending
from thalweg.run.tending import Tending

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 20, generator=generator)
    return x, (x @ torch.randn(20, 3, generator=generator)).argmax(1)


def loop(repair: str, rate: float, rule: Any, broken: int | None = None, updates: int = 400) -> Any:
    """A hand-written loop with a schedule; the model's accuracy, and the watch."""
    x, y = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = rule(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    generator = torch.Generator().manual_seed(3)
    with thalweg.watch(model, optimizer, repair=repair) as w:
        for i in range(updates):
            rows = torch.randint(0, 1000, (32,), generator=generator)
            batch = x[rows].clone()
            if i == broken:
                batch[0] = torch.nan
            loss = cross_entropy(model(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            w.step(loss)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean()), w, model


def test_a_rate_too_high_is_scaled_under_any_scheduler() -> None:
    before, _, _ = loop("advise", 3.0, MOMENTUM)
    after, w, _ = loop("safe", 3.0, MOMENTUM)
    assert before < 0.9 < 0.95 < after
    kept = [action for action in w.history.actions if action.kept and float(action.after["rate times"]) < 0.2]
    assert kept
    assert f"group['lr'] *= {kept[0].after['rate times']:g}" in str(kept[0])


def test_one_broken_batch_does_not_end_a_training() -> None:
    before, _, _ = loop("advise", 1e-3, torch.optim.Adam, broken=200)
    after, w, _ = loop("safe", 1e-3, torch.optim.Adam, broken=200, updates=600)
    assert before < 0.5 < 0.8 < after
    assert any(action.kept and action.after.get("skipped") == "not finite" for action in w.history.actions)


def test_a_healthy_loop_is_the_same_to_the_last_bit() -> None:
    _, _, alone = loop("off", 0.05, MOMENTUM)
    _, w, tended = loop("safe", 0.05, MOMENTUM)
    assert not w.history.actions
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), tended.parameters(), strict=True))


def test_what_does_not_help_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tending, "is_lower", lambda before, after: False)
    _, w, _ = loop("safe", 3.0, MOMENTUM)
    assert w.history.actions and not any(action.kept for action in w.history.actions)


class Tended:
    """One model in a loop of three losses: what a report finds is said by the test."""

    def __init__(self, rule: Any = MOMENTUM) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.optimizer = rule(self.model.parameters(), lr=0.1)
        self.told: list[Any] = []
        self.tending = Tending(self.model, [self.optimizer], History(), self.told.append)
        self.tending.began()

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def update(self, gradient: float = 1.0) -> None:
        for p in self.model.parameters():
            p.grad = torch.full_like(p, gradient)
        self.tending.before_update(self.optimizer)
        self.optimizer.step()
        self.tending.after_update(self.optimizer)

    def found(self, step: int, code: str) -> None:
        finding = Finding(code, "critical", step, "It is wrong.", evidence={})
        self.tending.reported(step, 9.0, [finding], is_asked=True)


def test_weights_are_put_back_where_a_repair_does_not_help() -> None:
    loop = Tended()
    first = loop.weights()
    loop.update()
    second = loop.weights()
    loop.found(10, "diverging_loss")
    assert torch.equal(loop.weights(), first)
    loop.update()
    loop.tending.reported(10 + tending.UPDATES, math.inf, [], is_asked=False)
    assert torch.equal(loop.weights(), second) and not loop.told[0].kept
    assert loop.tending.treatment == tending.Treatment()


def test_a_loop_that_ends_before_its_repair_is_judged_keeps_it() -> None:
    loop = Tended()
    first = loop.weights()
    loop.update(math.nan)
    loop.found(10, "non_finite")
    loop.tending.ended(12)
    assert torch.equal(loop.weights(), first) and loop.told[0].kept


def test_a_repair_that_no_loss_was_reported_of_is_taken_back_while_the_loop_goes_on() -> None:
    loop = Tended()
    loop.update()
    second = loop.weights()
    loop.found(10, "diverging_loss")
    loop.tending.reported(10 + tending.UPDATES, None, [], is_asked=False)
    assert torch.equal(loop.weights(), second) and not loop.told[0].kept


@pytest.mark.parametrize("rule", [MOMENTUM, partial(torch.optim.AdamW, weight_decay=0.1)])
def test_an_update_that_is_left_out_moves_nothing(rule: Any) -> None:
    loop = Tended(rule)
    loop.update()
    loop.tending.treatment.skips = True
    before = loop.weights()
    loop.update(math.inf)
    assert torch.equal(loop.weights(), before)
    loop.update()
    assert not torch.equal(loop.weights(), before)


def test_it_goes_back_to_weights_that_were_loaded_before_the_loop() -> None:
    loop = Tended()
    nn.init.constant_(loop.model.weight, 7.0)
    loop.tending.began()
    loaded = loop.weights()
    loop.update()
    loop.found(10, "diverging_loss")
    assert torch.equal(loop.weights(), loaded)


def test_what_a_module_adds_to_its_state_may_be_no_tensor() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"seen": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    model = Counting(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with thalweg.watch(model, optimizer, repair="safe") as w:
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        optimizer.step()
        w.step(loss)
    assert w.history.series("loss")[1].size == 1


def test_safe_needs_an_optimizer() -> None:
    with pytest.raises(ValueError, match="works on the optimizer"):
        thalweg.watch(nn.Linear(2, 1), repair="safe")
    with pytest.raises(ValueError, match="'advise'"):
        thalweg.watch(nn.Linear(2, 1), repair="full")
