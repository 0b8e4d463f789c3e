"""What all three rules of the second order have to stand: odd parameters, odd gradients, resumption."""

from __future__ import annotations

import copy

import pytest
import torch
from second_order_cases import MODELS, RULES, batch_of, loss_of, model_of, rule_of, saved, step
from torch import nn

from thalweg.optim import KFAC, GaussNewton

EVERY = [(rule, name) for rule in RULES for name in MODELS]


def is_finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values() if t.is_floating_point())


@pytest.mark.parametrize(("rule", "name"), EVERY)
def test_lowers_the_loss_of_every_model(rule, name):
    model, batch = model_of(name), batch_of(name)
    optimizer = rule_of(rule, model)
    first = loss_of(model, batch)
    for _ in range(15):
        step(optimizer, model, batch)
    assert loss_of(model, batch) < 0.9 * first
    assert is_finite(model)
    assert all(p.grad is None or rule == "lbfgs" for p in model.parameters())


@pytest.mark.parametrize(("rule", "name"), EVERY)
def test_repeats_to_the_last_bit_and_resumes_so(rule, name):
    """Resumed after 1, 4 and 7 steps: where factors are new, and where they are not."""
    batches = [batch_of(name, seed=seed) for seed in range(10)]

    def train(model, optimizer, part):
        torch.manual_seed(5)
        return [step(optimizer, model, batch) for batch in part]

    whole = model_of(name)
    optimizer = rule_of(rule, whole)
    losses = []
    kept = {}
    for number, batch in enumerate(batches):
        if number in (1, 4, 7):
            kept[number] = copy.deepcopy(whole.state_dict()), saved(optimizer)
        losses += train(whole, optimizer, [batch])
    for number, (weights, state) in kept.items():
        model = model_of(name)
        again = rule_of(rule, model)
        model.load_state_dict(weights)
        again.load_state_dict(state)
        found = []
        for batch in batches[number:]:
            found += train(model, again, [batch])
        assert found == losses[number:]
        for key, t in whole.state_dict().items():
            assert torch.equal(t, model.state_dict()[key]), key


@pytest.mark.parametrize("rule", RULES)
def test_state_is_single_precision_under_half(rule):
    model, batch = model_of("dense", torch.bfloat16), batch_of("dense", torch.bfloat16)
    options = {"samples": 0} if rule == "gauss_newton" else {}
    optimizer = rule_of(rule, model, **options)
    first = loss_of(model, batch)
    seen = set()
    for _ in range(10):
        step(optimizer, model, batch)
        again = rule_of(rule, model, **options)
        again.load_state_dict(saved(optimizer))
        for values in (*optimizer.state.values(), *again.state.values()):
            words = {k: [v] if isinstance(v, torch.Tensor) else v for k, v in values.items() if k != "good"}
            seen |= {
                t.dtype
                for tensors in words.values()
                if isinstance(tensors, list)
                for t in tensors
                if isinstance(t, torch.Tensor) and t.numel() > 1
            }
    assert loss_of(model, batch) < first
    assert seen == {torch.float32}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_a_spike_of_a_million_does_not_end_a_training(rule, name):
    model = model_of(name)
    optimizer = rule_of(rule, model)
    batches = [batch_of(name, seed=seed) for seed in range(8)]
    for batch in batches[:5]:
        step(optimizer, model, batch)
    before = loss_of(model, batches[0])
    x, y = batches[5]
    step(optimizer, model, (x * 1e6, y))
    for number in range(50):
        step(optimizer, model, batches[number % 5])
        assert is_finite(model)
    assert loss_of(model, batches[0]) < max(1.5 * before, 2.0)


@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_of_zero_moves_nothing(rule):
    model = model_of("dense")
    x, _ = batch_of("dense")
    with torch.no_grad():
        y = model(x)
    before = copy.deepcopy(model.state_dict())
    optimizer = rule_of(rule, model, "mse")
    for _ in range(3):
        step(optimizer, model, (x, y), "mse")
    for key, t in before.items():
        assert torch.allclose(model.state_dict()[key], t, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_dead_layer(rule):
    """No gradient reaches the first layer: its factor G is zero."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    before = model[0].weight.detach().clone()
    optimizer, batch = rule_of(rule, model), batch_of("dense")
    first = loss_of(model, batch)
    for _ in range(8):
        step(optimizer, model, batch)
    assert is_finite(model)
    assert torch.equal(model[0].weight, before)
    assert loss_of(model, batch) <= first


@pytest.mark.parametrize("rule", RULES)
def test_statistics_without_full_rank(rule):
    """Columns that repeat, fewer examples than inputs, a constant one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 20), nn.Tanh(), nn.Linear(20, 3))
    x = torch.randn(4, 10).repeat(1, 4)
    x[:, 0] = 1.0
    batch = x, torch.tensor([0, 1, 2, 0])
    optimizer = rule_of(rule, model)
    first = loss_of(model, batch)
    for _ in range(30):
        step(optimizer, model, batch)
    assert is_finite(model)
    assert loss_of(model, batch) < 0.1 * first


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_that_is_not_finite_changes_no_weight(rule):
    model = model_of("dense")
    optimizer = rule_of(rule, model)
    x, y = batch_of("dense")
    step(optimizer, model, (x, y))
    before = copy.deepcopy(model.state_dict())
    broken = x.clone()
    broken[0, 0] = float("nan")
    if rule == "lbfgs":
        with pytest.warns(RuntimeWarning, match="not finite"):
            step(optimizer, model, (broken, y))
    else:
        step(optimizer, model, (broken, y))
    for key, t in before.items():
        assert torch.equal(model.state_dict()[key], t)
    for _ in range(10):
        step(optimizer, model, (x, y))
    assert is_finite(model)
    assert loss_of(model, (x, y)) < 0.9 * loss_of(model_of("dense"), (x, y))


@pytest.mark.parametrize("rule", ["kfac", "gauss_newton"])
@pytest.mark.parametrize(("loss", "words"), [(None, "give loss="), ("mse", "above 0")])
def test_what_is_refused(rule, loss, words):
    with pytest.raises((TypeError, ValueError), match=words):
        rule_of(rule, model_of("dense"), loss, **({} if loss is None else {"damping": 0.0}))


class Centred(nn.Module):
    """A mean that is kept from batch to batch, in place or by putting another tensor in its stead."""

    def __init__(self, is_in_place: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)
        self.is_in_place = is_in_place
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        h = torch.tanh(self.first(x))
        mean, count = 0.5 * self.mean + 0.5 * h.detach().mean(0), self.count + 1
        if self.is_in_place:
            self.mean.copy_(mean)
            self.count.copy_(count)
        else:
            self.mean, self.count = mean, count
        return self.last(h - self.mean)


@pytest.mark.parametrize("rule", ["kfac", "gauss_newton"])
def test_a_buffer_that_is_put_in_anothers_stead_is_one_that_is_written(rule):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for is_in_place in (True, False):
        torch.manual_seed(0)
        model = Centred(is_in_place)
        optimizer = (KFAC if rule == "kfac" else GaussNewton)(model, "mse")
        losses.append([float(optimizer.step(x, x[:, :1] ** 2)) for _ in range(8)])
        assert model.count == 8  # each batch once, however often it is looked at again
    assert losses[0] == losses[1]
