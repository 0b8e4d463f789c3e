import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from thalweg.optim.catalogue import RULES, build

FUSED = ["sgd", "momentum", "nesterov", "adagrad", "adam", "adamw"]
OTHERS = ["rmsprop", "adadelta", "adamax", "nadam", "radam", "adafactor", "asgd", "rprop", "soap", "muon"]
NAMES = [*FUSED, *OTHERS]
OURS = ["lbfgs", "kfac", "gauss_newton"]
"""Which evaluate the loss by themselves."""


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))


def groups(optimizer, model):
    """Each group's parameter names, learning rate and decay."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ([names[id(p)] for p in group["params"]], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


def test_the_names_of_the_interface():
    assert set(RULES) == {*NAMES, *OURS}


@pytest.mark.parametrize("name", NAMES)
def test_lowers_a_quadratic_at_its_own_rate(name):
    θ = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))
    curvature = torch.tensor([[1.0, 0.1], [2.0, 0.5]], dtype=torch.float64)
    optimizer = build(name, [("θ", θ)])
    rule, losses = RULES[name], []
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["initial_lr"] == rule.learning_rate
    assert rule.range[0] < rule.learning_rate < rule.range[1]
    for _ in range(200):
        optimizer.zero_grad()
        loss = (curvature * θ.square()).sum() / 2
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[1] < losses[0]
    assert losses[-1] < losses[0] * 0.999


@pytest.mark.parametrize("name", NAMES)
def test_the_class_is_torchs_own_and_fused_where_it_can_be(name):
    optimizer = build(name, network().named_parameters())
    assert type(optimizer) is RULES[name].make
    assert bool(optimizer.defaults.get("fused")) == (name in FUSED)


def test_no_fused_kernel_for_complex_parameters_or_where_refused():
    z = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert not build("adam", [("z", z)]).defaults["fused"]
    model = network()
    assert not build("adam", model.named_parameters(), options={"foreach": True}).defaults["fused"]
    assert not build("adam", model.named_parameters(), options={"fused": False}).defaults["fused"]


@pytest.mark.parametrize("n", [1, 3, 8, 37, 1000])
@pytest.mark.parametrize("α", [0.1, 1 / 3, 2.0**-7])
def test_sgd_is_its_formula_to_the_last_digit(n, α):
    """θ − α∇J in exact arithmetic, rounded once: with AVX2 or more the kernel multiplies and adds in one instruction.

    Without (a processor's "DEFAULT" kernels), the product may be rounded before the difference is: then everywhere.
    """
    may_round_twice = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    generator = torch.Generator().manual_seed(n)
    θ = torch.nn.Parameter(torch.randn(n, generator=generator, dtype=torch.float64))
    a = torch.randn(n, generator=generator, dtype=torch.float64)
    optimizer = build("sgd", [("θ", θ)], α)
    for _ in range(3):
        before = θ.tolist()
        optimizer.zero_grad()
        (a * θ.square()).sum().backward()
        gradient = θ.grad.tolist()
        optimizer.step()
        exact = [Fraction(x) - Fraction(α) * Fraction(g) for x, g in zip(before, gradient, strict=True)]
        rounded_once = [float(x) for x in exact]
        rounded_twice = [x - α * g for x, g in zip(before, gradient, strict=True)]
        assert θ.tolist() == rounded_once or (may_round_twice and θ.tolist() == rounded_twice)


def test_momentum_and_nesterov_are_their_formulas():
    for name in ("momentum", "nesterov"):
        θ = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        optimizer = build(name, [("θ", θ)], 0.1)
        x, v = 1.0, 0.0
        for _ in range(20):
            optimizer.zero_grad()
            θ.square().sum().backward()
            optimizer.step()
            g = 2 * x
            v = 0.9 * v + g
            x -= 0.1 * (g + 0.9 * v if name == "nesterov" else v)
        assert θ.item() == pytest.approx(x, rel=1e-13)


def test_auto_is_adamw_that_decays_no_bias_and_no_norm():
    model = network()
    optimizer = build("auto", model.named_parameters(), 0.01)
    assert type(optimizer) is torch.optim.AdamW
    assert groups(optimizer, model) == [
        (["0.weight", "2.weight"], 0.01, 0.01),
        (["0.bias", "1.weight", "1.bias", "2.bias"], 0.01, 0.0),
    ]


def test_one_group_where_nothing_is_split():
    model = network()
    assert len(build("sgd", model.named_parameters()).param_groups) == 1
    assert len(build("sgd", model.named_parameters(), options={"weight_decay": 0.1}).param_groups) == 1
    assert len(build("adamw", model.named_parameters(), options={"weight_decay": 0}).param_groups) == 1


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    assert "0.weight" not in groups(build("adamw", model.named_parameters()), model)[0][0]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build("adamw", model.named_parameters())


def test_groups_by_pattern():
    model = network()
    patterns = {"2.*": {"learning_rate": 0.1, "weight_decay": 0.5}, "*.bias": {"betas": [0.5, 0.9]}}
    optimizer = build("adamw", model.named_parameters(), 0.01, json.loads(json.dumps({"groups": patterns})))
    assert groups(optimizer, model) == [
        (["0.weight"], 0.01, 0.01),
        (["0.bias", "1.bias"], 0.01, 0.0),
        (["1.weight"], 0.01, 0.0),
        (["2.weight", "2.bias"], 0.1, 0.5),
    ]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.01, 0.01, 0.01, 0.1]
    assert optimizer.param_groups[1]["betas"] == (0.5, 0.9)


def test_options():
    optimizer = build("adam", network().named_parameters(), options={"betas": [0.8, 0.9], "amsgrad": True})
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["amsgrad"]
    assert build("momentum", network().named_parameters(), options={"momentum": 0.5}).defaults["momentum"] == 0.5


@pytest.mark.parametrize("name", OURS)
def test_rules_that_need_the_loss_are_made_of_it(name):
    model = network()
    optimizer = build(name, model.named_parameters(), 0.5, model=model, loss="mse")
    assert type(optimizer) is RULES[name].make
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["initial_lr"] == 0.5
    low, high = RULES[name].range
    assert low < RULES[name].learning_rate < high
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", ["adma", "sopa"])
def test_unknown_rule(name):
    with pytest.raises(ValueError, match=f"unknown optimizer '{name}'.*Known are: sgd, momentum"):
        build(name, network().named_parameters())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"beta": (0.9, 0.99)}, TypeError, "unknown option of adam 'beta': did you mean 'betas'"),
        ({"groups": {"0.*": {"learning_rat": 1}}}, TypeError, "did you mean 'learning_rate'"),
        ({"groups": {"encoder.*": {}}}, ValueError, r"'encoder.\*' matches no trainable parameter.*0.weight"),
        ({"groups": {"*": {}, "0.*": {}}}, ValueError, r"'0.\*' matches no"),
        ({"groups": {"0.*": {"learning_rate": -1}}}, ValueError, "above 0"),
        ({"betas": [2.0, 0.9]}, ValueError, "beta"),
    ],
)
def test_what_options_refuse(options, error, words):
    with pytest.raises(error, match=words):
        build("adam", network().named_parameters(), 0.1, options)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf"), "fast", True])
def test_what_is_no_learning_rate(rate):
    with pytest.raises(ValueError, match="a learning rate is a number above 0"):
        build("sgd", network().named_parameters(), rate)


def test_a_rate_of_numpys_is_a_plain_number():
    optimizer = build("sgd", network().named_parameters(), np.float32(0.5))
    assert type(optimizer.param_groups[0]["lr"]) is float
