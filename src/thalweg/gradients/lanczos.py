"""Both ends of a symmetric matrix's spectrum, its density and its trace, from products alone.

Lanczos (1950) from a unit vector q₁ builds an orthonormal basis Q and a tridiagonal T = QᵀAQ, one product a column:

    A q_k = β_{k−1} q_{k−1} + α_k q_k + β_k q_{k+1}

An eigenpair (θ, s) of T gives the pair (θ, Qs) of A with ‖A Qs − θ Qs‖ = β_k |s_k|: an eigenvalue of A lies within
that distance of θ (Parlett 1998, section 13.2). Rounding would make Q lose its orthogonality and count eigenvalues
twice; every new vector is therefore made orthogonal to all before it, twice ("twice is enough", Parlett, section 6.9).

These are asked on demand, and read each α and β from the device to know when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.products import Curvature, LinearOperator, LossLike
from thalweg.tensors import seeds

#: Products that one search for the ends of a spectrum may take.
MAX_PRODUCTS = 100
#: An end of the spectrum counts as found when it has hardly moved over so many products.
SETTLED = 6


@dataclass(frozen=True, slots=True)
class Extremes:
    """The two ends of a spectrum: each value lies within `*_error` of an eigenvalue; the vectors are of length 1.

    `largest` is never above the largest eigenvalue, nor `smallest` below the smallest.
    """

    largest: float
    largest_error: float
    largest_vector: Tensor
    """[size]"""
    smallest: float
    smallest_error: float
    smallest_vector: Tensor
    """[size]: for a Hessian, the direction of the most negative curvature."""
    num_products: int
    converged: bool
    """Whether both errors came below the tolerance within the products allowed."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over random probes, and its standard error (NaN from a single probe)."""

    value: float
    standard_error: float
    num_products: int


@dataclass(frozen=True, slots=True)
class SpectralDensity:
    """Eigenvalues as points with weights, from stochastic Lanczos quadrature: each row of weights sums to 1."""

    nodes: Tensor
    """[probes, steps], float64 on the CPU; a run that ended early is filled up with points of weight 0."""
    weights: Tensor
    """[probes, steps]"""
    size: int
    """Rows of the matrix."""
    num_products: int

    def moment(self, power: int) -> float:
        """Estimate of trace(A^power)/size; unbiased for powers below twice the number of steps."""
        return float((self.weights * self.nodes**power).sum(1).mean())

    def at(self, points: Tensor, width: float) -> Tensor:
        """The density at eigenvalues `[points]`, each point blurred by a normal distribution of this width."""
        distance = (points.double().view(-1, 1, 1) - self.nodes) / width
        bumps = torch.exp(-(distance**2) / 2) / (width * math.sqrt(2 * math.pi))
        return (bumps * self.weights).sum(2).mean(1)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What products with random vectors tell of a curvature matrix."""

    extremes: Extremes
    density: SpectralDensity
    trace: Estimate

    @property
    def num_products(self) -> int:
        """Products that all of it took."""
        return self.extremes.num_products + self.density.num_products


def spectrum(
    model: nn.Module,
    data: Any,
    loss: LossLike = None,
    *,
    matrix: str = "hessian",
    tolerance: float = 0.01,
    probes: int = 4,
    seed: int = 0,
) -> Spectrum:
    """Both ends, density and trace of a curvature matrix of the loss over all data.

    Args:
        model: taken in evaluation mode, left as it was.
        data: `(x, y)` or any form that `fit` takes.
        loss: a name, a function (output, target), or None where the model returns its loss.
        matrix: "hessian", "ggn", "fisher", "monte_carlo_fisher" or "empirical_fisher".
        tolerance: of the ends, as a share of the larger magnitude.
        probes: random vectors behind density and trace; each takes 40 products.
        seed: what the random vectors follow from.
    """
    curvature = Curvature(model, data, loss, matrix)
    extremes = extreme_eigenvalues(curvature, tolerance=tolerance, seed=seed)
    density = spectral_density(curvature, probes=probes, seed=seed)
    # qᵀAq of a unit vector q is the first moment of its quadrature.
    return Spectrum(extremes, density, _mean(curvature.size * (density.weights * density.nodes).sum(1), 0))


def extreme_eigenvalues(
    operator: LinearOperator, *, tolerance: float = 0.01, max_products: int = MAX_PRODUCTS, seed: int = 0
) -> Extremes:
    """The largest and the smallest eigenvalue with their vectors, by Lanczos from a random vector.

    It ends when both errors are at most `tolerance` times the larger magnitude. An error is the larger of the residual,
    which bounds the distance to the nearest eigenvalue, and of what the value has moved by over the last `SETTLED`
    products: a small residual alone may belong to an inner eigenvalue, found before an outer one has come forth. That
    it is the outermost cannot be bounded from products; over the networks of the tests and 30 starts each, one search
    in a hundred at a tolerance of 0.01, none at 0.001, ended on the second.

    Raises:
        ValueError: a product is not finite.
    """
    lanczos = Lanczos(operator, _unit(operator, seed, "lanczos"), min(max_products, operator.size))
    ends: list[tuple[float, float]] = []
    while True:
        lanczos.extend()
        values, vectors, residuals = lanczos.ritz()
        ends.append((float(values[0]), float(values[-1])))
        scale = float(values.abs().max())
        errors = [float(residuals[i]) + lanczos.rounding for i in (0, -1)]
        if not lanczos.exhausted:
            before = ends[-1 - SETTLED] if len(ends) > SETTLED else (math.inf, math.inf)
            errors = [max(error, abs(ends[-1][i] - before[i])) for i, error in enumerate(errors)]
        done = max(errors) <= max(tolerance * scale, lanczos.rounding)
        if done or lanczos.ended:
            break
    return Extremes(
        ends[-1][1],
        errors[1],
        lanczos.lift(vectors[:, -1]),
        ends[-1][0],
        errors[0],
        lanczos.lift(vectors[:, 0]),
        lanczos.num_products,
        done,
    )


def spectral_density(operator: LinearOperator, *, probes: int = 4, steps: int = 40, seed: int = 0) -> SpectralDensity:
    """Stochastic Lanczos quadrature (Ubaru, Chen, Saad 2017; for networks, Ghorbani, Krishnan, Xiao 2019).

    For a random unit vector q, Σ s₁ᵢ² δ(θᵢ) has the first 2·steps − 1 moments of qᵀδ(A)q, whose expectation is the
    density of eigenvalues.
    """
    steps = min(steps, operator.size)
    nodes, weights = torch.zeros(probes, steps, dtype=torch.float64), torch.zeros(probes, steps, dtype=torch.float64)
    products = 0
    for probe in range(probes):
        lanczos = Lanczos(operator, _unit(operator, seed, probe), steps)
        while not lanczos.ended:
            lanczos.extend()
        values, vectors, _ = lanczos.ritz()
        nodes[probe, : len(values)], weights[probe, : len(values)] = values, vectors[0] ** 2
        products += lanczos.num_products
    return SpectralDensity(nodes, weights, operator.size, products)


def trace(operator: LinearOperator, *, probes: int = 16, seed: int = 0) -> Estimate:
    """The trace as the mean of zᵀAz over random signs z (Hutchinson 1989); one product a probe, unbiased."""
    return _mean(torch.stack([_quadratic(operator, _signs(operator, seed, i)) for i in range(probes)]), probes)


def hutchpp_trace(operator: LinearOperator, *, products: int = 30, seed: int = 0) -> Estimate:
    """The trace by Hutch++ (Meyer, Musco, Musco, Woodruff 2021), unbiased.

    A third of the products finds a basis Q of the dominant eigenvectors, a third gives trace(QᵀAQ) exactly, and a
    third estimates the rest, zᵀ(I − QQᵀ)A(I − QQᵀ)z: the error falls with 1/products, not with its root, where few
    eigenvalues dominate, as in a network's Hessian.

    Raises:
        ValueError: fewer than 3 products.
    """
    if products < 3:
        raise ValueError(f"Hutch++ needs at least 3 products, got {products}")
    third = min(products // 3, operator.size)
    sketch = torch.stack([operator.matvec(_signs(operator, seed, "sketch", i)) for i in range(third)], dim=1)
    Q = torch.linalg.qr(sketch).Q
    known = torch.stack([_quadratic(operator, Q[:, i].contiguous()) for i in range(third)]).sum()
    if third == operator.size:
        return Estimate(float(known), 0.0, 2 * third)
    rest = []
    for i in range(third):
        z = _signs(operator, seed, i)
        rest.append(_quadratic(operator, z - Q @ (Q.T @ z)))
    remaining = _mean(torch.stack(rest), third)
    return Estimate(float(known) + remaining.value, remaining.standard_error, 3 * third)


class Lanczos:
    """The recurrence, one product at a time."""

    def __init__(self, operator: LinearOperator, start: Tensor, max_products: int) -> None:
        self.operator = operator
        self.max_products = max_products
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.num_products = 0
        self.exhausted = False
        """Whether the basis spans all that A makes of the start: eigenvalues of T are then eigenvalues of A."""
        self._basis = start.new_empty(min(16, max_products), len(start))
        self._basis[0] = start / torch.linalg.vector_norm(start)

    @property
    def ended(self) -> bool:
        """Whether no further column can be added."""
        return self.exhausted or self.num_products >= self.max_products

    @property
    def rounding(self) -> float:
        """What rounding may have done to an eigenvalue: ε‖A‖ times the root of the length of its sums."""
        epsilon = torch.finfo(self._basis.dtype).eps
        largest = max((abs(a) + 2 * b for a, b in zip(self.alphas, self.betas, strict=True)), default=0.0)
        return epsilon * largest * math.sqrt(self._basis.shape[1])

    def extend(self) -> None:
        """Add a column: one product."""
        k = self.num_products
        w = self.operator.matvec(self._basis[k]).to(self._basis.dtype)
        self.num_products += 1
        Q = self._basis[: k + 1]
        alpha = float(torch.dot(Q[k], w))
        w = w - Q.T @ (Q @ w)
        w = w - Q.T @ (Q @ w)
        beta = float(torch.linalg.vector_norm(w))
        if not math.isfinite(alpha + beta):
            raise ValueError("a product with the curvature is not finite: the loss or its derivatives overflow here")
        self.alphas.append(alpha)
        self.betas.append(beta)
        if k + 1 == len(Q[0]) or beta <= 10 * self.rounding:
            self.betas[-1], self.exhausted = 0.0, True
        elif not self.ended:
            self._append(w / beta)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues of T in rising order `[k]`, their vectors `[k, k]`, and the residuals β|s_k| `[k]`; float64."""
        T = torch.diag(torch.tensor(self.alphas, dtype=torch.float64))
        between = torch.tensor(self.betas[:-1], dtype=torch.float64)
        T += torch.diag(between, 1) + torch.diag(between, -1)
        values, vectors = torch.linalg.eigh(T)
        return values, vectors, self.betas[-1] * vectors[-1].abs()

    def lift(self, s: Tensor) -> Tensor:
        """Q s: a vector of T's space `[k]` in the whole space `[size]`."""
        return self._basis[: len(s)].T @ s.to(self._basis)

    def _append(self, q: Tensor) -> None:
        k = self.num_products
        if k == len(self._basis):
            more = min(len(self._basis), self.max_products - k)
            self._basis = torch.cat([self._basis, self._basis.new_empty(more, len(q))])
        self._basis[k] = q


def _unit(operator: LinearOperator, *key: int | str) -> Tensor:
    """A random direction, every one as likely."""
    z = _drawn(operator, lambda source: torch.randn(operator.size, generator=source, dtype=torch.float64), key)
    return z / torch.linalg.vector_norm(z)


def _signs(operator: LinearOperator, *key: int | str) -> Tensor:
    """+1 and −1 at random: of all probes with independent entries, those of least variance."""
    return _drawn(operator, lambda source: torch.randint(2, (operator.size,), generator=source) * 2 - 1, key)


def _drawn(operator: LinearOperator, draw: Callable[[torch.Generator], Tensor], key: tuple[int | str, ...]) -> Tensor:
    return draw(seeds.generator("spectrum", *key)).to(operator.device, operator.dtype)


def _quadratic(operator: LinearOperator, z: Tensor) -> Tensor:
    return torch.dot(z, operator.matvec(z)).double()


def _mean(values: Tensor, products: int) -> Estimate:
    count = len(values)
    error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(values.mean()), error, products)
