from __future__ import annotations

import gc
import resource
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import NAMES, Case, case
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from thalweg.gradients.products import Curvature, Sampling, fisher_product, ggn_product, hessian_product
from thalweg.step.losses import resolve

CLASSIFIERS = ("dense", "dense_soft", "cnn", "gru", "transformer", "tied")


def reference_outputs(made: Case, theta: Tensor) -> Tensor:
    parameters = dict(made.model.named_parameters())
    parts = theta.split([p.numel() for p in parameters.values()])
    values = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
    with sdpa_kernel(SDPBackend.MATH):
        return functional_call(made.model, values, (made.x,))


def reference_loss(made: Case, output: Tensor) -> Tensor:
    """Written out, so that it shares nothing with `step.losses`."""
    if made.loss == "mse":
        return ((output - made.y) ** 2).mean()
    if made.loss == "binary_cross_entropy":
        z = output.squeeze(1)
        return -(made.y * F.logsigmoid(z) + (1 - made.y) * F.logsigmoid(-z)).mean()
    log_p = output.log_softmax(-1)
    if made.y.is_floating_point():
        return -(made.y * log_p).sum(-1).mean()
    kept = made.y != -100
    return -log_p[kept].gather(1, made.y[kept].unsqueeze(1)).mean()


def flat_parameters(made: Case) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in made.model.parameters()])


def dense_hessian(made: Case) -> Tensor:
    return torch.autograd.functional.hessian(
        lambda theta: reference_loss(made, reference_outputs(made, theta)), flat_parameters(made)
    )


def dense_jacobian(made: Case) -> Tensor:
    """[rows, classes, parameters], a row for each term of the loss."""
    jacobian = torch.autograd.functional.jacobian(lambda theta: reference_outputs(made, theta), flat_parameters(made))
    return jacobian.reshape(-1, *jacobian.shape[-2:])


def dense_ggn(made: Case) -> Tensor:
    """(1/n) Σ Jᵀ H_L J with the loss's Hessian in closed form."""
    J = dense_jacobian(made)
    z = reference_outputs(made, flat_parameters(made)).detach().reshape(J.shape[:2])
    if made.loss == "mse":
        H = 2 / z.shape[1] * torch.eye(z.shape[1]).double().expand(len(z), -1, -1)
    elif made.loss == "binary_cross_entropy":
        H = (z.sigmoid() * (1 - z.sigmoid())).unsqueeze(2)
    else:
        p = z.softmax(-1)
        H = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    if not made.y.is_floating_point():
        J, H = J[made.y.flatten() != -100], H[made.y.flatten() != -100]
    return torch.einsum("nip,nij,njq->pq", J, H, J) / len(J)


def row_gradients(made: Case) -> Tensor:
    """Gradient of each example's summed terms [rows, parameters]; and the number of terms."""
    rows = []
    for i in range(len(made.y)):
        one = Case(made.model, made.x[i : i + 1], made.y[i : i + 1], made.loss)
        theta = flat_parameters(made).requires_grad_()
        value = reference_loss(one, reference_outputs(one, theta)) * num_terms(one)
        rows.append(torch.autograd.grad(value, theta)[0])
    return torch.stack(rows)


def num_terms(made: Case) -> int:
    if made.loss == "mse":
        return made.y.numel()
    return len(made.y) if made.y.is_floating_point() else int((made.y != -100).sum())


def some_vector(made: Case) -> Tensor:
    count = sum(p.numel() for p in made.model.parameters())
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def assert_near(product: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert (product - expected).norm() <= tolerance * expected.norm()
    assert expected.norm() > 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("micro_batch", [1024, 3])
def test_hessian_product_against_the_dense_hessian(name: str, micro_batch: int) -> None:
    made = case(name)
    v = some_vector(made)
    curvature = Curvature(made.model, made.data, made.loss, "hessian", Sampling(micro_batch=micro_batch))
    expected = dense_hessian(made) @ v
    assert_near(curvature @ v, expected)
    assert_near(curvature @ v, expected)  # from the kept graph


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("micro_batch", [1024, 3])
def test_ggn_product_against_the_dense_matrix(name: str, micro_batch: int) -> None:
    made = case(name)
    v = some_vector(made)
    curvature = Curvature(made.model, made.data, made.loss, "ggn", Sampling(micro_batch=micro_batch))
    expected = dense_ggn(made) @ v
    assert_near(curvature @ v, expected)
    assert_near(curvature @ v, expected)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_true_fisher_is_the_expectation_over_the_models_own_targets(name: str) -> None:
    made = case(name)
    J = dense_jacobian(made)
    p = reference_outputs(made, flat_parameters(made)).detach().reshape(J.shape[:2]).softmax(-1)
    kept = torch.ones(len(J), dtype=torch.bool) if made.y.is_floating_point() else made.y.flatten() != -100
    fisher = torch.zeros(J.shape[2], J.shape[2], dtype=torch.float64)
    for c in range(p.shape[1]):  # E over the class c of g gᵀ, g = Jᵀ (p − e_c)
        g = torch.einsum("ncp,nc->np", J, p - F.one_hot(torch.tensor(c), p.shape[1]))[kept]
        fisher += (g * p[kept, c : c + 1]).T @ g / kept.sum()
    v = some_vector(made)
    assert_near(fisher_product(made.model, made.data, made.loss, v), fisher @ v)


@pytest.mark.parametrize("name", NAMES)
def test_empirical_fisher_against_a_loop_over_examples(name: str) -> None:
    made = case(name)
    g = row_gradients(made)
    v = some_vector(made)
    expected = g.T @ (g @ v) / num_terms(made)
    assert_near(fisher_product(made.model, made.data, made.loss, v, kind="empirical"), expected)
    parts = Curvature(made.model, made.data, made.loss, "empirical_fisher", Sampling(micro_batch=2))
    assert_near(parts @ v, expected)


@pytest.mark.parametrize("name", ["dense", "dense_soft", "regression", "binary", "transformer"])
def test_monte_carlo_fisher_converges_to_the_true_one(name: str) -> None:
    made = case(name)
    v = some_vector(made)
    exact = fisher_product(made.model, made.data, made.loss, v)
    errors = []
    for draws in (16, 256):
        found = [
            fisher_product(made.model, made.data, made.loss, v, kind="monte_carlo", draws=draws, seed=seed) - exact
            for seed in range(12)
        ]
        errors.append(torch.stack(found).norm(dim=1).square().mean().sqrt() / exact.norm())
    assert 2.4 < errors[0] / errors[1] < 6.5  # √(256/16) = 4
    assert errors[1] < 0.2


def test_monte_carlo_fisher_of_a_seed_is_one_matrix() -> None:
    made = case("dense")
    v = some_vector(made)
    kept = Curvature(made.model, made.data, made.loss, "monte_carlo_fisher", Sampling(micro_batch=4))
    anew = Curvature(made.model, made.data, made.loss, "monte_carlo_fisher", Sampling(micro_batch=4, keep_bytes=0))
    other = Curvature(made.model, made.data, made.loss, "monte_carlo_fisher", Sampling(micro_batch=4, seed=1))
    torch.testing.assert_close(kept @ v, anew @ v, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(kept @ v, other @ v, rtol=1e-3)


@pytest.mark.parametrize("matrix", ["hessian", "ggn", "empirical_fisher"])
def test_graphs_beyond_the_memory_given_are_recorded_anew(matrix: str) -> None:
    made = case("cnn")
    v = some_vector(made)
    whole = Curvature(made.model, made.data, made.loss, matrix)
    expected = whole @ v
    assert len(whole._kept) == 1
    bytes_of_one = Curvature(made.model, made.data, made.loss, matrix, Sampling(micro_batch=2))
    _ = bytes_of_one @ v
    room = sum(part.num_bytes for part in bytes_of_one._kept[:2])
    assert len(bytes_of_one._kept) == 4 and room > 0
    tight = Curvature(made.model, made.data, made.loss, matrix, Sampling(micro_batch=2, keep_bytes=room))
    for _ in range(2):
        assert_near(tight @ v, expected)
        assert len(tight._kept) == 2


def test_products_follow_the_parameters() -> None:
    made = case("dense")
    v = some_vector(made)
    curvature = Curvature(made.model, made.data, made.loss)
    before = curvature @ v
    with torch.no_grad():
        for p in made.model.parameters():
            p.mul_(1.5)
    assert_near(curvature @ v, dense_hessian(made) @ v)
    assert not torch.allclose(curvature @ v, before, rtol=1e-3)


def test_vectors_by_name_come_back_by_name() -> None:
    made = case("tied")
    v = {name: torch.randn_like(p) for name, p in made.model.named_parameters()}
    flat = torch.cat([t.reshape(-1) for t in v.values()])
    for function in (hessian_product, ggn_product, fisher_product):
        named = function(made.model, made.data, made.loss, v)
        assert list(named) == list(v)
        product = function(made.model, made.data, made.loss, flat)
        torch.testing.assert_close(torch.cat([t.reshape(-1) for t in named.values()]), product, rtol=0, atol=0)


class Stochastic(nn.Module):
    """Draws in evaluation too, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(torch.tanh(self.layer(x))) * torch.rand(3, dtype=torch.float64)


def test_the_model_is_left_as_it_was() -> None:
    model = Stochastic().train()
    model.layer.eval()
    model.layer.weight.grad = torch.ones_like(model.layer.weight)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    before, state = torch.get_rng_state(), {k: t.clone() for k, t in model.state_dict().items()}
    v = torch.ones(15, dtype=torch.float64)
    with torch.no_grad():  # asked inside an evaluation, it differentiates all the same
        first = hessian_product(model, (x, y), "cross_entropy", v)
        again = hessian_product(model, (x, y), "cross_entropy", v)
    assert first.norm() > 0 and torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model.dropout.training and not model.layer.training
    assert torch.equal(model.layer.weight.grad, torch.ones_like(model.layer.weight)) and model.layer.bias.grad is None
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())


def test_summed_loss_own_loss_and_frozen_parameters() -> None:
    made = case("regression")
    layers: Any = made.model
    layers[0].weight.requires_grad_(False)
    count = sum(p.numel() for p in made.model.parameters() if p.requires_grad)
    v = torch.randn(count, dtype=torch.float64)
    mean = hessian_product(made.model, made.data, "mse", v)

    def total(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) ** 2).sum()

    total.reduction = "sum"  # type: ignore[attr-defined]
    summed = Curvature(made.model, made.data, total, "hessian", Sampling(micro_batch=3)) @ v
    torch.testing.assert_close(summed, mean * made.y.numel(), rtol=1e-12, atol=1e-13)
    ggn = Curvature(made.model, made.data, total, "empirical_fisher", Sampling(micro_batch=3)) @ v
    expected = fisher_product(made.model, made.data, "mse", v, kind="empirical") * made.y.numel()
    torch.testing.assert_close(ggn, expected, rtol=1e-12, atol=1e-13)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = made.model

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return ((self.inner(x) - y) ** 2).mean()

    own = Curvature(Own(), made.data, None, "hessian", Sampling(micro_batch=3)) @ v
    torch.testing.assert_close(own, mean, rtol=1e-12, atol=1e-13)


def test_several_outputs_in_a_dict() -> None:
    made = case("regression")
    trunk, v = made.model, some_vector(made)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"first": self.trunk(x)[:, 0], "second": self.trunk(x)[:, 1]}

    def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
        return ((output["first"] - target[:, 0]) ** 2 + (output["second"] - target[:, 1]) ** 2).mean() / 2

    assert_near(ggn_product(Two(), made.data, loss, v), ggn_product(trunk, made.data, "mse", v))
    # this loss has a term for each row, mse one for each element
    expected = fisher_product(trunk, made.data, "mse", v, kind="empirical")
    found = fisher_product(Two(), made.data, loss, v, kind="empirical")
    assert_near(found * 2, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", ["lstm", "gru", "attention", "encoder"])
def test_fused_operations_without_a_second_derivative_are_replaced(layer: str, dtype: torch.dtype) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = {
                "lstm": lambda: nn.LSTM(8, 8, batch_first=True),
                "gru": lambda: nn.GRU(8, 8, bidirectional=True),
                "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
                "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            }[layer]()

        def forward(self, x: Tensor) -> Tensor:
            if layer == "attention":
                return self.layer(x, x, x, need_weights=False)[0]
            return self.layer(x) if layer == "encoder" else self.layer(x)[0]

    torch.manual_seed(0)
    model = Model().to(dtype)
    x = torch.randn(4, 5, 8)
    y = torch.randn(4, 5, 16 if layer == "gru" else 8)
    count = sum(p.numel() for p in model.parameters())
    v, w = torch.randn(count, dtype=dtype), torch.randn(count, dtype=dtype)
    tolerance = 1e-4 if dtype is torch.float32 else 1e-11
    for matrix in ("hessian", "ggn"):
        curvature = Curvature(model, (x, y), "mse", matrix)
        assert torch.dot(w, curvature @ v).item() == pytest.approx(torch.dot(v, curvature @ w).item(), rel=tolerance)
    central = central_difference(model, x.to(dtype), y.to(dtype), v) if dtype is torch.float64 else None
    if central is not None:
        assert_near(hessian_product(model, (x, y), "mse", v), central, 1e-6)


def central_difference(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """(g(θ + εv) − g(θ − εv)) / 2ε."""
    parameters = list(model.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    gradients = []
    for sign in (1, -1):
        torch.nn.utils.vector_to_parameters(start + sign * 1e-5 * v, parameters)
        gradient = torch.autograd.grad(F.mse_loss(model(x), y), parameters)
        gradients.append(torch.cat([g.reshape(-1) for g in gradient]))
    torch.nn.utils.vector_to_parameters(start, parameters)
    return (gradients[0] - gradients[1]) / 2e-5


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_a_thousand_products_leave_no_graph_behind(matrix: str) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
    data = (torch.randn(256, 4), torch.randint(2, (256,)))  # a graph is about a third of a megabyte
    v = torch.ones(sum(p.numel() for p in model.parameters()))
    product = hessian_product if matrix == "hessian" else ggn_product

    def live() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    gc.disable()  # a graph that only the collector could free is a leak
    try:
        for _ in range(20):
            product(model, data, "cross_entropy", v)
        tensors, memory = live(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(1000):
            product(model, data, "cross_entropy", v)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 30_000  # kilobytes; leaked: 300 MB
        assert live() <= tensors
    finally:
        gc.enable()


def test_the_graph_is_let_go_with_the_operator() -> None:
    made = case("cnn")
    gc.collect()
    before = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
    curvature = Curvature(made.model, made.data, made.loss)
    _ = curvature @ some_vector(made)
    del curvature
    gc.collect()
    assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) <= before + 1


def test_a_generator_of_batches_is_read_once_and_held() -> None:
    made = case("regression")
    v = some_vector(made)
    batches = ((made.x[i : i + 3], made.y[i : i + 3]) for i in range(0, 10, 3))
    curvature = Curvature(made.model, batches, made.loss, "hessian", Sampling(keep_bytes=0))
    expected = hessian_product(made.model, made.data, made.loss, v)
    assert_near(curvature @ v, expected)
    assert_near(curvature @ v, expected)


def test_what_cannot_be_asked_is_said() -> None:
    made = case("dense")
    v = some_vector(made)
    with pytest.raises(ValueError, match=r"the vector is \[7\], the parameters need \[83\]"):
        hessian_product(made.model, made.data, made.loss, v[:7])
    with pytest.raises(ValueError, match="'0.bias' is in one and not in both"):
        hessian_product(made.model, made.data, made.loss, {"0.weight": v})
    with pytest.raises(ValueError, match="needs the model's outputs"):
        ggn_product(made.model, made.data, None, v)
    with pytest.raises(ValueError, match="known for cross_entropy, .*, not for huber"):
        fisher_product(made.model, made.data, "huber", v)
    with pytest.raises(ValueError, match="kind takes one of true"):
        fisher_product(made.model, made.data, made.loss, v, kind="exact")
    with pytest.raises(ValueError, match="matrix takes one of hessian"):
        Curvature(made.model, made.data, made.loss, "hesse")
    for p in made.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        Curvature(made.model, made.data, made.loss)


def test_losses_agree_with_the_reference() -> None:
    for name in NAMES:
        made = case(name)
        output = made.model(made.x)
        assert resolve(made.loss)(output, made.y).item() == pytest.approx(reference_loss(made, output).item(), 1e-12)


class Once(torch.autograd.Function):
    """x², whose backward autograd takes for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class Twice(Once):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class Through(nn.Module):
    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(self.layer(x))


def mean_output(output: Tensor, target: Tensor) -> Tensor:
    """Linear: the gradient that reaches the model is a constant, its second derivative all the model's."""
    return output.mean()


@pytest.mark.parametrize("loss", ["mse", mean_output])
@pytest.mark.parametrize("product", [hessian_product, ggn_product, partial(fisher_product, kind="empirical")])
def test_what_has_no_second_derivative_is_refused(product: Any, loss: Any) -> None:
    data = torch.ones(4, 3).double(), torch.zeros(4, 2).double()
    v = torch.ones(8).double()
    with pytest.raises(ValueError, match="^Once cannot be differentiated twice: its backward is marked @once_diff"):
        product(Through(Once), data, loss, v)
    assert torch.isfinite(product(Through(Twice), data, loss, v)).all()


def test_a_loss_without_second_derivative_is_refused() -> None:
    def squares(output: Tensor, target: Tensor) -> Tensor:
        return Once.apply(output - target).mean()

    model, data = nn.Linear(3, 2), (torch.ones(4, 3), torch.zeros(4, 2))
    for product in (hessian_product, ggn_product):
        with pytest.raises(ValueError, match="Once cannot be differentiated twice"):
            product(model, data, squares, torch.ones(8))


def test_what_autograd_refuses_to_differentiate_twice_is_a_value_error() -> None:
    class Distances(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(super().forward(x), torch.ones(2, 2), p=3.0)

    data = torch.ones(4, 3), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="^the model or loss cannot be differentiated twice: .*cdist"):
        hessian_product(Distances(3, 2), data, "mse", torch.ones(8))


def test_a_block_that_is_zero_is_no_fault() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.shift

    data, v = (torch.ones(4, 2), torch.zeros(4, 2)), torch.ones(5)
    assert hessian_product(Shifted(), data, "mse", v).tolist() == [1, 1, 0, 0, 0]
    assert ggn_product(Shifted(), data, "mse", v).tolist() == [1, 1, 0, 0, 0]
    assert hessian_product(Shifted(), data, mean_output, v).tolist() == [0] * 5
