from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from second_order_cases import batch_of, loss_of, model_of
from torch import nn

from thalweg.gradients.factors import kronecker_factors
from thalweg.optim import KFAC
from thalweg.optim import kronecker as blocks_file
from thalweg.optim.blocks import covered
from thalweg.optim.kronecker import inverted, periods
from thalweg.step.batches import Parts

EXACT = {"fisher": "true", "damping": 1e-14}


def regression(rows=40, into=6, out=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(rows, into, generator=g).double(), torch.randn(out, into, generator=g).double()
    return x, x @ w.T + 0.5 * torch.randn(rows, out, generator=g).double()


def test_one_linear_layer_takes_the_newton_step_on_least_squares():
    x, y = regression()
    model = nn.Linear(6, 3).double()
    KFAC(model, "mse", trust=1e9, **EXACT).step(x, y)
    padded = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    expected = torch.linalg.lstsq(padded, y).solution
    assert torch.allclose(model.weight, expected[:-1].T, atol=1e-6)
    assert torch.allclose(model.bias, expected[-1], atol=1e-6)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_the_rate_is_a_share_of_that_step(rate):
    x, y = regression()
    whole, part = nn.Linear(6, 3).double(), nn.Linear(6, 3).double()
    part.load_state_dict(whole.state_dict())
    start = whole.weight.detach().clone()
    KFAC(whole, "mse", trust=1e9, **EXACT).step(x, y)
    KFAC(part, "mse", rate, trust=1e9, **EXACT).step(x, y)
    assert torch.allclose(part.weight - start, rate * (whole.weight - start), rtol=1e-6)


def dense_direction(factors, gradient, damping):
    """(G ⊗ A with π-damped factors)⁻¹ as one dense matrix, in the order of gradient.flatten()."""
    A, G = factors.A, factors.G
    pi = math.sqrt((A.trace() / len(A)) / (G.trace() / len(G)))
    damped = torch.kron(
        G + math.sqrt(damping) / pi * torch.eye(len(G)).to(G), A + pi * math.sqrt(damping) * torch.eye(len(A)).to(A)
    )
    return torch.linalg.solve(damped, gradient.flatten()).view_as(gradient)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["dense", "convolutional", "words"])
def test_the_direction_is_the_dense_kronecker_inverse(name, sharing):
    model, batch = model_of(name, torch.float64).eval(), batch_of(name, torch.float64)
    optimizer = KFAC(model, "cross_entropy", fisher="true", sharing=sharing, damping=0.3)
    optimizer.step(*batch)  # whose inverses are of these factors and this damping
    model.load_state_dict(model_of(name, torch.float64).state_dict())
    found = kronecker_factors(model, batch, "cross_entropy", fisher="true", sharing=sharing)
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
    for block in optimizer._known():
        gradient = block.gradient()
        factors = found[block.layer]
        if factors.A.ndim == 1:
            pi = math.sqrt((factors.A.sum() / len(factors.A)) / (factors.G.trace() / len(factors.G)))
            root = math.sqrt(optimizer._whole["damping"])
            right = factors.G + root / pi * torch.eye(len(factors.G)).to(gradient)
            expected = torch.linalg.solve(right, gradient.T).T / (factors.A + pi * root).unsqueeze(1)
        else:
            expected = dense_direction(factors, gradient, optimizer._whole["damping"])
        assert torch.allclose(block.direction(gradient), expected, rtol=1e-8, atol=1e-12)


def test_rows_and_gradient_give_the_same_direction():
    """A layer wider than the batch, with and without a bias, called twice."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(60, 60), nn.Linear(60, 4, bias=False)

        def forward(self, x):
            return self.two(torch.tanh(self.one(torch.tanh(self.one(x)))))

    torch.manual_seed(0)
    model = Wide().double()
    x, y = torch.randn(5, 60).double(), torch.randn(5, 4).double()
    optimizer = KFAC(model, "mse")
    optimizer.step(x, y)
    by_rows = [b.layer for b in optimizer._known() if b.is_by_rows]
    assert by_rows == ["two", "one"] or by_rows == ["one", "two"] or by_rows == ["one"]
    optimizer.zero_grad()
    _, rows = optimizer._gradient((x, y), Silent(), is_changed=False)
    found = optimizer._direction(rows)
    expected = optimizer._direction(None)
    for p, d in expected.items():
        assert torch.allclose(found[p], d, rtol=1e-9)


class Silent:
    def update(self, output, target):
        pass


def test_a_changed_gradient_is_the_one_that_counts():
    """What a step is told after the gradient, clipping say, is not passed by for rows."""
    x, y = torch.randn(5, 40), torch.randn(5, 4)
    models = [nn.Linear(40, 4, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [KFAC(model, "mse") for model in models]
    for optimizer in optimizers:
        optimizer.step(x, y)

    def halved():
        models[0].weight.grad[:2] = 0

    before = models[0].weight.detach().clone()
    optimizers[0].descend((x, y), halved)
    assert not torch.equal(models[0].weight, before)
    optimizers[1].step(x, y)
    assert not torch.allclose(models[0].weight, models[1].weight)


def rotated_run(model_maker, q, steps=6):
    """Losses on inputs that are rotated by q, with first weights that see what the unrotated ones would."""
    torch.manual_seed(1)
    x, y = torch.randn(30, 8).double(), torch.randn(30, 3).double()
    model = model_maker()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight @ q.T)
    optimizer = KFAC(model, "mse", fisher="true", damping=1e-2)
    return [float(optimizer.step(x @ q.T, y)) for _ in range(steps)]


def deep_linear():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 5), nn.Linear(5, 3)).double()


def with_tanh():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.mark.parametrize("maker", [deep_linear, with_tanh])
def test_rotated_inputs_rotate_the_trajectory(maker):
    """A ↦ QAQᵀ, and the damping of a multiple of I commutes with Q: the losses are the same, damped or not."""
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(4)).double()).Q
    plain = rotated_run(maker, torch.eye(8).double())
    assert rotated_run(maker, q) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("c", [0.1, 10.0])
def test_rescaled_layers_of_a_linear_network_have_the_same_losses(c):
    """W₁ ↦ cW₁, W₂ ↦ W₂/c: without damping the steps are those of the same functions (Martens & Grosse 2015, 8)."""
    x, y = regression(60, 4, 2)
    losses = []
    for factor in (1.0, c):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[1].weight.div_(factor)
        optimizer = KFAC(model, "mse", **EXACT)
        losses.append([float(optimizer.step(x, y)) for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("name", ["tied", "odd", "words", "convolutional", "recurrent"])
def test_who_is_covered(name):
    model = model_of(name)
    names = {id(p): key for key, p in model.named_parameters()}
    expected = {
        "tied": {"twice.weight", "twice.bias"},
        "odd": {"dense.weight", "dense.bias"},
        "words": {"table.weight", "head.weight", "head.bias", "attention.in_proj_weight", "attention.in_proj_bias",
                  "attention.out_proj.weight", "attention.out_proj.bias"},
        "convolutional": {"1.weight", "1.bias", "6.weight", "6.bias"},
        "recurrent": {"head.weight", "head.bias"},
    }  # fmt: skip
    assert {names[id(p)] for p in covered(model)} == expected[name]
    optimizer = KFAC(model, "cross_entropy")
    assert [len(group["params"]) for group in optimizer.param_groups] == [
        len(expected[name]),
        sum(p.requires_grad for p in model.parameters()) - len(expected[name]),
    ]


def test_the_rest_is_adamw():
    """Norms and tied weights move as torch's own AdamW moves them, given their gradients."""
    model, twin = model_of("tied"), model_of("tied")
    optimizer = KFAC(model, "cross_entropy", 1e-30, rest_lr=0.01)  # what is covered stands still
    rest = [p for name, p in twin.named_parameters() if not name.startswith("twice")]
    theirs = torch.optim.AdamW(rest, 0.01, weight_decay=0.0)
    for seed in range(5):
        x, y = batch_of("tied", seed=seed)
        optimizer.step(x, y)
        theirs.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        theirs.step()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6), key


def test_a_decomposition_that_fails_keeps_the_old_inverse_and_says_so_once(monkeypatch):
    model, batch = model_of("dense"), batch_of("dense")
    optimizer = KFAC(model, "cross_entropy")
    optimizer.step(*batch)
    kept = [block.get("A_inverse").clone() for block in optimizer._known()]
    real = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda t: (t, torch.ones((), dtype=torch.int32)))
    with pytest.warns(RuntimeWarning, match="could not invert the factors of") as told:
        for _ in range(4):
            optimizer.step(*batch)
    assert len(told) == 1
    assert all(torch.equal(b.get("A_inverse"), t) for b, t in zip(optimizer._known(), kept, strict=True))
    monkeypatch.setattr(torch.linalg, "cholesky_ex", real)
    for _ in range(4):
        optimizer.step(*batch)
    assert not torch.equal(optimizer._known()[0].get("A_inverse"), kept[0])


def test_an_inverse_that_is_none():
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert inverted(indefinite, 0.1) is None
    assert inverted(torch.full((2, 2), float("nan")), 0.1) is None
    assert torch.allclose(inverted(torch.eye(2), 1.0), torch.eye(2) / 2)
    assert torch.allclose(inverted(torch.tensor([1.0, 3.0]), 1.0), torch.tensor([0.5, 0.25]))


def test_micro_batches_are_the_batch():
    """Gradient, factors and length over parts, as over the whole."""
    x, y = batch_of("dense", torch.float64)
    losses = []
    for batch in ((x, y), Parts(lambda: zip(x.split(6), y.split(6), strict=True))):
        model = model_of("dense", torch.float64)
        optimizer = KFAC(model, "cross_entropy", fisher="true")
        for _ in range(6):
            optimizer.descend(batch)
        losses.append(loss_of(model, (x, y)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


@pytest.mark.parametrize("budget", [0.05, 0.25, 1.0])
def test_the_budget_decides_the_periods(budget):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    x = torch.randn(256, 64)
    optimizer = KFAC(model, "mse", budget=budget)
    optimizer.step(x, x)
    made = optimizer._known()
    base, factors, inverses = (sum(costs) for costs in zip(*(b.costs for b in made), strict=True))
    first, second = optimizer._whole["periods"]
    assert [first, second] == periods(made, budget)
    is_longest = first == blocks_file.LONGEST_FACTORS or second == blocks_file.LONGEST_INVERSES
    assert factors / first + inverses / second <= budget * base or is_longest
    assert second % first == 0 or second == blocks_file.LONGEST_INVERSES


def test_beats_a_tuned_first_order_rule_on_a_valley():
    """Least squares with inputs of scales 1 to 30."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 10, generator=g) * torch.logspace(0, 1.5, 10)
    y = (x / torch.logspace(0, 1.5, 10)) @ torch.randn(10, 1, generator=g)
    model = nn.Linear(10, 1)
    optimizer = KFAC(model, "mse", damping=0.01)
    for _ in range(30):
        optimizer.step(x, y)
    ours = loss_of(model, (x, y), "mse")
    theirs = []
    for rate in (1e-3, 1e-2, 0.1, 1.0):
        model = nn.Linear(10, 1)
        adamw = torch.optim.AdamW(model.parameters(), rate)
        for _ in range(30):
            adamw.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            adamw.step()
        theirs.append(loss_of(model, (x, y), "mse"))
    assert ours < 0.1 * min(theirs)


def test_nothing_to_factor():
    with pytest.raises(ValueError, match="use adamw"):
        KFAC(nn.LayerNorm(3), "mse")
    with pytest.raises(ValueError, match="momentum is in"):
        KFAC(nn.Linear(3, 3), "mse", momentum=1.0)
    with pytest.raises(ValueError, match="unknown fisher"):
        KFAC(nn.Linear(3, 3), "mse", fisher="best")


def test_a_loss_of_ones_own_has_the_empirical_fisher():
    def cubic(output, target):
        return (output - target).abs().pow(3).mean()

    x, y = regression()
    model = nn.Linear(6, 3).double()
    optimizer = KFAC(model, cubic)
    first = float(optimizer.step(x, y))
    for _ in range(20):
        last = float(optimizer.step(x, y))
    assert last < 0.5 * first


def test_a_compiled_model_is_seen_through():
    model = model_of("dense")
    compiled = torch.compile(model, backend="eager")
    batch = batch_of("dense")
    optimizer = KFAC(compiled, "cross_entropy")
    first = float(optimizer.step(*batch))
    for _ in range(5):
        optimizer.step(*batch)
    assert loss_of(model, batch) < first


class Heads(nn.Module):
    """Two heads of which one is in use, and a layer whose weight is used without the layer."""

    def __init__(self):
        super().__init__()
        self.body, self.first, self.second, self.by_hand = (nn.Linear(6, n) for n in (6, 3, 3, 6))
        self.in_use = "first"

    def forward(self, x):
        h = nn.functional.linear(torch.tanh(self.body(x)), self.by_hand.weight, self.by_hand.bias)
        return self.get_submodule(self.in_use)(torch.tanh(h))


def moved(p, act):
    before = p.detach().clone()
    act()
    return float((p.detach() - before).abs().max())


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_layer_that_is_not_heard_is_adamws_at_its_rate(share):
    """The rate of the rest, times what a schedule leaves of the first group's; a layer heard later is K-FAC's."""
    torch.manual_seed(0)
    model, batch = Heads(), batch_of("dense")
    optimizer = KFAC(model, "cross_entropy", 0.5, rest_lr=1e-3)
    optimizer.param_groups[0]["lr"] *= share
    assert moved(model.by_hand.weight, lambda: optimizer.step(*batch)) == pytest.approx(share * 1e-3, rel=1e-2)
    for _ in range(3):
        optimizer.step(*batch)
    model.in_use = "second"  # in a step that looks at no factors
    assert moved(model.second.bias, lambda: optimizer.step(*batch)) == pytest.approx(share * 1e-3, rel=1e-2)
    known = {block.layer for block in optimizer._known()}
    assert known == {"body", "first"}
    first = model.first.weight.detach().clone()
    before = loss_of(model, batch)
    for _ in range(8):
        optimizer.step(*batch)
    assert {block.layer for block in optimizer._known()} == {"body", "first", "second"}
    assert "exp_avg" not in optimizer.state[model.second.weight]
    assert torch.equal(model.first.weight, first)
    assert loss_of(model, batch) < 0.5 * before


def test_groups_that_are_added_are_adamws_each_at_its_rate():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)
    )
    model[3].requires_grad_(False)
    model[4].requires_grad_(False)
    optimizer, batch = KFAC(model, "cross_entropy", rest_lr=1e-3), batch_of("dense")
    optimizer.step(*batch)
    model[3].requires_grad_(True)
    model[4].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[3].parameters())})
    optimizer.add_param_group({"params": list(model[4].parameters()), "lr": 0.01})
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1e-3, 1e-3, 0.01]
    parameters = model[1].bias, model[3].weight, model[4].bias
    before = [p.detach().clone() for p in parameters]
    optimizer.step(*batch)
    sizes = [float((p.detach() - q).abs().max()) for p, q in zip(parameters, before, strict=True)]
    assert sizes == pytest.approx([1e-3, 1e-3, 0.01], rel=0.2)
    for _ in range(6):
        optimizer.step(*batch)
    assert {block.layer for block in optimizer._known()} == {"0", "5"}


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias"])
@pytest.mark.parametrize("worth", [0.7, 0.0])
def test_what_is_frozen_on_the_way_stands_still(frozen, worth, monkeypatch):
    """By rows and by the gradient; and goes on when it is free again."""
    monkeypatch.setattr(blocks_file, "WORTH", worth)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
    x, y = torch.randn(5, 40), torch.tensor([0, 1, 2, 0, 1])
    optimizer = KFAC(model, "cross_entropy", weight_decay=1e-3)
    first = float(optimizer.step(x, y))
    for _ in range(2):
        optimizer.step(x, y)
    assert any(block.is_by_rows for block in optimizer._known()) == bool(worth)
    p = model.get_parameter(frozen)
    p.requires_grad_(False)
    other = model.get_parameter("2.weight" if frozen != "2.weight" else "2.bias")

    def steps():
        for _ in range(7):  # among them those at which factors are new
            optimizer.step(x, y)

    before = other.detach().clone()
    assert moved(p, steps) == 0
    assert not torch.equal(other, before)
    p.requires_grad_(True)
    assert moved(p, lambda: [steps() for _ in range(3)]) > 0
    assert loss_of(model, (x, y)) < 0.5 * first


class Transposed(nn.Module):
    """An autoencoder that decodes by the encoder's weight."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(40, 40)

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t())


def plain(model):
    return "mse"


def penalised(model):
    return lambda output, target: nn.functional.mse_loss(output, target) + model[0].weight.square().mean()


@pytest.mark.parametrize(
    ("maker", "loss_maker", "is_by_rows"),
    [
        (Transposed, plain, False),
        (lambda: nn.Sequential(nn.Linear(40, 40)), penalised, False),
        (lambda: nn.Sequential(nn.Linear(40, 40)), plain, True),
    ],
)
def test_a_gradient_that_rows_do_not_tell_counts_whole(maker, loss_maker, is_by_rows, monkeypatch):
    """Not through the layer's output: another use of its weight, a penalty. Rows or not, the training is the same."""
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).double()
    losses = []
    for worth in (0.7, 0.0):
        monkeypatch.setattr(blocks_file, "WORTH", worth)
        torch.manual_seed(0)
        model = maker().double()
        optimizer = KFAC(model, loss_maker(model))
        losses.append([float(optimizer.step(x, x.roll(1))) for _ in range(8)])
        assert [block.is_by_rows for block in optimizer._known()] == [bool(worth) and is_by_rows]
        again = KFAC(model, loss_maker(model))
        again.load_state_dict(optimizer.state_dict())
        assert [block.is_by_rows for block in again._known()] == [bool(worth) and is_by_rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


def test_a_bias_that_layers_share_is_adamws():
    """Its layers' blocks are of their weights alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].bias = model[0].bias
    optimizer, batch = KFAC(model, "cross_entropy", rest_lr=1e-3), batch_of("dense")
    assert moved(model[0].bias, lambda: optimizer.step(*batch)) == pytest.approx(1e-3, rel=1e-2)
    assert {block.layer: block.sizes for block in optimizer._known()} == {"0": (6, 6), "2": (6, 6), "4": (7, 3)}


def test_at_first_factors_are_new_more_often_and_damping_moves_no_faster_than_it_is_used(monkeypatch):
    model, batch = model_of("dense"), batch_of("dense")
    optimizer = KFAC(model, "cross_entropy", budget=1e-6)
    taken = {"factors": [], "inverses": []}
    damping = []
    for _ in range(160):
        optimizer.step(*batch)
        whole = optimizer._whole
        damping.append(whole["damping"])
        for word, steps in taken.items():
            steps += [whole["step"]] if whole[word] == whole["step"] else []
    assert whole["periods"] == [20, 100]
    assert taken["factors"] == [1, 2, 3, 4, 6, 9, 13, 19, 28, *range(42, 161, 20)]
    assert taken["inverses"] == [1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 82, 142]
    for begun, ended in pairwise(taken["inverses"]):
        values = damping[begun - 1 : ended - 1]
        assert sum(a != b for a, b in pairwise(values)) <= 8
    assert len(set(damping)) > 4


@pytest.mark.parametrize("name", ["dense", "convolutional", "words"])
def test_the_state_is_laid_out_as_a_checkpoint_brings_it_back(name):
    """Row by row: of a matrix that lies in another order the products round otherwise, and a training resumes so."""
    model = model_of(name)
    optimizer = KFAC(model, "cross_entropy", momentum=0.5)
    for seed in range(3):
        optimizer.step(*batch_of(name, seed=seed))
    kept = [(word, t) for state in optimizer.state.values() for word, t in state.items() if torch.is_tensor(t)]
    assert [word for word, t in kept if not t.is_contiguous()] == []
    assert any(word == "A_inverse" for word, _ in kept)
