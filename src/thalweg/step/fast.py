"""The fastest step for a loop that is not ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.step.data import as_batch
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.step.plan import Plan
from thalweg.step.planned import Asked, PlannedStep
from thalweg.step.planner import Budget
from thalweg.step.update import Update
from thalweg.tensors.named import leaves


def fast_step(
    model: nn.Module,
    loss: str | Callable[[Any, Any], Tensor] | None,
    optimizer: Optimizer,
    *,
    example: Any = None,
    steps: int | None = None,
    wait: bool = True,
    precision: str = "exact",
    plan: Any = "auto",
) -> FastStep:
    """Find the fastest way to run forward, loss, backward and update of this model on this machine.

    Args:
        model: the module to train, in the mode it is trained in; it is changed in place by each step.
        loss: a name, a callable `(output, target) -> scalar`, or None where the model returns its loss.
        optimizer: any `torch.optim.Optimizer` over the model's parameters; its rate may change from step to step.
        example: a batch `(x, y)` to plan on; its steps leave no trace. Without one, the first batch is planned on.
        steps: how many steps will follow: what does not repay itself in so many is not done. None: enough of them.
        wait: plan before the first step returns; else training starts at once, and the compiled step is taken when it
            is ready.
        precision: "exact", or "fast": bfloat16 products where the loss over a trial agrees within its noise.
        plan: "auto", "eager", or a plan such as `run.plan` or `step.plan`.

    Returns:
        A function of inputs and target: `step(x, y)` makes one update and returns the loss before it, a detached
        scalar; `step.several(batches)` makes one from each batch. `step.plan` says what was chosen; `step.close()`, or
        leaving it as a context, makes the model a stock module again.

    Raises:
        ValueError: a loss, precision or plan that is not known.
        TypeError: not an optimizer; and of each step, arrays that are no tensors.

    >>> import torch
    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with fast_step(model, "mse", optimizer, steps=100) as step:
    ...     losses = [step(torch.ones(8, 2), torch.zeros(8, 1)) for _ in range(100)]
    >>> losses[-1] < 1e-3 * losses[0]
    tensor(True)
    """
    if precision not in ("exact", "fast"):
        raise ValueError(f'precision takes "exact" or "fast", got {precision!r}')
    asked = Asked(
        plan=None if isinstance(plan, str) and plan == "auto" else Plan.of(plan),
        budget=Budget(steps, wait=wait),
        is_fast=precision == "fast",
    )
    rule = resolve(loss) if loss is not None else None
    if not isinstance(optimizer, Optimizer):
        kind = repr(optimizer) if isinstance(optimizer, str) else f"a {type(optimizer).__name__}"
        made = "torch.optim.SGD(model.parameters(), lr=0.1)"
        raise TypeError(f"optimizer takes a torch.optim.Optimizer, such as {made}, got {kind}")
    step = FastStep(PlannedStep(Forward(model), rule, Update(optimizer), asked))
    if example is not None:
        try:
            step.prepare(*as_batch(example))
        except BaseException:  # nobody has it yet who could close it
            step.close()
            raise
    return step


class FastStep:
    """`step(x, y) -> loss`; see `fast_step`."""

    def __init__(self, step: PlannedStep) -> None:
        self._step = step
        self._step.open()
        self._is_prepared = not step.asked.budget.wait or step.asked.plan is not None

    def __call__(self, x: Any, y: Any = None) -> Tensor:
        """Make one update; returns the loss on the batch before it, a detached scalar."""
        _check_tensors(x, y)
        if not self._is_prepared:
            self.prepare(x, y)
        return self._step((x, y))

    def several(self, batches: Iterable[Any]) -> Tensor:
        """Make an update from each of the batches `(x, y)`, one right after the other; returns the loss on each before
        its update, of shape `[batches]`.

        The same as calling for each, and faster where steps are small: whether model and rule are what the program was
        made for is checked once a call instead of before each update. All batches are taken before the first update, so
        there must be an end of them. Of a model that returns its loss a batch is `(x, None)`.

        Raises:
            ValueError: there is no batch.
            TypeError: a batch is no pair, or holds arrays that are no tensors; no update was made.
        """
        taken = [_pair(batch) for batch in batches]
        if not taken:
            raise ValueError("several takes at least one batch (x, y), got none")
        if not self._is_prepared:
            self.prepare(*taken[0])
        return torch.stack(self._step.several(taken))

    def prepare(self, x: Any, y: Any = None) -> None:
        """Choose how to run, on one batch; nothing of it stays."""
        self._is_prepared = True
        if self._step.asked.budget.wait and self._step.asked.plan is None:
            self._step.plan_on(itertools.repeat((x, y)))

    @property
    def plan(self) -> Plan:
        """How a step is run; may be given to `fit` or `fast_step` again."""
        return self._step.plan

    def close(self) -> None:
        """Make the model a stock module again: layout, threads and memory as they were found."""
        self._step.close()

    def __enter__(self) -> FastStep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pair(batch: Any) -> tuple[Any, Any]:
    """A batch of several; loaders give lists."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
        raise TypeError(f"several takes batches (x, y), got {what} among them")
    x, y = batch
    _check_tensors(x, y)
    return x, y


def _check_tensors(x: Any, y: Any) -> None:
    """Refuse arrays: of what dtype and on which device their tensors are is for the loop to say."""
    is_usual = isinstance(x, Tensor) and isinstance(y, Tensor)
    if not is_usual and any(True for _ in leaves((x, y), np.ndarray)):
        raise TypeError("step takes tensors of the model's dtype, got a NumPy array: give torch.from_numpy(x)")
