"""Finds the fastest way to run a step while it runs, each way tried before it is taken.

update 1      the layout of images and the number of threads are timed on the first batch, from a copy of the state
updates 2–9   plain steps, timed; their batches are remembered
update 10     where what is still to come repays it, the whole step is recorded, and compiled by another process:
              beside the training where a core is free for it, else while the training waits
when ready    it is tried against the plain step on remembered batches, timed, and taken if it is the same and
              faster; the number of updates made so far is written into the plan
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thalweg.step.batches import Parts
from thalweg.step.compiler import CompileFailed, forget, has_compiler, is_remembered, remember
from thalweg.step.data import Batch, shapes
from thalweg.step.kernels import layout
from thalweg.step.plan import Plan
from thalweg.step.program import Program
from thalweg.step.refusals import Untraceable
from thalweg.step.snapshot import Snapshot
from thalweg.step.trial import ratio, same, timed
from thalweg.tensors.devices import wait
from thalweg.tensors.named import num_bytes

if TYPE_CHECKING:
    from thalweg.step.planned import PlannedStep

#: Updates made plainly before compiling is thought of, and batches remembered of them: enough to tell a step's time and
#: the noise of its loss.
FIRST = 9
REMEMBERED = 8
REMEMBERED_BYTES = 256 << 20
#: What planning may cost, of the training that it serves, or in seconds if that is more.
SHARE, SECONDS = 0.02, 1.0
#: The same where the training waits for a compiler: on the average a compiled step takes half as long (docs/plan.md).
WAITING = 0.08
#: A way must save at least this share of a step's time: less is noise.
WORTH = 0.97
#: Steps below this many seconds are tried with one thread: they do not fill several.
SMALL = 2e-3
#: Channels last and one thread are taken also where the eager step is slower by this factor: by the first the compiled
#: step gains more than an eager one, and the second leaves a core to compile on.
LEANING = 1.1
#: Share of a training that compiling beside it may last: of one that is twice as long, the program serves half.
BESIDE = 0.5
#: Seconds that recording a step and trying its program take; and the share of a training that they may take where the
#: program is most likely at hand already, so that nothing else is spent on it.
RECORDING, AT_HAND = 0.3, 0.15
#: What capturing a step on a GPU and trying it takes [s]; it is worth twice as much training (docs/plan.md).
CAPTURING = 0.5
#: Updates between two looks at whether the other process is done.
LOOK_EVERY = 5

TOO_SHORT = "The step is not compiled: this training is too short to repay it."


@dataclass(frozen=True, slots=True)
class Budget:
    """What there is to gain from planning: how much training follows."""

    steps: int | None = None
    """Updates that will follow, as far as known; None: enough to repay anything."""
    seconds: float | None = None
    """Seconds that training will last at most."""
    wait: bool = False
    """Compile before going on, in any case."""

    def allows(self, cost: float, number: int, step: float, least: float = SECONDS, share: float = SHARE) -> bool:
        """Whether so many seconds may be spent after `number` updates, where each takes `step` seconds."""
        to_come = float("inf") if self.steps is None else max(0, self.steps - number) * step
        return cost <= max(least, share * min(to_come, self.seconds or float("inf")))


class Planner:
    """Chooses for one step, until it has settled."""

    def __init__(self, step: PlannedStep, has_begun: bool = False) -> None:
        """`has_begun` says that what is chosen first has been chosen, in an earlier part of the run."""
        self.step = step
        self.budget = step.asked.budget
        self.times: list[float] = []
        """Seconds of the plain steps so far."""
        self.has_begun = has_begun
        self.is_ahead = False
        """Whether nothing of its steps stays, so that what is chosen later serves less."""
        self._remembered: list[Batch] = []

    @property
    def waits(self) -> bool:
        """Whether it waits for another process, beside which training can go on."""
        return self.step.compilation is not None

    def consider(self, batch: Batch | Parts, is_heard: bool = False) -> None:
        """Whatever is due before the next update. Nothing that goes wrong with a way may end a training.

        An update that is listened to has hooks, which a program would pass over: what is not bound to the first update
        waits for the next one.
        """
        step = self.step
        try:
            if not self.has_begun and not (is_heard and step.number):
                self.has_begun = True
                self._first_choices(batch)
            elif is_heard:
                pass
            elif step.compilation is not None:
                if step.number % LOOK_EVERY == 0 and step.compilation.is_done():
                    self._take_or_leave(batch)
            elif step.number >= FIRST and len(self.times) > 2:
                self._second_choices(batch)
        except Exception as error:
            step.program = None
            step.follow(step.plan)
            step.settle(note=f"Planning ended ({type(error).__name__}: {error}); steps run as before.")
        if type(batch) is tuple and num_bytes(batch) + num_bytes(tuple(self._remembered)) < REMEMBERED_BYTES:
            self._remembered = [*self._remembered, batch][-REMEMBERED:]

    # ── before the first update ──────────────────────────────────────────────────────────────────────────────────

    def _first_choices(self, batch: Batch | Parts) -> None:
        if type(batch) is not tuple:
            return
        step = self.step
        snapshot = Snapshot(step.forward, step.update.optimizer)
        try:
            plain = min(self._seconds(lambda: step.plainly(batch)) for _ in range(2))
            plan = step.plan
            can_lie = layout.has_images(step.forward.model) and not step.forward.is_keras
            ways: list[tuple[str, dict[str, Any], float, float]] = []
            if can_lie and self.budget.allows(10 * plain, 0, plain):
                ways.append(("channels last", {"layout": "channels_last"}, 0.0, LEANING))
            if plain < SMALL and torch.get_num_threads() > 1 and self._is_cpu:
                worth = LEANING if self._may_compile(batch, plain) else WORTH
                ways.append(("one thread", {"threads": 1}, 10 * plain, worth))
            for name, changed, seconds, worth in ways:
                try:
                    plan = self._faster(plan, replace(plan, **changed), batch, seconds, worth)
                except Exception as error:  # whatever a model does in this way: there are others
                    snapshot.restore()
                    step.follow(plan)
                    plan = replace(plan, notes=(*plan.notes, _failed(name, error)))
        finally:
            snapshot.restore()
        step.tell(plan)

    def _may_compile(self, batch: Batch, plain: float) -> bool:
        """Whether a program on one thread may follow: there is time to make it, or it is at hand."""
        if self.step.constrained or not has_compiler():
            return False
        share = WAITING if self.budget.wait or self.is_ahead or _num_cores() == 1 else BESIDE
        if self.budget.allows(compile_seconds(0), 0, plain, share=share):
            return True
        is_worth_it = self.budget.allows(RECORDING, 0, plain, least=0.0, share=AT_HAND)
        return is_worth_it and is_remembered(self.step.in_words(batch, threads=1))

    @property
    def _is_cpu(self) -> bool:
        return self.step.device.type == "cpu"

    def _seconds(self, call: Callable[[], object]) -> float:
        started = time.perf_counter()
        call()
        wait(self.step.device)
        return time.perf_counter() - started

    def _faster(self, now: Plan, new: Plan, batch: Batch, seconds: float = 0.0, worth: float = WORTH) -> Plan:
        """The one whose eager step is faster, in turn on one batch; followed from here on."""
        times: dict[str, list[float]] = {"now": [], "new": []}
        for block in range(4):
            for name, plan in (("now", now), ("new", new)):
                self.step.follow(plan)
                laid = self.step.laid(batch, plan)
                found = timed({name: partial(self.step.plainly, laid)}, 1, seconds, self.step.device)
                if block:  # the first is a warm-up
                    times[name] += found[name]
        gain = ratio(times, "now", "new")
        taken = replace(new, gain=round(gain * (now.gain or 1.0), 3)) if gain * worth > 1 else now
        self.step.follow(taken)
        return taken

    # ── after a few ──────────────────────────────────────────────────────────────────────────────────────────────

    def _second_choices(self, batch: Batch | Parts) -> None:
        """Arithmetic of fewer digits, where asked; then whether to compile."""
        step, eager = self.step, statistics.median(self.times[1:])
        if step.asked.is_fast and step.plan.arithmetic == "exact" and type(batch) is tuple:
            self._try_fast(["bfloat16"] if self._is_cpu else ["tf32", "bfloat16"])
        if type(batch) is not tuple or step.constrained:
            why = "its weights are constrained" if step.constrained else "batches come in parts"
            step.settle(note=f"The step is not compiled: {why}.")
            return
        if not self._is_cpu:
            self._capture_and_compile(batch, eager)
            return
        is_long = self.budget.allows(RECORDING, step.number, eager, least=0.0)
        may_record = is_long or self.budget.allows(RECORDING, step.number, eager, least=0.0, share=AT_HAND)
        if not may_record or not (is_long or is_remembered(step.in_words(batch))):
            step.settle(note=TOO_SHORT)
            return
        if not self._is_usual(batch):
            return
        started = time.perf_counter()
        try:
            step.record(batch)
        except (Untraceable, CompileFailed) as error:
            forget(step.in_words(batch))
            step.settle(note=f"The step is not compiled: {error}.")
            return
        assert step.compilation is not None
        spent, is_ready = time.perf_counter() - started, step.compilation.was_ready
        if not (is_long or is_ready):
            forget(step.in_words(batch))
            step.compilation.stop()
            step.settle(note=TOO_SHORT)
            return
        cost = spent + (0.0 if is_ready else compile_seconds(step.num_operations))
        can_wait = self.budget.allows(cost, step.number, eager, share=WAITING)
        if can_wait and (is_ready or self.is_ahead or self._must_wait()):
            self._take_or_leave(batch)
        elif is_ready or self._must_wait() or not self.budget.allows(spent, step.number, eager):
            step.compilation.stop()
            step.settle(note=TOO_SHORT)

    def _capture_and_compile(self, batch: Batch, eager: float) -> None:
        """On a GPU: the same kernels in one graph; then, where it repays, others that do several operations each.

        These are compiled in this process, so that the training waits.
        """
        step = self.step
        if not self.budget.allows(CAPTURING, step.number, eager, least=0.0, share=0.5):
            step.settle(note="The step is not captured: this training is too short to repay it.")
            return
        if not self._is_usual(batch):
            return
        now = eager / self._capture(batch)
        if step.plan.is_settled:
            return
        try:
            if self.budget.allows(compile_seconds(0), step.number, now, share=WAITING):
                step.record(batch)
                if self.budget.allows(compile_seconds(step.num_operations), step.number, now, share=WAITING):
                    self._take_or_leave(batch)
                    return
            step.settle(note=TOO_SHORT)
        except Untraceable as error:
            step.settle(note=f"The step is not compiled: {error}.")

    def _capture(self, batch: Batch) -> float:
        """The step as one graph of the same kernels; returns how many times as fast a step is then."""
        step = self.step
        try:
            program = step.capture(batch)
        except Untraceable as error:
            step.settle(note=f"The step is not captured: {error}.")
            return 1.0
        reason, gain = self._tried(program, batch)
        if reason is not None:
            notes = (*step.plan.notes, f"The captured step was not taken: {reason}.")
            step.tell(replace(step.plan, notes=notes))
            return 1.0
        step.captured = program
        if step.plan.captured_after is None:  # an earlier part of the run had not come so far
            total = round(gain * (step.plan.gain or 1.0), 3)
            step.tell(replace(step.plan, captured_after=step.number, batch=shapes(batch), gain=total))
        return gain

    def _is_usual(self, batch: Batch) -> bool:
        """Whether the batch has the commonest shape of those seen, which the last one of an epoch may not have."""
        seen = [shapes(b) for b in self._remembered]
        return seen.count(shapes(batch)) >= max(map(seen.count, seen), default=0)

    def _must_wait(self) -> bool:
        """Whether compiling stops the training: it was asked for, or no core is left for it.

        Two threads that wait for each other many times a step, one of which shares its core with a compiler, lose far
        more than the core's share.
        """
        return self.budget.wait or torch.get_num_threads() >= _num_cores()

    def _try_fast(self, arithmetics: Sequence[str]) -> None:
        """Products of fewer digits where they are faster and the loss over the remembered batches agrees within its
        noise.
        """
        step = self.step
        if step.update.parameters[0].dtype != torch.float32 or len(self._remembered) < 3:
            return
        snapshot = Snapshot(step.forward, step.update.optimizer)
        losses: dict[str, Tensor] = {}
        times: dict[str, list[float]] = {}
        notes: list[str] = []
        plans = {name: replace(step.plan, arithmetic=name, arithmetic_after=step.number) for name in arithmetics}
        try:
            for name, plan in {"exact": step.plan, **plans}.items():
                snapshot.restore()
                step.follow(plan)
                try:
                    losses[name], times[name] = self._over_remembered()
                except Exception as error:  # whatever a model does in it: there are others
                    if name == "exact":
                        raise
                    notes.append(_failed(name, error))
            if not self._is_cpu:
                times = self._times_captured({n: plans.get(n, step.plan) for n in losses}) or times
        finally:
            snapshot.restore()
            step.follow(step.plan)
        exact = losses["exact"]
        noise = float(exact.std()) / len(exact) ** 0.5
        gains = {}
        for name in [name for name in arithmetics if name in losses]:
            away = float((losses[name].mean() - exact.mean()).abs())
            gain = ratio({of: spent[1:] for of, spent in times.items()}, "exact", name)
            if not away <= noise:
                where = f"over {len(exact)} steps the loss was off by {away:.2g}, its noise is {noise:.2g}"
                notes.append(f"{name} was not taken: {where}.")
            elif gain * WORTH <= 1:
                notes.append(
                    f"{name} was not taken: with it a step takes {1 / gain:.2f} times as long on this machine."
                )
            else:
                gains[name] = gain
        plan = replace(step.plan, notes=(*step.plan.notes, *notes))
        if gains:
            name = max(gains, key=lambda name: gains[name])
            gain = round(gains[name] * (plan.gain or 1.0), 3)
            plan = replace(plan, arithmetic=name, arithmetic_after=step.number, gain=gain)
            step.follow(plan)
        step.tell(plan)

    def _over_remembered(self) -> tuple[Tensor, list[float]]:
        """The loss of a step on each of the remembered batches, and its seconds."""
        taken, times = [], []
        for batch in self._remembered:
            started = time.perf_counter()
            taken.append(self.step.plainly(batch))
            wait(self.step.device)
            times.append(time.perf_counter() - started)
        return torch.stack(taken).double(), times

    def _times_captured(self, plans: Mapping[str, Plan]) -> dict[str, list[float]] | None:
        """Seconds of a step as one CUDA graph under each plan: eagerly a step lasts as long as its launches take,
        whatever is computed. None where it cannot be captured.
        """
        step, batch = self.step, self._remembered[-1]
        ways: dict[str, Callable[[], Tensor]] = {}
        try:
            for name, plan in plans.items():
                step.follow(plan)
                program = step.capture(batch)
                if not program.takes(batch):
                    return None
                ways[name] = partial(step.by_program, program, batch)
        except Untraceable:
            return None
        return timed(ways, 6, 0.01, step.device)

    # ── when it is ready ─────────────────────────────────────────────────────────────────────────────────────────

    def _take_or_leave(self, batch: Batch | Parts) -> None:
        """The compiled step is there: take it if it is the same and faster."""
        step = self.step
        assert isinstance(batch, tuple)
        try:
            program, known = step.load(batch)
        except CompileFailed as error:
            step.settle(note=f"The step is not compiled: {error}.")
            return
        if not program.takes(batch):
            return  # of another shape: at the next one
        reason, gain = self._tried(program, batch)
        if reason is not None:
            forget(step.in_words(batch))
            step.settle(note=f"The compiled step was not taken: {reason}.")
            return
        step.program, step.captured = program, None
        if step.compilation is not None:
            remember(step.in_words(batch), step.compilation.path)
        now = replace(
            step.plan,
            compiled_after=step.number,
            batch=shapes(batch),
            products=known["choices"],
            gain=round(gain * (step.plan.gain or 1.0), 3),
        )
        step.settle(now)

    def _tried(self, program: Program, batch: Batch) -> tuple[str | None, float]:
        """Why a program is not to be taken, or None; and how many times as fast as the step as it is now it is."""
        step = self.step
        tried = [*[b for b in self._remembered if program.takes(b)][-1:], batch]

        def way(batch: Batch) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
            loss, gradients, _ = program(batch)
            found = dict(zip(program.graded, gradients, strict=True))
            if not program.has_update:
                for p, g in found.items():
                    p.grad = g.clone()
                step.update.apply()
            return loss, found

        def plain(batch: Batch) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
            loss = step.gradients(batch)
            return loss, {p: p.grad for p in step.update.parameters if p.grad is not None}

        differs = same(way, plain, step.update, tried, step.forward, step.arithmetic)
        if differs is not None:
            return differs, 1.0
        snapshot = Snapshot(step.forward, step.update.optimizer)
        try:
            now = step.captured
            plainly = (lambda: step.by_program(now, batch)) if now is not None else (lambda: step.plainly(batch))
            ways = {"plain": plainly, "program": lambda: step.by_program(program, batch)}
            times = timed(ways, 5, 0.01, step.device)
        finally:
            snapshot.restore()
        gain = ratio(times, "plain", "program")
        return (None if gain * WORTH > 1 else f"it takes {1 / gain:.2f} times as long as the plain one"), gain


def compile_seconds(operations: int) -> float:
    """Seconds that compiling takes, roughly; five less where torch's headers have been compiled ahead."""
    return 15.0 + 0.03 * operations


def _failed(way: str, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{way} was not taken: a step fails in it ({type(error).__name__}: {first[:160]})."


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
