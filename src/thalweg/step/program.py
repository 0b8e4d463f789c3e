"""A compiled step at work: live tensors in, one call, loss and gradients out.

Model and rule are changed where they lie, so that before and after any step an ordinary one can be made instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from thalweg.step.compiler import Shape, small_library
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.kernels.products import load_small
from thalweg.step.refusals import HOOKS, has_hooks
from thalweg.step.trace import Recorded
from thalweg.step.update import Update
from thalweg.step.values import apart
from thalweg.tensors.named import leaves

#: Of a module's own attributes, what a program does not depend on, or what is looked at elsewhere.
_ASIDE = set(vars(nn.Module())) - {"training", "_modules"}
#: Entries of a list or dict of a model's above which only another one in its place is noticed: each step compares them.
LONG = 1000


def _found(owner: Any) -> tuple[dict[str, Any], int, Callable[[Any], Any], tuple[Any, ...]]:
    """Attributes of a module or a loss and their number; what reads those that a program takes for constant, and their
    values now.
    """
    is_module = isinstance(owner, nn.Module)
    names = [name for name in vars(owner) if not (is_module and name in _ASIDE)]
    if is_module:
        names += HOOKS
    values_of: Callable[[Any], Any] = lambda found: tuple(found[name] for name in names)  # noqa: E731
    if len(names) > 1:
        values_of = itemgetter(*names)
    return vars(owner), len(vars(owner)), values_of, tuple(map(_fixed, values_of(vars(owner))))


def _fixed(value: Any) -> Any:
    """A value as it is now, where it may change in its place."""
    is_held = isinstance(value, dict | list | set | deque) and len(value) <= LONG
    return apart(value) if is_held else value


def _structure(tree: Any) -> Any:
    """Where the tensors of a batch stand."""
    if isinstance(tree, Mapping):
        return [(name, _structure(part)) for name, part in tree.items()]
    return [_structure(part) for part in tree] if isinstance(tree, tuple | list) else None


#: Arguments of a recorded step → its results.
Run = Callable[[list[Tensor]], Sequence[Tensor]]


def loaded(library: Path) -> Run:
    """What a compiled step is called by.

    Raises:
        OSError, RuntimeError: the library cannot be loaded.
    """
    load_small(small_library())
    run: Run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run
    return run


def options_of(optimizer: Optimizer) -> list[list[tuple[str, Any]]]:
    """What each group of a rule says but its rate: constants of a program."""
    return [
        [(name, value) for name, value in group.items() if name not in ("params", "lr", "initial_lr")]
        for group in optimizer.param_groups
    ]


class Program:
    """A recorded step, bound to the tensors of one model and one rule.

    It takes batches of one shape, a model in one mode and a rule with one set of options; whatever differs is for the
    ordinary step (`takes`). Another rule of the same kind may take the place of the first (`serve`).
    """

    reuses_memory = False
    """Whether the next call writes over the gradients that this one gave."""

    def __init__(self, run: Run, recorded: Recorded, forward: Forward, update: Update, batch: Batch) -> None:
        self._run = run
        self._recorded = recorded
        self._rule = type(update.optimizer)
        self._shapes = [Shape.of(t) for t in leaves(batch)]
        self._layouts = [(t.shape, t.stride(), t.dtype) for t in recorded.held()]
        self._held: list[Tensor] = []
        self._live = list(recorded.tensors.model.values())
        self._device = self._live[0].device.type
        self._pointers: list[int] = []
        self._counts: list[Tensor] = []
        self._versions: list[int] = []
        self._kept: list[int] | None = None
        self._rates = [float(rate) for rate in recorded.rates]  # as they were when the step was recorded
        self._options = options_of(update.optimizer)
        self._sizes = [len(group["params"]) for group in update.optimizer.param_groups]
        self._structure = _structure(batch)
        owners = {id(owner): owner for owner in (*forward.model.modules(), *recorded.loss_parts)}
        self._owners = [_found(owner) for owner in owners.values()]
        self._tensors = [
            (held, list(map(id, held.values())))
            for owner in owners.values()
            if isinstance(owner, nn.Module)
            for held in (owner._parameters, owner._buffers)
            if held
        ]
        self._trained = [(p, p.requires_grad) for p in forward.model.parameters()]
        self._output_spec = recorded.output_spec
        self.graded: list[nn.Parameter] = recorded.graded
        self.has_update = recorded.has_update

    def serve(self, optimizer: Optimizer) -> None:
        """Go by another rule's tensors and rates from here on."""
        self._recorded.tensors.optimizer = optimizer

    def takes(self, batch: Batch) -> bool:
        """Whether this batch, and model and rule as they are now, are what the program was made for."""
        if type(self._recorded.tensors.optimizer) is not self._rule or not self.has_shape(batch):
            return False
        for p, is_trained in self._trained:
            if p.requires_grad is not is_trained or p._backward_hooks or p._post_accumulate_grad_hooks:
                return False
        if nn.modules.module._has_any_global_hook() or torch.is_autocast_enabled(self._device):
            return False
        return self._is_as_recorded() and (not self.has_update or self._has_options()) and self._is_bound()

    def has_shape(self, batch: Batch) -> bool:
        """Whether it is a batch like that of which the step was recorded."""
        x, y = batch
        is_pair = type(x) is Tensor and type(y) is Tensor
        found = (x, y) if is_pair else list(leaves(batch))
        if len(found) != len(self._shapes) or not (is_pair or _structure(batch) == self._structure):
            return False
        for t, shape in zip(found, self._shapes, strict=True):
            if t.shape != shape.size or t.dtype is not shape.dtype or t.stride() != shape.stride:
                return False
        return True

    def _is_as_recorded(self) -> bool:
        """Whether modules and loss are those that were recorded, in their modes, without hooks, with the same
        attributes.
        """
        try:
            for attributes, number, values_of, values in self._owners:
                if len(attributes) != number or values_of(attributes) != values:
                    return False
        except (KeyError, RuntimeError, TypeError, ValueError):  # one is gone, or is an array now, without one truth
            return False
        return all(list(map(id, held.values())) == ids for held, ids in self._tensors)

    def _has_options(self) -> bool:
        """Whether the rule's options but the rate are those that the program has taken as constants, without hooks."""
        optimizer = self._recorded.tensors.optimizer
        groups = optimizer.param_groups
        if len(groups) != len(self._options) or has_hooks(optimizer):
            return False
        for group, options, size in zip(groups, self._options, self._sizes, strict=True):
            if len(group["params"]) != size:
                return False
            for name, value in options:
                if (now := group[name]) is not value and now != value:
                    return False
        return True

    def _is_bound(self) -> bool:
        """Whether the tensors that are held are those of model and rule; looks for them anew where they have moved."""
        state = self._recorded.tensors.optimizer.state  # some rules keep more in it than a dict for each parameter
        kept = [id(t) for values in state.values() if isinstance(values, dict) for t in values.values()]
        is_counted = [t._version for t in self._counts] == self._versions
        if kept == self._kept and is_counted and self._pointers == [t.data_ptr() for t in self._live]:
            return True
        try:
            held = self._recorded.held()
        except LookupError:
            return False  # the rule has no state yet: its first step makes it
        if [(t.shape, t.stride(), t.dtype) for t in held] != self._layouts:
            return False
        self._held, self._kept, self._pointers = held, kept, [t.data_ptr() for t in self._live]
        self._counts = self._recorded.counts()
        self._versions = [t._version for t in self._counts]
        return True

    def __call__(self, batch: Batch) -> tuple[Tensor, list[Tensor], Any]:
        """Run on a batch that it takes: the loss before the update, the gradients of `graded`, the outputs.

        Where the rule is not part of the program (`has_update`), the update is still to be made.
        """
        if self.has_update:
            for i, group in enumerate(self._recorded.tensors.optimizer.param_groups):
                if (rate := group["lr"]) != self._rates[i]:
                    self._rates[i] = float(rate)
                    self._recorded.rates[i].fill_(self._rates[i])
        is_pair = type(batch[0]) is Tensor and type(batch[1]) is Tensor  # the usual case, at a tenth of the cost
        found = self._run([*self._held, *(batch if is_pair else leaves(batch))])
        end = 1 + len(self.graded)
        outputs = pytree.tree_unflatten(list(found[end:]), self._output_spec) if self._output_spec is not None else None
        return found[0], list(found[1:end]), outputs
