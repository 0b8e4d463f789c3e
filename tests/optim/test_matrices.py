"""What SOAP and Muon have in common: state, loading, and gradients and parameters of every unkind sort."""

import io

import pytest
import torch
from torch import nn

from thalweg.optim import SOAP, Muon, frames
from thalweg.optim.catalogue import build

RULES = {
    "soap": lambda params: SOAP(params, lr=0.01, budget=None, start=3, period=4),
    "soap-leading": lambda params: SOAP(params, lr=0.01, rank=3, budget=None, start=3, statistics_period=2),
    "muon": lambda params: Muon(params, lr=0.01, arithmetic="exact"),
}


@pytest.fixture(autouse=True)
def short_sides(monkeypatch):
    """Sides of this network have leading directions, where they are asked for."""
    monkeypatch.setattr(frames, "SLACK", 1.5)


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(),
        nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3),
    )  # fmt: skip
    return model.to(dtype)


def train(model, optimizer, first, last, scale=lambda step: 1.0):
    losses = []
    dtype = next(model.parameters()).dtype
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 1, 8, 8, generator=generator), torch.randint(0, 3, (32,), generator=generator)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.to(dtype)).float(), y) * scale(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(one, two):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def saved(optimizer):
    """Its state by way of a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("at", [2, 7, 8, 9, 10])
def test_goes_on_exactly_from_every_kind_of_step(rule, dtype, at):
    """Before the first basis, and at steps that turn bases and learn statistics and at others."""
    whole, part = network(dtype), network(dtype)
    train(whole, rule(whole), 0, 20)
    first = rule(part)
    train(part, first, 0, at)
    second = rule(part)
    second.load_state_dict(saved(first))
    train(part, second, at, 20)
    assert same(whole, part)


def test_state_is_float32_beside_bfloat16_weights_and_stays_so(rule):
    model = network(torch.bfloat16)
    optimizer = rule(model)
    train(model, optimizer, 0, 6)
    again = rule(model)
    again.load_state_dict(saved(optimizer))
    for one in (optimizer, again):
        dtypes = {t.dtype for kept in one.state.values() for t in kept.values() if isinstance(t, torch.Tensor)}
        assert dtypes == {torch.float32}


def test_learns(rule):
    model = network()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=generator)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long()
    optimizer = rule(model)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("spike", [1e6, 1e12])
@pytest.mark.parametrize("when", [0, 2, 11])
def test_a_spike_is_survived(rule, spike, when):
    model = network()
    optimizer = rule(model)
    train(model, optimizer, 0, 62, lambda step: spike if step == when else 1.0)
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(
        t.isfinite().all() for kept in optimizer.state.values() for t in kept.values() if isinstance(t, torch.Tensor)
    )


def test_no_gradient_at_all_moves_nothing_but_by_decay(rule):
    model = network(torch.float64)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = rule(model)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(12):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_dead_units_and_low_rank_stay_finite_and_dead(rule):
    p = nn.Parameter(torch.ones(12, 10))
    optimizer = rule([p])
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(10, generator=generator)
    for _ in range(60):
        G = torch.outer(torch.randn(12, generator=generator), v)
        G[3:7] = 0.0
        p.grad = G
        optimizer.step()
    assert p.isfinite().all()
    alive, dead = (p[:3] - 1).abs().max(), (p[3:7] - 1).abs().max()
    assert alive > 0.05
    assert dead < 0.2 * alive  # not 0: where nothing was seen yet, a basis mixes the dead with the unseen


def test_a_gradient_of_nearly_nothing_is_no_full_step_of_noise(rule):
    """Rounding in a null space: SOAP's relative floor, Muon's singular values below its interval."""
    p = nn.Parameter(torch.zeros(16, 16))
    optimizer = rule([p])
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(16, generator=generator), torch.randn(16, generator=generator)
    for step in range(40):
        p.grad = torch.outer(u, v) + 1e-7 * torch.randn(16, 16, generator=generator)
        optimizer.step()
        if step == 5:
            after_adam = p.detach().clone()
    along = torch.linalg.svdvals(p.detach() - after_adam)
    assert along[1] < 0.05 * along[0]


def test_empty_scalar_frozen_and_unused_parameters(rule):
    ps = [nn.Parameter(torch.ones(shape)) for shape in ((0, 3), (3, 0, 2), (), (4,), (4, 5), (1, 1), (5, 4))]
    ps[5].requires_grad_(False)
    optimizer = rule(ps)
    for _ in range(12):
        for p in ps[:5]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    moved = [bool((p != 1).any()) for p in ps]
    assert moved == [False, False, True, True, True, False, False]
    assert {id(p) for p in optimizer.state} == {id(p) for p in ps[2:5]}


def test_a_parameter_may_miss_a_step(rule):
    """Its state goes on from where it was: as by itself in the steps that it has."""
    ps, alone = [nn.Parameter(torch.ones(4, 6)) for _ in range(3)], nn.Parameter(torch.ones(4, 6))
    together, single = rule(ps), RULES["muon"]([alone])
    is_muon = isinstance(together, Muon)
    for step in range(20):
        gradients = [torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * step + i)) for i in range(3)]
        for i, p in enumerate(ps):
            p.grad = None if i == 1 and step % 3 == 1 else gradients[i].clone()
        together.step()
        if step % 3 != 1:
            alone.grad = gradients[1].clone()
            single.step()
    assert [together.state[p]["step"] for p in ps] == [20, 13, 20]
    assert all(p.isfinite().all() for p in ps)
    assert not is_muon or (ps[1] - alone).abs().max() < 1e-5


def test_tied_weights_are_one(rule):
    torch.manual_seed(0)
    one = nn.Linear(6, 6, bias=False)
    model = nn.Sequential(one, nn.Tanh(), one, nn.Tanh(), nn.Linear(6, 2))
    optimizer = rule(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()
    assert optimizer.state[one.weight]["step"] == 6


def test_a_compiled_model(rule):
    plain, compiled = network(), network()
    train(plain, rule(plain), 0, 8)
    train(torch.compile(compiled, backend="eager"), rule(compiled), 0, 8)
    assert all((p - q).abs().max() < 1e-6 for p, q in zip(plain.parameters(), compiled.parameters(), strict=True))


def test_channels_last_weights(rule):
    plain, last = network(torch.float64), network(torch.float64).to(memory_format=torch.channels_last)
    for model in (plain, last):
        optimizer = rule(model)
        for group in optimizer.param_groups:
            group["start"] = 10  # before, gradients of few ranks leave null spaces, in which rounding picks the basis
        train(model, optimizer, 0, 20)
    assert all((p - q).abs().max() < 1e-7 for p, q in zip(plain.parameters(), last.parameters(), strict=True))


def test_a_state_that_was_reset_begins_anew(rule):
    model = network()
    optimizer = rule(model)
    train(model, optimizer, 0, 6)
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer.state.clear()
    twin = network()
    with torch.no_grad():
        for p, w in zip(twin.parameters(), weights, strict=True):
            p.copy_(w)
    twin.load_state_dict(model.state_dict())
    train(model, optimizer, 6, 12)
    train(twin, rule(twin), 6, 12)
    assert same(model, twin)


def test_adamw_alone_is_torchs(rule):
    model, other = network(torch.float64), network(torch.float64)
    optimizer = rule([{"params": list(model.parameters()), "adamw": True, "lr": 0.01, "weight_decay": 0.1}])
    group = optimizer.param_groups[0]
    peer = torch.optim.AdamW(other.parameters(), 0.01, group["betas"], group["eps"], 0.1)
    train(model, optimizer, 0, 10)
    train(other, peer, 0, 10)
    assert all((p - q).abs().max() < 1e-12 for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_closure_and_its_loss(rule):
    p = nn.Parameter(torch.ones(3, 4))
    optimizer = rule([p])

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 12.0
    assert (p < 1).all()


def test_what_cannot_be_moved(rule):
    with pytest.raises(ValueError, match="real numbers"):
        rule([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="nothing to train"):
        rule(nn.Linear(2, 2).requires_grad_(False))
    layer = nn.Embedding(5, 3, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        rule(layer).step()


@pytest.mark.parametrize("name", ["soap", "muon"])
def test_by_name_with_a_model_embeddings_and_biases_are_told_apart(name):
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3))
    optimizer = build(name, model.named_parameters(), model=model)
    names = {id(p): word for word, p in model.named_parameters()}
    found = [([names[id(p)] for p in g["params"]], g["adamw"], g["weight_decay"]) for g in optimizer.param_groups]
    if name == "soap":
        assert found == [
            (["0.weight"], True, 0.01), (["2.weight", "3.weight"], False, 0.01), (["2.bias", "3.bias"], False, 0.0),
        ]  # fmt: skip
    else:
        assert found == [
            (["0.weight", "3.weight"], True, 0.01), (["2.weight"], False, 0.01), (["2.bias", "3.bias"], False, 0.0),
        ]  # fmt: skip
    own = build(name, model.named_parameters(), options={"groups": {"3.*": {"adamw": False}}}, model=model)
    assert [g["adamw"] for g in own.param_groups if id(model[3].weight) in map(id, g["params"])] == [False]
