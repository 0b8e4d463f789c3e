"""Kronecker factors against dense Fisher and Gauss–Newton blocks, and against curvlinops where it is installed."""

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import case
from torch import nn

from thalweg.gradients import factors as room
from thalweg.gradients.columns import columns
from thalweg.gradients.factors import gram, kronecker_factors
from thalweg.step.losses import resolve


def hessian(function, z):
    return torch.func.jacrev(torch.func.jacrev(function))(z)


def gauss_newton(model, data, loss, names):
    """Jᵀ H J by dense Jacobians, of the weights and biases named, each as [out, in + 1] with the bias last."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    joint = {name: torch.cat([parameters[w], parameters[b].unsqueeze(1)], 1) for name, (w, b) in names.items()}

    def output(joint):
        replaced = dict(parameters)
        for name, (w, b) in names.items():
            replaced[w], replaced[b] = joint[name][:, :-1], joint[name][:, -1]
        return torch.func.functional_call(model, replaced, (data[0],)).flatten()

    shape = model(data[0]).shape
    H = hessian(lambda z: resolve(loss)(z.reshape(shape), data[1]), output(joint))
    J = torch.func.jacrev(output)(joint)
    return {name: J[name].flatten(1).T @ H @ J[name].flatten(1) for name in names}


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("loss", ["mse", nn.MSELoss(reduction="sum")])
def test_exact_on_a_deep_linear_network(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 2)).double()
    data = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    blocks = gauss_newton(model, data, loss, {str(i): (f"{i}.weight", f"{i}.bias") for i in range(3)})
    factors = kronecker_factors(model, data, loss)
    assert sorted(factors) == ["0", "1", "2"]
    for name, block in blocks.items():
        assert_close(torch.kron(factors[name].G, factors[name].A), block)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse"])
def test_one_example_is_exact_for_any_loss(loss):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    y = torch.tensor([2]) if loss == "cross_entropy" else torch.rand(1, 3, dtype=torch.float64)
    data = torch.randn(1, 4, dtype=torch.float64), y
    blocks = gauss_newton(model, data, loss, {"0": ("0.weight", "0.bias"), "2": ("2.weight", "2.bias")})
    for name, f in kronecker_factors(model, data, loss).items():
        assert_close(torch.kron(f.G, f.A), blocks[name])


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_shared_weights_are_exact_where_the_approximation_says_so(sharing):
    """Eschenhagen et al. 2023, propositions 1 and 2: a linear network with a loss term for each position is the
    expand setting, one with a sum over positions before the loss the reduce setting."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    if sharing == "reduce":
        model = nn.Sequential(model[0], model[1], Mean())
    y = torch.randn(6, 5, 2, dtype=torch.float64) if sharing == "expand" else torch.randn(6, 2, dtype=torch.float64)
    blocks = gauss_newton(model, (x, y), "mse", {"0": ("0.weight", "0.bias"), "1": ("1.weight", "1.bias")})
    for name, f in kronecker_factors(model, (x, y), "mse", sharing=sharing).items():
        assert_close(torch.kron(f.G, f.A), blocks[name])


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_inputs_and_rows_by_hand():
    made = case("cnn")
    f = kronecker_factors(made.model, made.data, made.loss)
    patches = F.unfold(made.x, 3, padding=1).transpose(1, 2).reshape(-1, 9)
    a = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], 1)
    assert_close(f["0"].A, a.T @ a / len(a))
    assert (f["0"].weight, f["0"].bias, f["0"].G.shape) == ("0.weight", "0.bias", (3, 3))
    reduced = kronecker_factors(made.model, made.data, made.loss, sharing="reduce")
    mean = a.reshape(8, -1, 10).mean(1)
    assert_close(reduced["0"].A, mean.T @ mean / 8)


@pytest.mark.parametrize("name", ["dense", "dense_soft", "regression", "binary", "cnn", "tied", "transformer"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_columns_are_a_root_of_the_curvature(name, reduction):
    made = case(name)
    loss = made.loss
    if reduction == "sum":
        modules = {
            "cross_entropy": nn.CrossEntropyLoss,
            "mse": nn.MSELoss,
            "binary_cross_entropy": nn.BCEWithLogitsLoss,
        }
        loss = modules[made.loss](reduction="sum")
    z = made.model(made.x).detach()
    target = made.y
    if isinstance(loss, nn.CrossEntropyLoss) and z.ndim > 2:
        z, target = z.flatten(0, 1), target.flatten()
    expected = hessian(lambda z: resolve(loss)(z, target), z).reshape(z.numel(), z.numel())
    z.requires_grad_()
    found = torch.zeros(len(z.flatten()), len(z.flatten()), dtype=torch.float64)
    classes = z.shape[-1]
    for root, s in columns(z, target, loss, "true", 1, torch.Generator().manual_seed(0)):
        assert root.shape == s.shape
        s = s.reshape(-1, classes)  # terms do not meet: each has its own block
        blocks = torch.einsum("na,nb->nab", s, s)
        for n, block in enumerate(blocks):
            found[n * classes : (n + 1) * classes, n * classes : (n + 1) * classes] += block
    assert_close(found, expected)


@pytest.mark.parametrize("name", ["dense", "regression", "binary"])
def test_monte_carlo_converges_to_the_true_fisher(name):
    made = case(name)
    true = kronecker_factors(made.model, made.data, made.loss)
    errors = []
    for samples in (16, 1024):
        drawn = kronecker_factors(
            made.model,
            made.data,
            made.loss,
            fisher="monte_carlo",
            samples=samples,
            generator=torch.Generator().manual_seed(samples),
        )
        errors.append(sum((drawn[k].G - true[k].G).norm() / true[k].G.norm() for k in true).item() / len(true))
        for key in true:
            assert_close(drawn[key].A, true[key].A)
    assert errors[1] < errors[0] / 3  # √64 = 8 times smaller on average
    assert errors[1] < 0.15


def test_signs_make_positions_independent_on_average():
    """A layer whose output at a position reaches several outputs: the mean over many signs is the exact G."""
    torch.manual_seed(3)

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.mix = nn.Parameter(torch.randn(3, 3), requires_grad=False)

        def forward(self, x):
            return self.mix @ self.a(x)

    model = Mixing().double()
    x, y = torch.randn(4, 3, 2, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    exact = 2 / y.numel() * 4 * model.mix.square().sum() * torch.eye(2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [kronecker_factors(model, (x, y), "mse", generator=generator)["a"].G.diagonal() for _ in range(200)]
    )
    error = (draws.mean(0) - exact.diagonal()).abs()
    assert (error < 4 * draws.std(0) / 200**0.5).all()


def test_empirical_is_the_mean_of_outer_products_of_own_gradients():
    made = case("dense")
    f = kronecker_factors(made.model, made.data, made.loss, fisher="empirical")
    rows = []
    for x, y in zip(made.x, made.y, strict=True):
        g = torch.autograd.grad(F.cross_entropy(made.model(x), y), made.model[2].bias)[0]
        rows.append(g)
    rows = torch.stack(rows)
    assert_close(f["2"].G, rows.T @ rows / len(rows))


def test_empirical_of_any_loss_and_of_the_models_own():
    made = case("dense")
    own = lambda output, target: F.cross_entropy(output, target)  # noqa: E731

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = made.model

        def forward(self, x, target):
            return F.cross_entropy(self.net(x), target)

    named = kronecker_factors(made.model, made.data, made.loss, fisher="empirical")
    called = kronecker_factors(made.model, made.data, own, fisher="empirical")
    inside = kronecker_factors(Own(), made.data, None, fisher="empirical")
    for key, f in named.items():
        assert_close(called[key].G, f.G)
        assert_close(inside[f"net.{key}"].G, f.G)


def test_rows_that_stand_for_all():
    made = case("cnn")
    full = kronecker_factors(made.model, made.data, made.loss)
    every = kronecker_factors(made.model, made.data, made.loss, rows=10**6)
    generator = torch.Generator().manual_seed(0)
    draws = [kronecker_factors(made.model, made.data, made.loss, rows=9, generator=generator) for _ in range(150)]
    for key, f in full.items():
        assert torch.equal(f.A, every[key].A)
        for factor in ("A", "G"):
            values = torch.stack([getattr(d[key], factor) for d in draws])
            spread = values.std(0) / len(values) ** 0.5
            assert ((values.mean(0) - getattr(f, factor)).abs() <= 5 * spread + 1e-12).all(), (key, factor)


def test_layers_without_factors_are_left_out():
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, groups=2),
        nn.LayerNorm(5),
        nn.Conv1d(4, 3, 3),
        nn.Flatten(),
        nn.Linear(9, 4),
        nn.Linear(4, 3),
    ).double()
    model[4].weight.requires_grad_(False)
    model[5].bias.requires_grad_(False)
    data = torch.randn(6, 2, 7, dtype=torch.float64), torch.randint(3, (6,))
    f = kronecker_factors(model, data, "cross_entropy")
    assert sorted(f) == ["2", "5"]
    assert f["5"].A.shape == (4, 4)
    assert f["5"].bias is None
    tied = case("tied")
    assert list(kronecker_factors(tied.model, tied.data, tied.loss)) == ["inner"]


def test_embedding_and_attention():
    made = case("transformer")
    f = kronecker_factors(made.model, made.data, made.loss, fisher="empirical")
    expected = {"embedding", "block.self_attn.in_proj_weight", "block.self_attn.out_proj.weight", "block.linear1"}
    assert set(f) == expected | {"block.linear2", "head"}
    assert_close(f["embedding"].A, torch.bincount(made.x.flatten(), minlength=5).double() / made.x.numel())
    projection = f["block.self_attn.in_proj_weight"]
    assert (projection.A.shape, projection.G.shape) == ((5, 5), (12, 12))
    assert projection.bias == "block.self_attn.in_proj_bias"
    reduced = kronecker_factors(made.model, made.data, made.loss, fisher="empirical", sharing="reduce")
    assert reduced["block.linear1"].G.shape == (6, 6)
    assert not torch.allclose(reduced["block.linear1"].G, f["block.linear1"].G)


def test_slices_of_an_attention_weight():
    torch.manual_seed(5)

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x, y):
            return self.attend(x, y, y)[0].mean(1)

    data = (torch.randn(3, 5, 4), torch.randn(3, 6, 4)), torch.randint(4, (3,))
    f = kronecker_factors(Cross(), data, "cross_entropy", fisher="empirical")
    assert sorted(f) == ["attend.in_proj_weight[0]", "attend.in_proj_weight[4]", "attend.out_proj.weight"]
    assert f["attend.in_proj_weight[4]"].rows == slice(4, 12)
    assert f["attend.in_proj_weight[4]"].bias_rows == slice(4, 12)


def test_a_layer_called_twice_has_the_rows_of_both_calls():
    made = case("residual")
    f = kronecker_factors(made.model, made.data, made.loss)
    rows = []
    handle = made.model.up.register_forward_hook(lambda m, args, out: rows.append(args[0].detach()))
    made.model(made.x)
    handle.remove()
    a = torch.cat([torch.cat(rows), torch.ones(18, 1, dtype=torch.float64)], 1)
    assert_close(f["up"].A, a.T @ a / 18)


def test_users_mistakes():
    made = case("dense")
    with pytest.raises(ValueError, match="unknown fisher 'exact'"):
        kronecker_factors(made.model, made.data, made.loss, fisher="exact")
    with pytest.raises(ValueError, match="unknown sharing 'sum'"):
        kronecker_factors(made.model, made.data, made.loss, sharing="sum")
    with pytest.raises(ValueError, match=r"curvature of the loss 'mae'.*empirical"):
        kronecker_factors(made.model, (made.x, made.x[:, :3]), "mae")
    with pytest.raises(ValueError, match="at least 1"):
        kronecker_factors(made.model, made.data, made.loss, rows=0)
    with pytest.raises(ValueError, match="fewer examples"):
        kronecker_factors(made.model, made.data, made.loss, rows=2, sharing="reduce")


@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["dense", "regression", "cnn"])
def test_against_curvlinops(name, sharing, fisher):
    curvlinops = pytest.importorskip("curvlinops", reason="the oracle curvlinops-for-pytorch is not installed")
    made = case(name)
    loss = {"cross_entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}[made.loss]
    options = {"fisher_type": fisher, "kfac_approx": sharing, "separate_weight_and_bias": False}
    oracle = curvlinops.KFACLinearOperator(
        made.model, loss, list(made.model.parameters()), [made.data], check_deterministic=False, **options
    )
    oracle.compute_kronecker_factors()
    ours = kronecker_factors(
        made.model, made.data, loss, sharing=sharing, fisher="true" if fisher == "type-2" else fisher
    )
    assert set(ours) == set(oracle._input_covariances)
    for key, f in ours.items():
        torch.testing.assert_close(f.A, oracle._input_covariances[key], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(f.G, oracle._gradient_covariances[key], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rows, width", [(7, 600), (600, 600), (700, 513), (300, 40)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_gram_matrix_by_blocks_and_panels(rows, width, with_bias):
    """Some shapes are multiplied whole, some in panels whose mirror images are filled in."""
    a = torch.randn(rows, width, dtype=torch.float64)
    whole = torch.cat([a, torch.ones(rows, with_bias, dtype=torch.float64)], 1)
    for blocks in ([a], a.split(260)):
        found = gram(blocks, with_bias)
        assert torch.allclose(found, whole.T @ whole, rtol=1e-12, atol=1e-12)


def test_a_convolution_laid_out_image_by_image(monkeypatch):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)).double()
    data = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.arange(5) % 2
    at_once = kronecker_factors(model, data, "cross_entropy")["0"]
    monkeypatch.setattr(room, "BLOCK", 1)
    one_by_one = kronecker_factors(model, data, "cross_entropy")["0"]
    assert torch.allclose(at_once.A, one_by_one.A, rtol=1e-13, atol=1e-14)
    rows = nn.functional.unfold(data[0], 3, padding=1).mT.flatten(0, 1)
    assert torch.allclose(one_by_one.A[:-1, :-1], rows.T @ rows / len(rows), rtol=1e-12, atol=1e-14)
