"""Changes of settings, of what a rule remembers and of the weights themselves: words, effect, exact undo, code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bodies import KINDS, body, body_of
from torch import Tensor, nn

from thalweg.records.finding import Finding
from thalweg.repairs import backward, update
from thalweg.repairs.change import Body
from thalweg.repairs.curvature import FollowCurvature
from thalweg.repairs.prescriptions import CHANGES, prescribe
from thalweg.step.data import Arrays
from thalweg.step.losses import resolve

#: Code → words that a finding would give, where the change has none of its own.
GIVEN: dict[str, dict[str, float | str]] = {"set_learning_rate": {"learning_rate": 0.02}}
CODES = [*update.CHANGES, *backward.CHANGES, FollowCurvature.code]


def ready(kind: str = "mlp", **settings: Any) -> Body:
    made = body_of(kind, **{"optimizer": "adam", "batch_size": 4, "epochs": 10, **settings})
    made.data, made.step = Arrays(*made.sample), 30
    return made


def held(body: Body) -> tuple[Any, ...]:
    tensors = {name: t.clone() for name, t in body.model.state_dict().items()}
    standing = (body.restarted_at, body.is_warm, body.recut_at, body.skips, body.forgets, body.kept)
    return (body.settings, body.rate, standing, body.loss), tensors


def is_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[0] == b[0] and all(torch.equal(t, b[1][name]) for name, t in a[1].items())


def words_of(code: str, body: Body) -> Any:
    return GIVEN.get(code) or CHANGES[code].words(body)


@pytest.mark.parametrize("code", CODES)
def test_done_and_undone_exactly(code: str) -> None:
    body = ready()
    before = held(body)
    words = words_of(code, body)
    assert is_same(before, held(body))  # looking changes nothing
    undo = CHANGES[code].apply(body, words)
    assert not is_same(before, held(body))
    undo()
    assert is_same(before, held(body))


@pytest.mark.parametrize("code", CODES)
def test_it_says_the_code_for_it(code: str) -> None:
    lines = CHANGES[code].lines(words_of(code, ready()))
    assert lines
    for line in lines:
        compile(line.replace("…, ", ""), code, "exec")


@pytest.mark.parametrize("code", CODES)
def test_safe_ones_are_of_the_level_safe(code: str) -> None:
    assert CHANGES[code].level == "safe"


def test_what_is_set_is_what_the_words_say() -> None:
    body = ready(weight_average=None)
    for code in ("set_learning_rate", "change_batch", "clip_gradients", "restart_schedule", "skip_batches"):
        CHANGES[code].apply(body, words_of(code, body))
    settings = body.settings
    assert (settings.learning_rate, body.rate, settings.batch_size, settings.clip_norm) == (0.02, 0.02, 32, 1.0)
    assert (settings.schedule, body.restarted_at, body.skips) == ("warmup_stable_decay", 30, True)
    CHANGES["change_rule"].apply(body, CHANGES["change_rule"].words(body))
    assert (body.settings.optimizer, body.settings.optimizer_options) == ("adamw", None)
    CHANGES["decay_weights"].apply(body, CHANGES["decay_weights"].words(body))
    assert body.settings.optimizer_options == {"weight_decay": 0.1}


def test_an_optimizer_of_the_users_own_keeps_its_groups_and_gets_their_rates_scaled() -> None:
    model = nn.Linear(2, 1)
    own = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.4}], momentum=0.9)
    made = body(model, torch.ones(4, 2), torch.ones(4, 1), optimizer=own)
    undo = CHANGES["set_learning_rate"].apply(made, {"learning_rate": 0.01})
    assert [group["lr"] for group in own.param_groups] == pytest.approx([0.01, 0.04])
    undo()
    assert [group["lr"] for group in own.param_groups] == [0.1, 0.4]


def test_rows_are_set_aside_and_taken_back() -> None:
    made = ready()
    made.data.x[[3, 17]] = torch.nan
    words = CHANGES["set_rows_aside"].words(made)
    assert words == {"count": 2.0, "rows": "3 17"}
    undo = CHANGES["set_rows_aside"].apply(made, words)
    assert made.kept == [i for i in range(64) if i not in (3, 17)]
    undo()
    assert made.kept is None


def test_a_batch_is_cut_from_the_rows_that_are_left() -> None:
    made = ready()
    made.kept = list(range(40))
    CHANGES["change_batch"].apply(made, {"batch_size": 32.0})
    assert made.recut_at == (30, 3)  # ten updates an epoch


def test_a_bound_is_the_gradients_own_and_none_is_loosened() -> None:
    def clipped(evidence: dict[str, float], **settings: Any) -> list[float]:
        burst = Finding("exploding_gradient", "warning", 10, "", evidence=evidence)
        body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10, **settings)
        found = next(made for made in prescribe([burst], body, "safe") if made.key == "-clip, rate")
        return [words["clip_norm"] for code, words in found.changes if code == "clip_gradients"]

    assert clipped({"typical_norm": 0.257}) == [0.26] and clipped({}) == [1.0]
    assert clipped({"typical_norm": 0.257}, clip_norm=0.05) == [] == clipped({}, clip_value=3.0)
    assert clipped({"typical_norm": 0.257}, clip_norm=5.0) == [0.26]


def test_nothing_to_do_says_so() -> None:
    assert CHANGES["change_batch"].words(ready(batch_size=64)) is None
    assert CHANGES["clip_gradients"].words(ready(clip_norm=2.0)) is None
    assert CHANGES["decay_weights"].words(ready(optimizer="momentum")) is None
    assert CHANGES["restart_schedule"].words(ready(epochs=None, time_budget=3.0)) is None
    assert CHANGES["set_learning_rate"].words(ready()) is None


# ── along the lowest curvature ───────────────────────────────────────────────────────────────────────────────────────


def saddle(scale: float) -> Body:
    """Two linear layers near zero: the gradient is of the size of the weights, the curvature is not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(64, 8, generator=drawn)
    return body(model, x, x @ torch.randn(8, 4, generator=drawn))


def loss_of(body: Body) -> float:
    x, y = body.sample
    with torch.no_grad():
        return float((body.model(x) - y).square().mean())


@pytest.mark.parametrize("scale", [0.0, 1e-4])
def test_a_saddle_is_left_at_once(scale: float) -> None:
    standing = saddle(scale)
    before = loss_of(standing)
    change = FollowCurvature()
    change.apply(standing, change.words(standing) or {})
    steepest = saddle(scale)
    steepest.model.zero_grad()
    x, y = steepest.sample
    (steepest.model(x) - y).square().mean().backward()
    with torch.no_grad():
        for p in steepest.model.parameters():
            p.sub_(0.1 * p.grad)
    gained, gained_down_the_gradient = before - loss_of(standing), before - loss_of(steepest)
    assert gained > 0.1 * before
    assert gained_down_the_gradient < 1e-3 * before


def test_a_loss_that_knows_single_precision_only_is_followed_too() -> None:
    standing = saddle(0.0)
    standing.loss = resolve(lambda output, target: ((output - target) @ torch.ones(4, 1)).square().mean())
    x, y = standing.sample

    def loss() -> float:
        with torch.no_grad():
            return float(standing.loss(standing.model(x), y))

    before = loss()
    FollowCurvature().apply(standing, {"products": 16.0})
    assert loss() < 0.9 * before


def test_where_nothing_bends_down_nothing_is_done() -> None:
    torch.manual_seed(0)
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(64, 3, generator=drawn)
    for y in (x.sum(1, keepdim=True), torch.full((64, 1), torch.nan)):
        standing = body(nn.Linear(3, 1), x, y)
        before = held(standing)
        FollowCurvature().apply(standing, {"products": 16.0})
        assert is_same(before, held(standing))


@pytest.mark.parametrize("kind", KINDS)
def test_it_never_goes_up_and_follows_from_the_weights_alone(kind: str) -> None:
    first, second = body_of(kind), body_of(kind)
    before = _loss(first)
    torch.manual_seed(5)
    FollowCurvature().apply(first, {"products": 16.0})
    torch.manual_seed(6)
    FollowCurvature().apply(second, {"products": 16.0})
    assert _loss(first) <= before
    assert all(torch.equal(t, second.model.state_dict()[name]) for name, t in first.model.state_dict().items())


def _loss(body: Body) -> Tensor:
    twin = copy.deepcopy(body.model).eval()
    assert body.loss is not None
    with torch.no_grad():
        return body.loss(twin(body.sample[0]), body.sample[1])


def test_a_saddle_is_prescribed_it_first() -> None:
    finding = Finding("saddle_point", "warning", 10, "It stands at a saddle.")
    assert [p.name for p in prescribe([finding], saddle(0.0), "safe")][:2] == ["down", "perturb"]
