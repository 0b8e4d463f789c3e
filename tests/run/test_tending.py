"""watch(repair="safe"): a loop of one's own is mended around its optimizer.step(), and what does not help is undone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import thalweg
from thalweg.run import tending

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


def test_safe_needs_an_optimizer() -> None:
    with pytest.raises(ValueError, match="works on the optimizer"):
        thalweg.watch(nn.Linear(2, 1), repair="safe")
    with pytest.raises(ValueError, match="'advise'"):
        thalweg.watch(nn.Linear(2, 1), repair="full")
