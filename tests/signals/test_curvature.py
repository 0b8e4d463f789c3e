"""A look at the curvature while a training stands: what it tells, what it leaves alone, and what it may cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import thalweg
from thalweg.signals import curvature
from thalweg.signals.curvature import looked
from thalweg.step.batches import Batches, Order
from thalweg.step.data import read
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve


def points(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clouds on a circle."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 3
    angle = 2 * torch.pi * y / 3
    centre = torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.3 * torch.randn(count, 2, generator=generator), y


def batches(data: Any, size: int = 32) -> Batches:
    return Batches(read(data, torch.float32), Order(size), torch.float32, torch.device("cpu"))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_it_leaves_no_trace() -> None:
    model = network().train()
    model[0](torch.ones(1, 2)).sum().backward()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    gradient, random = model[0].weight.grad.clone(), torch.get_rng_state()
    assert looked(Forward(model), batches(points()), resolve("cross_entropy"), 1000) is not None
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())


def test_what_it_tells_of_units_that_are_all_alike() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    for p in model.parameters():
        nn.init.zeros_(p)
    found = looked(Forward(model), batches(points()), resolve("cross_entropy"), 1000)
    assert found is not None
    assert found["landscape_kind"] == "saddle"
    assert found["landscape_symmetric"] == ["0", "2"]
    assert found["landscape_layers"] == 2
    assert found["landscape_loss"] == pytest.approx(torch.tensor(3.0).log().item())
    assert found["smallest_curvature"] == pytest.approx(-found["largest_curvature"], rel=0.1)
    assert found["landscape_examples"] == 200


def test_units_that_come_in_pairs_are_alike_and_a_lone_pair_is_not() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
    lone = looked(Forward(model), batches(points()), resolve("cross_entropy"), 1000)
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:4].repeat(2, 1))
    pairs = looked(Forward(model), batches(points()), resolve("cross_entropy"), 1000)
    assert lone is not None and pairs is not None
    assert (lone["landscape_symmetric"], pairs["landscape_symmetric"]) == ([], ["0"])


def test_neighbours_give_the_noise_of_labels_and_of_numbers() -> None:
    x = torch.linspace(-1, 1, 512)[:, None]
    noise = 0.2 * torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    found = looked(Forward(nn.Linear(1, 1)), batches((x, x.sin() + noise)), resolve("mse"), 1000)
    assert found is not None
    assert found["neighbour_loss"] == pytest.approx(0.04, rel=0.25)
    sure = looked(Forward(nn.Linear(2, 3)), batches(points()), resolve("cross_entropy"), 1000)
    chance = looked(
        Forward(nn.Linear(2, 3)), batches((points()[0], torch.randint(3, (200,)))), resolve("cross_entropy"), 1000
    )
    assert sure is not None and chance is not None
    assert sure["neighbour_loss"] < 0.35
    assert chance["neighbour_loss"] > 0.9


def test_examples_are_as_many_as_the_cost_allows() -> None:
    many = batches((torch.randn(30_000, 64), torch.arange(30_000) % 3))
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 3))
    early = curvature._affordable(Forward(model), many, 100)
    late = curvature._affordable(Forward(model), many, 10_000_000)
    assert early == pytest.approx(curvature.OPERATIONS / (360 * 2 * (64 * 256 + 256 * 3)), rel=0.05)
    assert late == curvature.MOST
    assert (
        looked(Forward(nn.Linear(200_000, 2)), batches((torch.ones(64, 200_000), torch.ones(64).long())), None, 9)
        is None
    )


def test_a_loss_without_a_second_derivative_is_not_looked_at() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Once.apply(self.dense(x))

    assert looked(Forward(Layer()), batches(points()), resolve("cross_entropy"), 1000) is None


def fitted(model: nn.Module, data: Any, **settings: Any) -> thalweg.Run:
    settings = {"repair": "advise", **settings}
    return thalweg.fit(model, data, "cross_entropy", plan="eager", verbose=False, batch_size=32, **settings)


def test_a_training_from_a_saddle_says_so_and_stops() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    for p in model.parameters():
        nn.init.zeros_(p)
    run = fitted(model, points(), optimizer="adam", learning_rate=0.01, schedule="constant", epochs=60)
    assert run.verdict is not None
    assert (run.verdict.state, run.verdict.cause) == ("stuck", "saddle_point")
    assert run.stopped_because == "patience"
    assert run.history.facts["landscape_kind"] == "saddle"


def test_a_training_that_learns_is_not_stuck_and_is_the_same_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> thalweg.Run:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        return fitted(model, points(), optimizer="adam", learning_rate=0.02, epochs=60, patience=None)

    run = train()
    assert run.verdict is not None
    assert run.verdict.state != "stuck"
    monkeypatch.setattr("thalweg.loop.judging.looked", lambda *of: None)
    other = train()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True))


def test_a_rate_far_too_low_is_too_slow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
    run = fitted(model, points(), optimizer="sgd", learning_rate=1e-4, schedule="constant", epochs=40)
    assert run.verdict is not None
    assert run.verdict.cause == "slow_convergence"
    assert run.stopped_because == "epochs"
