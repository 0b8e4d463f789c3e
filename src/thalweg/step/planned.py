"""A step that is run the way a plan says; `planner` makes the plan while it runs, where none is given."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg.step import graphs
from thalweg.step.backward import BatchLoss, Watcher
from thalweg.step.batches import Parts
from thalweg.step.compiler import Compilation, CompileFailed, Shape
from thalweg.step.data import Batch, shapes
from thalweg.step.forward import Forward
from thalweg.step.graphs import Graph, fused, live, placed
from thalweg.step.kernels import allocator, layout
from thalweg.step.plan import Plan
from thalweg.step.planner import Budget, Planner
from thalweg.step.program import Program, loaded, options_of
from thalweg.step.refusals import DEVICES, Untraceable
from thalweg.step.snapshot import Snapshot
from thalweg.step.trace import Traced, trace
from thalweg.step.update import Probe, Update
from thalweg.step.whole import Step
from thalweg.tensors.devices import wait
from thalweg.tensors.named import leaves

#: What the rate is multiplied by where steps that are planned on diverge: nothing is to be learned by them.
SLOWER = 1e-6

OWN_STEP = "Steps run eagerly: the rule evaluates the loss by itself."


@dataclass(frozen=True, slots=True)
class Asked:
    """What a planned step may do."""

    plan: Plan | None = None
    """A plan to follow; None chooses."""
    begun: Plan | None = None
    """What an earlier part of the run had chosen so far, where that was not all."""
    budget: Budget = Budget()
    outputs: bool = False
    """Whether somebody looks at the model's outputs."""
    is_fast: bool = False
    """Arithmetic of fewer digits may be tried."""
    by_clock: bool = True
    """Whether what was timed may decide; else only what changes no number is done."""


def eagerly(plan: Plan) -> Plan:
    """The same without programs."""
    return replace(plan, captured_after=None, compiled_after=None)


class PlannedStep(Step):
    """One update from one batch, like `Step`; how it is run may change from one update to the next.

    `changed` is told of a new plan before the first update that follows it.
    """

    def __init__(
        self,
        forward: Forward,
        loss: BatchLoss | None,
        update: Update,
        asked: Asked,
        changed: Callable[[Plan], None] = lambda plan: None,
    ) -> None:
        super().__init__(forward, loss, update)
        self.asked = asked
        self.plan = replace(asked.plan, is_settled=True) if asked.plan is not None else asked.begun or Plan()
        self.number = 0
        """Updates made so far."""
        self.program: Program | None = None
        """The compiled step, where there is one."""
        self.captured: Graph | None = None
        """On a GPU the step as one graph of kernels, until it is compiled."""
        self.compilation: Compilation | None = None
        self._at_work: Program | None = None
        """The program that made the last update; only where the plan is settled and the rule is part of the program."""
        self._traced: Traced | None = None
        self._changed = changed
        self._layout: layout.Layout | None = None
        self._threads = torch.get_num_threads()
        self._is_tf32 = False
        """Whether steps multiply in tf32; what lies between them (evaluations) does not."""
        self._is_stepping = False
        self._products: str | None = None
        """Precision of products before it was changed."""
        self._planner: Planner | None = None
        self._postponed: Planner | None = None
        self._is_open = False
        self._undo = contextlib.ExitStack()

    # ── around a training ────────────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Begin, or go on where a run stood after `number` updates; nothing where that was done before."""
        if self._is_open:
            return
        self._is_open = True
        if self.asked.plan is None and self.device.type == "cpu" and allocator.is_available():
            self.plan = replace(self.plan, keep_memory=True)
        if self.plan.keep_memory:
            self._undo.enter_context(allocator.kept())
        self._undo.callback(torch.set_num_threads, self._threads)
        self.follow(self.plan)
        if self.update.needs_batch or self.update.needs_closure:
            self.settle(eagerly(self.plan), "" if OWN_STEP in self.plan.notes else OWN_STEP)
        elif self.asked.plan is None and self.device.type in DEVICES and self.asked.by_clock:
            self._planner = Planner(self, has_begun=self.asked.begun is not None and self.number > 0)
        elif self.plan.program_after is None:
            self.settle()

    def close(self) -> None:
        """The model is a stock module again, as it was found: layout, threads, memory."""
        if self.compilation is not None:
            self.compilation.stop()
        self.program = self.captured = self.compilation = self._traced = self._planner = self._postponed = None
        self._at_work = None
        if self._layout is not None:
            self._layout.undo()
            self._layout = None
        self.arithmetic, self._is_tf32 = None, False
        self._is_open = False
        self._undo.close()

    def begin(self, number: int) -> None:
        """So many updates have been made; what was postponed is chosen from here on."""
        self.number = number
        if self._is_open:
            self.follow(self.plan)
        if self._postponed is not None:
            self._planner, self._postponed = self._postponed, None

    def serve(self, update: Update, number: int) -> None:
        """The next update is that of another rule for the same model, which has made so many.

        One program serves all rules of a kind with the same options; it goes by their tensors and rates.
        """
        if update is not self.update:
            self.update = update
            if self._layout is not None:
                self._layout.optimizer = update.optimizer
            if self._traced is not None:
                self._traced.tensors.optimizer = update.optimizer
            for program in (self.captured, self.program):
                if program is not None:
                    program.serve(update.optimizer)
        self.number = number
        self.follow(self.plan)

    def resumed(self, number: int) -> None:
        """State was loaded into model and rule, as it stood after so many updates."""
        self.number = number
        if self._layout is not None:
            self._layout.follow()

    def plan_on(self, batches: Iterable[Batch | Parts]) -> None:
        """Choose now what is open, on batches and from a copy of the state; nothing of these steps stays.

        What is chosen holds from the first update on, but for a program that is compiled beside: it is postponed until
        `begin`.
        """
        if self._planner is None:
            return
        self._planner.is_ahead = True
        snapshot, groups = Snapshot(self.forward, self.update.optimizer), self.update.optimizer.param_groups
        rates, slower = [group["lr"] for group in groups], 1.0
        try:
            for batch in batches:
                if self._planner is None or self._planner.waits:
                    break
                if not math.isfinite(float(self(batch))):  # of numbers that are none nothing can be said
                    snapshot.restore()
                    slower *= SLOWER
                    for group, rate in zip(groups, rates, strict=True):
                        group["lr"] = rate * slower  # a new one, where it is a tensor
        finally:
            snapshot.restore()
        self._planner, self._postponed, self.number = None, self._planner, 0
        captured, compiled = (n and 1 for n in (self.plan.captured_after, self.plan.compiled_after))
        self.tell(replace(self.plan, arithmetic_after=0, captured_after=captured, compiled_after=compiled))

    # ── a step ───────────────────────────────────────────────────────────────────────────────────────────────────

    def __call__(self, batch: Batch | Parts, probe: Probe | None = None, watcher: Watcher | None = None) -> Tensor:
        """Make one update; returns the loss on the batch before it, a detached scalar."""
        self._is_stepping = True
        self._multiply(self._is_tf32)
        try:
            return self._update_once(batch, probe, watcher)
        finally:
            self._is_stepping = False
            self._multiply(False)

    def several(self, batches: Sequence[Batch]) -> list[Tensor]:
        """An update from each of the batches, one right after the other; returns the loss on each before its update.

        What a program depends on is looked at before the first that it makes: nobody else is at work until the last.
        """
        losses: list[Tensor] = []
        for batch in batches:
            laid = self.laid(batch, self.plan)
            program = self._at_work if losses else None
            if program is not None and program.has_shape(laid):
                self.number += 1
                losses.append(self.by_program(program, laid))
            else:
                losses.append(self(laid))
        return losses

    def _update_once(self, batch: Batch | Parts, probe: Probe | None, watcher: Watcher | None) -> Tensor:
        batch = self.laid(batch, self.plan)
        planner = self._planner
        is_heard = probe is not None and probe.listens
        if self.number == self.plan.arithmetic_after:
            self.follow(self.plan)
        if planner is not None:
            planner.consider(batch, is_heard)
            batch = self.laid(batch, self.plan)  # which may be another now, from this update on
        elif self.asked.plan is not None:
            self._as_planned(batch, is_heard)
        self.number += 1
        program = self._due()
        self._at_work = None
        if program is not None and not is_heard and type(batch) is tuple and program.takes(batch):
            if program.has_update and planner is None and self._is_complete:
                self._at_work = program
            return self.by_program(program, batch, probe, watcher)
        if planner is None or is_heard:
            return super().__call__(batch, probe, watcher)
        started = time.perf_counter()
        loss = super().__call__(batch, probe, watcher)
        if not planner.waits:
            wait(self.device)
        planner.times.append(time.perf_counter() - started)
        return loss

    def again(self, batch: Any) -> Tensor:
        """The loss on a batch as a step takes it, with the weights as they are; no gradients."""
        return super().again(self.laid(batch, self.plan))

    def plainly(self, batch: Batch) -> Tensor:
        """One update the way `Step` makes it."""
        return super().__call__(batch)

    def by_program(
        self, program: Program, batch: Batch, probe: Probe | None = None, watcher: Watcher | None = None
    ) -> Tensor:
        """One update by a compiled step that takes this batch."""
        update = self.update
        if probe is not None:
            probe.before(update.parameters)
        loss, gradients, output = program(batch)
        if probe is not None or not program.has_update:
            for p, g in zip(program.graded, gradients, strict=True):
                p.grad = g.clone() if program.reuses_memory else g
            if probe is not None:
                probe.gradients(update.parameters)
            if not program.has_update:
                update.apply()
            if probe is not None:
                probe.after(update.parameters)
            update.optimizer.zero_grad()
        update.optimizer._opt_called = True  # type: ignore[attr-defined]  # or torch's schedules warn of no step
        if watcher is not None and output is not None:
            watcher.update(output, batch[1])
        return loss

    def _due(self) -> Program | None:
        """The program, after as many updates as the plan says."""
        for after, program in (
            (self.plan.compiled_after, self.program),
            (self.plan.captured_after, self.captured),
        ):
            if program is not None and after is not None and self.number > after:
                return program
        return None

    def _as_planned(self, batch: Batch | Parts, is_heard: bool) -> None:
        """Switch at the updates of a given plan; have its compiled step ready in time, waiting for it if need be.

        A step that is listened to has hooks, which a program would pass over: the next one is recorded.
        """
        if is_heard or self._is_complete or type(batch) is not tuple or shapes(batch) != self.plan.batch:
            return
        compiled, at_first = self.plan.compiled_after, self.plan.arithmetic_after
        captured = self.plan.captured_after if self.device.type == "cuda" else None  # a plan made on a GPU
        begin = max(min(self.plan.program_after or 0, 2), at_first)
        has_begun = (self.compilation if self.device.type == "cpu" else self._traced) is not None
        try:
            if compiled is not None and not has_begun and self.number >= begin:
                self.record(batch)
            if captured is not None and self.captured is None and self.number >= max(captured, at_first):
                self.captured = self.capture(batch)
            if compiled is not None and self.number >= max(compiled, at_first):
                self.program, _ = self.load(batch)
                self.captured = None
        except (Untraceable, CompileFailed) as error:
            plan, now = eagerly(self.plan), "run eagerly"
            if self.captured is not None:
                plan, now = replace(self.plan, compiled_after=None), "stay one CUDA graph"
            self.settle(plan, f"The plan's compiled step could not be made again ({error}): steps {now}.")

    @property
    def _is_complete(self) -> bool:
        """Whether nothing of a given plan is to be made any more."""
        if self.program is not None or self.plan.compiled_after is None:
            return self.program is not None or self.captured is not None or self.plan.captured_after is None
        return False

    # ── what a planner does with it ──────────────────────────────────────────────────────────────────────────────

    def follow(self, plan: Plan) -> None:
        """Bring layout, threads and arithmetic to what a plan says."""
        if (plan.layout == "channels_last") != (self._layout is not None):
            if self._layout is not None:
                self._layout.undo()
                self._layout = None
            else:
                self._layout = layout.Layout(self.forward.model.parameters(), self.update.optimizer)
                self._layout.apply()
        torch.set_num_threads(plan.threads or self._threads)
        arithmetic = plan.arithmetic if self.number >= plan.arithmetic_after else "exact"
        self.arithmetic = torch.bfloat16 if arithmetic == "bfloat16" else None
        self._is_tf32 = arithmetic == "tf32" and self.device.type in graphs.DEVICES
        self._multiply(self._is_tf32 and self._is_stepping)

    def _multiply(self, in_tf32: bool) -> None:
        """Products in tf32, or as they were found; what the user has set by torch's newer words stays."""
        if in_tf32 and self._products is None:
            with contextlib.suppress(RuntimeError):
                self._products = torch.get_float32_matmul_precision()
                torch.set_float32_matmul_precision("high")
        elif not in_tf32 and self._products is not None:
            torch.set_float32_matmul_precision(self._products)
            self._products = None

    @property
    def can_repeat(self) -> bool:
        """As of every step; nor in tf32."""
        return super().can_repeat and not self._is_tf32

    def laid(self, batch: Any, plan: Plan) -> Any:
        """A batch in the memory order of a plan."""
        if plan.layout != "channels_last":
            return batch
        if type(batch) is Parts:
            return Parts(lambda: map(layout.images_last, batch))  # type: ignore[arg-type]
        return layout.images_last(batch)

    def record(self, batch: Batch) -> None:
        """Write the step down and, on a CPU, have another process begin to compile it.

        Raises:
            Untraceable, CompileFailed: it is not to be; the message says why.
        """
        if self.device.type == "cuda":
            self._traced = trace(self, placed(batch), self.asked.outputs)
            return
        self._traced = trace(self, batch, self.asked.outputs)
        choices = self.plan.products if self.asked.plan is not None else None
        arguments = [*self._traced.held(), *leaves(batch)]
        self.compilation = Compilation.start(self._traced.graph, arguments, torch.get_num_threads(), choices)

    def capture(self, batch: Batch) -> Graph:
        """Make one graph of all kernels of a step.

        Raises:
            Untraceable: it is not to be; the message says why.
        """
        try:
            return Graph(*live(self, batch, self.asked.outputs), self.forward, self.update, batch)
        except RuntimeError as error:  # memory, among others
            raise Untraceable(f"it cannot be captured ({str(error).strip().splitlines()[0][:160]})") from error

    def load(self, batch: Batch) -> tuple[Program, dict[str, Any]]:
        """The compiled step, and what is known of it; waits until it is there.

        Raises:
            CompileFailed, Untraceable: it cannot be had.
        """
        assert self._traced is not None
        if self.device.type == "cuda":
            try:
                run = fused(self._traced, [*self._traced.held(), *leaves(placed(batch))])
                return Graph(run, self._traced, self.forward, self.update, batch), {"choices": {}}
            except CompileFailed:
                raise
            except RuntimeError as error:
                raise CompileFailed(f"it cannot be captured ({str(error).strip().splitlines()[0][:160]})") from error
        assert self.compilation is not None
        library, known = self.compilation.result()
        try:
            return Program(loaded(library), self._traced, self.forward, self.update, batch), known
        except LookupError as error:
            raise CompileFailed(f"what was made does not fit the rule any more ({error})") from error
        except (OSError, RuntimeError) as error:
            library.unlink(missing_ok=True)  # the next one makes it anew
            raise CompileFailed(f"what was made cannot be loaded ({str(error).strip().splitlines()[0]})") from error

    def in_words(self, batch: Batch, threads: int | None = None) -> str:
        """What is known of a step without recording it: most steps of the same description have the same program.

        Empty where nothing can be said.
        """
        rule, loss = self.update.optimizer, self.loss
        sizes = [(tuple(p.shape), p.dtype, p.requires_grad) for p in self.update.parameters]
        try:
            known = (
                str(self.forward.model), sizes, type(rule).__qualname__, options_of(rule), self.update.clip,
                getattr(loss, "name", None), list(map(Shape.of, leaves(batch))), threads or torch.get_num_threads(),
                self.plan.layout, self.arithmetic, self.asked.outputs,
            )  # fmt: skip
            return re.sub(r" at 0x[0-9a-f]+", "", repr(known))  # in another process the same thing lies elsewhere
        except Exception:  # whatever a model of the user's says of itself
            return ""

    @property
    def num_operations(self) -> int:
        """Operations of the step that was recorded."""
        return len(self._traced.graph.graph.nodes) if self._traced is not None else 0

    def settle(self, plan: Plan | None = None, note: str = "") -> None:
        """Nothing more is chosen from here on."""
        self._planner = None
        plan = replace(plan or self.plan, is_settled=True)
        self.tell(replace(plan, notes=(*plan.notes, note)) if note else plan)

    def tell(self, plan: Plan) -> None:
        """This is the plan now."""
        if plan != self.plan:
            self.plan = plan
            self._changed(plan)
