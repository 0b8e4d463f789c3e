"""Which parameters of a model K-FAC has a block for, from one estimate of the factors to the next."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from thalweg.gradients.factors import KroneckerFactors
from thalweg.gradients.layers import kind
from thalweg.optim.kronecker import Block


def covered(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of layers that have Kronecker factors: trained, and in one layer only."""
    holders: dict[int, int] = {}
    for module in model.modules():
        if kind(module):
            for p in module._parameters.values():
                if p is not None:
                    holders[id(p)] = holders.get(id(p), 0) + 1
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        what: Any = module
        known = kind(module)
        if known == "attention":
            names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            weights = [*(getattr(what, name) for name in names), what.out_proj.weight]
            biases = [what.in_proj_bias, what.out_proj.bias]
        elif known in ("dense", "embedding") or (known == "convolution" and what.groups == 1):
            weights, biases = [what.weight], [getattr(what, "bias", None)]
        else:
            continue
        weights = [p for p in weights if p is not None and p.requires_grad and holders.get(id(p), 1) == 1]
        trained = [p for p in biases if p is not None and p.requires_grad and holders.get(id(p), 1) == 1]
        for p in [*weights, *(trained if weights else [])]:
            if p.numel() and not p.is_complex():
                found[id(p)] = p
    return list(found.values())


def owned(
    model: nn.Module, found: Mapping[str, KroneckerFactors], parameters: Collection[nn.Parameter]
) -> dict[str, KroneckerFactors]:
    """Of factors, those whose weight is among the parameters; without the bias where that is not."""
    names = {id(p): name for name, p in model.named_parameters()}
    ours = {names[id(p)] for p in parameters if id(p) in names}
    kept = {key: factors for key, factors in found.items() if factors.weight in ours}
    for key, factors in kept.items():
        if factors.bias is not None and factors.bias not in ours:
            kept[key] = replace(factors, A=factors.A[:-1, :-1], bias=None)
    return kept


def blocks(model: nn.Module, found: Mapping[str, KroneckerFactors], states: Mapping[Any, Any]) -> list[Block]:
    """A block for each pair of factors."""
    named = dict(model.named_parameters())
    made = []
    for key, factors in found.items():
        weight = named[factors.weight]
        rows, bias_rows = (_bounds(part, len(weight)) for part in (factors.rows, factors.bias_rows))
        made.append([key, factors.weight, factors.bias, rows, bias_rows, factors.num_rows])
    return remembered(model, made, states)


def renewed(
    model: nn.Module, known: list[Block], found: Mapping[str, KroneckerFactors], states: Mapping[Any, Any]
) -> list[Block]:
    """Those that are known, and new ones for weights that have none, or whose bias is frozen since, or trained."""
    names = {id(p): name for name, p in model.named_parameters()}
    kept = [b for b in known if b.layer not in found or (b.bias is None) == (found[b.layer].bias is None)]
    for block in known:
        if block not in kept:
            block.forget()
    taken = {names[id(b.weight)] for b in kept}
    new = blocks(model, {key: factors for key, factors in found.items() if factors.weight not in taken}, states)
    for p in (p for b in new for p in (b.weight, b.bias) if p is not None):
        for word in ("adam_step", "exp_avg", "exp_avg_sq"):  # that of AdamW, which has moved it until now
            states[p].pop(word, None)
    return [*kept, *new]


def remembered(model: nn.Module, words: list[Any], states: Mapping[Any, Any]) -> list[Block]:
    """Blocks from what a state says of them: (layer, weight, bias, rows, bias rows, rows of a batch) each."""
    named, modules = dict(model.named_parameters()), dict(model.named_modules())
    made = []
    for layer, weight, bias, rows, bias_rows, count in words:
        is_dense = layer in modules and kind(modules[layer]) == "dense"
        of_bias = None if bias is None else named[bias]
        w = named[weight]
        made.append(Block(layer, w, of_bias, tuple(rows), tuple(bias_rows), count, is_dense, states[w]))  # type: ignore
    return made


def described(model: nn.Module, made: list[Block]) -> list[Any]:
    """What `remembered` makes the blocks from: words and numbers."""
    names = {id(p): name for name, p in model.named_parameters()}
    words = []
    for b in made:
        bias = None if b.bias is None else names[id(b.bias)]
        words.append([b.layer, names[id(b.weight)], bias, list(b.rows), list(b.bias_rows), b.num_rows])
    return words


def _bounds(part: slice, size: int) -> tuple[int, int]:
    start, stop, _ = part.indices(size)
    return start, stop
