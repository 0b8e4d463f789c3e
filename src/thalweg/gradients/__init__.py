"""What else a backward pass knows: norms of single examples, products with curvature, spectra, factors, checks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thalweg.gradients.examples import gradient_moments, noise_scale, per_example_norms
    from thalweg.gradients.factors import kronecker_factors
    from thalweg.gradients.lanczos import extreme_eigenvalues, hutchpp_trace, spectral_density, spectrum, trace
    from thalweg.gradients.products import Curvature, fisher_product, ggn_product, hessian_product
    from thalweg.gradients.taps import Taps

_WORDS = {
    "Curvature": "products",
    "Taps": "taps",
    "extreme_eigenvalues": "lanczos",
    "fisher_product": "products",
    "ggn_product": "products",
    "gradient_moments": "examples",
    "hessian_product": "products",
    "hutchpp_trace": "lanczos",
    "kronecker_factors": "factors",
    "noise_scale": "examples",
    "per_example_norms": "examples",
    "spectral_density": "lanczos",
    "spectrum": "lanczos",
    "trace": "lanczos",
}

__all__ = sorted(_WORDS)


def __getattr__(name: str) -> Any:
    if name not in _WORDS:
        raise AttributeError(f"module 'thalweg.gradients' has no attribute {name!r}")
    return getattr(import_module(f"thalweg.gradients.{_WORDS[name]}"), name)
