from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from gradient_cases import NAMES, case
from torch import Tensor, nn

from thalweg.gradients.lanczos import (
    Lanczos,
    extreme_eigenvalues,
    hutchpp_trace,
    spectral_density,
    spectrum,
    trace,
)
from thalweg.gradients.products import Curvature


@dataclass
class Dense:
    """A matrix as an operator that counts its products."""

    matrix: Tensor
    products: int = 0

    @property
    def size(self) -> int:
        return len(self.matrix)

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ v


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A dense matrix with these eigenvalues and random vectors."""
    source = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=source)).Q
    return (Q * values.double()) @ Q.T


def network_like(size: int = 300) -> Tensor:
    """A few large eigenvalues, a bulk about zero, a few negative: what Hessians of networks look like."""
    bulk = torch.linspace(-0.02, 0.05, size - 15)
    return symmetric(torch.cat([bulk, torch.tensor([-0.5, -0.2, -0.1]), torch.linspace(1, 10, 12)]))


def dense(curvature: Curvature) -> Tensor:
    return torch.stack([curvature @ e for e in torch.eye(curvature.size, dtype=curvature.dtype)])


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_against_the_dense_spectrum(name: str) -> None:
    made = case(name)
    curvature = Curvature(made.model, made.data, made.loss)
    H = dense(curvature)
    values = torch.linalg.eigvalsh(H)
    scale = values.abs().max()
    found = extreme_eigenvalues(curvature, tolerance=1e-7, max_products=200)
    assert found.converged
    for value, error, vector, exact in (
        (found.largest, found.largest_error, found.largest_vector, values[-1]),
        (found.smallest, found.smallest_error, found.smallest_vector, values[0]),
    ):
        assert abs(value - exact) <= 1e-6 * scale
        assert abs(value - exact) <= error <= 1e-6 * scale
        assert (H @ vector - value * vector).norm() <= error + 1e-12
        assert vector.norm().item() == pytest.approx(1, abs=1e-12)


def known_matrix(name: str) -> Tensor:
    if name in NAMES:
        made = case(name)
        return dense(Curvature(made.model, made.data, made.loss))
    if name == "network":
        return network_like()
    return symmetric({"uniform": torch.linspace(-1, 1, 200), "negative": -(torch.linspace(1, 2, 100) ** 8)}[name])


@pytest.mark.parametrize("name", ["network", "uniform", "negative", *NAMES])
def test_the_errors_are_honest_at_any_tolerance(name: str) -> None:
    matrix = known_matrix(name)
    exact = torch.linalg.eigvalsh(matrix)
    scale = exact.abs().max()
    for tolerance in (0.1, 0.01, 1e-3, 1e-5):
        for seed in range(4):
            found = extreme_eigenvalues(Dense(matrix), tolerance=tolerance, seed=seed, max_products=len(matrix))
            assert found.converged
            for value, error in ((found.largest, found.largest_error), (found.smallest, found.smallest_error)):
                assert (exact - value).abs().min() <= error <= tolerance * scale
            assert found.largest <= exact[-1] + 1e-12 * scale and found.smallest >= exact[0] - 1e-12 * scale


def test_the_outermost_eigenvalues_are_the_ones_found() -> None:
    outside = {0.01: 0, 1e-3: 0}
    for name in NAMES:
        matrix = known_matrix(name)
        exact = torch.linalg.eigvalsh(matrix)
        for tolerance in outside:
            for seed in range(10):
                found = extreme_eigenvalues(Dense(matrix), tolerance=tolerance, seed=seed, max_products=len(matrix))
                outside[tolerance] += int(abs(found.largest - exact[-1]) > found.largest_error)
                outside[tolerance] += int(abs(found.smallest - exact[0]) > found.smallest_error)
    assert outside[1e-3] == 0
    assert outside[0.01] <= 4  # of 220


def test_a_network_like_spectrum_takes_few_products() -> None:
    for seed in range(10):
        operator = Dense(network_like())
        found = extreme_eigenvalues(operator, tolerance=0.01, seed=seed)
        assert found.num_products == operator.products <= 25


def test_what_did_not_converge_says_so_and_bounds_its_error() -> None:
    matrix = symmetric(torch.linspace(-1, 1, 300))
    found = extreme_eigenvalues(Dense(matrix), tolerance=1e-6, max_products=8)
    assert not found.converged and found.num_products == 8
    assert abs(found.largest - 1) <= found.largest_error
    assert abs(found.smallest + 1) <= found.smallest_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_basis_stays_orthogonal(dtype: torch.dtype) -> None:
    """Without reorthogonalisation it is lost as soon as an end has converged."""
    lanczos = Lanczos(Dense(network_like().to(dtype)), torch.ones(300, dtype=dtype), 80)
    while not lanczos.ended:
        lanczos.extend()
    Q = lanczos._basis[:80]
    assert (Q @ Q.T - torch.eye(80, dtype=dtype)).abs().max() < 100 * torch.finfo(dtype).eps
    values, _, _ = lanczos.ritz()
    assert (values > 9.5).sum() == 1  # no copy of the largest


def test_spectra_that_end_early() -> None:
    zero = extreme_eigenvalues(Dense(torch.zeros(20, 20)))
    assert (zero.largest, zero.smallest, zero.num_products, zero.converged) == (0.0, 0.0, 1, True)
    few = symmetric(torch.tensor([3.0] * 10 + [-1.0] * 10))
    found = extreme_eigenvalues(Dense(few), tolerance=1e-12)
    assert found.num_products <= 3 and found.converged
    assert found.largest == pytest.approx(3, abs=1e-12) and found.smallest == pytest.approx(-1, abs=1e-12)
    single = extreme_eigenvalues(Dense(torch.tensor([[-2.5]])))
    assert single.largest == single.smallest == -2.5 and abs(single.largest_vector.item()) == 1


def test_a_product_that_is_not_finite_is_said() -> None:
    with pytest.raises(ValueError, match="not finite"):
        extreme_eigenvalues(Dense(torch.full((3, 3), math.nan)))


def test_quadrature_is_exact_for_the_moments_of_its_probe() -> None:
    matrix = symmetric(torch.linspace(-1, 2, 60))
    lanczos = Lanczos(Dense(matrix), torch.ones(60, dtype=torch.float64), 6)
    while not lanczos.ended:
        lanczos.extend()
    nodes, vectors, _ = lanczos.ritz()
    q = torch.full((60,), 60**-0.5, dtype=torch.float64)
    for power in range(12):
        expected = (q @ torch.linalg.matrix_power(matrix, power) @ q).item()
        assert (vectors[0] ** 2 * nodes**power).sum().item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_density_converges_to_the_moments_of_the_spectrum() -> None:
    matrix = symmetric(torch.linspace(-1, 2, 60))
    exact = {power: (torch.linalg.eigvalsh(matrix) ** power).mean() for power in (1, 2, 5)}
    spread: dict[int, list[float]] = {}
    for probes in (2, 32):
        found = [spectral_density(Dense(matrix), probes=probes, steps=6, seed=seed) for seed in range(40)]
        assert found[0].num_products == 6 * probes and found[0].nodes.shape == (probes, 6)
        torch.testing.assert_close(found[0].weights.sum(1), torch.ones(probes, dtype=torch.float64))
        for power, value in exact.items():
            error = torch.stack([torch.tensor(f.moment(power)) - value for f in found]).square().mean().sqrt()
            spread.setdefault(power, []).append(error.item())
    for first, second in spread.values():
        assert 2.6 < first / second < 6.2  # √(32/2) = 4


def test_density_as_a_curve() -> None:
    values = torch.cat([torch.zeros(90), torch.full((10,), 5.0)])
    found = spectral_density(Dense(symmetric(values)), probes=64)
    points = torch.linspace(-2, 7, 901)
    curve = found.at(points, 0.1)
    assert torch.trapezoid(curve, points.double()).item() == pytest.approx(1, abs=1e-3)
    above = points > 2.5
    assert torch.trapezoid(curve[above], points[above].double()).item() == pytest.approx(0.1, abs=0.02)


def z_score(value: float, exact: float, error: float) -> float:
    return abs(value - exact) / error


def test_hutchinson_is_unbiased_and_falls_with_the_root_of_the_probes() -> None:
    matrix = network_like()
    exact = matrix.trace().item()
    large = trace(Dense(matrix), probes=4000)
    assert large.num_products == 4000
    assert z_score(large.value, exact, large.standard_error) < 4
    spread = [
        math.sqrt(sum((trace(Dense(matrix), probes=n, seed=s).value - exact) ** 2 for s in range(60)) / 60)
        for n in (4, 64)
    ]
    assert 2.8 < spread[0] / spread[1] < 5.6  # √(64/4) = 4
    told = sum(trace(Dense(matrix), probes=64, seed=s).standard_error for s in range(60)) / 60
    assert told == pytest.approx(spread[1], rel=0.35)


def test_hutchpp_is_unbiased_and_beats_hutchinson_where_few_eigenvalues_dominate() -> None:
    matrix = network_like()
    exact = matrix.trace().item()
    found = [hutchpp_trace(Dense(matrix), products=30, seed=s).value - exact for s in range(300)]
    mean, variance = sum(found) / 300, sum(e**2 for e in found) / 300
    assert abs(mean) < 4 * math.sqrt(variance / 300)
    hutchinson = [trace(Dense(matrix), probes=30, seed=s).value - exact for s in range(100)]
    assert variance < sum(e**2 for e in hutchinson) / 100 / 4
    more = [hutchpp_trace(Dense(matrix), products=60, seed=s).value - exact for s in range(100)]
    assert sum(e**2 for e in more) / 100 < variance / 4
    operator = Dense(matrix)
    assert hutchpp_trace(operator, products=30).num_products == operator.products == 30
    assert hutchpp_trace(Dense(matrix[:4, :4]), products=30).value == pytest.approx(matrix[:4, :4].trace().item())
    with pytest.raises(ValueError, match="at least 3 products, got 2"):
        hutchpp_trace(operator, products=2)


def test_trace_of_a_network_is_unbiased() -> None:
    made = case("regression")
    curvature = Curvature(made.model, made.data, made.loss)
    found = trace(curvature, probes=400)
    assert z_score(found.value, dense(curvature).trace().item(), found.standard_error) < 4


def test_spectrum_in_one_call() -> None:
    made = case("dense")
    found = spectrum(made.model, made.data, made.loss, matrix="ggn", tolerance=1e-6, probes=60)
    G = dense(Curvature(made.model, made.data, made.loss, "ggn"))
    assert found.extremes.largest == pytest.approx(torch.linalg.eigvalsh(G)[-1].item(), rel=1e-6)
    assert z_score(found.trace.value, G.trace().item(), found.trace.standard_error) < 4
    assert found.trace.value == pytest.approx(found.density.moment(1) * len(G), rel=1e-9)
    assert found.num_products == found.extremes.num_products + found.density.num_products


def test_the_same_seed_is_the_same_answer_and_the_global_generator_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    data = torch.randn(9, 3), torch.randn(9, 1)
    before = torch.get_rng_state()
    first, again = (spectrum(model, data, "mse", seed=3) for _ in range(2))
    assert first.extremes.smallest == again.extremes.smallest and first.trace == again.trace
    assert torch.equal(torch.get_rng_state(), before)
