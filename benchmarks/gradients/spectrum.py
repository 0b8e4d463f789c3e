"""Both ends of a Hessian's spectrum to 1 % of the larger magnitude: how many products, and what a product costs.

The truth is our own search to 1e-3, in float64 and from another start. Peers stop by their own rules: PyHessian's power
iteration (the end of larger magnitude only) when two values in a row differ by less than 0.1 %, its default, for they
come slowly nearer; curvlinops through scipy's `eigsh` (ARPACK: implicitly restarted Lanczos), when a residual is below
1 % of the end's own value. What each is off by, in % of the larger magnitude, is written beside. Attention is set to
torch's math kernel for the peers, for the others have no second derivative; ours sets it itself.
"""

from __future__ import annotations

import copy
import importlib
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from networks import MLP, OWN_TRANSFORMER, SMALL_CNN, Network
from passes import forward_and_backward
from timing import Effort, Row, interleaved, middle, milliseconds, ratio, reason
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

PRODUCTS, COST = 25, 2.5
UPDATES, STARTS, TOLERANCE = 50, 3, 0.01
Ends = tuple[float | None, float]
Found = tuple[int, Ends]
NUMBER, PRICE, SEARCH = "λ_min and λ_max to 1 %", "a product", "λ_min and λ_max to 1 %, all of it"


def measure(effort: Effort) -> list[Row]:
    """Products and their cost, ours and the peers'."""
    return [row for network in (MLP, SMALL_CNN, OWN_TRANSFORMER) for row in _of(network, effort)]


def _of(network: Network, effort: Effort) -> list[Row]:
    model, batch = network.trained(UPDATES), network.data()
    rows: list[Row] = []
    contenders: dict[str, Callable[[], Any]] = {"gradient": forward_and_backward(copy.deepcopy(model), batch)}
    truth, ours = _truth(model, batch), _Ours(model, batch)
    searches: dict[str, _Search] = {"thalweg": ours}
    for name, make in PEERS.items():
        try:
            with sdpa_kernel(SDPBackend.MATH):
                searches[name] = make(copy.deepcopy(model), batch)
                searches[name].find(0)
        except Exception as error:  # whatever a peer cannot do is what its row says
            searches.pop(name, None)
            rows.append(Row(NUMBER, network.name, name, None, "products", note=reason(error)))
    for name, search in searches.items():
        with sdpa_kernel(SDPBackend.MATH):
            rows.append(_counted(network, name, search, truth))
        contenders[name] = search.product if search is ours else _by_math(search.product)
    contenders["whole search"] = lambda: ours.find_anew(0)
    times = interleaved(contenders, effort)
    gradient = times.pop("gradient")
    whole = times.pop("whole search")
    for name, seconds in times.items():
        details: dict[str, Any] = {"ms": milliseconds(seconds), "gradient [ms]": milliseconds(gradient)}
        target = COST if name == "thalweg" else None
        rows.append(
            Row(PRICE, network.name, name, unit="gradients", target=target, details=details, **ratio(seconds, gradient))
        )
    products = ours.find_anew(0)[0]
    details = {"products": products, "recording and Lanczos' own arithmetic": "included", "ms": milliseconds(whole)}
    rows.append(
        Row(
            SEARCH,
            network.name,
            "thalweg",
            unit="gradients",
            target=PRODUCTS * COST,
            details=details,
            **ratio(whole, gradient),
        )
    )
    return rows


def _by_math(product: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return product()

    return call


def _counted(network: Network, name: str, search: _Search, truth: tuple[float, float]) -> Row:
    """Products over several starts, and how far the ends are off."""
    found = [search.find(seed) for seed in range(STARTS)]
    scale, off = max(map(abs, truth)), []
    for _, (smallest, largest) in found:
        pairs = [(largest, truth[1])] if smallest is None else [(smallest, truth[0]), (largest, truth[1])]
        off.append(max(abs(a - b) for a, b in pairs) / scale * 100)
    note = f"off by {statistics.median(off):.2f} %, at most {max(off):.2f} %"
    details = {
        "off by [% of the larger magnitude], median": round(statistics.median(off), 3),
        "off by, at most": round(max(off), 3),
        "starts": STARTS,
        "λ_min": truth[0],
        "λ_max": truth[1],
        "ends": "λ_max" if found[0][1][0] is None else "both",
    }
    target = PRODUCTS if name == "thalweg" else None
    return Row(
        NUMBER,
        network.name,
        name,
        unit="products",
        target=target,
        note=note,
        details=details,
        **middle([float(count) for count, _ in found]),
    )


def _truth(model: nn.Module, batch: Any) -> tuple[float, float]:
    from thalweg.gradients.lanczos import extreme_eigenvalues
    from thalweg.gradients.products import Curvature

    x, y = batch
    exact = copy.deepcopy(model).double()
    curvature = Curvature(exact, (x.double() if x.is_floating_point() else x, y), "cross_entropy")
    found = extreme_eigenvalues(curvature, tolerance=1e-3, max_products=300, seed=99)
    assert found.converged, "the truth is known"
    return found.smallest, found.largest


class _Search:
    """A way to find the ends, and one product of it."""

    def find(self, seed: int) -> Found:
        """Number of products, and the ends (None for one that is not looked for)."""
        raise NotImplementedError

    def product(self) -> Any:
        """One product, as the search makes it."""
        raise NotImplementedError


class _Ours(_Search):
    def __init__(self, model: nn.Module, batch: Any) -> None:
        from thalweg.gradients.products import Curvature

        self.anew: Callable[[], Curvature] = lambda: Curvature(model, batch, "cross_entropy")
        self.curvature = self.anew()
        self.v = torch.randn(self.curvature.size)

    def find(self, seed: int, curvature: Any = None) -> Found:
        from thalweg.gradients.lanczos import extreme_eigenvalues

        found = extreme_eigenvalues(curvature or self.curvature, tolerance=TOLERANCE, seed=seed)
        return found.num_products, (found.smallest, found.largest)

    def find_anew(self, seed: int) -> Found:
        """With nothing recorded before."""
        return self.find(seed, self.anew())

    def product(self) -> Any:
        return self.curvature @ self.v


class _PyHessian(_Search):
    def __init__(self, model: nn.Module, batch: Any) -> None:
        self.module: Any = importlib.import_module("pyhessian.hessian")
        self.hessian = self.module.hessian(model, nn.CrossEntropyLoss(), data=batch, cuda=False)
        self.v = [torch.randn_like(p) for p in self.hessian.params]

    def find(self, seed: int) -> Found:
        torch.manual_seed(seed)
        plain, count = self.module.hessian_vector_product, 0

        def counted(*args: Any) -> Any:
            nonlocal count
            count += 1
            return plain(*args)

        self.module.hessian_vector_product = counted
        try:
            values, _ = self.hessian.eigenvalues(maxIter=100, tol=1e-3, top_n=1)
        finally:
            self.module.hessian_vector_product = plain
        return count, (None, values[0])

    def product(self) -> Any:
        return self.module.hessian_vector_product(self.hessian.gradsH, self.hessian.params, self.v)


class _Curvlinops(_Search):
    def __init__(self, model: nn.Module, batch: Any) -> None:
        from curvlinops import HessianLinearOperator
        from scipy.sparse import linalg

        parameters = [p for p in model.parameters() if p.requires_grad]
        self.linalg = linalg
        self.operator = HessianLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, [batch], check_deterministic=False
        )
        self.v = torch.randn(self.operator.shape[1])

    def find(self, seed: int) -> Found:
        scipy, count = self.operator.to_scipy(), 0

        def counted(v: Any) -> Any:
            nonlocal count
            count += 1
            return scipy @ v

        operator = self.linalg.LinearOperator(scipy.shape, matvec=counted, dtype=scipy.dtype)
        start = np.random.default_rng(seed).standard_normal(scipy.shape[0])
        values = self.linalg.eigsh(operator, 2, which="BE", tol=TOLERANCE, v0=start, return_eigenvectors=False)
        return count, (float(min(values)), float(max(values)))

    def product(self) -> Any:
        return self.operator @ self.v


PEERS: dict[str, Callable[[nn.Module, Any], _Search]] = {
    "PyHessian, power": _PyHessian,
    "curvlinops, ARPACK": _Curvlinops,
}
