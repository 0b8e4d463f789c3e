"""Candidates of a search, made of what `fit` prepared: each a training of its own in the one model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from thalweg.loop.checkpoint import Checkpoint
from thalweg.loop.memory import random_state, set_random_state
from thalweg.loop.setup import Setup
from thalweg.loop.train import Training
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.settings import Settings
from thalweg.records.step import StepRecord
from thalweg.run.choices import Chosen, again
from thalweg.search.candidate import Candidate, Choice
from thalweg.signals.signals import Signals
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.planned import PlannedStep
from thalweg.step.whole import Step
from thalweg.tensors.named import assign, copied, mapped


@dataclass(slots=True)
class Kept:
    """Who is told and saved to while candidates run: all is kept, so that the winner's part can be told afterwards."""

    records: list[tuple[str, StepRecord]] = field(default_factory=list)
    best: Checkpoint | None = None
    tell: Callable[[], None] = lambda: None
    """Called after each report."""

    def step(self, record: StepRecord) -> None:
        """After a reported update."""
        self.records.append(("step", record))
        self.tell()

    def validated(self, record: StepRecord) -> None:
        """After an evaluation."""
        self.records.append(("validated", record))

    def event(self, event: Finding | Action) -> None:
        """Candidates are not diagnosed: the one that wins will be."""

    def save(self, live: Checkpoint, best: bool = False) -> bool:
        """Keep a copy of the best; others need none, a candidate being in memory itself."""
        if best:
            state = mapped(lambda t: t.detach().clone(), live.state)
            self.best = Checkpoint(live.step, copied(live.model), state, live.best_step)
        return True

    def finish(self) -> None:
        """Nothing waits."""

    def hand_over(self, training: Training) -> None:
        """What was kept is written down and told where the training is gone on with."""
        setup = training.setup
        for kind, record in self.records:
            if kind == "step":
                setup.history.append(record)
                setup.events.step(record)
            else:
                setup.history.evaluate(record)
                setup.events.validated(record)
        if self.best is not None:
            setup.saver.save(self.best, best=True)
        training.save()


def assemble(
    step: Step,
    chosen: Chosen,
    history: History,
    saver: Any,
    events: Any,
    signals: Signals | None = None,
    watched: bool = False,
    looks: bool = False,
    mends: str = "",
) -> Setup:
    """The parts of a training, put together."""
    return Setup(
        step=step,
        signals=signals or Signals(step.forward, chosen.update.parameters, step.loss),
        optimizer=chosen.optimizer,
        schedule=chosen.schedule,
        batches=chosen.batches,
        validation=chosen.validation,
        metrics=chosen.metrics,
        held_out_metrics=copy.deepcopy(chosen.metrics),
        average=chosen.average,
        history=history,
        saver=saver,
        events=events,
        has_norm=chosen.has_norm,
        anneals=chosen.anneals,
        watched=watched,
        looks=looks,
        mends=mends,
    )


def asked_for(settings: Settings, choice: Choice) -> Settings:
    """The settings of a training that was asked for with this choice from the beginning."""
    options = dict(settings.optimizer_options or {}) | dict(choice.options)
    return replace(
        settings,
        optimizer=choice.optimizer,
        learning_rate=choice.learning_rate,
        optimizer_options=options or None,
    )


class Maker:
    """Makes candidates, all of which begin with the weights, and the state of what draws, that it found."""

    def __init__(
        self,
        chosen: Chosen,
        forward: Forward,
        loss: Loss | None,
        settings: Settings,
        step: PlannedStep | None = None,
    ) -> None:
        """`step` is what all of them step by, each with its own rule; without it they step eagerly."""
        self.chosen = chosen
        self.forward = forward
        self.loss = loss
        self.settings = settings
        self.step = step
        self._weights = copied(forward.state())
        self._random = random_state(chosen.batches)

    def __call__(self, choice: Choice) -> tuple[Candidate, Chosen]:
        """A candidate that has not begun, and the parts that its training is made of."""
        self.put_back()
        parts = again(self.chosen, self.forward, self.loss, asked_for(self.settings, choice))
        kept, shared = Kept(), self.step
        step = shared or Step(self.forward, self.loss, parts.update)
        training = Training(assemble(step, parts, History(), kept, kept), parts.limits)
        if shared is None:
            return Candidate(choice, training), parts
        return Candidate(choice, training, lambda: shared.serve(parts.update, training.at.step)), parts

    def put_back(self) -> None:
        """Model and generators are as they were found."""
        assign(self.forward.state(), self._weights)
        set_random_state(self.chosen.batches, self._random)
