"""What was frozen, cut off or held in evaluation, set free."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.repairs.change import Body, Undo, Words, names
from thalweg.repairs.forward import DROPPED, DROPPED_OF_FEW, FEW, WIDE
from thalweg.repairs.passes import Call, is_closed, look
from thalweg.repairs.structure import code, put, slots
from thalweg.tensors.seeds import untouched


class Unfreeze:
    """Parameters that were not trained are, and modules that only cut the gradient off give way to nothing.

    The optimizer must be given the parameters that it has not.
    """

    code = "unfreeze"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """`where`: all parameters that need no gradient; `detached`: modules that return what they get, without it."""
        if is_closed(body):
            return None
        frozen = [name for name, p in body.model.named_parameters() if not p.requires_grad and p.is_floating_point()]
        places = slots(body.model)
        cut = [call.name for call in look(body).calls if call.module in places and _is_cut(call)]
        words = {"where": " ".join(frozen), "detached": " ".join(dict.fromkeys(cut))}
        return {key: value for key, value in words.items() if value} or None

    def apply(self, body: Body, words: Words) -> Undo:
        """Let them be trained."""
        found = [p for p in map(body.model.get_parameter, names(words.get("where", ""))) if not p.requires_grad]
        for p in found:
            p.requires_grad_(True)
        cut = [body.model.get_submodule(name) for name in names(words.get("detached", ""))]
        put_back = put(body.model, {old: nn.Identity().train(old.training) for old in cut})

        def undo() -> None:
            put_back()
            for p in found:
                p.requires_grad_(False)
                p.grad = None

        return undo

    def lines(self, words: Words) -> list[str]:
        """A line each, before the optimizer is made."""
        frozen = names(words.get("where", ""))
        lines = [f"{code(name)}.requires_grad_(True)" for name in frozen]
        if len(frozen) > FEW:
            lines = [f"for name in {' '.join(frozen)!r}.split():", "    model.get_parameter(name).requires_grad_(True)"]
        return lines + [f"{code(name)} = nn.Identity()" for name in names(words.get("detached", ""))]


def _is_cut(call: Call) -> bool:
    """Whether a bare module returned its input without the gradient."""
    bare = not any(True for _ in (*call.module.children(), *call.module.parameters(), *call.module.buffers()))
    if not bare or call.input is None or call.output is None or call.source is None or call.node is not None:
        return False
    return call.input.shape == call.output.shape and torch.equal(call.input, call.output)


class TrainMode:
    """Modules that stay in evaluation mode follow `train()` again; dropout that always drops stops to in evaluation.

    The first are those whose `train` was overwritten on the module itself; a class with a `train` of its own means it.
    The second are modules of the user's own without weights that set numbers to zero at random in evaluation too. They
    become torch's dropout, of what they drop, but no more than what `add_dropout` would.
    """

    code = "train_mode"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """`where` they stay; `dropout` their names and `p` how much they drop."""
        if is_closed(body):
            return None
        named = body.model.named_modules()
        stuck = [name or "." for name, module in named if "train" in vars(module)]
        words: dict[str, float | str] = {"where": " ".join(stuck)} if stuck else {}
        places = slots(body.model)
        calls = [call for call in look(body).calls if call.module in places]
        always = {call.name: min(share, _most(call)) for call in calls if (share := _share_dropped(call))}
        if always:
            words |= {"dropout": " ".join(always), "p": min(always.values())}
        return words or None

    def apply(self, body: Body, words: Words) -> Undo:
        """Take what stands before the class's `train` away, and put torch's dropout in the place of the others."""
        model = body.model
        stuck = [model if name == "." else model.get_submodule(name) for name in names(words.get("where", ""))]
        before = [(module, vars(module)["train"]) for module in stuck if "train" in vars(module)]
        modes = [(part, part.training) for module, _ in before for part in module.modules()]
        for module, _ in before:
            del vars(module)["train"]
            module.train(model.training)
        always = [model.get_submodule(name) for name in names(words.get("dropout", ""))]
        put_back = put(model, {old: nn.Dropout(float(words["p"])).train(old.training) for old in always})

        def undo() -> None:
            put_back()
            for module, train in before:
                vars(module)["train"] = train
            for part, mode in modes:
                part.training = mode

        return undo

    def lines(self, words: Words) -> list[str]:
        """What to take out, and what to put in."""
        stuck = ["" if name == "." else name for name in names(words.get("where", ""))]
        lines = [f"# {code(name)}: take out what keeps it in evaluation mode" for name in stuck]
        return lines + [f"{code(name)} = nn.Dropout({float(words['p']):g})" for name in names(words.get("dropout", ""))]


def _most(call: Call) -> float:
    """How much may be dropped of a module's features."""
    assert call.input is not None
    features = call.input.shape[1 if call.input.ndim > 3 else -1]
    return DROPPED if features >= WIDE else DROPPED_OF_FEW


@torch.no_grad()
def _share_dropped(call: Call) -> float:
    """The share of ones that a module of the user's own sets to zero in evaluation, in steps of 0.05; 0 for none."""
    module = call.module
    bare = not any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))
    if not bare or type(module).__module__.startswith("torch.") or call.others or call.input is None:
        return 0.0
    x, mode = call.input, module.training
    if not x.is_floating_point() or call.output is None or call.output.shape != x.shape:
        return 0.0
    # Made larger: the share is read from thousands of numbers.
    ones = torch.ones_like(x).repeat(-(-4096 // x.numel()), *[1] * (x.ndim - 1)) if x.numel() else x
    module.training = False
    try:
        y = _tried(module, ones)
    finally:
        module.training = mode
    if y is None:
        return 0.0
    share = round(float((y == 0).float().mean()) * 20) / 20
    kept = y[y != 0]
    # What is kept is made larger by 1 / (1 − p).
    return share if 0 < share < 1 and bool((kept > 1).all()) and float(kept.std()) < 1e-3 else 0.0


def _tried(module: Any, x: Tensor) -> Tensor | None:
    """The module's output, if it draws it at random."""
    with untouched():
        try:
            y, again = module(x), module(x)
        except (RuntimeError, ValueError, TypeError):
            return None
    return y if isinstance(y, Tensor) and y.shape == x.shape and not torch.equal(y, again) else None
