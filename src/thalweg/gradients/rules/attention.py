"""Scaled dot-product attention, and attention in several heads, which is dense layers around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from thalweg.gradients.rules.registry import Pull, composed, rule


@rule("scaled_dot_product_attention")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Pull]:
    """S = s q kᵀ + mask, P = softmax(S), y = (P m) v with the dropout mask m (Vaswani et al. 2017, §3.2.1).

    Back through each in turn: ∂J/∂v = (P m)ᵀ g, ∂J/∂P = m (g vᵀ), ∂J/∂S = P (∂J/∂P − Σ P ∂J/∂P),
    ∂J/∂q = s ∂J/∂S k, ∂J/∂k = s ∂J/∂Sᵀ q. q `[..., queries, features]`, k and v `[..., keys, features]`.
    """
    s = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    repeats = q.shape[-3] // k.shape[-3] if enable_gqa else 1
    K, V = (k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)) if repeats > 1 else (k, v)
    S = (q * s) @ K.mT
    if is_causal:
        S = S.masked_fill(torch.ones(S.shape[-2:], dtype=torch.bool, device=S.device).triu(1), -math.inf)
    if attn_mask is not None:
        S = S.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else S + attn_mask
    P = torch.softmax(S, -1)
    if attn_mask is not None:  # a query that may look at nothing gets zeros, as torch has it
        P = P.masked_fill(S.isneginf().all(-1, keepdim=True), 0)
    m = F.dropout(torch.ones_like(P), dropout_p) if dropout_p > 0 else None
    D = P if m is None else P * m

    def pull(g: Tensor) -> list[Any]:
        d = g @ V.mT if m is None else (g @ V.mT) * m
        dS = P * (d - (P * d).sum(-1, keepdim=True))
        heads = lambda t: t if repeats == 1 else t.unflatten(-3, (-1, repeats)).sum(-3)  # noqa: E731
        return [
            (q, lambda: s * (dS @ K)),
            (k, lambda: heads(s * (dS.mT @ q))),
            (v, lambda: heads(D.mT @ g)),
            (attn_mask, lambda: dS),
        ]

    return D @ V, pull


@composed("multi_head_attention_forward")
def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What torch's function of this name computes: three dense layers, attention in each head, a dense layer.

    query `[queries, batch, features]` or without batch; masks as torch takes them.
    """
    if static_k is not None or static_v is not None or bias_k is not None or add_zero_attn:
        raise ValueError("attention with static, biased or added keys")
    if query.ndim == 2:
        y, weights = multi_head_attention(
            query[:, None], key[:, None], value[:, None], embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias,
            None, None, False, dropout_p, out_proj_weight, out_proj_bias, training,
            None if key_padding_mask is None else key_padding_mask[None], need_weights, attn_mask,
            use_separate_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, None, None, average_attn_weights,
            is_causal,
        )  # fmt: skip
        return y.squeeze(1), None if weights is None else weights.squeeze(0)
    w: Sequence[Tensor]
    if use_separate_proj_weight:
        assert q_proj_weight is not None and k_proj_weight is not None and v_proj_weight is not None
        w = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        assert in_proj_weight is not None
        w = in_proj_weight.chunk(3)
    b: Sequence[Tensor | None] = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (_heads(F.linear(x, w[i], b[i]), num_heads) for i, x in enumerate((query, key, value)))
    mask = _merged(attn_mask, key_padding_mask, q)
    p = dropout_p if training else 0.0
    weights = None
    if need_weights:
        S = (q * math.sqrt(1 / q.shape[-1])) @ k.mT
        weights = torch.softmax(S if mask is None else S + mask, -1)
        weights = F.dropout(weights, p) if p > 0 else weights
        y = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        y = F.scaled_dot_product_attention(q, k, v, mask, p)
    joined = y.permute(2, 0, 1, 3).reshape(-1, query.shape[-1])
    return F.linear(joined, out_proj_weight, out_proj_bias).reshape(*query.shape[:2], -1), weights


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """`[length, batch, features]` → `[batch, heads, length, features / heads]`."""
    return x.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)


def _merged(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """Both masks as numbers to add, in a shape that broadcasts to `[batch, heads, queries, keys]`; True forbids."""
    if attn_mask is not None:
        attn_mask = _added(attn_mask, q)
        if attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (q.shape[0], q.shape[1])) if len(attn_mask) > 1 else attn_mask[None]
    if padding is None:
        return attn_mask
    padding = _added(padding, q)[:, None, None, :]
    return padding if attn_mask is None else attn_mask + padding


def _added(mask: Tensor, q: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -math.inf) if mask.dtype is torch.bool else mask
