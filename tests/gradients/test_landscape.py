from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradient_cases import NAMES, case
from torch import Tensor, nn

from thalweg.gradients.ground import sample
from thalweg.gradients.landscape import landscape
from thalweg.gradients.products import Curvature
from thalweg.records.landscape import Landscape


def inputs(count: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(seed: int, hidden: int = 6, outputs: int = 1, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, hidden), activation(), nn.Linear(hidden, outputs)).double()


def taught(hidden: int = 4) -> tuple[Tensor, Tensor]:
    """A problem that a tanh network of `hidden` units solves up to some noise."""
    x, teacher = inputs(), made(7, hidden)
    for p in teacher.parameters():
        p.data.mul_(2)
    noise = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return x, teacher(x).detach() + 0.1 * noise


def converged(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=4000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = F.mse_loss(model(x), y)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
    closure()
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-7
    return model


def zeroed(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def duplicated(narrow: nn.Module, unit: int, share: float) -> nn.Sequential:
    """The same function by one more unit: `unit` twice, its outgoing weight shared out (Fukumizu, Amari 2000)."""
    assert isinstance(narrow, nn.Sequential)
    first, last = narrow[0], narrow[2]
    wide = made(0, first.out_features + 1)
    with torch.no_grad():
        wide[0].weight.copy_(torch.cat([first.weight, first.weight[unit : unit + 1]]))
        wide[0].bias.copy_(torch.cat([first.bias, first.bias[unit : unit + 1]]))
        wide[2].weight.copy_(torch.cat([last.weight, last.weight[:, unit : unit + 1] * share], dim=1))
        wide[2].weight[:, unit] *= 1 - share
        wide[2].bias.copy_(last.bias)
    return wide


# ── points where the answer is known ──


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_two_layer_network_of_zeros_is_a_saddle(activation: type[nn.Module], loss: str) -> None:
    x = inputs()
    y = torch.sin(2 * x[:, :1]) + 0.5 * x[:, 1:2]
    if loss == "mse":
        found = landscape(zeroed(made(0, activation=activation)), (x, y - y.mean()), loss, picture=False)
    else:
        labels = (y.flatten() > y.median()).long()
        found = landscape(zeroed(made(0, 6, 2, activation)), (x, labels), loss, picture=False)
    assert found.kind == "saddle"
    assert found.gradient_norm < 1e-9 and found.escape > 1e-2
    if activation is not nn.ReLU:  # autograd takes 0 for the slope of ReLU at its kink, and sees no curvature
        assert found.smallest_eigenvalue < -0.1


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_duplicated_unit_is_a_saddle(seed: int) -> None:
    """The narrow network is converged, and far from what the wider one can do.

    By its sign, the curvature that comes with the new unit makes the point a saddle for shares within [0, 1], for
    shares outside, or for both (Fukumizu, Amari 2000, theorem 3); which, the dense Hessian says.
    """
    x, y = taught()
    narrow = converged(made(seed, 1), x, y)
    kinds = []
    for share in (0.5, 1.5):
        wide = duplicated(narrow, 0, share)
        assert torch.allclose(wide(x), narrow(x))
        values = torch.linalg.eigvalsh(dense_hessian(Curvature(wide, (x, y), "mse")))
        found = landscape(wide, (x, y), "mse", picture=False)
        assert found.gradient_norm < 1e-6
        is_saddle = bool(values[0] < -1e-3 * values[-1])
        assert found.kind == ("saddle" if is_saddle else "minimum")
        kinds.append(found.kind)
        if is_saddle:
            assert found.smallest_eigenvalue < -found.smallest_eigenvalue_error
            assert f"falls from {found.loss:.4g}" in found.sentence
    assert "saddle" in kinds


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_converged_network_is_a_minimum(seed: int) -> None:
    x, y = taught(2)
    model = converged(made(seed, 2), x, y)
    values = torch.linalg.eigvalsh(dense_hessian(Curvature(model, (x, y), "mse")))
    assert values[0] > 0
    found = landscape(model, (x, y), "mse", picture=False)
    assert found.kind == "minimum"
    assert found.escape == found.descent == 0 or max(found.escape, found.descent) < 1e-12
    assert found.max_stable_learning_rate == pytest.approx(2 / values[-1].item(), rel=1e-3)


def test_a_linear_model_solved_exactly_is_a_minimum() -> None:
    x = inputs()
    model = nn.Linear(5, 2).double()
    assert landscape(model, (x, model(x).detach()), "mse", picture=False).kind == "minimum"


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_a_saturated_sigmoid_start_is_a_plateau(bias: float) -> None:
    x = inputs()
    model = nn.Sequential(made(0, activation=nn.Sigmoid), nn.Sigmoid())
    with torch.no_grad():
        model[0][2].bias.fill_(bias)
    found = landscape(model, (x, (x[:, :1] > 0).double()), "mse", picture=False)
    assert found.kind == "plateau" and found.flatness < 1e-4


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_ordinary_start_is_a_slope(activation: type[nn.Module], loss: str, seed: int) -> None:
    x, y = taught()
    if loss == "mse":
        found = landscape(made(seed, activation=activation), (x, y), loss, picture=False)
    else:
        found = landscape(made(seed, 6, 2, activation), (x, (y.flatten() > 0).long()), loss, picture=False)
    assert found.kind == "slope" and found.descent > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_fresh_models_of_every_kind_stand_on_a_slope(name: str) -> None:
    fresh = case(name)
    found = landscape(fresh.model, fresh.data, fresh.loss, picture=False)
    assert found.kind == "slope"
    exact = torch.linalg.eigvalsh(dense_hessian(Curvature(fresh.model, fresh.data, fresh.loss)))
    assert abs(found.largest_eigenvalue - exact[-1]) <= found.largest_eigenvalue_error
    assert abs(found.smallest_eigenvalue - exact[0]) <= found.smallest_eigenvalue_error
    assert abs(found.trace - exact.sum()) <= 5 * found.trace_error


def dense_hessian(curvature: Curvature) -> Tensor:
    return torch.stack([curvature @ e for e in torch.eye(curvature.size, dtype=torch.float64)])


# ── the judgement does not depend on units ──


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize("kind", ["slope", "plateau", "saddle", "minimum"])
def test_the_unit_of_the_loss_changes_nothing(kind: str, factor: float) -> None:
    x, y = taught(2)
    models = {
        "slope": lambda: made(0),
        "saddle": lambda: zeroed(made(0)),
        "minimum": lambda: converged(made(0, 2), x, y),
    }
    if kind == "plateau":
        model: nn.Module = nn.Sequential(made(0), nn.Sigmoid())
        nn.init.constant_(model[0][2].bias, 20)
        y = (y > 0).double()
    else:
        model = models[kind]()
    y = y - y.mean() if kind == "saddle" else y

    def scaled(output: Tensor, target: Tensor) -> Tensor:
        return factor * F.mse_loss(output, target)

    found, plain = (landscape(model, (x, y), loss, picture=False) for loss in (scaled, "mse"))
    assert found.kind == plain.kind == kind
    assert found.largest_eigenvalue == pytest.approx(factor * plain.largest_eigenvalue, rel=1e-6)
    assert found.gradient_norm == pytest.approx(factor * plain.gradient_norm, rel=1e-6)
    assert found.noise_scale == pytest.approx(plain.noise_scale, rel=1e-6)
    assert found.descent == pytest.approx(plain.descent, rel=1e-3, abs=1e-12)


def test_a_summed_loss_is_judged_alike() -> None:
    x, y = taught()
    summed, mean = (landscape(made(1), (x, y), nn.MSELoss(reduction=r), picture=False) for r in ("sum", "mean"))
    assert summed.kind == mean.kind == "slope"
    for name in ("loss", "loss_scale", "gradient_norm", "gradient_error", "largest_eigenvalue"):
        assert getattr(summed, name) == pytest.approx(200 * getattr(mean, name), rel=1e-6), name
    assert summed.noise_scale == pytest.approx(mean.noise_scale, rel=1e-6)


# ── noise ──


def test_gradient_and_its_noise_against_single_examples() -> None:
    """With 32 examples each part is one example, and the variance is the sample's own."""
    x, y = (t[:32] for t in taught())
    model = made(2)
    rows = []
    for i in range(32):
        gradient = torch.autograd.grad(F.mse_loss(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in gradient]))
    g = torch.stack(rows)
    variance = g.var(0).sum().item()
    norm = g.mean(0).norm().item()
    found = landscape(model, (x, y), "mse", picture=False)
    assert found.gradient_norm == pytest.approx(norm, rel=1e-10)
    assert found.gradient_error == pytest.approx(math.sqrt(variance / 32), rel=1e-10)
    assert found.noise_scale == pytest.approx(variance / (norm**2 - variance / 32), rel=1e-9)


def test_noise_scale_converges_to_that_of_single_examples() -> None:
    """Estimated from 32 parts of many examples, averaged over fresh draws of the data."""
    model = made(2)

    def drawn(seed: int, count: int) -> tuple[Tensor, Tensor]:
        x = inputs(count, seed)
        return x, torch.sin(x[:, :1]) + 0.3 * x[:, 1:2]

    x, y = drawn(0, 4000)
    rows = torch.func.vmap(
        torch.func.grad(lambda p, a, b: F.mse_loss(torch.func.functional_call(model, p, (a,)), b)), (None, 0, 0)
    )({k: p.detach() for k, p in model.named_parameters()}, x, y)
    exact = sum(g.var(0).sum().item() for g in rows.values())
    found = [landscape(model, drawn(seed, 320), "mse", picture=False) for seed in range(1, 13)]
    estimates = [f.gradient_error**2 * 320 for f in found]
    mean, spread = np.mean(estimates), np.std(estimates, ddof=1) / math.sqrt(len(estimates))
    assert abs(mean - exact) < 4 * spread + 0.03 * exact
    assert spread < 0.2 * exact


def test_one_example_has_no_noise_to_speak_of() -> None:
    x, y = taught()
    found = landscape(made(0), (x[:1], y[:1]), "mse", picture=False)
    assert math.isnan(found.gradient_error) and math.isnan(found.noise_scale) and found.kind == "slope"


# ── the model and the data ──


class Counting(nn.Module):
    """Float32, with dropout, batch norm, a counter and a draw in evaluation: all that could be disturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x) + 0 * torch.rand(1, device=x.device)


@pytest.mark.parametrize("copied", [True, False])
def test_the_model_is_left_as_it_was(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not copied:
        monkeypatch.setattr("thalweg.gradients.ground.COPIED_PARAMETERS", 0)
    torch.manual_seed(0)
    model = Counting().train()
    model.layers[1].eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    x, y = (t.float() for t in taught())
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    pointers = [p.data_ptr() for p in model.parameters()]
    found = landscape(model, (x, y), "mse", picture=False)
    assert found.num_parameters == sum(p.numel() for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert model.training and model.layers[2].training and not model.layers[1].training
    assert torch.equal(torch.get_rng_state(), random)


def test_large_data_is_sampled_by_the_seed() -> None:
    x, y = inputs(500), torch.sin(inputs(500)[:, :1])
    model = made(0)
    first, again = (landscape(model, (x, y), "mse", examples=100, picture=False) for _ in range(2))
    other = landscape(model, (x, y), "mse", examples=100, picture=False, seed=1)
    assert first == again and first.num_examples == 100
    assert other.loss != first.loss
    assert landscape(model, (x, y), "mse", picture=False).num_examples == 500


def test_data_in_any_form() -> None:
    x, y = taught()
    model = made(0)
    whole = landscape(model, (x, y), "mse", picture=False)
    dataset = torch.utils.data.TensorDataset(x.float(), y.float())
    loader = torch.utils.data.DataLoader(dataset, batch_size=20)
    for form in (loader, iter(list(loader)), [(a, b) for a, b in loader], (x.numpy(), y.numpy())):
        found = landscape(model, form, "mse", picture=False)
        assert found.kind == "slope" and found.num_examples == 200
        assert found.loss == pytest.approx(whole.loss, rel=1e-5)
        assert found.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
    assert landscape(model, loader, "mse", examples=50, picture=False).num_examples == 60


def test_a_model_with_its_own_loss() -> None:
    x, y = taught()

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made(0)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.inner(x), y)

    own, outer = landscape(Own(), (x, y), picture=False), landscape(made(0), (x, y), "mse", picture=False)
    assert own.kind == "slope"
    assert own.largest_eigenvalue == pytest.approx(outer.largest_eigenvalue, rel=1e-9)


def test_a_loss_that_is_not_finite_is_said() -> None:
    x, y = taught()
    model = made(0)
    nn.init.constant_(model[0].weight, math.nan)
    with pytest.raises(ValueError, match="the loss is nan here"):
        landscape(model, (x, y), "mse")


# ── the picture ──


def test_the_plane_holds_the_losses_around_the_point() -> None:
    x, y = taught(2)
    model = converged(made(0, 2), x, y)
    found = landscape(model, (x, y), "mse")
    plane = found.plane
    assert plane is not None and len(plane.x) == len(plane.y) == len(plane.loss) == len(plane.loss[0]) == 21
    assert plane.x[10] == plane.y[10] == 0 and plane.loss[10][10] == pytest.approx(found.loss, rel=1e-12)
    assert min(min(row) for row in plane.loss) >= found.loss * (1 - 1e-12)
    # Near the point it is the paraboloid of the eigenvalues: checked beside it.
    rise = (plane.loss[10][11] + plane.loss[10][9]) / 2 - found.loss
    assert rise == pytest.approx(found.largest_eigenvalue * plane.x[11] ** 2 / 2, rel=0.1)


def test_the_picture_is_drawn() -> None:
    x, y = taught()
    found = landscape(zeroed(made(0)), (x, y), "mse")
    figure = found.plot()
    assert [trace.type for trace in figure.data] == ["contour", "scatter", "surface", "scatter3d"]
    assert np.asarray(figure.data[0].z).shape == (21, 21)
    assert figure.data[3].z[0] == pytest.approx(found.loss)
    assert figure.layout.title.text.replace("<br>", " ") == found.sentence
    with pytest.raises(ValueError, match="picture=True"):
        replace(found, plane=None).plot()


def test_a_wide_range_of_losses_is_drawn_by_its_logarithm() -> None:
    x, y = taught()
    found = landscape(made(0), (x, y), "mse")
    assert found.plane is not None
    steep = tuple(tuple(10.0 ** (i - 3) if i < 20 else math.inf for i, _ in enumerate(row)) for row in found.plane.loss)
    figure = replace(found, plane=replace(found.plane, loss=steep)).plot()
    assert np.asarray(figure.data[0].z)[0][:3].tolist() == [-3, -2, -1]
    assert math.isnan(np.asarray(figure.data[0].z)[0][20])


def test_a_record_holds_only_its_kinds() -> None:
    x, y = taught()
    found = landscape(made(0), (x, y), "mse", picture=False)
    assert isinstance(found, Landscape)
    with pytest.raises(AssertionError):
        replace(found, kind="hill")


@pytest.mark.parametrize("count", [2, 5, 32, 33])
def test_the_loss_scale_of_few_examples(count: int) -> None:
    """Parts of one row have nothing to change places with inside: their outputs move on to the next part."""
    x = inputs(count)
    model = made(1)
    y = model(x).detach()
    found = landscape(model, (x, y), "mse", picture=False)
    assert found.loss < 1e-30 and found.kind == "minimum"
    if count <= 32:
        _, drawn = sample((x, y), y.dtype, count, seed=0).together
        assert found.loss_scale == pytest.approx(float(F.mse_loss(drawn.roll(1, 0), drawn)), rel=1e-12)
    assert found.loss_scale > 0.1 * float(y.var())


def test_the_loss_scale_of_ready_batches_of_one() -> None:
    x = inputs(3)
    model = made(1)
    y = model(x).detach()
    found = landscape(model, [(x[i : i + 1], y[i : i + 1]) for i in range(3)], "mse", picture=False)
    assert found.loss_scale == pytest.approx(float(F.mse_loss(y.roll(1, 0), y)), rel=1e-12)


@pytest.mark.parametrize("count", [1, 8, 100])
@pytest.mark.parametrize("level", [0.0, 3.0])
def test_an_exact_fit_of_targets_that_are_all_alike(count: int, level: float) -> None:
    model = made(0)
    nn.init.zeros_(model[2].weight), nn.init.constant_(model[2].bias, level)
    y = torch.full((count, 1), level, dtype=torch.float64)
    found = landscape(model, (inputs(count), y), "mse")
    assert (found.kind, found.loss, found.descent, found.escape) == ("minimum", 0, 0, 0)
    assert found.loss_scale > 0 and math.isfinite(found.flatness)
    assert found.plane is not None and max(map(max, found.plane.loss)) > 0.01 * found.loss_scale


def test_a_loss_that_is_nothing_everywhere() -> None:
    found = landscape(made(0), (inputs(8), torch.zeros(8, 1).double()), lambda output, y: (output * 0).mean())
    assert (found.kind, found.loss_scale) == ("minimum", 1)


@pytest.mark.parametrize("at_rest", [False, True])
def test_the_products_are_those_that_were_made(at_rest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    matvec = Curvature.matvec
    monkeypatch.setattr(Curvature, "matvec", lambda self, v: counted.append(1) or matvec(self, v))
    model = nn.Linear(5, 1, bias=False).double()
    x = inputs(20)
    y = model(x).detach() + (0 if at_rest else 1)
    assert landscape(model, (x, y), "mse", picture=False).num_products == len(counted)


def test_a_compiled_model_is_on_the_same_ground() -> None:
    x, y = taught()
    model = made(0)
    found = landscape(torch.compile(model, backend="eager"), (x, y), "mse", picture=False)
    assert found == landscape(model, (x, y), "mse", picture=False)
