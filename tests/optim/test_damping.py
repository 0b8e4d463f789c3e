from __future__ import annotations

import math

import pytest
import torch
from second_order_cases import batch_of, model_of
from torch import nn

from thalweg.optim.damping import Outputs, Replay, adapted
from thalweg.optim.elementwise import adamw
from thalweg.step.backward import gradient
from thalweg.step.batches import Parts
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve


@pytest.mark.parametrize(
    ("actual", "expected"), [(-1.0, 0.5), (-0.8, 0.5), (-0.5, 1.0), (-0.2, 2.0), (0.3, 2.0), (math.nan, 2.0)]
)
def test_damping_follows_what_a_step_has_brought(actual, expected):
    assert adapted(1.0, actual, -1.0, 0.5) == expected


def test_a_model_that_promises_no_fall_is_not_trusted():
    assert adapted(1.0, -1.0, 0.0, 0.5) == 2.0


@pytest.mark.parametrize("parts", [1, 3])
def test_a_replay_is_the_same_function_and_leaves_nothing(parts):
    """Dropout draws the same, batch norm counts nothing, weights are as they were; no step is no change."""
    model, (x, y) = model_of("convolutional"), batch_of("convolutional")
    batch = (x, y) if parts == 1 else Parts(lambda: zip(x.chunk(parts), y.chunk(parts), strict=True))
    forward, loss = Forward(model), resolve("cross_entropy")
    torch.manual_seed(1)
    replay, seen = Replay(forward, loss, batch), Outputs()
    value = gradient(forward, loss, batch, seen)
    parameters = list(model.parameters())
    before, drawn = {k: t.clone() for k, t in model.state_dict().items()}, torch.get_rng_state()
    still, same = replay.change(parameters, [torch.zeros_like(p) for p in parameters], 1.0, seen)
    moved, other = replay.change(parameters, [torch.ones_like(p) for p in parameters], 0.1, seen)
    assert len(still) == parts
    assert all(not t.any() for t in still)
    assert same == pytest.approx(value.item(), rel=1e-6)
    assert all(t.any() for t in moved)
    assert other != same
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_a_change_is_the_jacobian_times_the_direction():
    model, (x, y) = model_of("dense", torch.float64), batch_of("dense", torch.float64)
    forward, loss = Forward(model), resolve("cross_entropy")
    replay, seen = Replay(forward, loss, (x, y)), Outputs()
    gradient(forward, loss, (x, y), seen)
    parameters = list(model.parameters())
    v = [torch.randn_like(p) for p in parameters]
    (u,), _ = replay.change(parameters, v, 1e-6, seen)
    named = {name: p.detach() for name, p in model.named_parameters()}
    J = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(named)
    expected = sum((J[name].flatten(2) @ t.flatten()) for name, t in zip(named, v, strict=True))
    assert torch.allclose(u, expected, atol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(decay):
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)) for _ in range(2))
    optimizer, state = torch.optim.AdamW([theirs], 0.01, weight_decay=decay), {}
    for number in range(6):
        for p in (ours, theirs):
            p.grad = torch.sin(p.detach() * (number + 1))
        with torch.no_grad():
            adamw(ours, state, 0.01, decay)
        optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-12)


def test_adamw_passes_over_what_is_not_finite():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([1.0, math.inf])
    state = {}
    with torch.no_grad():
        adamw(p, state, 0.1)
    assert p.tolist() == [1.0, 1.0]
    assert state == {}
