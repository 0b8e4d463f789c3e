"""A training that is mended while it runs: where something stands, what answers it is tried, and kept if it helps.

A trial is made where the training stands and leaves it as it was; so it is repeated where a run that was cut off in it
is resumed. What is kept is in `run.json`, in words, before the first update that follows it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg.loop.checkpoint import Checkpoint
from thalweg.loop.evaluate import evaluating, model_device
from thalweg.loop.memory import untouched
from thalweg.loop.setup import Setup
from thalweg.loop.train import ILL, Training
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings
from thalweg.repairs import network, trial
from thalweg.repairs.change import Body, Undo
from thalweg.repairs.prescriptions import CHANGES, Prescription, prescribe
from thalweg.run.arms import OF_MEASURE, Done, administer, extend, given_back, parts_of
from thalweg.run.choices import Chosen
from thalweg.run.facts import facts, of_settings
from thalweg.run.telling import Telling
from thalweg.run.trials import Trials, right
from thalweg.signals.data import sample
from thalweg.step.batches import Batches
from thalweg.step.data import Stream, cast
from thalweg.step.forward import Forward
from thalweg.step.losses import NAMES, Loss, resolve
from thalweg.step.planned import PlannedStep
from thalweg.step.whole import Step

#: Examples from which changes take their statistics.
SAMPLE = 512
#: Updates of a trial on a suspicion, at most: it may be none.
BRIEF = 100
#: Of inputs and targets that the network brings to a scale itself.
STANDARD = {
    "standardise_inputs": {
        "input_mean": 0.0, "input_std": 1.0, "largest_offset": 0.0,
        "largest_feature_std": 1.0, "median_feature_std": 1.0,
    },
    "scale_targets": {"target_mean": 0.0, "target_std": 1.0},
}  # fmt: skip
LEVELS = ("safe", "full")


def body_of(forward: Forward, loss: Loss | None, chosen: Chosen, settings: Settings) -> Body:
    """What changes may touch, as it was asked for."""
    rate = float(chosen.optimizer.param_groups[0]["initial_lr"])
    return Body(forward, loss, settings, None, rate, data=chosen.batches.data)


def _take_sample(body: Body, batches: Batches) -> None:
    """Examples for what is taken from them, drawn when they are wanted: data may be slow, or random."""
    if body.sample is None:
        with untouched(batches):
            body.sample = cast(sample(batches, SAMPLE), batches.dtype, batches.device)


def mended_before(
    forward: Forward, loss: Loss | None, chosen: Chosen, settings: Settings, record: RunRecord, checkpoint: Checkpoint
) -> tuple[Body, Chosen, dict[str, Any]]:
    """The body and the parts of a run that is gone on with, changed as it was when the checkpoint was taken, and facts
    that held then and later did not.

    Repairs that came later are struck from the record: they are made again where they were, from what was known then.
    """
    body = body_of(forward, loss, chosen, settings)
    repairs = record.decided.get("repairs") or []
    standing = checkpoint.state.get("standing") if isinstance(checkpoint.state, Mapping) else None
    count = standing.get("mended", 0) if isinstance(standing, Mapping) else None
    if not isinstance(count, int):
        raise ValueError(f"the checkpoint of step {checkpoint.step} does not fit this training: no standing in it")
    known: dict[str, Any] = {}
    for repair in reversed(repairs[count:]):
        known |= repair.get("facts", {})
        record.decided["plan"] = repair["plan"]
    record.decided["repairs"] = repairs[:count]
    if not repairs[:count]:
        return body, chosen, known
    _take_sample(body, chosen.batches)
    again_made(body, repairs[:count])
    parts = parts_of(body, chosen, None)
    asked = {word: record.decided[word] for word in ("plan", "num_examples")}
    record.decided |= {**parts.decided, **asked}
    return body, parts, known


def rebuilt(model: nn.Module, record: RunRecord, count: int) -> None:
    """A fresh model with the structure that a run's had after so many of its repairs; its weights are loaded later."""
    repairs = (record.decided.get("repairs") or [])[:count]
    if not any(code in network.STRUCTURES for repair in repairs for code, _ in repair["changes"]):
        return
    name = record.decided["loss"]
    loss = resolve(name if name in NAMES else _unknown) if name is not None else None
    body = Body(Forward(model), loss, Settings(), _stand_in(model, record.decided["inputs"]), 1.0)
    for repair in repairs:
        for code, words in repair["changes"]:
            if code in network.STRUCTURES:
                CHANGES[code].apply(body, words)


def _unknown(output: Any, target: Any) -> torch.Tensor:
    """In the place of a loss of the user's own: that the model does not make its own loss is what counts."""
    return torch.zeros(())


def _stand_in(model: nn.Module, inputs: Any) -> tuple[Any, Any]:
    """A few examples in the shape that the run's had: what is taken from them is loaded over."""

    def made(of: Any) -> Any:
        if isinstance(of, list):
            return tuple(made(part) for part in of)
        if "names" in of:
            return {name: made(part) for name, part in of["names"].items()}
        return torch.zeros(4, *of["shape"], dtype=getattr(torch, of["dtype"]), device=model_device(model))

    x = made(inputs)
    with evaluating(model), torch.no_grad():
        y = Forward(model)(x, training=False)
    return x, torch.zeros_like(y) if isinstance(y, torch.Tensor) else y


def again_made(body: Body, repairs: list[Mapping[str, Any]]) -> None:
    """Make the changes of earlier repairs; the weights are loaded afterwards."""
    for repair in repairs:
        body.step = int(repair["step"])
        undos: list[Undo] = []
        administer(body, Prescription(repair["name"], tuple((c, w) for c, w in repair["changes"])), None, undos)
        body.undos += [(body.step, undo) for undo in undos]
        body.forgets = False
        extend(body, repair["given_back"])


class Mending:
    """Runs a training; where it is ill, it is treated and goes on."""

    def __init__(
        self,
        training: Training,
        body: Body,
        chosen: Chosen,
        record: RunRecord,
        directory: Path,
        telling: Telling,
        step_for: Callable[[Body, Chosen], PlannedStep],
        setup_for: Callable[[PlannedStep, Chosen], Setup],
    ) -> None:
        """`step_for` plans the step of a mended training, `setup_for` puts its parts together."""
        self.training = training
        self.body = body
        self.chosen = chosen
        self._record = record
        self._directory = directory
        self._telling = telling
        self._step_for = step_for
        self._setup_for = setup_for

    @property
    def interrupt(self) -> bool:
        """Whether it is to stop after its current step."""
        return self.training.interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self.training.interrupt = value

    def run(self) -> str:
        """Train; returns why it stopped."""
        while (reason := self.training.run()) == ILL:
            begun, seconds = time.perf_counter(), self.training.at.seconds
            self._treat(self.training.untreated())
            self.training.at.seconds = seconds + time.perf_counter() - begun  # trials are part of the time
            if self.training.interrupt:
                self.training.setup.mends = ""  # it stops here, and is asked again when it is gone on with
        return reason

    def go_back_to_best(self) -> None:
        """Undo what was kept after the best weights: they are of the network that there was."""
        best = self.training.at.best_step
        for step, undo in reversed(self.body.undos):
            if best is not None and step >= best:
                undo()

    def _treat(self, findings: list[Finding]) -> None:
        """Try what answers the findings; keep what helps."""
        training, at = self.training, self.training.at
        body = self.body
        body.step = at.step
        _take_sample(body, self.chosen.batches)
        level = body.settings.repair
        planned = self._planned()
        is_early = training.watching.is_suspicion(findings)
        updates = min(trial.length(planned), BRIEF) if is_early else trial.length(planned)
        tried = prescribe(findings, body, level, goes_back=training.memory.good is not None)
        if at.mended >= trial.MOST_KEPT:
            tried = []
        while tried and not trial.is_affordable(at.tried_steps, 1 + len(tried), planned, updates):
            tried.remove(next((made for made in reversed(tried) if not made.is_asked), tried[-1]))
        spent = at.tried_steps
        sure = right(findings, tried) if not (at.mended or is_early) else ()
        trials = Trials(training, self.chosen, body, self._telling, planned)
        taken = trials.best_of(tried, updates, sure, not is_early) if tried else None
        if training.must_stop:  # interrupted, it is tried again from the beginning
            at.tried_steps = spent
            return
        self._record.decided["tried_steps"] = at.tried_steps
        at.treated += [finding.code for finding in findings]
        at.treated_at = at.step
        if taken is not None:
            self._keep(tried[taken], findings)
        elif tried:
            what = ", ".join(p.name for p in tried)
            self._tell(
                Action("trial", at.step, {}, {"tried": what}, False, f"{_why(findings)} Nothing tried did better.")
            )

    def _planned(self) -> int | None:
        """Updates of the whole training; where its time is limited no more than will be made in it, at this pace."""
        planned, at, limit = self.chosen.planned, self.training.at, self.training.limits.seconds
        if limit is None or not at.step or not at.seconds:
            return planned
        likely = int(at.step * limit / at.seconds)
        return likely if planned is None else min(planned, likely)

    def _keep(self, prescription: Prescription, findings: list[Finding]) -> None:
        """Go on as a training that was mended."""
        old, at, body = self.training, self.training.at, self.body
        before, plan = _words(body), self._record.decided["plan"]
        old.count_skipped()
        step = old.setup.step
        assert isinstance(step, PlannedStep)
        step.close()
        undos: list[Undo] = []
        done = administer(body, prescription, old.memory.good, undos)
        body.undos += [(at.step, undo) for undo in undos]
        given = given_back(body, prescription, at, old.setup.batches.per_epoch)
        parts = parts_of(body, self.chosen, old.setup)
        body.forgets = False
        if parts.batches is not old.setup.batches:
            at.epoch, at.position = at.epoch + (at.position > 0), 0
        at.mended, at.mended_at, at.treated = at.mended + 1, at.step, []
        at.epoch_sum, at.epoch_count = 0.0, 0
        history = old.setup.history
        told = self._facts(parts, prescription, done)
        before_it = {name: history.facts[name] for name in told if history.facts.get(name, told[name]) != told[name]}
        written = _written(prescription, done, at.step, plan, given) | {"facts": before_it}
        repairs = [*(self._record.decided.get("repairs") or []), written]
        kept = {word: self._record.decided.get(word) for word in ("search", "tried_steps", "num_examples")}
        self._record.decided = {**parts.decided, **kept, "repairs": repairs, "plan": None}
        planned = self._step_for(body, parts)
        planned.begin(at.step)
        planned.open()
        setup = self._setup_for(planned, parts)
        training = Training(setup, parts.limits, at)
        training.memory.follow(old.memory)
        assert self._telling.run is not None
        self._telling.run.optimizer = parts.optimizer
        history.note(told)
        begun = at.good_loss if prescription.is_from_the_start else setup.history.last("loss")
        training.memory.keep_good(at, training._start() if prescription.begins_anew else begun)
        training.watching.since, training.watching.asked_at = at.step, at.step
        training.best = old.best
        if any(code in OF_MEASURE for code, _ in done):  # what was best is so by another measure
            at.best_step = at.best_value = training.best = None
        training._started, training.interrupt = old._started, old.interrupt
        self.training, self.chosen = training, parts
        with contextlib.suppress(OSError):  # a full disk: the saver says so, and training goes on
            self._record.write(self._directory)
        training.save()
        after = _told(done)
        before = {word: value for word, value in before.items() if word in after}
        self._tell(Action(prescription.name, at.step, before, after, True, _why(findings), lines(done)))

    def _facts(self, parts: Chosen, prescription: Prescription, done: Done) -> dict[str, Any]:
        """The facts that hold from now on."""
        if not prescription.touches_network:
            return of_settings(parts, self.body.settings)
        told = facts(Step(self.body.forward, self.body.loss, parts.update), parts, self.body.settings)
        before = [change for repair in self._record.decided.get("repairs") or [] for change in repair["changes"]]
        for code, _ in [*before, *done]:
            told |= {name: value for name, value in STANDARD.get(code, {}).items() if name in told}
        return told

    def _tell(self, action: Action) -> None:
        self.training.setup.history.acted(action)
        self._telling.event(action)


def is_mended(settings: Settings, chosen: Chosen) -> bool:
    """Whether a training can be tried on: its data can be read again, and its rule is one that trials know."""
    data = chosen.batches.data
    finds_its_length = chosen.update.needs_batch or chosen.update.needs_closure  # there is no rate to be mended
    return settings.repair in LEVELS and not finds_its_length and not (isinstance(data, Stream) and data.once)


def _words(body: Body) -> dict[str, float | str]:
    """The settings that repairs change, as they are."""
    optimizer = body.settings.optimizer
    return {
        "optimizer": optimizer if isinstance(optimizer, str) else type(optimizer).__name__,
        "learning_rate": body.rate,
    }


def _told(done: Done) -> dict[str, float | str]:
    """What was done: settings by their names, changes of the network by their codes."""
    told: dict[str, float | str] = {}
    for code, words in done:
        if code in network.CHANGES:
            told[code] = ", ".join(f"{word} {value}" for word, value in words.items())
        elif code == "set_rows_aside":
            told[code] = f"{words['count']:.0f} rows, the first is {str(words['rows']).split()[0]}"
        else:
            told |= {word: value for word, value in words.items() if word != "from"}
    return told


def _written(prescription: Prescription, done: Done, step: int, plan: Any, given: dict[str, int]) -> dict[str, Any]:
    """A repair as run.json holds it; `plan` is the one that was followed before."""
    changes = [[code, words] for code, words in done]
    return {"name": prescription.name, "step": step, "changes": changes, "plan": plan, "given_back": given}


def _why(findings: list[Finding]) -> str:
    return " ".join(finding.sentence for finding in findings[:2])


def lines(done: Done) -> tuple[str, ...]:
    """The code that makes the same changes in a program of the user's own."""
    return tuple(line for code, words in done for line in CHANGES[code].lines(words))
