"""A compiled step at work: live tensors in, one call, loss and gradients out.

Model and rule are changed where they lie, so that before and after any step an ordinary one can be made instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from thalweg.step.compiler import Shape, small_library
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.kernels.products import load_small
from thalweg.step.trace import Traced
from thalweg.step.update import Update


class Program:
    """One library, bound to the tensors of one model and one rule.

    It takes batches of one shape, a model in one mode and a rule with one set of options; whatever differs is for the
    ordinary step (`takes`).
    """

    def __init__(self, library: Path, traced: Traced, forward: Forward, update: Update, batch: Batch) -> None:
        """Raises RuntimeError where the library cannot be loaded."""
        load_small(small_library())
        self._run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run
        self._traced = traced
        self._held: list[Tensor] = []
        self._layouts = [(t.shape, t.stride(), t.dtype) for t in traced.held()]
        self._first = next(iter(traced.tensors.rule), None)
        self._first_held: Tensor | None = None
        self._pointers: list[int] = []
        self._shapes = [Shape.of(t) for t in pytree.tree_leaves(batch)]
        self._rates = [float(group["lr"]) for group in update.optimizer.param_groups]
        self._rate_tensors = traced.rates
        self._options = _options(update)
        self._update = update
        self._modes = [(module, module.training) for module in forward.model.modules()]
        self._output_spec = traced.output_spec
        self._trained = [(p, p.requires_grad) for p in forward.model.parameters()]
        self.graded: list[nn.Parameter] = traced.graded
        self.has_update = traced.has_update

    def takes(self, batch: Batch) -> bool:
        """Whether this batch, and model and rule as they are now, are what the program was made for."""
        found = pytree.tree_leaves(batch) if type(batch[0]) is not Tensor or type(batch[1]) is not Tensor else batch
        if len(found) != len(self._shapes):
            return False
        for t, shape in zip(found, self._shapes, strict=True):
            if t.shape != shape.size or t.dtype is not shape.dtype or t.stride() != shape.stride:
                return False
        return (
            self._is_bound()
            and all(module.training is mode for module, mode in self._modes)
            and all(p.requires_grad is needed for p, needed in self._trained)
            and (not self.has_update or _options(self._update) == self._options)
        )

    def _is_bound(self) -> bool:
        """Whether the tensors that are held are those of model and rule; looks for them anew where they have moved."""
        if self._first is not None:
            parameter, name = self._first
            kept = self._update.optimizer.state.get(parameter, {}).get(name)
        else:
            kept = None
        if kept is self._first_held and self._held and [t.data_ptr() for t in self._held] == self._pointers:
            return True
        try:
            held = self._traced.held()
        except LookupError:  # the rule has no state yet: its first step makes it
            return False
        if [(t.shape, t.stride(), t.dtype) for t in held] != self._layouts:
            return False
        self._held, self._first_held, self._pointers = held, kept, [t.data_ptr() for t in held]
        return True

    def __call__(self, batch: Batch) -> tuple[Tensor, list[Tensor], Any]:
        """Run on a batch that it takes: the loss before the update, the gradients of `graded`, the outputs.

        Where the rule is not part of the program (`has_update`), the update is still to be made.
        """
        for i, group in enumerate(self._update.optimizer.param_groups):
            if (rate := group["lr"]) != self._rates[i]:
                self._rates[i] = float(rate)
                self._rate_tensors[i].fill_(self._rates[i])
        found = self._run([*self._held, *pytree.tree_leaves(batch)])
        end = 1 + len(self.graded)
        outputs = pytree.tree_unflatten(found[end:], self._output_spec) if len(found) > end else None
        return found[0], found[1:end], outputs


def _options(update: Update) -> list[tuple[Any, ...]]:
    """What a program has taken as constants: every option of the rule but the rate."""
    return [
        (len(group["params"]), *(v for name, v in group.items() if name not in ("params", "lr", "initial_lr")))
        for group in update.optimizer.param_groups
    ]
