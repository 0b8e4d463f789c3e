from __future__ import annotations

import math
from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from second_order_cases import batch_of, loss_of, model_of
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from thalweg.gradients.columns import bend, blocks, curved
from thalweg.gradients.products import Curvature
from thalweg.optim import GaussNewton, conjugate
from thalweg.optim.samples import SampleSpace, Unsuited, solved
from thalweg.step.batches import Parts
from thalweg.step.losses import resolve


def regression(rows=40, into=6, out=3):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(rows, into, generator=g).double(), torch.randn(out, into, generator=g).double()
    return x, x @ w.T + 0.5 * torch.randn(rows, out, generator=g).double()


@contextmanager
def to_the_end():
    """Conjugate gradients that do not stop where little is gained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conjugate, "PROGRESS", 0.0)
        yield


@pytest.mark.parametrize("samples", [0, 1024])
@pytest.mark.parametrize("rows", [40, 4])
def test_takes_the_newton_step_on_linear_least_squares(samples, rows):
    """With fewer rows than columns the least step of those that fit."""
    x, y = regression(rows)
    model = nn.Linear(6, 3).double()
    start = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    with to_the_end():
        GaussNewton(model, "mse", damping=1e-10, samples=samples).step(x, y)
    padded = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    expected = start + (torch.linalg.pinv(padded) @ (y - padded @ start.T)).T
    assert torch.allclose(torch.cat([model.weight, model.bias[:, None]], 1), expected, atol=1e-6)


def pieces(name, loss, y=None, model=None):
    """J [outputs, parameters], H [outputs, outputs], r [outputs] by automatic differentiation of the whole."""
    model = model or model_of(name, torch.float64).eval()
    x, labels = batch_of(name, torch.float64, size=7)
    y = labels if y is None else y
    names = dict(model.named_parameters())
    trained = {key: p for key, p in names.items() if p.requires_grad}

    def outputs(parameters):
        return functional_call(model, parameters, (x,)).flatten()

    J = torch.cat(
        [t.reshape(len(t), -1) for t in jacrev(outputs)({k: p.detach() for k, p in trained.items()}).values()], 1
    )
    z = model(x).detach()
    of_outputs = lambda t: resolve(loss)(t.view_as(z), y)  # noqa: E731
    H = torch.autograd.functional.hessian(of_outputs, z.flatten())
    r = torch.autograd.functional.jacobian(of_outputs, z.flatten())
    return model, (x, y), J, H, r


def target_of(loss, name="dense"):
    g = torch.Generator().manual_seed(9)
    if loss == "cross_entropy":
        return None
    return torch.rand(7, 3, generator=g).double()


LOSSES = ["cross_entropy", "mse", "binary_cross_entropy"]


def taken(model, start):
    return torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), start, strict=True) if p.requires_grad])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["dense", "convolutional", "odd"])
@pytest.mark.parametrize("samples", [0, 1024])
def test_the_step_is_that_of_the_dense_matrix(name, loss, samples):
    """d = −(JᵀHJ + λI)⁻¹ Jᵀr, by conjugate gradients and in sample space, to 1e-8; unused and empty parameters stay."""
    model, batch, J, H, r = pieces(name, loss, target_of(loss))
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = GaussNewton(model, loss, damping=1.0, samples=samples, max_iterations=500)
    B, g = J.T @ H @ J, J.T @ r
    damping = float(g @ B @ g / (g @ g))
    expected = -torch.linalg.solve(B + damping * torch.eye(len(g)).double(), g)
    with to_the_end():
        optimizer.step(*batch)
    assert torch.allclose(taken(model, start), expected, rtol=1e-6, atol=1e-8)
    assert (optimizer._whole["is_suited"] is True) == bool(samples and name != "odd")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("damping", [1e-4, 1e-2, 1.0])
def test_pushing_through(loss, damping):
    """(JᵀHJ + λI)⁻¹ Jᵀ = Jᵀ (H JJᵀ + λI)⁻¹, to 1e-10."""
    _, (x, y), J, H, r = pieces("dense", loss, target_of(loss))
    expected = torch.linalg.solve(J.T @ H @ J + damping * torch.eye(J.shape[1]).double(), J.T @ r)
    z = model_of("dense", torch.float64).eval()(x)
    a = solved(J @ J.T, blocks(z, y, loss), r.view(7, 3), damping)
    assert torch.allclose(J.T @ a.flatten(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_the_kernel_is_that_of_the_whole_jacobian(name):
    model, (x, _), J, _, _ = pieces(name, "cross_entropy")
    space = SampleSpace(model, list(model.parameters()))
    with space.taps:
        kernel = space.kernel(model(x))
    assert torch.allclose(kernel, J @ J.T, atol=1e-12)


def test_the_kernel_of_tied_layers_and_of_one_called_twice():
    model, (x, _), J, _, _ = pieces("tied", "cross_entropy", model=Plain())
    space = SampleSpace(model, list(model.parameters()))
    with space.taps:
        kernel = space.kernel(model(x))
    assert torch.allclose(kernel, J @ J.T, atol=1e-12)


class Plain(nn.Module):
    """A weight under one name only, used three times, so that the reference needs no knowledge of ties."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.one = nn.Linear(6, 6).double()

    def forward(self, x):
        return torch.tanh(self.one(torch.tanh(self.one(torch.tanh(self.one(x))))))[:, :3]


@pytest.mark.parametrize("name", ["recurrent", "odd"])
def test_a_model_that_the_taps_do_not_hear_in_full(name):
    """Recurrent cells, a parameter of its own."""
    model, (x, _) = model_of(name, torch.float64), batch_of(name, torch.float64, size=7)
    space = SampleSpace(model, [p for p in model.parameters() if p.requires_grad and p.numel()])
    with space.taps, pytest.raises(Unsuited):
        space.kernel(model(x))


def test_batch_norm_in_training_is_left_to_conjugate_gradients():
    """Examples that depend on each other have no K of their own: it is compared with autograd's."""
    model, batch = model_of("convolutional"), batch_of("convolutional")
    optimizer = GaussNewton(model, "cross_entropy")
    first = loss_of(model, batch)
    for _ in range(15):
        optimizer.step(*batch)
    assert optimizer._whole["is_suited"] is False
    assert loss_of(model, batch) < first
    assert model[2].num_batches_tracked == 15


@pytest.mark.parametrize("loss", LOSSES)
def test_curvature_at_the_outputs(loss):
    _, (x, y), _, H, _ = pieces("dense", loss, target_of(loss))
    z = model_of("dense", torch.float64).eval()(x)
    found = blocks(z, y, loss)
    full = torch.block_diag(*(torch.diag(row) if row.ndim == 1 else row for row in found))
    assert torch.allclose(full, H, atol=1e-12)
    u = torch.randn(z.shape, dtype=torch.float64)
    assert bend(z, y, loss, u).item() == pytest.approx(float(u.flatten() @ H @ u.flatten()), rel=1e-9)
    assert torch.allclose(curved(z, y, loss)([u])[0].flatten(), H @ u.flatten(), atol=1e-12)


def test_curvature_of_another_loss_by_differentiating():
    z, y, u = (torch.randn(5, 3).double() for _ in range(3))
    H = torch.autograd.functional.hessian(lambda t: (t.view_as(z) - y).abs().pow(3).mean(), z.flatten())
    found = bend(z, y, lambda output, target: (output - target).abs().pow(3).mean(), u)
    assert found.item() == pytest.approx(float(u.flatten() @ H @ u.flatten()), rel=1e-9)


def test_conjugate_gradients_are_scipys():
    from scipy.sparse.linalg import cg

    g = torch.Generator().manual_seed(0)
    root = torch.randn(30, 30, generator=g).double()
    M, b = root @ root.T + 0.1 * torch.eye(30).double(), torch.randn(30, generator=g).double()
    with to_the_end():
        for count in (1, 5, 12):
            found = conjugate.solve(lambda v: M @ v, b, None, count)
            theirs, _ = cg(M.numpy(), b.numpy(), maxiter=count, rtol=0.0)
            assert torch.allclose(found.x, torch.from_numpy(theirs), atol=1e-8)
            assert torch.allclose(found.product, M @ found.x, atol=1e-8)
            assert found.iterations == count
        start = torch.randn(30, generator=g).double()
        found = conjugate.solve(lambda v: M @ v, b, start, 60, exact=1e-12)
        assert torch.allclose(found.x, torch.linalg.solve(M, b), atol=1e-7)


def test_conjugate_gradients_stop_where_little_is_gained():
    M = torch.diag(torch.logspace(0, -8, 200).double())
    found = conjugate.solve(lambda v: M @ v, torch.ones(200).double() * M.diagonal(), None, 200)
    assert 10 < found.iterations < 200


def test_products_are_the_dense_matrix():
    model, batch, J, H, _ = pieces("dense", "cross_entropy")
    curvature = Curvature(model, [batch], "cross_entropy", "ggn")
    v = torch.randn(J.shape[1], dtype=torch.float64)
    assert torch.allclose(curvature @ v, J.T @ H @ J @ v, rtol=1e-8, atol=1e-10)


def test_micro_batches_are_the_batch():
    x, y = batch_of("dense", torch.float64)
    losses = []
    for batch in ((x, y), Parts(lambda: zip(x.split(5), y.split(5), strict=True))):
        model = model_of("dense", torch.float64)
        optimizer = GaussNewton(model, "cross_entropy", samples=0)
        optimizer.descend(batch)
        losses.append(loss_of(model, (x, y)))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_step_that_leads_up_is_shortened_or_not_taken():
    """atan has no minimum that its own quadratic model would not shoot past from 10."""

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Linear(1, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.atan(self.w(x))

    model, x = Bent().double(), torch.ones(4, 1).double()
    with torch.no_grad():
        model.w.weight.fill_(10.0)
    optimizer = GaussNewton(model, "mse", damping=1e-9)
    losses = [float(optimizer.step(x, torch.zeros(4, 1).double())) for _ in range(40)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 1e-6


def test_takes_far_fewer_steps_than_a_first_order_rule():
    x = torch.linspace(-1, 1, 128)[:, None]
    y = x * torch.sin(5 * x)

    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    model = network()
    optimizer = GaussNewton(model, "mse")
    for _ in range(40):
        optimizer.step(x, y)
    twin = network()
    adam = torch.optim.Adam(twin.parameters(), 0.01)
    for _ in range(400):
        adam.zero_grad()
        nn.functional.mse_loss(twin(x), y).backward()
        adam.step()
    assert loss_of(model, (x, y), "mse") < 0.1 * loss_of(twin, (x, y), "mse")


def test_what_is_asked_for_is_probed_before_the_step():
    model, batch = model_of("dense"), batch_of("dense")
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    for samples in (0, 1024):
        seen = []
        optimizer = GaussNewton(model_of("dense"), "cross_entropy", samples=samples)
        optimizer.descend(batch, lambda seen=seen, o=optimizer: seen.extend(p.grad.clone() for p in o._parameters))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(seen, expected, strict=True))


@pytest.mark.parametrize("samples", [0, 1024])
def test_what_is_frozen_on_the_way_stands_still(samples):
    model, batch = model_of("dense"), batch_of("dense")
    optimizer = GaussNewton(model, "cross_entropy", samples=samples)
    losses = [float(optimizer.step(*batch)) for _ in range(2)]
    for name in ("0.weight", "2.bias"):
        frozen = model.get_parameter(name)
        frozen.requires_grad_(False)
        before = frozen.clone()
        losses += [float(optimizer.step(*batch)) for _ in range(2)]
        assert torch.equal(frozen, before)
        frozen.requires_grad_(True)
        losses += [float(optimizer.step(*batch)) for _ in range(2)]
        assert not torch.equal(frozen, before)
    assert all(after < before for before, after in pairwise(losses))


def test_what_it_was_not_made_for_is_refused():
    model, batch = model_of("odd"), batch_of("odd")
    optimizer = GaussNewton(model, "cross_entropy")
    with pytest.raises(ValueError, match="no further group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.param_groups) == 1
    model.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match=r"'frozen\.weight' was frozen when gauss_newton was made"):
        optimizer.step(*batch)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        optimizer.step(*batch)


@pytest.mark.parametrize("samples", [0, 1024])
def test_damping_comes_back_from_where_no_step_is_seen(samples):
    """So large that the model promises less than rounding: the loss says nothing of λ there."""
    model, batch = model_of("dense"), batch_of("dense")
    optimizer = GaussNewton(model, "cross_entropy", samples=samples)
    optimizer.step(*batch)
    optimizer._whole["damping"] = 1e20
    before = loss_of(model, batch)
    for _ in range(60):
        optimizer.step(*batch)
    assert optimizer._whole["damping"] < 1.0
    assert loss_of(model, batch) < 0.5 * before


@pytest.mark.parametrize("samples", [0, 1024])
def test_at_the_minimum_damping_comes_back_to_its_first_value_and_stays(samples):
    x, y = regression()
    model = nn.Linear(6, 3).double()
    optimizer = GaussNewton(model, "mse", samples=samples, damping=0.5)
    for _ in range(60):
        optimizer.step(x, y)
    optimizer._whole["damping"] = 3.0 * optimizer._whole["scale"]
    for _ in range(6):
        optimizer.step(x, y)
    assert optimizer._whole["damping"] == pytest.approx(0.5 * optimizer._whole["scale"])


@pytest.mark.parametrize("samples", [0, 1024])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_batch_that_is_not_finite_says_nothing_of_damping(samples, value):
    """Nor of its unit, where it is the first."""
    x, y = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.ones(8, 3)
    broken = y.clone()
    broken[0, 0] = value
    models = [model_of("dense") for _ in range(2)]
    one, two = (GaussNewton(model, "mse", samples=samples) for model in models)
    one.step(x, broken)
    assert not math.isfinite(float(one.step(x, broken)))
    for _ in range(3):
        assert one.step(x, y) == two.step(x, y)
        assert one._whole["damping"] == two._whole["damping"]
    one.step(x, broken)
    assert one._whole["damping"] == two._whole["damping"]


def test_positions_on_the_first_axis_count_as_outputs():
    """4 examples of 30 positions of 3 outputs: 360, too many for a system of 100."""
    model = nn.Sequential(nn.Linear(6, 3), nn.Flatten(0, 1))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 30, 6, generator=g), torch.randint(0, 3, (120,), generator=g)
    optimizer = GaussNewton(model, "cross_entropy", samples=100)
    first = float(optimizer.step(x, y))
    assert optimizer._whole["is_suited"] is None
    assert float(optimizer.step(x, y)) < first
