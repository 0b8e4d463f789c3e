"""What a tap means for each kind of layer: what it adds to each example's gradient of the layer's parameters.

With a the input and g the gradient at the output of one example, positions t (time, pixels, calls of a shared layer):

    dense, convolution, projections   ∂J/∂W = Σ_t g_t a_tᵀ                (a_t: the patch that position t sees)
    embedding                         ∂J/∂W[v] = Σ_{t: x_t = v} g_t
    norms (scale)                     ∂J/∂γ = Σ_t g_t ⊙ â_t              (â: the input normalised)
    biases and shifts                 ∂J/∂b = Σ_t g_t
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from thalweg.gradients.pieces import Formed, Lookup, Outer, Piece, as_float
from thalweg.gradients.taps import Tap


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the examples are in a layer's tensors: on an axis, or folded into the first, example by example."""

    axis: int = 0
    fold: int = 1
    """Rows of the first axis that belong to one example."""

    def batch_first(self, t: Tensor) -> Tensor:
        """[batch, …]; a folded first axis becomes [batch, fold]."""
        return t.unflatten(0, (-1, self.fold)) if self.fold > 1 else t.movedim(self.axis, 0)


def kind(module: nn.Module) -> str:
    """The kind of layer by what its forward computes, or "" where it is not known here.

    A subclass with a forward of its own is another layer; so is one whose weight is computed (parametrisations).

    >>> kind(nn.Conv2d(1, 2, 3)), kind(nn.LSTM(1, 2))
    ('convolution', '')
    """
    found = "" if "forward" in vars(module) else _KINDS.get(type(module).forward, "")
    if not found or not module._parameters or ("weight" not in module._parameters and found != "attention"):
        return ""
    return "" if found == "embedding" and module.scale_grad_by_freq else found


def pieces(tap: Tap, layout: Layout) -> Iterator[tuple[nn.Parameter, int, Piece]]:
    """What a tap adds to the gradients of the parameters: (parameter, first row of it, piece).

    Args:
        tap: input and gradient of a layer of a known kind.
        layout: where the examples are in them; for the projections of attention it is on axis 1 by their nature.
    """
    assert tap.gradient is not None and tap.input is not None
    module = tap.module
    if tap.part:
        yield from _projected(tap)
        return
    g, a, found = layout.batch_first(tap.gradient), layout.batch_first(tap.input), kind(module)
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    if found == "dense":
        yield from _dense(g, a, weight, bias, 0, 0)
    elif found == "convolution":
        if layout.fold == 1:
            g, a = g.unsqueeze(1), a.unsqueeze(1)
        if weight is not None and weight.requires_grad:
            yield weight, 0, Outer(g, a, module)
        if bias is not None and bias.requires_grad:
            yield bias, 0, Formed(as_float(g).flatten(3).sum((1, 3)))
    elif found == "embedding":
        if weight is not None and weight.requires_grad:
            yield weight, 0, _lookup(g, a, module)
    else:
        yield from _norm(g, a, module, layout)


def _dense(
    g: Tensor, a: Tensor, weight: Any, bias: Any, row: int, bias_row: int
) -> Iterator[tuple[nn.Parameter, int, Piece]]:
    g, a = (t.reshape(len(t), -1, t.shape[-1]) for t in (g, a))
    if weight is not None and weight.requires_grad:
        yield weight, row, Outer(g, a)
    if bias is not None and bias.requires_grad:
        yield bias, bias_row, Formed(as_float(g).sum(1))


def _projected(tap: Tap) -> Iterator[tuple[nn.Parameter, int, Piece]]:
    assert tap.gradient is not None and tap.input is not None
    weight = tap.module.get_parameter(tap.part)
    bias, row = projection_bias(tap)
    yield from _dense(tap.gradient.transpose(0, 1), tap.input.transpose(0, 1), weight, bias, tap.offset, row)


def projection_bias(tap: Tap) -> tuple[nn.Parameter | None, int]:
    """The bias that goes with the projection of a tap, and the first row of it that is used."""
    attention: Any = tap.module
    if tap.part == "out_proj.weight":
        return attention.out_proj.bias, 0
    separate = {"q_proj_weight": 0, "k_proj_weight": 1, "v_proj_weight": 2}.get(tap.part, 0)
    return attention.in_proj_bias, tap.offset + separate * attention.embed_dim


def _lookup(g: Tensor, index: Tensor, module: Any) -> Lookup:
    index = index.reshape(len(index), -1)
    g = g.reshape(*index.shape, -1)
    if module.padding_idx is not None:
        g = g * (index != module.padding_idx).unsqueeze(-1)
    return Lookup(g, index, module.num_embeddings)


def _norm(g: Tensor, a: Tensor, module: Any, layout: Layout) -> Iterator[tuple[nn.Parameter, int, Piece]]:
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    g, a = as_float(g), as_float(a)
    if kind(module) == "channel norm":
        if layout.fold == 1:
            g, a = g.unsqueeze(1), a.unsqueeze(1)
        over = [i for i in range(1, g.ndim) if i != 2]
        normal = _normalised(a.flatten(0, 1), module).reshape(a.shape)
    else:
        over, normal = list(range(1, g.ndim - weight.ndim)), _normalised(a, module)
    if weight is not None and weight.requires_grad:
        scaled = g * normal
        yield weight, 0, Formed(scaled.sum(over) if over else scaled)
    if bias is not None and bias.requires_grad:
        yield bias, 0, Formed(g.sum(over) if over else g)


def _normalised(a: Tensor, module: Any) -> Tensor:
    """The input as the layer normalises it, before scale and shift."""
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(a, module.normalized_shape, None, None, module.eps)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(a, module.normalized_shape, None, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(a, module.num_groups, None, None, module.eps)
    mean, variance = module.running_mean, module.running_var
    if isinstance(module, _InstanceNorm):
        own = module.training or mean is None
        return F.instance_norm(a, None if own else mean, None if own else variance, use_input_stats=own, eps=module.eps)
    return F.batch_norm(a, mean, variance, None, None, False, 0.0, module.eps)


_KINDS: dict[Callable[..., Any], str] = {
    nn.Linear.forward: "dense",
    nn.Conv1d.forward: "convolution",
    nn.Conv2d.forward: "convolution",
    nn.Conv3d.forward: "convolution",
    nn.Embedding.forward: "embedding",
    nn.LayerNorm.forward: "feature norm",
    nn.RMSNorm.forward: "feature norm",
    nn.GroupNorm.forward: "channel norm",
    _BatchNorm.forward: "channel norm",
    _InstanceNorm.forward: "channel norm",
    nn.MultiheadAttention.forward: "attention",
}
