"""Activations and other functions of single numbers: y = f(x), so ∂J/∂x = f′(x) ∂J/∂y; and softmax, dropout.

At a kink f′ is what torch takes: 0 for ReLU at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, composed, rule


def _pointwise(names: str, f: Callable[..., Tensor], slope: Callable[..., Any]) -> None:
    """Register y = f(x, options) with its slope(x, y, options) = f′(x)."""

    @rule(*names.split())
    def apply(x: Tensor, *options: Any, **named: Any) -> tuple[Tensor, Pull]:
        y = f(x, *options, **named)
        return y, lambda g: [(x, lambda: g * slope(x, y, *options, **named))]


# ── activations ──


def _gelu(x: Tensor, y: Tensor, approximate: str = "none") -> Tensor:
    """Φ(x) + x φ(x); or of ½x(1 + tanh u), u = √(2/π)(x + 0.044715x³) (Hendrycks & Gimpel 2016)."""
    if approximate == "none":
        return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return (1 + t) / 2 + x / 2 * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


def _silu(x: Tensor, y: Tensor) -> Tensor:
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def _mish(x: Tensor, y: Tensor) -> Tensor:
    t = F.softplus(x).tanh()
    return t + x * x.sigmoid() * (1 - t * t)


def _softplus(x: Tensor, y: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(beta * x > threshold, 1.0, (beta * x).sigmoid())


def _leaky(x: Tensor, y: Tensor, negative_slope: float = 0.01) -> Tensor:
    # As a tensor: two plain numbers would be taken in float32.
    return torch.where(x > 0, 1.0, x.new_tensor(negative_slope))


def _elu(x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, 1.0, alpha * x.exp())


def _celu(x: Tensor, y: Tensor, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, 1.0, (x / alpha).exp())


def _selu(x: Tensor, y: Tensor) -> Tensor:
    """The constants of Klambauer et al. 2017, §2."""
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return scale * torch.where(x > 0, 1.0, alpha * x.exp())


def _hardtanh(x: Tensor, y: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    return (x > min_val) & (x < max_val)


def _hardswish(x: Tensor, y: Tensor) -> Tensor:
    """Torch takes 0 at −3 and 1 at 3."""
    return torch.where(x <= -3, 0.0, torch.where(x < 3, x / 3 + 0.5, 1.0))


def _shrunk(x: Tensor, y: Tensor, lambd: float = 0.5) -> Tensor:
    return x.abs() > lambd


def _clamped(x: Tensor, y: Tensor, min: Any = None, max: Any = None) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool)
    if min is not None:
        inside = inside & (x >= min)
    return inside if max is None else inside & (x <= max)


_pointwise("relu", torch.relu, lambda x, y: y.sign())  # y ≥ 0; a comparison takes torch several times as long
_pointwise("relu6", F.relu6, lambda x, y: (x > 0) & (x < 6))
_pointwise("leaky_relu", F.leaky_relu, _leaky)
_pointwise("threshold _threshold", F.threshold, lambda x, y, threshold, value: x > threshold)
_pointwise("gelu", F.gelu, _gelu)
_pointwise("silu", F.silu, _silu)
_pointwise("mish", F.mish, _mish)
_pointwise("tanh", torch.tanh, lambda x, y: 1 - y * y)
_pointwise("sigmoid expit special_expit", torch.sigmoid, lambda x, y: y * (1 - y))
_pointwise("log_sigmoid logsigmoid", F.logsigmoid, lambda x, y: torch.sigmoid(-x))
_pointwise("softplus", F.softplus, _softplus)
_pointwise("softsign", F.softsign, lambda x, y: 1 / (1 + x.abs()) ** 2)
_pointwise("tanhshrink", F.tanhshrink, lambda x, y: (x - y) ** 2)
_pointwise("softshrink", F.softshrink, _shrunk)
_pointwise("hardshrink", F.hardshrink, _shrunk)
_pointwise("elu", F.elu, _elu)
_pointwise("celu", F.celu, _celu)
_pointwise("selu", F.selu, _selu)
_pointwise("hardtanh", F.hardtanh, _hardtanh)
_pointwise("hardsigmoid", F.hardsigmoid, lambda x, y: ((x > -3) & (x < 3)) / 6.0)
_pointwise("hardswish", F.hardswish, _hardswish)
_pointwise("clamp clip", torch.clamp, _clamped)
_pointwise("clamp_min", torch.clamp_min, lambda x, y, min: x >= min)
_pointwise("clamp_max", torch.clamp_max, lambda x, y, max: x <= max)

# ── elementary functions ──

_pointwise("neg negative", torch.neg, lambda x, y: -1.0)
_pointwise("abs absolute", torch.abs, lambda x, y: x.sign())
_pointwise("exp", torch.exp, lambda x, y: y)
_pointwise("exp2", torch.exp2, lambda x, y: y * math.log(2))
_pointwise("expm1", torch.expm1, lambda x, y: y + 1)
_pointwise("log", torch.log, lambda x, y: 1 / x)
_pointwise("log2", torch.log2, lambda x, y: 1 / (x * math.log(2)))
_pointwise("log10", torch.log10, lambda x, y: 1 / (x * math.log(10)))
_pointwise("log1p", torch.log1p, lambda x, y: 1 / (1 + x))
_pointwise("sqrt", torch.sqrt, lambda x, y: 0.5 / y)
_pointwise("rsqrt", torch.rsqrt, lambda x, y: -0.5 * y**3)
_pointwise("square", torch.square, lambda x, y: 2 * x)
_pointwise("reciprocal", torch.reciprocal, lambda x, y: -y * y)
_pointwise("sin", torch.sin, lambda x, y: x.cos())
_pointwise("cos", torch.cos, lambda x, y: -x.sin())
_pointwise("tan", torch.tan, lambda x, y: 1 + y * y)
_pointwise("sinh", torch.sinh, lambda x, y: x.cosh())
_pointwise("cosh", torch.cosh, lambda x, y: x.sinh())
_pointwise("asin arcsin", torch.asin, lambda x, y: (1 - x * x).rsqrt())
_pointwise("acos arccos", torch.acos, lambda x, y: -(1 - x * x).rsqrt())
_pointwise("atan arctan", torch.atan, lambda x, y: 1 / (1 + x * x))
_pointwise("asinh arcsinh", torch.asinh, lambda x, y: (1 + x * x).rsqrt())
_pointwise("atanh arctanh", torch.atanh, lambda x, y: 1 / (1 - x * x))
_pointwise("erf special_erf", torch.erf, lambda x, y: 2 / math.sqrt(math.pi) * torch.exp(-x * x))
_pointwise("erfc special_erfc", torch.erfc, lambda x, y: -2 / math.sqrt(math.pi) * torch.exp(-x * x))

# ── several numbers at once ──


@rule("softmax")
def softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> tuple[Tensor, Pull]:
    """Y = exp(x) / Σ exp(x): ∂J/∂x = y (g − Σ g y)."""
    assert dim is not None, "softmax needs a dimension"
    y = torch.softmax(x, dim, dtype=dtype)
    return y, lambda g: [(x, lambda: y * (g - (g * y).sum(dim, keepdim=True)))]


@rule("log_softmax")
def log_softmax(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> tuple[Tensor, Pull]:
    """Y = x − log Σ exp(x): ∂J/∂x = g − exp(y) Σ g."""
    assert dim is not None, "log_softmax needs a dimension"
    y = torch.log_softmax(x, dim, dtype=dtype)
    return y, lambda g: [(x, lambda: g - y.exp() * g.sum(dim, keepdim=True))]


@rule("prelu")
def prelu(x: Tensor, w: Tensor) -> tuple[Tensor, Pull]:
    """Y = x where x > 0, else w x, a slope w for each channel: ∂J/∂w = Σ g x over x ≤ 0."""
    a = w.reshape(-1, *[1] * (x.ndim - 2)) if w.numel() > 1 and x.ndim > 1 else w

    def to_slope(g: Tensor) -> Tensor:
        d = g * torch.where(x > 0, 0.0, x)
        return d.sum_to_size(a.shape).reshape(w.shape)

    return F.prelu(x, w), lambda g: [(x, lambda: g * torch.where(x > 0, 1.0, a)), (w, lambda: to_slope(g))]


@composed("glu")
def glu(x: Tensor, dim: int = -1) -> Tensor:
    """A σ(b) of the two halves a, b."""
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


@composed("softmin")
def softmin(x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Tensor:
    """Softmax of −x."""
    assert dim is not None, "softmin needs a dimension"
    return torch.softmax(-x, dim, dtype=dtype)


def _dropout(names: str, drop: Callable[..., Tensor]) -> None:
    """Y = x m with the mask m ∈ {0, 1/(1−p)}, drawn as torch draws it: ∂J/∂x = g m."""

    @rule(*names.split())
    def apply(x: Tensor, p: float = 0.5, training: bool = True, **named: Any) -> tuple[Tensor, Pull]:
        if not named.get("train", training) or p == 0:
            return x, lambda g: []
        m = drop(torch.ones_like(x), p, True)
        return x * m, lambda g: [(x, lambda: g * m)]


_dropout("dropout", F.dropout)
_dropout("feature_dropout dropout2d", F.dropout2d)
_dropout("dropout1d", F.dropout1d)
_dropout("dropout3d", F.dropout3d)
