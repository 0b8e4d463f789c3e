"""What a forward pass did, written down while it runs: every operation that the gradient goes back through.

The model runs as it is, so loops, branches and layers called many times need nothing special. Each call of torch comes
here first; the rule of that operation computes it and keeps what its way back needs (`rules/`). Autograd records
nothing. What is changed in place is computed into a new tensor that takes the old one's place from then on, and a view
that would have seen the change is refused rather than read wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from thalweg.gradients.calls import CONSTANT, QUESTIONS, name_of, normal
from thalweg.gradients.rules import COMPOSED, MOVES, RULES, Pull
from thalweg.tensors.named import leaves, mapped

#: Containers and blocks of torch.nn whose own layers are listed instead.
_BLOCKS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Transformer)


class UntraceableError(ValueError):
    """The chain rule cannot be followed through an operation; the message names it and the layer."""


@dataclass(slots=True)
class Layer:
    """One call of a layer; or one operation outside all layers. Its operations stand together on the tape."""

    name: str
    kind: str
    listed: bool = True
    """Whether it has a row: what only moves numbers about has none."""
    first: int = 0
    """Where on the tape it begins."""
    outputs: list[Tensor] = field(default_factory=list)
    made: set[int] = field(default_factory=set)
    """What its operations put out, by `id`."""


@dataclass(slots=True)
class Operation:
    """One operation: its floating outputs, and how their gradients are pulled back."""

    name: str
    outputs: list[Tensor]
    pull: Pull
    layer: Layer


class Tape(TorchFunctionMode):
    """Records the operations on tensors that depend on the parameters or on the floating inputs.

    `with tape:` around the forward pass and the loss. `operations` then stand in the order they were made.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._paths = {module: path for path, module in model.named_modules()}
        weights = [p for module in self._paths for p in module._parameters.values() if p is not None]
        self.parameters = {id(p): p for p in weights if p.requires_grad}
        self.operations: list[Operation] = []
        # The tape holds what it follows, so that an id is never given out twice.
        self._followed: dict[int, Tensor] = dict(self.parameters)
        #: Parameters and what depends on them, by `id`; the others that are followed depend on the inputs alone.
        self._trained = set(self.parameters)
        self._replaced: dict[int, tuple[Tensor, Tensor]] = {}
        self._overwritten: dict[int, Tensor] = {}
        self._constants: list[tuple[Tensor, int]] = []
        self._buffers = {id(b) for module in self._paths for b in module._buffers.values() if b is not None}
        self._calls: list[tuple[str, Layer | None]] = []
        self._custom: dict[Any, Operation] = {}
        self._times: dict[str, int] = {}
        self._in_loss = False

    # ── what is followed ─────────────────────────────────────────────────────────────────────────────────────────

    def follows(self, t: Any) -> bool:
        """Whether a gradient is wanted for it."""
        return isinstance(t, Tensor) and id(t) in self._followed

    def is_trained(self, t: Any) -> bool:
        """Whether a parameter's gradient comes through it, or is its own."""
        return isinstance(t, Tensor) and id(t) in self._trained

    def inputs(self, x: Any) -> Any:
        """The inputs of the model as tensors of their own; floating ones are followed."""

        def own(t: Tensor) -> Tensor:
            t = t.detach()
            return self._follow(t) if t.is_floating_point() else t

        return mapped(own, x)

    def current(self, tree: Any) -> Any:
        """A tree of tensors as it is now, after what was done to them in place."""
        return mapped(self._now, tree) if self._replaced else tree

    def _follow(self, t: Tensor) -> Tensor:
        self._followed[id(t)] = t
        return t.requires_grad_()

    def _now(self, t: Tensor) -> Tensor:
        while id(t) in self._replaced:
            t = self._replaced[id(t)][1]
        return t

    @contextmanager
    def of_the_loss(self) -> Iterator[None]:
        """Record the loss: its operations are no layers; if it cannot be followed, none of it stays."""
        mark, self._in_loss = len(self.operations), True
        try:
            with self:
                yield
        except UntraceableError:
            del self.operations[mark:]
            raise
        finally:
            self._in_loss = False

    # ── recording ────────────────────────────────────────────────────────────────────────────────────────────────

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of torch arrives here."""
        name = name_of(func)
        if name in QUESTIONS:
            return func(*args, **(kwargs or {}))
        named = dict(kwargs or {})
        args, named = self.current((tuple(args), named))
        operands = _operands(args, named)
        followed = False
        for t in operands:
            self._check(t, name)
            followed |= id(t) in self._followed
        if not followed or not torch.is_grad_enabled():
            return func(*args, **named)
        if name in CONSTANT:
            with torch.no_grad():
                return func(*args, **named)
        args, named, name, in_place = normal(name, args, named)
        target = args[0] if in_place else None
        if name in COMPOSED:
            try:
                with self:
                    result = COMPOSED[name](*args, **named)
            except UntraceableError:
                raise
            except (ValueError, TypeError) as error:
                raise self._explained(name, error) from error
        elif name in RULES:
            result = self._apply(name, args, named, operands)
        else:
            return self._unknown(func, name, args, named, in_place)
        if target is None:
            return result
        self._replace(target, result)
        return None if name == "setitem" else result

    def _apply(self, name: str, args: Any, named: dict[str, Any], operands: list[Tensor]) -> Any:
        for t in operands:
            if torch.is_autocast_enabled(t.device.type):
                raise UntraceableError(self._sentence(name, "it runs under autocast, whose casts are not recorded"))
        try:
            with torch.no_grad():
                result, pull = RULES[name](*args, **named)
        except UntraceableError:
            raise
        except (ValueError, TypeError) as error:
            raise self._explained(name, error) from error
        self._note_constants(operands)
        outputs = [result] if isinstance(result, Tensor) else list(leaves(result))
        outputs = [t for t in outputs if t.is_floating_point()]
        if not outputs or any(id(t) in self._followed for t in outputs):  # it gave back what it was given
            return result
        if not self._trained.isdisjoint(map(id, operands)):
            self._trained.update(map(id, outputs))
        for t in outputs:
            self._follow(t)
        self._record(name, outputs, pull)
        return result

    def _record(self, name: str, outputs: list[Tensor], pull: Pull) -> Operation:
        layer = next((layer for _, layer in self._calls if layer is not None), None)
        if layer is None:
            path = self._calls[-1][0] if self._calls else ""
            listed = name not in MOVES and not self._in_loss
            place = self._numbered(f"{path}.{name}" if path else name) if listed else name
            layer = Layer(place, name, listed, len(self.operations), outputs)
        layer.made.update(id(t) for t in outputs)
        self.operations.append(Operation(name, outputs, pull, layer))
        return self.operations[-1]

    def _unknown(self, func: Any, name: str, args: Any, named: dict[str, Any], in_place: bool) -> Any:
        """No rule: fine if no floating numbers come out of it (sizes, comparisons, indices)."""
        if in_place or "out" in named:
            raise UntraceableError(self._sentence(name, "it changes a tensor in place and has no rule"))
        with torch.no_grad():
            result = func(*args, **named)
        if any(t.is_floating_point() or t.is_complex() for t in leaves(result)):
            raise UntraceableError(self._sentence(name, "it has no rule for the way back"))
        return result

    def _replace(self, old: Tensor, new: Tensor) -> None:
        """From now on the old tensor means the new one; where it is a view, what it views has changed with it."""
        base = old._base if old._is_view() else None
        if base is not None and base.is_contiguous() and id(base) not in self._replaced:
            place = (old.size(), old.stride(), old.storage_offset())
            self._set(base, self._apply("as_strided_scatter", (base, new, *place), {}, [base, new]))
        self._set(old, new)

    def _set(self, old: Tensor, new: Tensor) -> None:
        self._replaced[id(old)] = (old, new)
        if old.numel():
            self._overwritten[old.untyped_storage().data_ptr()] = old

    def _check(self, t: Tensor, name: str) -> None:
        if id(t) not in self._followed and t.grad_fn is not None:
            self._adopt(t)
        if self._overwritten and t.numel() and t.untyped_storage().data_ptr() in self._overwritten:
            why = "it reads a tensor that shares its memory with one that was changed in place"
            raise UntraceableError(self._sentence(name, why))

    def _note_constants(self, operands: list[Tensor]) -> None:
        for t in operands:
            if id(t) not in self._followed and id(t) not in self._buffers and t.is_floating_point():
                self._constants.append((t, t._version))

    def check_constants(self) -> None:
        """What the way back may read must be as it was.

        Raises:
            UntraceableError: a tensor was changed in place after it was used.
        """
        for t, version in self._constants:
            if t._version != version:
                shape = list(t.shape)
                raise UntraceableError(f"a tensor of shape {shape} was changed in place after the model had used it")

    # ── a user's own autograd.Function ───────────────────────────────────────────────────────────────────────────

    def _adopt(self, t: Tensor) -> None:
        """A tensor that autograd made: of a custom autograd.Function, whose own backward is its rule."""
        operation = self._of_node(t.grad_fn)
        operation.outputs[t.output_nr] = t
        operation.layer.made.add(id(t))
        self._followed[id(t)] = t
        self._trained.add(id(t))

    def _of_node(self, node: Any) -> Operation:
        """A custom function's place on the tape, after those that made its inputs.

        Its outputs are stand-ins without numbers until they are seen: one that goes straight into another custom
        function never is.
        """
        if node in self._custom:
            return self._custom[node]
        name = node.name().removesuffix("0")
        if not isinstance(node, BackwardCFunction):
            raise UntraceableError(self._sentence(name, "it did not come through torch's functions"))
        inputs = [self._source(earlier, number, name) for earlier, number in node.next_functions if earlier is not None]

        def pull(*gs: Tensor | None) -> list[Any]:
            whole = [torch.zeros_like(t, device=device) if g is None else g for g, t in zip(gs, outputs, strict=True)]
            found = node.apply(*whole)
            found = found if isinstance(found, tuple) else (found,)
            wanted = [d for d, is_wanted in zip(found, node.needs_input_grad, strict=False) if is_wanted]
            pairs = zip(inputs, wanted, strict=True)
            return [(source(), lambda d=d: d) for source, d in pairs if d is not None]

        # Of what its backward takes, which are the outputs; the attribute is missing from torch's stubs.
        shapes = cast(Any, node)._input_metadata
        device = shapes[0].device
        outputs = [torch.empty(shape.shape, dtype=shape.dtype, device="meta") for shape in shapes]
        self._followed.update((id(t), t) for t in outputs)
        self._trained.update(map(id, outputs))  # it may be of the inputs alone, and is then swept for nothing
        self._custom[node] = self._record(name.removesuffix("Backward"), outputs, pull)
        return self._custom[node]

    def _source(self, earlier: Any, number: int, name: str) -> Callable[[], Tensor]:
        """The tensor that an edge of autograd's graph leads to: read at the sweep, when all outputs are known."""
        if not hasattr(earlier, "variable"):
            outputs = self._of_node(earlier).outputs
            return lambda: outputs[number]
        variable = earlier.variable
        if id(variable) in self._replaced:
            raise UntraceableError(self._sentence(name, "it reads a tensor that was changed in place"))
        return lambda: variable

    # ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Know which layer is running, while inside; nothing is attached to the model."""
        hooks = nn.modules.module
        begin = hooks.register_module_forward_pre_hook(self._begin)
        end = hooks.register_module_forward_hook(self._end)
        try:
            yield
        finally:
            begin.remove()
            end.remove()

    def _begin(self, module: nn.Module, args: Any) -> None:
        if module in self._paths:
            path = self._paths[module]
            inside = any(layer is not None for _, layer in self._calls)
            is_layer = not inside and (module is not self.model or _is_torchs(module)) and _is_layer(module)
            name = path or type(module).__name__
            kind = type(module).__name__
            layer = Layer(self._numbered(name), kind, first=len(self.operations)) if is_layer else None
            self._calls.append((path, layer))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._paths:
            for t in leaves(output):
                if id(t) not in self._followed and t.grad_fn is not None:
                    self._adopt(t)
            _, layer = self._calls.pop()
            if layer is not None:
                layer.outputs = [t for t in leaves(self.current(output)) if id(t) in self._followed]

    def _numbered(self, name: str) -> str:
        """A layer that is called again is told from its first call."""
        self._times[name] = self._times.get(name, 0) + 1
        return name if self._times[name] == 1 else f"{name} #{self._times[name]}"

    # ── sentences ────────────────────────────────────────────────────────────────────────────────────────────────

    def _explained(self, name: str, error: ValueError | TypeError) -> UntraceableError:
        return UntraceableError(self._sentence(name, str(error).splitlines()[0]))

    def _sentence(self, name: str, why: str) -> str:
        path = self._calls[-1][0] if self._calls else ""
        where = f"in layer {path!r}" if path else "in the model" if self._calls else "in the loss"
        return f"backprop cannot follow {name}() {where}: {why}"


def _operands(args: tuple[Any, ...], named: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments of a call, those in lists and dicts too."""
    found = []
    for value in (*args, *named.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple | list | dict):
            found += leaves(value)
    return found


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _is_layer(module: nn.Module) -> bool:
    """A module without modules inside, or torch's attention, whose projection is never called as a module."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return not isinstance(module, _BLOCKS) and next(module.children(), None) is None
