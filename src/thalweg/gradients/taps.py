"""One way to listen to a layer: its input, its output and the gradient at its output, in one forward and backward pass.

Any number of readers share the same hooks. A tap is made by a forward hook and a hook on the output tensor. A module's
full backward hook is not used: it wraps the output in a view, on which an in-place layer that follows
(`ReLU(inplace=True)`) fails.

- A layer called many times (tied weights, recurrence, micro-batches) is tapped each time, calls numbered from 0 within
  each forward of the model. What checkpointing computes again is not a new call.
- Forwards without gradients (evaluation) are not heard. A frozen layer is tapped as any other, as long as a gradient
  passes through its output.
- Under autocast tensors come as they are, in half precision.
- What `torch.compile` has compiled cannot be listened to: hooks set after compiling are passed over in silence. While
  taps are attached, compiled models therefore run as plain eager programs (`torch.compiler.set_stance`), and as
  compiled ones, without compiling again, when the taps are gone. So taps belong on steps that are sampled.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.gradients.uses import products
from thalweg.tensors.named import leaves


@dataclass(frozen=True, slots=True)
class Tap:
    """What one call of a layer took, gave and was told; detached tensors, to be read and not to be changed.

    Where a layer takes or returns several tensors, the first is meant. What no reader asked for is None.
    """

    layer: str
    """The layer's name in the model."""
    module: nn.Module
    call: int
    """Number of the call within the forward of the model, from 0."""
    input: Tensor | None = None
    output: Tensor | None = None
    gradient: Tensor | None = None
    """∂J/∂output, of the output's shape."""
    part: str = ""
    """The weight of an attention layer whose use this is; empty for the layer as a whole. Input, output and gradient
    are then [positions, batch, features]."""
    offset: int = 0
    """The first row of that weight that is used."""


class Reader(Protocol):
    """Takes part in a pass."""

    def wants(self, layer: str, module: nn.Module) -> Collection[str]:
        """Which of "input", "output", "gradient" are wanted of this layer; nothing where it is of no interest.

        "projections" of an `nn.MultiheadAttention` gives input and gradient of each use of its projection weights, one
        tap for each: they are no layers that are called.
        """
        ...

    def read(self, tap: Tap) -> None:
        """Take a tap: at the forward if no gradient is wanted, else when the gradient arrives."""
        ...


class Taps:
    """Attaches readers to the layers of a model for as long as the context lasts, and leaves no trace.

    Input and output are held until the gradient has been read, and no longer than the graph they belong to. With
    `keep` they are held for several backward passes through one graph. The input of a layer that works in place is
    copied, and so is an output that is wanted together with its gradient.

    Raises:
        RuntimeError: in the backward pass, if an input that is still wanted was changed in place after the layer.

    >>> class Sizes:
    ...     def wants(self, layer, module):
    ...         return ("gradient",) if isinstance(module, nn.Linear) else ()
    ...
    ...     def read(self, tap):
    ...         print(tap.layer, tap.call, list(tap.gradient.shape))
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    >>> with Taps(model, Sizes()):
    ...     model(torch.ones(5, 3)).sum().backward()
    2 0 [5, 2]
    0 0 [5, 4]
    """

    def __init__(
        self, model: nn.Module, *readers: Reader, modules: Mapping[str, nn.Module] | None = None, keep: bool = False
    ) -> None:
        self.model = eager(model)
        self.readers = readers
        self.modules = dict(self.model.named_modules() if modules is None else modules)
        self.keep = keep
        self._attached = False
        self._calls: Counter[str] = Counter()
        self._handles: list[RemovableHandle] = []
        self._stance = contextlib.ExitStack()

    def __enter__(self) -> Taps:
        assert not self._attached, "taps are attached once"
        self._attached = True
        self._stance.enter_context(uncompiled())
        calls = self._calls
        self._handles.append(self.model.register_forward_pre_hook(lambda module, args: calls.clear()))
        for layer, module in self.modules.items():
            wanting = [(reader, frozenset(wants)) for reader in self.readers if (wants := reader.wants(layer, module))]
            if wanting:
                self._attach(layer, module, wanting)
        return self

    def __exit__(self, *exception: object) -> None:
        self._attached = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stance.close()

    def _attach(self, layer: str, module: nn.Module, wanting: list[tuple[Reader, frozenset[str]]]) -> None:
        taken: list[Tensor] = []
        if getattr(module, "inplace", False) and any("input" in wants for _, wants in wanting):

            def take(module: nn.Module, args: Any) -> None:
                if self._hears():
                    taken[:] = [_first(args).detach().clone()]

            self._handles.append(module.register_forward_pre_hook(take))

        def hear(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            if not self._hears():
                return
            given, output = taken.pop() if taken else _first((args, kwargs)), _first(result)
            again = torch._C._current_graph_task_id() != -1  # within a backward: checkpointing computes it once more
            tap = Tap(layer, module, self._calls[layer])
            self._calls[layer] += not again
            waiting = []
            for reader, wants in wanting:
                heard = _of(tap, wants, given, output)
                if "gradient" not in wants and not again and wants - {"projections"}:
                    reader.read(heard)
                elif "gradient" in wants and output.requires_grad:
                    waiting.append((reader, heard))
                if "projections" in wants and output.requires_grad:
                    self._project(tap, (args, kwargs), output, reader)
            if waiting:
                handle = output.register_hook(self._arrival(waiting))
                if output.is_leaf:  # a layer that returns its own input: that tensor outlives the pass
                    self._handles.append(handle)

        self._handles.append(module.register_forward_hook(hear, with_kwargs=True))

    def _hears(self) -> bool:
        return self._attached and torch.is_grad_enabled()

    def _arrival(self, waiting: list[tuple[Reader, Tap]]) -> Callable[[Tensor], None]:
        versions = [None if tap.input is None else tap.input._version for _, tap in waiting]

        def arrive(gradient: Tensor) -> None:
            if not self._attached:
                return
            for (reader, tap), version in zip(waiting, versions, strict=False):
                if tap.input is not None and tap.input._version != version:
                    raise RuntimeError(
                        f"the input of layer {tap.layer!r} was changed in place after the layer had read it: "
                        "make that operation out of place to listen to this layer"
                    )
                reader.read(replace(tap, gradient=gradient.detach()))
            if not self.keep:
                waiting.clear()

        return arrive

    def _project(self, tap: Tap, given: Any, output: Tensor, reader: Reader) -> None:
        """Taps on the matrix products of an attention layer with its weights, found in the graph it made."""
        query = _first(given)
        if query.ndim != 3:
            return
        attention: Any = tap.module
        batch = query.shape[0 if attention.batch_first else 1]
        weights = {id(p): name for name, p in tap.module.named_parameters() if p.ndim == 2}
        below = [t.grad_fn for t in leaves(given) if t.grad_fn is not None]
        for node, weight, offset in products(output, weights, below, attention.embed_dim):
            rows = (node._saved_mat1 if node.name() == "AddmmBackward0" else node._saved_self).detach()
            part = replace(tap, part=weight, offset=offset, input=rows.unflatten(0, (-1, batch)))
            arrive = self._arrival([(reader, part)])
            node.register_prehook(lambda g, arrive=arrive: arrive(g[0].unflatten(0, (-1, batch))))


def eager(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, or the model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, what `torch.compile` has made runs as the plain program it was made from."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _of(tap: Tap, wants: frozenset[str], given: Tensor, output: Tensor) -> Tap:
    kept = None
    if "output" in wants:
        kept = output.detach().clone() if "gradient" in wants else output.detach()
    return replace(tap, input=given.detach() if "input" in wants else None, output=kept)


def _first(tree: Any) -> Tensor:
    return next(leaves(tree))
