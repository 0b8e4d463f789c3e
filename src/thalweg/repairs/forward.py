"""Changes of the network: other activations, dropout, and images that are moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from thalweg.layers.moved import Moved
from thalweg.repairs import functions
from thalweg.repairs.change import Body, Undo, Words, names
from thalweg.repairs.data import CHANNELS, takers
from thalweg.repairs.functions import SLOPE
from thalweg.repairs.initialise import DEEP, NORMS
from thalweg.repairs.passes import Call, Pass, is_closed, look
from thalweg.repairs.structure import WEIGHTED, Around, code, put, slots
from thalweg.step.kinds import kind_of
from thalweg.tensors.seeds import untouched

#: Of inputs that are dropped ahead of the last layer, for wide and for narrow ones: Srivastava et al. 2014, A.4.
DROPPED, DROPPED_OF_FEW, WIDE = 0.5, 0.2, 128
#: Sides of images below which a shift takes away too much.
SMALLEST = 8
#: Modules that are told one by one.
FEW = 4
_ZERO_BELOW = (nn.ReLU, nn.ReLU6, nn.Threshold, nn.Hardtanh)
_FLAT = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid)
#: Activations that have nothing wrong with them. Tanh is among them: it is centred, and of slope 1 at zero, so that it
#: carries a signal through many layers from Glorot's weights (Glorot & Bengio 2010); where it saturates, its weights or
#: inputs are too large.
_SOUND = (
    nn.Tanh, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Softplus, nn.Softsign,
)  # fmt: skip
_MADE: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(SLOPE),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
}
_CODE = {"leaky_relu": f"nn.LeakyReLU({SLOPE})", "gelu": "nn.GELU()", "silu": "nn.SiLU()", "selu": "nn.SELU()"}


_FUNCTION = {"leaky_relu": f"F.leaky_relu(x, {SLOPE})", "silu": "F.silu(x)", "selu": "F.selu(x)"}
#: Ahead of an activation in words: it is called as a function in the modules that are named.
_CALLED = "in_forward_"


class SwapActivation:
    """Hidden activations without gradient → ones that have it.

    ReLU → leaky ReLU. Sigmoid, and elementwise modules of the user's own (eˣ, say) → SiLU (Ramachandran et al. 2017),
    or from eight in a row without a norm on SELU, which keeps signals at one size (Klambauer et al. 2017). Modules are
    replaced; functions that a forward method calls, `F.relu(x)`, have others called in their place, where the method
    traces (`functions.py`). The last activation, behind which no layer follows, stays.
    """

    code = "swap_activation"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """Names of modules for each new activation; and of modules that call functions, with the numbers of calls."""
        if is_closed(body):
            return None
        passed, places = look(body), slots(body.model)
        hidden = [m for m in _hidden(passed) if m.module in places]
        called = functions.poor(body, passed)
        normed = any(isinstance(module, NORMS) for module in body.model.modules())
        smooth = "selu" if len(hidden) + len(called) >= DEEP and not normed else "silu"
        found: dict[str, list[str]] = {}
        for call in hidden:
            kind = "leaky_relu" if isinstance(call.module, _ZERO_BELOW) else smooth
            found.setdefault(kind, []).append(call.name)
        for place in called:
            kind = "leaky_relu" if place.is_zero_below else smooth
            found.setdefault(_CALLED + kind, []).append(place.name)
        return {kind: " ".join(dict.fromkeys(where)) for kind, where in found.items()} or None

    def apply(self, body: Body, words: Words) -> Undo:
        """Put others in their places."""
        instead: dict[nn.Module, nn.Module] = {}
        calls: list[tuple[str, str]] = []
        for kind, where in words.items():
            if kind.startswith(_CALLED):
                calls += [(name, kind.removeprefix(_CALLED)) for name in names(where)]
                continue
            for name in names(where):
                old = body.model.get_submodule(name)
                instead[old] = _MADE[kind]().train(old.training)
        rewritten, replaced = functions.rewrite(body.model, calls), put(body.model, instead)

        def undo() -> None:
            replaced()
            rewritten()

        return undo

    def lines(self, words: Words) -> list[str]:
        """An assignment each, or a loop where there are many."""
        lines = []
        for kind, where in words.items():
            if kind.startswith(_CALLED):
                kind = kind.removeprefix(_CALLED)
                lines += [f"# {functions.told(name)}: {_FUNCTION[kind]}" for name in names(where)]
            elif len(names(where)) > FEW:
                lines += [f'for name in "{where}".split():', f"    model.set_submodule(name, {_CODE[kind]})"]
            else:
                lines += [f"{code(name)} = {_CODE[kind]}" for name in names(where)]
        return lines


def _hidden(passed: Pass) -> list[Call]:
    """Activations to swap: between two layers with weights, and never where the model's output comes from."""
    weighted = [i for i, call in enumerate(passed.calls) if isinstance(call.module, WEIGHTED)]
    if not weighted:
        return []
    found = passed.calls[weighted[0] : weighted[-1]]
    outputs = {call.module for call in passed.calls if passed.is_output(call)}
    last = {call.module for call in passed.calls[weighted[-1] :]}
    return [call for call in found if call.module not in outputs | last and _is_poor(call)]


def _is_poor(call: Call) -> bool:
    module = call.module
    if isinstance(module, (*_ZERO_BELOW, *_FLAT)):
        return True
    bare = not any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))
    stock = type(module).__module__.startswith("torch.")
    return bare and not stock and not isinstance(module, _SOUND) and _is_elementwise(call)


@torch.no_grad()
def _is_elementwise(call: Call) -> bool:
    """Whether a module is one bent function of each number by itself: found by trying."""
    x = call.input
    if x is None or not x.is_floating_point() or call.others or call.output is None or call.output.shape != x.shape:
        return False
    if x.numel() < 4:
        return False
    # Made up, in the shape that came: what came may be infinite, or all the same.
    x = torch.linspace(-2, 2, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)
    odd = (torch.arange(x.numel(), device=x.device) % 2).bool().view(x.shape)
    other = x.flatten().roll(x.numel() // 2).view(x.shape)
    with untouched():
        try:
            y, again = call.module(x), call.module(x)
            mixed = call.module(torch.where(odd, x, other))
            middle, far = call.module((x + other) / 2), call.module(other)
        except (RuntimeError, ValueError, TypeError):
            return False
    if not bool(y.isfinite().all()):
        return False
    size = float(y.std()) + 1e-12
    alone = torch.equal(y, again) and torch.allclose(mixed[odd], y[odd], atol=1e-6 * size)
    return alone and bool(((y + far) / 2 - middle).abs().max() > 1e-2 * size)


class AddDropout:
    """Dropout ahead of the last dense layer (Srivastava et al. 2014): half of its inputs, a fifth where it has few."""

    code = "add_dropout"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """The last layer, if it is a dense one with another layer before it, and nothing is dropped so far."""
        if is_closed(body):
            return None
        dropping = [m for m in body.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        calls = [call for call in look(body).calls if isinstance(call.module, WEIGHTED)]
        if dropping or len({call.module for call in calls}) < 2:
            return None
        last = calls[-1].module
        if not isinstance(last, nn.Linear) or last not in slots(body.model):
            return None
        return {"where": calls[-1].name, "p": DROPPED if last.in_features >= WIDE else DROPPED_OF_FEW}

    def apply(self, body: Body, words: Words) -> Undo:
        """Put it in."""
        layers = [body.model.get_submodule(name) for name in names(words["where"])]
        p = float(words["p"])
        return put(body.model, {layer: Around(layer, ahead=nn.Dropout(p)) for layer in layers})

    def lines(self, words: Words) -> list[str]:
        """A Sequential in the layer's place."""
        return [
            f"{code(name)} = nn.Sequential(nn.Dropout({float(words['p']):g}), {code(name)})"
            for name in names(words["where"])
        ]


class AugmentImages:
    """Images shifted while training, by up to an eighth of their side each way, as He et al. 2016 shift theirs of 32.

    They are not mirrored: a network may be asked for letters or for left and right. Taken away at the end.
    """

    code = "augment_images"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """The one module that takes images of classes, and by how many pixels they are shifted."""
        kind = kind_of(body.loss)
        if is_closed(body) or kind is None or kind.task not in ("classification", "binary"):
            return None
        passed = look(body)
        taking = takers(body, passed)
        if len(passed.inputs) != 1 or len(taking) != 1:  # two that are shifted by themselves see two images
            return None
        (call, x), y = taking[0], body.sample[1]
        if call.input is None or call.input.shape != x.shape or len(passed.uses[x.grad_fn]) != 1:
            return None  # it is changed before, or used beside
        if x.ndim != 4 or x.shape[1] > CHANNELS or min(x.shape[2:]) < SMALLEST:
            return None
        if not isinstance(y, torch.Tensor) or y.ndim > 2:  # a target for each pixel would have to move along
            return None
        if any(isinstance(module, Moved) for module in body.model.modules()):
            return None
        return {"where": call.name, "shift": min(x.shape[2:]) // 8}

    def apply(self, body: Body, words: Words) -> Undo:
        """Put it in."""
        layers = [body.model.get_submodule(name) for name in names(words["where"])]
        shift = int(words["shift"])
        return put(body.model, {layer: Around(layer, ahead=Moved(shift, mirror=False)) for layer in layers})

    def lines(self, words: Words) -> list[str]:
        """A Sequential in the layer's place."""
        moved = f"Moved({int(words['shift'])}, mirror=False)"
        places = [f"{code(name)} = nn.Sequential({moved}, {code(name)})" for name in names(words["where"])]
        return ["from thalweg.layers.moved import Moved", *places]
