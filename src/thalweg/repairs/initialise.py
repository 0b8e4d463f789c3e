"""First weights drawn anew, each layer by what follows it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from thalweg.repairs.change import Body, Undo, Words, as_count, names
from thalweg.repairs.passes import (
    MANY,
    RECTIFIED,
    SATURATING,
    SHAPES,
    Call,
    Pass,
    evaluating,
    forward,
    is_closed,
    look,
    operation,
    unshaped,
)
from thalweg.repairs.structure import MATRICES, code

METHODS = ("he", "glorot", "orthogonal", "lsuv")
#: Activations in a row from which on a network without norms is deep: each may lose or gain a factor.
DEEP = 8
#: How far the variance may be from 1, and how often that is tried. Mishkin & Matas 2016, algorithm 1.
TOLERANCE, TRIES = 0.1, 10
#: σ' is at most 1/4: Glorot & Bengio 2010 take weights for it four times as large as for tanh.
SIGMOID_GAIN = 4.0
#: Steps of a sequence from which on the gates of a recurrent layer have to be told to remember.
LONG = 100
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_KNOWN = (*MATRICES, *NORMS, *_EMBEDDINGS, *_RECURRENT, nn.MultiheadAttention)


class Initialise:
    """Weights of layers drawn anew.

    - `he`: N(0, 2 / inputs) ahead of an activation of the ReLU kind, N(0, 1 / inputs) elsewhere (He et al. 2015);
    - `glorot`: N(0, 2 / (inputs + outputs)), 4² times that ahead of a sigmoid (Glorot & Bengio 2010);
    - `orthogonal`: orthogonal matrices, times √2 ahead of the ReLU kind (Saxe et al. 2014);
    - `lsuv`: orthogonal, then each layer in turn divided until its outputs on the sample have variance 1 ± 0.1
      (Mishkin & Matas 2016).

    In each: recurrent matrices orthogonal and those of inputs Glorot's, gate by gate, forget gates with bias 1
    (Jozefowicz et al. 2015), or over sequences of T ≥ 100 steps gates that keep with ln U(1, T − 1) and those that let
    in with its negative, so that units remember over all lengths up to T (Tallec & Ollivier 2018); attention's
    projections Glorot's; embeddings N(0, 1 / width); norms 1 and 0 with fresh statistics. Biases of dense and
    convolutional layers are U(−1, 1) / √inputs as torch's are: without any, all kinks go through the origin and a
    network of tanh is odd, which learns slowly where inputs are few. The layer that makes the output is
    N(0, 1 / inputs²), as in μP (Yang et al. 2022), with biases 0, so that a training begins from small outputs; `lsuv`
    does not divide it, which is a departure. Drawn from torch's global generator. Parameters that are not trained,
    those under a parametrization and those of modules that are not torch's stay as they are.
    """

    code = "initialise"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """By the activations: `lsuv` for eight or more without a norm, `he` or `glorot` by the kind of most of them."""
        if is_closed(body) or not any(_drawn_anew(module) for module in body.model.modules()):
            return None
        passed = look(body)
        kinds = [_follower(passed, call) for call in passed.calls if isinstance(call.module, MATRICES)]
        rectified, saturating = kinds.count("rectified"), kinds.count("tanh") + kinds.count("sigmoid")
        method = "he" if rectified >= saturating else "glorot"
        if rectified + saturating >= DEEP and not any(isinstance(m, NORMS) for m in body.model.modules()):
            method = "lsuv"
        words: dict[str, float | str] = {"method": method, "where": "all"}
        longest = max((_length(call) for call in passed.calls if isinstance(call.module, nn.LSTM | nn.GRU)), default=0)
        return words | ({"remembers": float(longest)} if longest >= LONG else {})

    def apply(self, body: Body, words: Words) -> Undo:
        """Draw; the tensors stay the same ones, with other values."""
        method = str(words["method"])
        assert method in METHODS, method
        chosen = list(dict.fromkeys(_chosen(body.model, words["where"])))
        undo = _kept(chosen)
        passed = look(body)
        followers = {call.module: _follower(passed, call) for call in reversed(passed.calls)}
        length = as_count(words.get("remembers", 1))
        seen: set[int] = set()
        with torch.no_grad():
            for module in chosen:
                if isinstance(module, _RECURRENT):
                    _draw_recurrent(module, length, seen)
                else:
                    _draw(module, method, followers.get(module, ""), seen)
            if method == "lsuv":
                _unit_variances(body, [module for module in chosen if followers.get(module) != "output"])
        return undo

    def lines(self, words: Words) -> list[str]:
        """torch.nn.init's word for it."""
        where = str(words["where"])
        roots = ["model"] if where == "all" else [code(name) for name in names(where)]
        draw = {
            "he": 'nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")',
            "glorot": "nn.init.xavier_normal_(layer.weight)",
        }.get(str(words["method"]), "nn.init.orthogonal_(layer.weight)")
        lines = []
        for root in roots:
            lines += [
                f"for layer in {root}.modules():",
                "    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):",
                f"        {draw}",
                "        if layer.bias is not None:",
                "            bound = layer.weight[0].numel() ** -0.5",
                "            nn.init.uniform_(layer.bias, -bound, bound)",
            ]
        if words["method"] == "lsuv":
            lines.append("# then, layer by layer: layer.weight /= layer's output on a batch .std()")
        if "remembers" in words:
            lines.append(
                "# of recurrent layers, the bias of gates that keep: torch.empty(hidden_size).uniform_"
                f"(1, {float(words['remembers']) - 1:.0f}).log(); of an LSTM's input gates: minus the same"
            )
        return lines


def _chosen(model: nn.Module, where: float | str) -> Iterator[nn.Module]:
    """The named modules and all inside of them, as far as they are known."""
    roots = [model] if where == "all" else [model.get_submodule(name) for name in names(where)]
    for root in roots:
        yield from (module for module in root.modules() if _drawn_anew(module))


def _drawn_anew(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    trained = bool(own) and all(p.requires_grad for p in own)
    # Of a parametrized weight what is drawn would be computed over at the next call.
    return isinstance(module, _KNOWN) and trained and not parametrize.is_parametrized(module)


def _kept(modules: list[nn.Module]) -> Undo:
    """Copies of what the modules hold themselves; called, it writes them back."""
    held = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    copies = [t.detach().clone() for t in held]

    def undo() -> None:
        with torch.no_grad():
            for tensor, copy in zip(held, copies, strict=True):
                tensor.copy_(copy)

    return undo


def _follower(passed: Pass, call: Call) -> str:
    """Of which kind the activation is that takes a layer's output, over a norm or a pool maybe; or `output`."""
    through = SHAPES | {"Norm", "MaxPool2DWithIndices", "AvgPool2D", "MaxPool3DWithIndices", "AdaptiveAvgPool2D"}
    takers = passed.takers(call, through)
    if passed.is_last(unshaped(call.node)) or any(passed.is_last(node) for node in takers):
        return "output"
    follow = {operation(node) for node in takers}
    if follow & RECTIFIED:
        return "rectified"
    if "Tanh" in follow:
        return "tanh"
    return "sigmoid" if follow & SATURATING else ""


# ── one layer ──


def _draw(module: nn.Module, method: str, follower: str, seen: set[int]) -> None:
    if isinstance(module, NORMS):
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
        _fill(module, 1.0)
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if _first(module.weight, seen):
            module.weight.normal_(0, module.weight.shape[1] ** -0.5)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.MultiheadAttention):
        for name, p in module.named_parameters(recurse=False):
            if name in ("bias_k", "bias_v"):
                nn.init.xavier_normal_(p)
            elif p.ndim > 1:
                nn.init.xavier_uniform_(p)
            else:
                p.zero_()
    else:
        _draw_matrix(module, method, follower, seen)


def _fill(module: nn.Module, weight: float) -> None:
    for name, p in module.named_parameters(recurse=False):
        p.fill_(0.0 if "bias" in name else weight)


def _first(weight: Tensor, seen: set[int]) -> bool:
    """Whether a tensor, which may be tied, is met for the first time."""
    met = id(weight) in seen
    seen.add(id(weight))
    return not met


def _draw_matrix(module: Any, method: str, follower: str, seen: set[int]) -> None:
    weight = module._parameters.get("weight")
    if weight is None:  # made of others at each call, as by the old weight_norm
        return
    if _first(weight, seen):
        inputs, outputs = fans(module)
        gain = math.sqrt(2.0) if follower == "rectified" else 1.0
        if follower == "output":
            weight.normal_(0, 1 / inputs)
        elif method == "he":
            weight.normal_(0, gain / math.sqrt(inputs))
        elif method == "glorot":
            gain = SIGMOID_GAIN if follower == "sigmoid" else 1.0
            weight.normal_(0, gain * math.sqrt(2 / (inputs + outputs)))
        else:
            nn.init.orthogonal_(weight, gain if method == "orthogonal" else 1.0)
    if module.bias is not None:
        bound = 0.0 if follower == "output" else fans(module)[0] ** -0.5
        module.bias.uniform_(-bound, bound)


def fans(module: Any) -> tuple[float, float]:
    """Inputs of a unit and outputs of an input.

    >>> fans(nn.Conv2d(3, 8, 3)), fans(nn.ConvTranspose2d(8, 3, 4, stride=2))
    ((27.0, 72.0), (32.0, 48.0))
    """
    weight = module.weight
    field = math.prod(weight.shape[2:])
    if getattr(module, "transposed", False):
        return weight.shape[0] / module.groups * field / math.prod(module.stride), float(weight.shape[1] * field)
    return float(weight.shape[1] * field), weight.shape[0] / getattr(module, "groups", 1) * field


def _length(call: Call) -> int:
    """Steps of the sequences that a recurrent layer took."""
    x, layer = call.input, call.module
    if x is None or x.ndim < 2:
        return call.steps or 1
    return x.shape[1 if layer.batch_first and x.ndim > 2 else 0]


def _draw_recurrent(module: nn.Module, length: int, seen: set[int]) -> None:
    """Gate by gate: orthogonal from state to state, Glorot's from input to state."""
    width = int(module.hidden_size)  # type: ignore[arg-type]
    for name, p in module.named_parameters(recurse=False):
        if not _first(p, seen):
            continue
        if p.ndim < 2:
            p.zero_()
            if name.startswith("bias_ih"):
                _remember(module, p.view(-1, width), length)
        elif name.startswith("weight_hr"):
            nn.init.orthogonal_(p)
        else:
            for gate in p.split(width):
                nn.init.orthogonal_(gate) if name.startswith("weight_hh") else nn.init.xavier_uniform_(gate)


def _remember(module: nn.Module, gates: Tensor, length: int) -> None:
    """Biases `[gates, width]` with which units keep what they hold.

    Of an LSTM's gates (input, forget, cell, output) and of a GRU's (reset, update, new) the second keeps.
    """
    is_lstm, is_gru = isinstance(module, nn.LSTM | nn.LSTMCell), isinstance(module, nn.GRU | nn.GRUCell)
    if length >= LONG and (is_lstm or is_gru):
        gates[1] = torch.empty_like(gates[1]).uniform_(1, length - 1).log_()
        if is_lstm:
            gates[0] = -gates[1]
    elif is_lstm:
        gates[1] = 1.0


def _unit_variances(body: Body, chosen: list[nn.Module]) -> None:
    """Layers in the order in which they are called, all in one pass: the next one sees the last one's new output.

    Batch norms take the statistics of the sample on the way, and keep them.
    """
    layers = [module for module in chosen if isinstance(module, MATRICES)]
    norms = [module for module in chosen if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    waiting = set(layers)

    def divide(module: Any, args: Any, output: Any) -> Any:
        if module not in waiting or not isinstance(output, Tensor):
            return None
        waiting.discard(module)
        for _ in range(TRIES):
            variance = output.var().item()
            if not 0 < variance < math.inf or abs(variance - 1) <= TOLERANCE:
                break
            module.weight.div_(math.sqrt(variance))
            output = module.forward(*args)
        return output

    hooks = [layer.register_forward_hook(divide) for layer in layers]
    try:
        with evaluating(body.model):
            for norm in norms:
                norm.training, norm.momentum = True, None  # None: the mean of all batches, which is this one
            forward(body, MANY)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
