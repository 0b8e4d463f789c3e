"""A step on a GPU as one CUDA graph: what dozens of kernels cost the host is one launch.

Captured are a step as the model's own code makes it, or fused by a compiler, and the rule's own update with torch's
own kernels. A replay does what it did then to the same memory, so whatever the host decides must have been
decided before: rates and counts of steps become tensors on the GPU, and a rule that decides more than that (it reads a
number back, or keeps one in Python) stays outside of the graph and runs as it is.

Source: CUDA C++ Programming Guide, "CUDA Graphs"; what torch demands is on its page "CUDA semantics".
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from thalweg.step import refusals
from thalweg.step.backward import objective
from thalweg.step.compiler import CompileFailed
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.program import Program, Run, options_of
from thalweg.step.refusals import Untraceable, is_recordable
from thalweg.step.snapshot import Snapshot
from thalweg.step.trace import Recorded, ScalarTensors, Tensors, Traced, as_if_compiling
from thalweg.step.update import Clip, Update
from thalweg.step.values import apart, decided
from thalweg.step.whole import Step
from thalweg.tensors.devices import WAITING
from thalweg.tensors.named import leaves, mapped

#: Where kernels can be captured.
DEVICES = ("cuda",)


class _HostDecides(RuntimeError):
    """A rule's update depends on something that a graph would freeze."""


class Graph(Program):
    """A recorded step and the update after it, captured with the tensors of one model and one rule.

    Where these come to lie elsewhere, it is captured anew. Batches are copied to where the first one lay.
    """

    reuses_memory = True

    def __init__(self, run: Run, recorded: Recorded, forward: Forward, update: Update, batch: Batch) -> None:
        """Capture; nothing of model, rule and random numbers changes.

        Raises:
            Untraceable: it cannot be captured.
        """
        super().__init__(run, recorded, forward, update, batch)
        self._forward = forward
        self._clip = update.clip
        self._inputs = list(leaves(placed(batch)))
        self._twin: Twin | None = None
        self._replay: Callable[[], None] | None = None
        self._results: Sequence[Tensor] = ()
        self._bound_to: Optimizer | None = None
        self._had_state = False
        self._why = "its tensors have moved"
        if not self._is_bound():
            raise Untraceable(f"it cannot be captured as a CUDA graph ({self._why})")

    def __call__(self, batch: Batch) -> tuple[Tensor, list[Tensor], Any]:
        """Replay on a batch that it takes; as `Program`."""
        assert self._replay is not None
        torch._foreach_copy_(self._inputs, list(leaves(batch)))
        if self._twin is not None:
            self._twin.ready()
        self._replay()
        if self._twin is not None:
            self._twin.count()
        end = 1 + len(self.graded)
        kept = [t.clone() for t in self._results[end:]]
        outputs = pytree.tree_unflatten(kept, self._output_spec) if self._output_spec is not None else None
        return self._results[0].clone(), list(self._results[1:end]), outputs

    def _is_bound(self) -> bool:
        """Where the rule is outside of the graph, its state may be what it likes, once there is any."""
        optimizer = self._recorded.tensors.optimizer
        tables = [values for values in optimizer.state.values() if isinstance(values, dict)]
        kept = [id(v) for values in tables for v in values.values() if isinstance(v, Tensor)]
        is_same_rule = kept == self._kept or (self._had_state and not self.has_update)
        pointers = [t.data_ptr() for t in self._live]
        if optimizer is self._bound_to and is_same_rule and pointers == self._pointers:
            return self._replay is not None  # else it could not be captured: until something moves again
        held = self._recorded.held()
        if [(t.shape, t.stride(), t.dtype) for t in held] != self._layouts:
            return False
        self._held, self._kept, self._pointers, self._had_state = held, kept, pointers, bool(kept)
        return self._follow()

    # ── capturing ────────────────────────────────────────────────────────────────────────────────────────────────

    def _follow(self) -> bool:
        self._replay, self._twin, self._results = None, None, ()
        optimizer = self._bound_to = self._recorded.tensors.optimizer
        self._options = options_of(optimizer)
        self.has_update = not self._clip.skips and is_recordable(Update(optimizer, self._clip))
        snapshot: Snapshot | None = None
        try:
            snapshot = Snapshot(self._forward, optimizer)
            if self.has_update:
                try:
                    self._twin = Twin(optimizer, self._clip, self.graded)
                    self._capture()
                except Exception:  # whatever a rule of somebody's does where a host must not look
                    self.has_update, self._twin = False, None
                    snapshot.restore()
            if not self.has_update:
                self._capture()
        except Exception as error:
            self._replay = None
            self._why = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        finally:
            if snapshot is not None:
                snapshot.restore()
        return self._replay is not None

    def _capture(self) -> None:
        self._replay, self._results = captured(self._all_of_it, self._live[0].device)

    def _all_of_it(self) -> Sequence[Tensor]:
        with torch.no_grad():
            found = self._run([*self._held, *self._inputs])
            if self._twin is not None:
                self._twin.update(found[1 : 1 + len(self.graded)])
        return found


def placed(batch: Batch) -> Batch:
    """A batch of copies, as a graph reads them: of one with gaps, as `tokens[:, :-1]`, the strides are others."""
    copies: Batch = mapped(lambda t: t.clone(memory_format=torch.preserve_format), batch)
    return copies


def live(step: Step, batch: Batch, outputs: bool) -> tuple[Run, Recorded]:
    """Forward, loss and backward as the model's own code runs them, to be captured; `outputs` asks for those too.

    Raises:
        Untraceable: not every step on such batches is the same to the GPU.
    """
    if refusals.check(step, batch).type not in DEVICES:
        raise Untraceable("graphs of kernels are made on CUDA devices")
    trained = [p for p in step.update.parameters if p.requires_grad]
    spec = pytree.tree_structure(batch)

    def run(arguments: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None], Any]:
        inputs = pytree.tree_unflatten(arguments[len(arguments) - spec.num_leaves :], spec)
        with (
            torch.enable_grad(),
            torch.autocast(step.device.type, step.arithmetic, enabled=step.arithmetic is not None),
        ):
            loss, output = objective(step.forward, step.loss, inputs)
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return loss.detach(), list(gradients), output if outputs else None

    snapshot, loss_parts = Snapshot(step.forward, step.update.optimizer), refusals.parts_of(step.loss)
    try:
        with refusals.unchanged(step.forward.model, *loss_parts), refusals.NothingFrozen():
            _, gradients, output = run(list(leaves(batch)))
    except RuntimeError as error:
        raise Untraceable(f"it cannot be followed ({error})") from error
    finally:
        snapshot.restore()
    returned, output_spec = pytree.tree_flatten(output) if output is not None else ([], None)
    if not all(isinstance(t, Tensor) for t in returned):
        raise Untraceable("the model's outputs hold more than tensors")
    graded = [p for p, g in zip(trained, gradients, strict=True) if g is not None]

    def flat(arguments: list[Tensor]) -> list[Tensor]:
        loss, gradients, output = run(arguments)
        found = [g.detach() for g in gradients if g is not None]
        return [loss, *found, *(t.detach() for t in pytree.tree_leaves(output) if t is not None)]

    tensors = Tensors.of(step.forward, step.update, has_update=False)
    return flat, Recorded(tensors=tensors, graded=graded, output_spec=output_spec, loss_parts=loss_parts)


def fused(traced: Traced, arguments: Sequence[Tensor]) -> Run:
    """A recorded step with its small operations fused by torch's Inductor, in this process.

    Not as a library of another process, as on the CPU: to load one killed the process that trained (torch 2.11).

    Raises:
        CompileFailed: it cannot be made.
    """
    options = {"fallback_random": True, "triton.cudagraphs": False, "size_asserts": False}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            import torch._inductor.compile_fx as inductor

            with torch._inductor.config.patch(options):
                made: Any = inductor.compile_fx(traced.graph, list(arguments))
    except Exception as error:  # whatever a compiler does with a model of the user's
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompileFailed(f"it could not be compiled ({first[:160]})") from error
    return lambda arguments: list(made(*arguments))


def captured(
    function: Callable[[], Sequence[Tensor]], device: torch.device
) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """What does again, to the same memory, all that a function has the GPU do; and the function's results there.

    It is run twice before, so that nothing is left that happens at first only.

    Raises:
        RuntimeError: it waits for the GPU, or does something else that a graph cannot hold.
    """
    with torch.cuda.device(device):
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
            with _no_waiting():
                function()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = function()
        except Exception:
            _end_capture()
            raise
        torch.cuda.synchronize()
    return graph.replay, results


def _end_capture() -> None:
    """A capture that fails leaves torch's generator believing in it, until another one ends well."""
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU raises an error, and does not spoil a capture."""
    with WAITING:
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that it does not see all that waits
                torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


class Twin:
    """A rule whose rates and counts are on the GPU; all else it shares with the rule that it stands for.

    Rules of torch keep a count of steps for each parameter, some on the host. Of these the twin has copies: `ready`
    brings them to what the rule's say, where those were changed by somebody else, and `count` counts in both.
    """

    def __init__(self, optimizer: Optimizer, clip: Clip, graded: Sequence[nn.Parameter]) -> None:
        device = graded[0].device
        self._optimizer = optimizer
        self._graded = graded
        self._clip = clip
        self._host: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._versions: list[int] = []
        self._rates: list[float] = []
        self._on_device: list[Tensor] = []
        self._twin: Any = object.__new__(type(optimizer))
        self._twin.__dict__.update(apart(vars(optimizer)))
        self._twin.state = defaultdict(dict, {p: self._shared(optimizer.state.get(p, {})) for p in graded})
        self._twin.param_groups = [self._group(group, device) for group in optimizer.param_groups]
        self._fixed = decided(self._twin)
        self.ready()

    def _shared(self, state: dict[str, Any]) -> dict[str, Any]:
        """A parameter's state; counts that are on the host are copied to the GPU."""
        shared: dict[str, Any] = apart(state)
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.device == self._graded[0].device:
                continue
            if name != "step" or value.ndim:
                raise _HostDecides(f"the rule keeps {name!r} on the host")
            shared[name] = torch.empty((), dtype=torch.float64, device=self._graded[0].device)  # powers need its digits
            self._host.append(value)
            self._counts.append(shared[name])
            self._versions.append(-1)
        return shared

    def _group(self, group: dict[str, Any], device: torch.device) -> dict[str, Any]:
        rate = group["lr"]
        if not (isinstance(rate, Tensor) and rate.device == device):
            dtype = torch.float32 if group.get("fused") else torch.float64  # the kernels of torch read no other
            rate = torch.tensor(float(rate), device=device, dtype=dtype)
        self._on_device.append(rate)
        self._rates.append(float(group["lr"]))
        graded = set(self._graded)
        plain = {"capturable": True} if "capturable" in group else {}
        return {**apart(group), **plain, "lr": rate, "params": [p for p in group["params"] if p in graded]}

    def update(self, gradients: Sequence[Tensor]) -> None:
        """The rule's own step on these gradients, clipped.

        Raises:
            Exception: the host has a part in it.
        """
        clips = self._clip != Clip()
        try:
            for p, g in zip(self._graded, gradients, strict=True):
                p.grad = g.clone() if clips else g
            update = Update(self._twin, self._clip)
            update.clip_gradients()
            with as_if_compiling(), ScalarTensors():
                type(self._optimizer).step(self._twin)
        finally:
            for p in self._graded:
                p.grad = None
        if decided(self._twin) != self._fixed:
            raise _HostDecides("the rule keeps something in Python from step to step")

    def ready(self) -> None:
        """Rates and counts as the rule's are now."""
        for i, group in enumerate(self._optimizer.param_groups):
            rate = group["lr"]
            if rate is not self._on_device[i] and rate != self._rates[i]:
                self._rates[i] = float(rate)
                self._on_device[i].fill_(self._rates[i])
        if self._host and [t._version for t in self._host] != self._versions:
            torch._foreach_copy_(self._counts, self._host)
            self._versions = [t._version for t in self._host]

    def count(self) -> None:
        """One step more, on the host."""
        if self._host:
            torch._foreach_add_(self._host, 1)
            self._versions = [t._version for t in self._host]
