"""The course of one run, from its first update or from where it was left to its end."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from thalweg.loop.checkpoint import Checkpoint, Checkpoints
from thalweg.loop.saver import Saver
from thalweg.loop.setup import Setup
from thalweg.loop.train import BatchFailed, Training
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings
from thalweg.repairs.change import Body
from thalweg.repairs.network import fold
from thalweg.run.candidates import Maker, assemble
from thalweg.run.choices import Chosen
from thalweg.run.facts import facts, of_settings
from thalweg.run.finish import finish
from thalweg.run.going_on import as_decided, go_on, settled
from thalweg.run.interrupts import interruptible
from thalweg.run.mending import Mending, body_of, is_mended, mended_before
from thalweg.run.race import Raced, Stage, is_raced, likely_steps, why_not
from thalweg.run.run import Run
from thalweg.run.telling import Telling
from thalweg.search.candidate import NothingFinite
from thalweg.search.race import Interrupted
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.plan import Plan
from thalweg.step.planned import Asked, PlannedStep
from thalweg.step.planner import Budget
from thalweg.step.whole import Step


class Prepared:
    """A checked model and data with everything that was chosen for them."""

    def __init__(self, forward: Forward, loss: Loss | None, chosen: Chosen) -> None:
        self.forward = forward
        self.loss = loss
        self.chosen = chosen
        self.notes = chosen.notes


class Course:
    """Trains what was prepared in a directory that is held; what it opens is closed with the stack."""

    def __init__(
        self, stack: ExitStack, prepared: Prepared, settings: Settings, record: RunRecord, directory: Path
    ) -> None:
        self._stack = stack
        self._prepared = prepared
        self._settings = settings
        self._record = record
        self._directory = directory
        self._telling = Telling(record, settings)
        self._known: dict[str, Any] = {}
        """Facts that held before repairs that are to be made again."""
        self._checkpoints = Checkpoints(directory, self._telling.warn)

    def run(self, resuming: bool) -> Run:
        """Train to the end, or until it is interrupted."""
        prepared, record = self._prepared, self._record
        checkpoint = self._checkpoints.latest() if resuming else None
        body = self._mended(checkpoint) if checkpoint is not None else None
        history, run = self._opened()
        self._note(history, is_first=checkpoint is None)
        step, raced = self._planned(prepared, self._settings, resuming=checkpoint is not None), None
        if checkpoint is None:
            chosen = self._chosen(step, history)
            if chosen is None:
                return run
            step, raced = chosen
        saver = Saver(self._checkpoints, before=history.flush)
        self._stack.callback(saver.finish)
        watched = self._settings.repair != "off"
        mends = self._settings.repair if is_mended(self._settings, prepared.chosen) else ""

        def assembled(step: PlannedStep, chosen: Chosen, signals: Any = None) -> Setup:
            return assemble(step, chosen, history, saver, self._telling, signals, watched, looks=True, mends=mends)

        signals = raced.training.setup.signals if raced is not None else None
        setup = assembled(step, prepared.chosen, signals)
        training = raced.training.moved(setup) if raced is not None else Training(setup, prepared.chosen.limits)
        if resuming:
            go_on(training, self._checkpoints, checkpoint, self._settings, self._telling)
        record.write(self._directory)
        step.begin(training.at.step)
        step.open()
        self._telling.start()
        body = body or body_of(prepared.forward, prepared.loss, prepared.chosen, settled(self._settings, record))
        mending = Mending(
            training, body, prepared.chosen, record, self._directory, self._telling, self._mended_step, assembled
        )
        with interruptible(mending):
            if raced is not None:
                raced.kept.hand_over(training)
            record.stopped_because = self._trained(mending)
            if record.stopped_because != "interrupted":
                mending.go_back_to_best()
            finish(run, mending.training, self._checkpoints)
            if record.stopped_because != "interrupted" and record.decided.get("repairs"):
                fold(prepared.forward.model)
            self._telling.end()
        return run

    def _trained(self, mending: Mending) -> str:
        """Why it ended. What raises between two updates, a callback say, costs none of them: they are saved."""
        try:
            return mending.run()
        except BatchFailed:  # in the midst of one
            raise
        except Exception:
            mending.training.save()
            raise

    # ── where it begins ──────────────────────────────────────────────────────────────────────────────────────────

    def _mended(self, checkpoint: Checkpoint) -> Body | None:
        """Choose as the run did before, and change what it had changed: the body of that, if any."""
        prepared, record = self._prepared, self._record
        prepared.chosen = as_decided(prepared.chosen, prepared.forward, prepared.loss, self._settings, record)
        if not record.decided.get("repairs"):
            return None
        settings = settled(self._settings, record)
        body, prepared.chosen, self._known = mended_before(
            prepared.forward, prepared.loss, prepared.chosen, settings, record, checkpoint
        )
        prepared.loss = body.loss
        return body

    def _opened(self) -> tuple[History, Run]:
        history = History(self._directory / "history.sqlite", self._telling.warn)
        self._stack.callback(history.close)
        prepared, record = self._prepared, self._record
        run = Run(prepared.forward.model, prepared.chosen.optimizer, history, record, self._directory)
        self._telling.run = run
        record.stopped_because, record.verdict = None, None
        return history, run

    def _note(self, history: History, is_first: bool) -> None:
        """What is known before the first update; of the first batch no more can be said once its weights are gone."""
        prepared, settings = self._prepared, self._settings
        if is_first:
            plain_step = Step(prepared.forward, prepared.loss, prepared.chosen.update)
            history.note(facts(plain_step, prepared.chosen, settings))
        else:
            history.note({**self._known, **of_settings(prepared.chosen, settings)})

    # ── what a race decides ──────────────────────────────────────────────────────────────────────────────────────

    def _chosen(self, step: PlannedStep, history: History) -> tuple[PlannedStep, Raced | None] | None:
        """Choose by a race what was left open: the winner, and the step that serves it; None where interrupted."""
        prepared, settings = self._prepared, self._settings
        if reason := why_not(settings, prepared.chosen):
            self._telling.warn(reason)
        if not is_raced(settings, prepared.chosen):
            return step, None
        stage = Stage(Maker(prepared.chosen, prepared.forward, prepared.loss, settings, step), self._telling.search)
        step.open()
        with interruptible(stage):
            raced = self._race(stage)
            if stage.interrupt:
                self._nothing_done()
                return None
        if raced is not None:
            is_other = type(raced.parts.optimizer) is not type(prepared.chosen.optimizer)
            prepared.chosen = raced.parts
            assert self._telling.run is not None
            self._telling.run.optimizer = raced.parts.optimizer
            history.note({"learning_rate": raced.told["learning_rate"]})
            if is_other:  # than the rule that the step was planned for
                step.close()
                step = self._planned(prepared, settings, resuming=False)
        step.serve(prepared.chosen.update, 0)
        return step, raced

    def _race(self, stage: Stage) -> Raced | None:
        """None where it was interrupted, or where no rate gave a finite loss."""
        record, own = self._record, self._record.decided
        record.decided = {**own, "learning_rate": None, "search": None}
        record.write(self._directory)
        self._telling.start()
        try:
            raced = stage.run()
        except Interrupted:
            return None
        except NothingFinite as error:  # a training that shows it says more than none
            record.decided = {**own, "plan": record.decided["plan"]}
            self._telling.warn(f"{str(error)[0].upper()}{str(error)[1:]}. It is trained with the rule's own rate.")
            return None
        found = {"learning_rate": raced.told["learning_rate"], "search": raced.told, "plan": record.decided["plan"]}
        record.decided = {**raced.parts.decided, **found}
        return raced

    def _nothing_done(self) -> None:
        """Interrupted before the first update that counts: the race begins anew where the run is gone on with."""
        self._record.stopped_because = "interrupted"
        self._record.write(self._directory)
        self._telling.end()

    # ── how its steps are run ────────────────────────────────────────────────────────────────────────────────────

    def _planned(self, prepared: Prepared, settings: Settings, resuming: bool) -> PlannedStep:
        """The step, run as the plan says that was asked for or that the run has; else as will be found best.

        What is chosen is on the disk before the first update that follows it, so that a resumed run does the same.
        """
        record, chosen = self._record, prepared.chosen
        plan = None if settings.plan == "auto" else Plan.of(settings.plan)
        begun = None
        if resuming and record.decided["plan"] is not None:
            found = Plan.of(record.decided["plan"])
            plan, begun = (found, None) if found.is_settled else (None, found)

        def changed(plan: Plan) -> None:
            record.decided["plan"] = plan.to_dict()
            with contextlib.suppress(OSError):  # a full disk: the saver says so, and training goes on
                record.write(self._directory)

        asked = Asked(
            plan=plan,
            begun=begun,
            budget=Budget(likely_steps(chosen), settings.time_budget),
            outputs=bool(chosen.metrics.names),
            is_fast=settings.precision == "fast",
            by_clock=not settings.deterministic,
        )
        step = PlannedStep(prepared.forward, prepared.loss, chosen.update, asked, changed)
        record.decided["plan"] = step.plan.to_dict()
        self._stack.callback(step.close)
        return step

    def _mended_step(self, body: Body, chosen: Chosen) -> PlannedStep:
        """The step of a mended training: planned anew, and eager where the plan was given, or updates are left out."""
        plan = self._settings.plan if self._settings.plan == "auto" and not body.skips else "eager"
        prepared = Prepared(body.forward, body.loss, chosen)
        return self._planned(prepared, replace(self._settings, plan=plan), resuming=False)
