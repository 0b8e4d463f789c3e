"""Norms behind layers and connections past them, put in so that the function is at first what it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.repairs.change import Body, Undo, Words, names
from thalweg.repairs.initialise import NORMS
from thalweg.repairs.passes import ACTIVATIONS, MANY, Call, Pass, evaluating, forward, is_closed, look, operation
from thalweg.repairs.structure import MATRICES, Around, code, name_of, put, slots
from thalweg.tensors.named import leaves

#: Examples in a batch below which their statistics are too noisy to normalise by: Wu & He 2018, figure 1.
SMALL_BATCH = 16


class Gated(nn.Module):
    """x + gate · (norm(x) − x): the norm as far as the gate, one number, is open; at 0 it is x itself."""

    def __init__(self, norm: nn.Module, gate: float) -> None:
        super().__init__()
        self.norm = norm
        self.gate = nn.Parameter(_like(norm, [gate]))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised in part, in the shape of x."""
        return x + self.gate * (self.norm(x) - x)


class Residual(nn.Module):
    """gate · x + block(x), with one number as gate; at 0 it is the block alone."""

    def __init__(self, block: nn.Module, gate: float) -> None:
        super().__init__()
        self.block = block
        self.gate = nn.Parameter(_like(block, [gate]))
        self.training = block.training

    def forward(self, x: Tensor) -> Tensor:
        """The sum, in the shape of x."""
        return self.gate * x + self.block(x)


def _like(module: nn.Module, values: list[float]) -> Tensor:
    return torch.tensor(values).to(next(p for p in module.parameters() if p.is_floating_point()))


class InsertNorm:
    """A norm between a layer and its activation.

    Behind convolutions and dense layers a batch norm, of batches of 16 and more. With `matched` 1 its weight is the
    deviation and its bias the mean that it takes out, by the statistics of the sample: in evaluation the function is
    what it was. With `matched` 0 weight and bias are 1 and 0: the function changes, and signals have one size at once.

    Elsewhere (sequences, small batches) a layer norm, over a channel's place too for images. It depends on the
    example, so no statistics make it do nothing: it stands behind a gate, that is at 0 where the function is to stay.

    The function stays unless the network says the same of every example: a deep network in which the signal has
    vanished has nothing to keep, and a norm that does nothing at first does not bring it back.
    """

    code = "insert_norm"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """Behind each layer that goes straight into an activation, and neither comes from nor goes into a norm."""
        if is_closed(body):
            return None
        passed, places = look(body), slots(body.model)
        size = body.settings.batch_size
        rows = len(next(leaves(body.sample)))
        small = min(size, rows) < SMALL_BATCH if isinstance(size, int) else rows < SMALL_BATCH
        found: dict[str, list[str]] = {"batch": [], "layer": []}
        for call in passed.calls:
            if call.module not in places or not _before_activation(passed, call):
                continue
            assert call.output is not None
            dense = isinstance(call.module, nn.Linear)
            kind = "layer" if small or (dense and call.output.ndim != 2) else "batch"
            if call.name not in (*found["batch"], *found["layer"]):
                found[kind].append(call.name)
        words: dict[str, float | str] = {kind: " ".join(where) for kind, where in found.items() if where}
        lost = passed.is_constant()
        return {**words, "matched": float(not lost), "gate": float(lost)} if words else None

    def apply(self, body: Body, words: Words) -> Undo:
        """Put the norms in, then give them the sample's statistics, from the first to the last."""
        instead: dict[nn.Module, nn.Module] = {}
        inserted: list[nn.Module] = []
        for kind in ("batch", "layer"):
            for name in names(words.get(kind, "")):
                layer = body.model.get_submodule(name)
                norm = _norm(layer, kind)
                inserted.append(norm)
                behind = norm if kind == "batch" else Gated(norm, float(words["gate"]))
                instead[layer] = Around(layer, behind=behind)
        undo = put(body.model, instead)
        _calibrate(body, inserted, matched=bool(words["matched"]))
        return undo

    def lines(self, words: Words) -> list[str]:
        """A Sequential in the layer's place."""
        lines = []
        for kind, norm in (
            ("batch", "nn.BatchNorm2d(channels)  # 1d for a dense layer"),
            ("layer", "nn.LayerNorm(width)"),
        ):
            for name in names(words.get(kind, "")):
                call, _, remark = norm.partition("  ")
                end = f"  {remark}" if remark else ""
                lines.append(f"{code(name)} = nn.Sequential({code(name)}, {call}){end}")
        return lines


def _before_activation(passed: Pass, call: Call) -> bool:
    if not isinstance(call.module, MATRICES) or call.output is None or passed.is_output(call):
        return False
    bends = any(operation(node) in ACTIVATIONS and not passed.is_last(node) for node in passed.takers(call))
    return operation(call.source) != "Norm" and bends


def _norm(layer: Any, kind: str) -> nn.Module:
    """A norm of as many features as the layer puts out."""
    like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        made: type[Any] = nn.BatchNorm1d if kind == "batch" else nn.LayerNorm
        return made(layer.out_features, **like)
    if kind == "layer":
        return nn.GroupNorm(1, layer.out_channels, **like)
    dims = layer.weight.ndim - 2
    return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](layer.out_channels, **like)


def _calibrate(body: Body, norms: list[Any], matched: bool) -> None:
    """One pass: each norm takes the statistics of what comes to it, when it comes."""
    waiting = set(norms)

    def take(norm: Any, args: tuple[Tensor, ...]) -> None:
        if norm not in waiting:  # a shared layer comes again
            return
        waiting.discard(norm)
        x = args[0]
        axis = x.ndim - 1 if isinstance(norm, nn.LayerNorm) else 1
        if not bool(x.isfinite().all()):  # what has overflown has no statistics
            return
        if hasattr(norm, "running_mean"):
            variance, mean = torch.var_mean(_by_feature(x, axis), 1, correction=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            if matched:
                norm.weight.copy_((norm.running_var + norm.eps).sqrt())
                norm.bias.copy_(mean)
        elif matched:
            made, wanted = _by_feature(norm.forward(x), axis), _by_feature(x, axis)
            weight = wanted.std(1, correction=0) / made.std(1, correction=0).clamp_min(norm.eps)
            norm.weight.copy_(weight)
            norm.bias.copy_(wanted.mean(1) - weight * made.mean(1))

    hooks = [norm.register_forward_pre_hook(take) for norm in norms]
    try:
        with evaluating(body.model), torch.no_grad():
            forward(body, MANY)
    finally:
        for hook in hooks:
            hook.remove()


def _by_feature(x: Tensor, axis: int) -> Tensor:
    """`[features, all others]`."""
    return x.movedim(axis, 0).flatten(1)


class InsertResidual:
    """A connection past each block of a Sequential that keeps the shape: gate · x + block(x).

    The gate is on the connection, and at 0 the function is what it was. (ReZero, Bachlechner et al. 2021, has it on
    the block, which would start as nothing and forget what the network knows.) A gate of 0 opens by ⟨x, δ⟩, the
    block's input and the gradient of its output: blocks near the loss first, and each lets the gradient through to the
    one before. Where the signal has vanished over many layers there is nothing to open it and nothing to keep: there
    the gate is 1 from the start (He et al. 2016), and the function changes.
    """

    code = "insert_residual"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """Each layer and what follows it, as far as the shape at the end is that of the input, over an activation."""
        if is_closed(body):
            return None
        passed, places = look(body), slots(body.model)
        found = []
        for parent in body.model.modules():
            if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
                found += [f"{a}:{b}" for a, b in _blocks(body.model, parent, passed, places)]
        return {"where": " ".join(found), "gate": float(passed.is_constant())} if found else None

    def apply(self, body: Body, words: Words) -> Undo:
        """The block goes into the place of its first module, and nothing remains in the places of the others."""
        before: list[tuple[nn.Module, str, Any]] = []
        for pair in names(words["where"]):
            first, last = pair.split(":")
            parent = body.model.get_submodule(first.rpartition(".")[0])
            keys = list(parent._modules)
            keys = keys[keys.index(first.rpartition(".")[2]) : keys.index(last.rpartition(".")[2]) + 1]
            members: list[tuple[nn.Module, str, Any]] = [(parent, key, parent._modules[key]) for key in keys]
            before += members
            block = nn.Sequential(*(module for _, _, module in members))
            block.training = parent.training
            parent._modules[keys[0]] = Residual(block, float(words["gate"]))
            for key in keys[1:]:
                parent._modules[key] = nn.Identity().train(parent.training)

        def undo() -> None:
            for parent, key, module in before:
                parent._modules[key] = module

        return undo

    def lines(self, words: Words) -> list[str]:
        """The class, and where it goes."""
        lines = [
            "class Residual(nn.Module):",
            "    def __init__(self, *block):",
            "        super().__init__()",
            f"        self.block, self.gate = nn.Sequential(*block), nn.Parameter(torch.full((1,), {words['gate']}))",
            "    def forward(self, x):",
            "        return self.gate * x + self.block(x)",
        ]
        for pair in names(words["where"]):
            first, last = pair.split(":")
            lines.append(f"# Residual(...) around the modules from {code(first)} to {code(last)}")
        return lines


def _blocks(model: nn.Module, parent: nn.Sequential, passed: Pass, places: Any) -> Iterator[tuple[str, str]]:
    """Names of first and last module of each block."""
    members = list(parent.children())
    # Each block ends where the next one starts, or before.
    starts = [i for i, module in enumerate(members) if any(isinstance(m, MATRICES) for m in module.modules())]
    named = name_of(model)
    for start, stop in zip(starts, [*starts, len(members)][1:], strict=True):
        ends = (members[start:end] for end in range(stop, start + 1, -1))
        block = next((block for block in ends if _keeps_shape(block, passed)), None)
        if block is not None and all(_is_part(module, places) for module in block):
            yield named[block[0]], named[block[-1]]


def _is_part(module: nn.Module, places: Any) -> bool:
    """A single layer, which stands here alone and has no connections of its own."""
    plain = not any(True for _ in module.children()) or isinstance(module, Around)
    return plain and len(places.get(module, ())) == 1


def _keeps_shape(block: list[nn.Module], passed: Pass) -> bool:
    calls = {call.module: call for call in passed.calls}
    if any(module not in calls or passed.times(module) != 1 for module in block):
        return False
    first, last = calls[block[0]], calls[block[-1]]
    if first.input is None or last.output is None or first.input.shape != last.output.shape:
        return False
    # By name only: an activation that is a module, since functions cannot stand in a Sequential.
    bends = [
        m for m in block if not isinstance(m, (*MATRICES, *NORMS, Around, nn.Identity, nn.modules.dropout._DropoutNd))
    ]
    return bool(bends) and first.input.is_floating_point()
