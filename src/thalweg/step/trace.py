"""A whole step, forward, loss, backward, clipping and update, written down as one program of tensor operations.

The program is recorded on stand-ins without data, so nothing is computed and nothing of the model changes. What is
recorded is what this model does with a batch of this shape, in training mode, now. A model whose next step may be
another program (it draws numbers in Python, counts its calls, has hooks, decides by a value) is not recorded at all.

The rule is not written anew: torch's own step is recorded in the form it has under a compiler, which is made of tensor
operations, on scalars in double precision. A rule that cannot be recorded is left out of the program and runs as it is.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from thalweg.step import refusals, rewrites
from thalweg.step.backward import objective
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.refusals import Untraceable
from thalweg.step.update import Clip, Update
from thalweg.step.values import apart, decided
from thalweg.step.whole import Step
from thalweg.tensors.seeds import untouched


@dataclass(slots=True)
class Tensors:
    """The live tensors that a step reads and changes, each once; and where each stands in the list of all."""

    model: dict[str, Tensor]
    """Parameters and buffers by name; a tied one under its first name."""
    rule: list[tuple[nn.Parameter, str]]
    """Owner and name of each tensor of the rule's state."""
    optimizer: Optimizer

    @classmethod
    def of(cls, forward: Forward, update: Update, has_update: bool = True) -> Tensors:
        """Those of a model and, for a program that has the update in it, of a rule that has made a step."""
        model = {**dict(forward.model.named_parameters()), **dict(forward.model.named_buffers())}
        state = update.optimizer.state if has_update else {}
        names = [(p, n) for p in update.parameters for n, v in state.get(p, {}).items() if isinstance(v, Tensor)]
        return cls(model, names, update.optimizer)

    def all(self) -> list[Tensor]:
        """As they are now, the model's first."""
        state = self.optimizer.state
        return [t.detach() if t.requires_grad else t for t in self.model.values()] + [state[p][n] for p, n in self.rule]


@dataclass(slots=True, kw_only=True)
class Recorded:
    """What is known of a step that was written down or is to be captured.

    Its arguments are `held` followed by the leaves of a batch; its results are the loss, the gradients in the order of
    `update.parameters` (those that are None left out), then the outputs' leaves. `held` are the live tensors of model
    and rule, which are changed in place, one double scalar for each parameter group (its rate), and tensors that the
    model keeps elsewhere. Without the update (`has_update`) there are none of the rule.
    """

    tensors: Tensors
    graded: list[nn.Parameter]
    """Parameters that have a gradient, in the order in which gradients come back."""
    output_spec: Any
    has_update: bool = False
    rates: list[Tensor] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    shared: list[tuple[str, nn.Parameter, nn.Parameter]] = field(default_factory=list)
    """Counts that were equal when recorded, by name, of two parameters each: the first one's stands for both."""
    loss_parts: list[Any] = field(default_factory=list)
    """What of the loss has attributes, which are constants of a program too."""

    def held(self) -> list[Tensor]:
        """The arguments ahead of the batch, as they are now.

        Raises:
            LookupError: the rule keeps no state yet, or has made more steps for some parameters than for others since.
        """
        state = self.tensors.optimizer.state
        if any(one is not other and state[one][name] != state[other][name] for name, one, other in self.shared):
            raise LookupError("counts of steps have come to differ")
        return [*self.tensors.all(), *self.rates, *self.constants]

    def counts(self) -> list[Tensor]:
        """The counts that stand for each other. A program's call leaves their `_version`; a step of the rule raises it,
        after which they may differ.
        """
        state = self.tensors.optimizer.state
        return [state[p][name] for name, _, p in self.shared]


@dataclass(slots=True, kw_only=True)
class Traced(Recorded):
    """A step as a graph of tensor operations."""

    graph: GraphModule


def trace(step: Step, batch: Batch, outputs: bool) -> Traced:
    """Write down a step on a batch of this shape; `outputs` asks for the model's outputs too.

    The rule must have made a step, so that its state is there. On a GPU the update is left out: the rules of torch
    have kernels there that take all parameters at once, and `graphs` captures these.

    Raises:
        Untraceable: the step is not always this program, or cannot be followed.
    """
    device = refusals.check(step, batch)
    if device.type == "cpu" and refusals.is_recordable(step.update):
        try:
            return _traced(_Recorder(step, outputs), batch)
        except _RuleFailed:
            pass
    return _traced(_Recorder(step, outputs, has_update=False), batch)


# ── recording ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _RuleFailed(Exception):
    """The rule could not be recorded."""


class _Objective(nn.Module):
    """Model and loss as one module, so that its parameters can be stood in for."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.model = step.forward.model
        self.call = lambda batch: objective(step.forward, step.loss, batch)
        self.arithmetic = step.arithmetic
        self.device = step.update.parameters[0].device.type

    def forward(self, *batch: Any) -> Any:
        with torch.autocast(self.device, self.arithmetic, enabled=self.arithmetic is not None, cache_enabled=False):
            return self.call(batch)


class _Recorder:
    """The step as a function of tensors alone."""

    def __init__(self, step: Step, outputs: bool, has_update: bool = True) -> None:
        self.forward = step.forward
        self.loss_parts = refusals.parts_of(step.loss)
        self.objective = _Objective(step)
        self.update = update = step.update
        self.tensors = Tensors.of(step.forward, update, has_update)
        self.outputs = outputs
        self.has_update = has_update
        groups = update.optimizer.param_groups if has_update else []
        self.rates = [torch.tensor(float(group["lr"]), dtype=torch.float64) for group in groups]
        self.graded: list[nn.Parameter] = []
        self.shared: list[tuple[str, nn.Parameter, nn.Parameter]] = []
        self.output_spec: Any = None

    def held(self) -> list[Tensor]:
        """The arguments before the batch."""
        return [*self.tensors.all(), *self.rates]

    def __call__(self, held: list[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        names = list(self.tensors.model)
        stands = dict(zip(names, held, strict=False))
        state = held[len(names) : len(names) + len(self.tensors.rule)]
        rates = held[len(names) + len(state) :]
        owner = {id(t): name for name, t in self.tensors.model.items()}
        trained = {owner[id(p)]: p for p in self.update.parameters if p.requires_grad and id(p) in owner}
        variables = {name: stands[name].detach().requires_grad_() for name in trained}
        called = {f"model.{name}": t for name, t in {**stands, **variables}.items()}
        given = dict(called)
        loss, output = torch.func.functional_call(self.objective, called, batch)
        replaced = [name for name, t in given.items() if called[name] is not t]
        if replaced:
            name = replaced[0].removeprefix("model.")
            raise Untraceable(
                f"the model puts a new tensor in the place of {name!r} in each call, which a program cannot"
            )
        if loss.ndim or not loss.requires_grad:
            raise Untraceable("the loss is no scalar that depends on the parameters")
        gradients = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
        found = {name: g.detach() for name, g in zip(variables, gradients, strict=True) if g is not None}
        self.graded = [trained[name] for name in found]
        if self.has_update:
            self._update({id(trained[name]): (stands[name], g) for name, g in found.items()}, state, rates)
        returned: list[Any] = []
        if self.outputs and output is not None:
            returned, self.output_spec = pytree.tree_flatten(output)
        if not all(isinstance(t, Tensor) for t in returned):
            raise Untraceable("the model's outputs hold more than tensors")
        return (loss.detach(), *found.values(), *(t.detach() for t in returned))

    def _update(self, graded: dict[int, tuple[Tensor, Tensor]], state: list[Tensor], rates: list[Tensor]) -> None:
        """Record the rule on stand-ins: a twin of the optimizer that owns them instead of the parameters."""
        stands = {key: stand.detach() for key, (stand, _) in graded.items()}
        for key, (_, gradient) in graded.items():
            stands[key].grad = gradient.clone() if self.update.clip != Clip() else gradient
        try:
            twin, scalars = self._twin(stands, state, rates)
            before = decided(twin)
            with torch.no_grad(), as_if_compiling(), ScalarTensors():
                Update(twin, self.update.clip).clip_gradients()
                type(self.update.optimizer).step(twin)
                for stored, exact in scalars:
                    stored.copy_(exact)
            is_decided = decided(twin) != before
        except Exception as error:  # whatever a rule of somebody's does with stand-ins
            raise _RuleFailed from error
        if is_decided:
            raise _RuleFailed("it keeps something in Python from step to step")

    def _twin(
        self, stands: dict[int, Tensor], state: list[Tensor], rates: list[Tensor]
    ) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """A rule like the live one on stand-ins, and its counts: as they are stored, and in double precision."""
        optimizer = self.update.optimizer
        twin: Any = object.__new__(type(optimizer))
        twin.__dict__.update(apart(vars(optimizer)))
        twin.state = defaultdict(dict, {stand: {} for stand in stands.values()})
        scalars = []
        equals: dict[tuple[str, float], tuple[Tensor, nn.Parameter]] = {}
        self.shared.clear()
        for (p, name), value in zip(self.tensors.rule, state, strict=True):
            if id(p) not in stands:
                continue
            if value.ndim == 0 and value.is_floating_point():
                # A count of steps: powers of it need all its digits, and where all parameters have had as many steps
                # they are the same powers.
                count = (name, float(optimizer.state[p][name]))
                first, owner = equals.setdefault(count, (value, p))
                self.shared.append((name, owner, p))
                scalars.append((value, first.to(torch.float64, copy=True)))
                value = scalars[-1][1]
            twin.state[stands[id(p)]][name] = value
        plain = {"fused": None, "foreach": False, "capturable": True}
        twin.param_groups = [
            {**apart(group), **plain, "params": [stands[id(p)] for p in group["params"] if id(p) in stands], "lr": rate}
            for group, rate in zip(optimizer.param_groups, rates, strict=True)
        ]
        return twin, scalars


@contextmanager
def as_if_compiling() -> Iterator[None]:
    """Rules of torch read counts and rates back to the host, except where a compiler looks on."""
    before = torch.compiler._is_compiling_flag
    torch.compiler._is_compiling_flag = True
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


class ScalarTensors(TorchFunctionMode):
    """Lets a rate that is a tensor stand where torch takes a number: `p.add_(g, alpha=-rate)`."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if isinstance(factor := kwargs.get("alpha"), Tensor):
            del kwargs["alpha"]
            return function(args[0], args[1] * factor, **kwargs)
        if isinstance(factor := kwargs.get("value"), Tensor) and len(args) == 3:
            del kwargs["value"]
            return function(args[0], args[1] * factor, args[2], **kwargs)
        return function(*args, **kwargs)


def _traced(recorder: _Recorder, batch: Batch) -> Traced:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    held = recorder.held()
    arguments, spec = pytree.tree_flatten((held, batch))
    arguments = list(_each_once(arguments))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    function: Callable[..., Any] = lambda *flat: recorder(*pytree.tree_unflatten(flat, spec))  # noqa: E731
    try:
        kept = refusals.unchanged(recorder.forward.model, *recorder.loss_parts)
        with warnings.catch_warnings(), untouched(), kept, mode:
            warnings.simplefilter("ignore")
            fakes = [mode.from_tensor(t) for t in arguments]
            graph = make_fx(function, tracing_mode="real")(*fakes)
    except (Untraceable, _RuleFailed):
        raise
    except Exception as error:  # whatever a model of the user's does with stand-ins
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Untraceable(f"it cannot be followed ({type(error).__name__}: {first[:160]})") from error
    constants = rewrites.fit_to_compile(graph, len(held))
    return Traced(
        graph=graph,
        tensors=recorder.tensors,
        rates=recorder.rates,
        constants=constants,
        has_update=recorder.has_update,
        graded=recorder.graded,
        shared=recorder.shared,
        loss_parts=recorder.loss_parts,
        output_spec=recorder.output_spec,
    )


def _each_once(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same tensors; one that stands in two places, as x and y, is two, as it may be in the next batch."""
    seen: set[int] = set()
    for t in tensors:
        yield t.detach() if id(t) in seen else t
        seen.add(id(t))
