import copy

import pytest
import torch
from torch import nn

import thalweg
from thalweg.optim import KFAC, LBFGS, SOAP, CautiousDecay, GaussNewton, Muon, ScheduleFree

INSIDE = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1, fused=True),
    "soap": lambda ps: SOAP(ps, lr=0.01, budget=None, start=3, period=4),
    "muon": lambda ps: Muon(ps, lr=0.01, arithmetic="exact"),
}
WRAPPERS = {"cautious": CautiousDecay, "free": ScheduleFree, "both": lambda rule: ScheduleFree(CautiousDecay(rule))}


@pytest.fixture(params=INSIDE)
def inside(request):
    return INSIDE[request.param]


@pytest.fixture(params=WRAPPERS)
def wrapper(request):
    return WRAPPERS[request.param]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=torch.Generator().manual_seed(9))).argmax(1)


def train(model, optimizer, first, last):
    for step in range(first, last):
        x, y = data(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def same(one, two):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_goes_on_exactly(inside, wrapper):
    whole, part = network(), network()
    train(whole, wrapper(inside(whole.parameters())), 0, 15)
    first = wrapper(inside(part.parameters()))
    train(part, first, 0, 7)
    second = wrapper(inside(part.parameters()))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(part, second, 7, 15)
    assert same(whole, part)


def test_a_rate_set_outside_is_the_rate_inside(inside, wrapper):
    optimizer = wrapper(inside(network().parameters()))
    optimizer.param_groups[0]["lr"] = 0.5
    rule = optimizer.optimizer
    assert rule.param_groups[0]["lr"] == 0.5
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is rule.param_groups


def test_cautious_decay_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64))
    optimizer = CautiousDecay(torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.3))
    v, expected = torch.zeros_like(w), w.detach().clone()
    for _ in range(20):
        g = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        v = 0.9 * v + g
        decays = (v * expected > 0).double()
        expected = expected - 0.1 * v - 0.1 * 0.3 * decays * expected
        w.grad = g.clone()
        optimizer.step()
    assert (w - expected).abs().max() < 1e-12


def test_schedule_free_is_its_formulas():
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
    optimizer = ScheduleFree(torch.optim.SGD([w], lr=0.1), momentum=0.8)
    z = x = y = w.detach().clone()
    total = 0.0
    for step in range(30):
        rate = 0.1 * min(1.0, (step + 1) / 10)
        optimizer.param_groups[0]["lr"] = rate
        g = y + 0.1 * torch.randn(5, generator=generator, dtype=torch.float64)
        z = z - rate * g
        total += rate**2
        x = x + rate**2 / total * (z - x)
        y = 0.2 * z + 0.8 * x
        w.grad = g.clone()
        optimizer.step()
        assert (w - y).abs().max() < 1e-12
    with optimizer.averaged():
        assert (w - x).abs().max() < 1e-12
    assert (w - y).abs().max() < 1e-12
    optimizer.adopt()
    assert (w - x).abs().max() < 1e-12


def test_schedule_free_of_another_package():
    other = pytest.importorskip("schedulefree")
    ours, theirs = network().double(), network().double()
    one = ScheduleFree(torch.optim.SGD(ours.parameters(), lr=0.1))
    two = other.ScheduleFreeWrapper(torch.optim.SGD(theirs.parameters(), lr=0.1), momentum=0.9)
    two.train()
    for step in range(20):
        x, y = data(step)
        for model, optimizer in ((ours, one), (theirs, two)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.double()), y).backward()
            optimizer.step()
    assert all((p - q).abs().max() < 1e-10 for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("compiled", ["eager", "auto"])
def test_fit_hands_over_the_average(compiled, wrapper, tmp_path):
    model = network()
    optimizer = wrapper(torch.optim.AdamW(model.parameters(), lr=0.01, fused=True))
    seen = []

    class Last:
        def on_step(self, run, record):
            seen[:] = [p.detach().clone() for p in model.parameters()]

    run = thalweg.fit(
        model, data(), "cross_entropy", optimizer=optimizer, schedule="constant", steps=60, patience=None,
        verbose=False, run_dir=tmp_path, plan=compiled, callbacks=[Last()], metrics=("accuracy",),
    )  # fmt: skip
    assert run.metrics["accuracy"] > 0.8
    moved = any(not torch.equal(p, y) for p, y in zip(model.parameters(), seen, strict=True))
    assert moved == isinstance(optimizer, ScheduleFree)


def test_one_average_is_enough():
    model = network()
    optimizer = ScheduleFree(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="averages by itself"):
        thalweg.fit(model, data(), "cross_entropy", optimizer=optimizer, weight_average="ema", steps=2, verbose=False)


def test_what_is_refused():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="momentum lies between"):
        ScheduleFree(torch.optim.SGD([p], lr=0.1), momentum=1.0)
    with pytest.raises(ValueError, match="float32 or wider"):
        ScheduleFree(torch.optim.SGD([p.detach().bfloat16().requires_grad_()], lr=0.1))
    with pytest.raises(ValueError, match="weight_decay is a number"):
        CautiousDecay(torch.optim.SGD([p], lr=0.1), weight_decay=-1.0)


@pytest.mark.parametrize("wrapper", [CautiousDecay, ScheduleFree])
@pytest.mark.parametrize(
    "rule",
    [
        lambda model: KFAC(model, "cross_entropy"),
        lambda model: GaussNewton(model, "cross_entropy"),
        lambda model: LBFGS(model.parameters()),
        lambda model: torch.optim.LBFGS(model.parameters()),
    ],
)
def test_rules_that_evaluate_the_loss_are_refused(rule, wrapper):
    inside = rule(network())
    before = [dict(group) for group in inside.param_groups]
    with pytest.raises(TypeError, match="evaluates the loss by itself"):
        wrapper(inside)
    assert [group.keys() for group in inside.param_groups] == [group.keys() for group in before]


def test_an_average_does_not_decay():
    with pytest.raises(TypeError, match=r"write ScheduleFree\(CautiousDecay\(rule\)\)"):
        CautiousDecay(ScheduleFree(torch.optim.SGD(network().parameters(), lr=0.1, weight_decay=0.1)))


def test_a_group_that_is_added_is_as_one_of_the_first(inside, wrapper):
    one, two = network(), network()
    (first, *rest), (begun, *later) = ([*model.parameters()] for model in (one, two))
    whole, added = wrapper(inside([{"params": [first]}, {"params": rest}])), wrapper(inside([{"params": [begun]}]))
    added.add_param_group({"params": later})
    assert [group.keys() for group in added.param_groups] == [group.keys() for group in whole.param_groups]
    train(one, whole, 0, 8)
    train(two, added, 0, 8)
    assert same(one, two)


@pytest.mark.parametrize("weight_decay", [None, 0.2])
def test_a_group_that_is_added_decays_cautiously(weight_decay):
    model = network()
    optimizer = CautiousDecay(torch.optim.SGD([model[0].weight], lr=0.1, weight_decay=0.3), weight_decay)
    train(model, optimizer, 0, 2)
    optimizer = copy.deepcopy(optimizer)  # which still knows what it was told
    optimizer.add_param_group({"params": [model[2].weight]})
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert optimizer.param_groups[1]["cautious_decay"] == (weight_decay or 0.3)


def test_a_group_that_is_refused_is_not_there():
    optimizer = ScheduleFree(torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="float32 or wider"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]})
    assert len(optimizer.param_groups) == 1
