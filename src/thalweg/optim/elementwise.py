"""AdamW for the parameters that a matrix rule leaves alone: m and s in float32 at least, whatever the parameters are.

m ← β₁m + (1−β₁)g; s ← β₂s + (1−β₂)g²; θ ← θ − α (m̂/(√ŝ + ε) + λθ), with m̂ = m/(1−β₁ᵗ), ŝ = s/(1−β₂ᵗ)
(Loshchilov & Hutter 2019, algorithm 2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


def adamw(p: Tensor, state: dict[str, Any], learning_rate: float, weight_decay: float = 0.0) -> None:
    """One update of a parameter that has a gradient; a gradient that is not finite changes nothing."""
    assert p.grad is not None
    g = p.grad.to_dense()
    if p.is_complex():
        p, g = torch.view_as_real(p), torch.view_as_real(g)
    g = g.to(torch.promote_types(p.dtype, torch.float32))
    if not bool(torch.isfinite(g).all()):
        return
    if "exp_avg" not in state:
        state.update(adam_step=0, exp_avg=torch.zeros_like(g), exp_avg_sq=torch.zeros_like(g))
    state["adam_step"] += 1
    m, s, t = state["exp_avg"], state["exp_avg_sq"], state["adam_step"]
    m.lerp_(g, 1 - BETAS[0])
    s.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
    root = (s / (1 - BETAS[1] ** t)).sqrt_().add_(EPSILON)
    if weight_decay:
        p.mul_(1 - learning_rate * weight_decay)
    p.add_(m / root * (-learning_rate / (1 - BETAS[0] ** t)))
