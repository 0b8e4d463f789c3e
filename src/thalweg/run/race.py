"""What `fit` was left to choose by trying: candidates are raced, and the winner's training is the run's own.

A training that takes the winner's rate from the beginning makes the same updates up to the end of the race; from there
on the rate is the one that the race ends with.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from thalweg.loop.evaluate import BATCH_SIZE, measure
from thalweg.loop.memory import untouched
from thalweg.loop.metrics import resolve_metrics
from thalweg.loop.train import Training
from thalweg.optim import catalogue
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings
from thalweg.run.candidates import Kept, training_of
from thalweg.run.choices import Chosen, again
from thalweg.search.candidate import Candidate, Choice
from thalweg.search.race import FEWEST, Lane, Race, Won
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Stream, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.tensors.named import assign, copied
from thalweg.tensors.seeds import generator

#: Schedules whose rate is low in the end, where the length of the training is known.
ENDS_LOW = ("auto", "cosine", "one_cycle", "warmup_stable_decay", "exponential", "step", "warm_restarts")
#: Passes over the data that a training without a limit is expected to take, where it is planned ahead.
LIKELY_EPOCHS = 20
#: Updates that a training of unknown length is expected to take: a stream does not say how long it is.
LIKELY_STEPS = 2000
#: Share of the race's cap that measurements may take, and how many there are about.
MEASURED, MEASUREMENTS = 0.1, 10
#: Examples that a candidate is measured on.
FEWEST_EXAMPLES, MOST_EXAMPLES = 256, 4096
#: Updates that are timed where the training has a time and no length.
PACED = 5
#: What a forward pass costs of an update.
FORWARD = 1 / 3


@dataclass(frozen=True, slots=True)
class Raced:
    """The winner's training as it stands, the parts it is made of, and the words for `run.json`."""

    training: Training
    parts: Chosen
    kept: Kept
    told: dict[str, Any]


def is_raced(settings: Settings, chosen: Chosen) -> bool:
    """Whether there is a rate to choose, and a training that a race can judge: long enough, of known length, and with a
    schedule that ends low, as the cool-down does that candidates are judged after.
    """
    total = chosen.decided["total_steps"]
    ends_low = isinstance(settings.schedule, str) and settings.schedule in ENDS_LOW
    return is_open(settings) and not _is_once(chosen) and ends_low and total is not None and total >= FEWEST


def is_open(settings: Settings) -> bool:
    """Whether the rate was left open; an optimizer of the user's own brings one."""
    return settings.learning_rate == "auto" and isinstance(settings.optimizer, str)


def _is_once(chosen: Chosen) -> bool:
    data = chosen.batches.data
    return isinstance(data, Stream) and data.once


def why_not(settings: Settings, chosen: Chosen) -> str | None:
    """What keeps a race from being run that the user can do something about."""
    if is_open(settings) and _is_once(chosen):
        return (
            "The data can be gone through only once, so the learning rate is the rule's own and was not chosen: "
            "give arrays, a Dataset or a DataLoader to have it chosen."
        )
    return None


def expected_steps(chosen: Chosen) -> int:
    """Updates of the training: as many as were asked for, else as many as it is likely to take."""
    total = chosen.decided["total_steps"]
    if total is not None:
        return int(total)
    per_epoch = chosen.batches.per_epoch
    return LIKELY_STEPS if per_epoch is None else LIKELY_EPOCHS * per_epoch


class Stage:
    """A race of trainings in one model; made once, run once. `interrupt` may be set at any time."""

    def __init__(self, chosen: Chosen, forward: Forward, loss: Loss | None, settings: Settings, tell: Any) -> None:
        self.chosen = chosen
        self.forward = forward
        self.loss = loss
        self.settings = settings
        self.tell = tell
        self.parts: dict[int, Chosen] = {}
        self._weights = copied(forward.state())
        self._random: dict[str, Any] | None = None
        """What all begin with; the state of generators once the first is made, who knows which there are."""
        self.total = self._paced(expected_steps(chosen))
        sample = Sample(chosen, forward, loss, self.total, settings.seed)
        self.race = Race(self._make, sample, self.total, sample.price, tell=lambda race: tell(self.words()))

    @property
    def interrupt(self) -> bool:
        """Whether it is to end."""
        return self.race.interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self.race.interrupt = value

    def run(self) -> Raced:
        """Race; the model, the generators and what is returned are the winner's.

        Raises:
            NothingFinite: no rate gave a finite loss; Interrupted: it was interrupted. The model is as it was then.
        """
        begun = time.perf_counter()
        try:
            won = self.race.run(self.lanes())
        except BaseException:
            assign(self.forward.state(), self._weights)
            raise
        training = won.candidate.take()
        parts = self.parts[id(training)]
        _set_rate(training, won.choice.learning_rate)
        training.at.seconds = time.perf_counter() - begun
        kept = training.setup.events
        assert isinstance(kept, Kept)
        return Raced(training, parts, kept, told(won, self.total))

    def _paced(self, total: int) -> int:
        """As many updates as there is time for, where a time was given: the only thing that the clock decides."""
        if self.settings.time_budget is None:
            return total
        choice = self.lanes()[0].choice
        candidate = self._make(choice)
        begun = time.perf_counter()
        done = len(candidate.sweep([choice.learning_rate] * PACED, self.settings.seed))
        seconds = (time.perf_counter() - begun) / max(1, done)
        assign(self.forward.state(), self._weights)
        return max(1, min(total, int(self.settings.time_budget / seconds)))

    def lanes(self) -> list[Lane]:
        """The rules that are raced, each with its range."""
        name = catalogue.AUTO if self.settings.optimizer == "auto" else self.settings.optimizer
        rule = catalogue.RULES[name]
        return [Lane(Choice(rule.learning_rate, name), *rule.range)]

    def words(self) -> str:
        """How the race stands, for a person who waits."""
        field = [c for c in self.race.field.values() if c.scores]
        if not field:
            return "choosing the learning rate"
        best = min(field, key=lambda c: (-max(c.scores), c.scores[max(c.scores)]))
        return f"choosing the learning rate: {len(field)} tried, {best.choice.learning_rate:g} leads"

    def _make(self, choice: Choice) -> Candidate:
        training, parts = training_of(choice, self.chosen, self.forward, self.loss, self.settings)
        events = training.setup.events
        assert isinstance(events, Kept)
        events.tell = lambda: self.tell(self.words())
        self.parts[id(training)] = parts
        assign(self.forward.state(), self._weights)
        if self._random is None:
            self._random = training.memory.random()
        training.memory.set_random(self._random)
        return Candidate(choice, training)


class Sample:
    """Examples that candidates are measured on; called, the loss of the model as it stands on them."""

    def __init__(self, chosen: Chosen, forward: Forward, loss: Loss | None, total: int, seed: int) -> None:
        self.forward = forward
        self.loss = loss
        self.batches = held_out(chosen, total, seed)
        rows = sum(num_examples(batch) for batch in self.batches)
        size = chosen.decided["batch_size"]
        self.price = FORWARD * rows / (size if isinstance(size, int) else rows)
        """Of a measurement, in updates."""

    def __call__(self) -> float:
        """Measure."""
        return measure(self.forward, self.loss, self.batches, resolve_metrics((), None))["loss"]


def held_out(chosen: Chosen, total: int, seed: int) -> list[Any]:
    """Batches that candidates are measured on: of held-out data where there is any, else of the training data."""
    source = chosen.validation or chosen.batches
    size = chosen.decided["batch_size"]
    affordable = MEASURED * 0.3 * total * (size if isinstance(size, int) else MOST_EXAMPLES) / (FORWARD * MEASUREMENTS)
    count = int(min(MOST_EXAMPLES, max(FEWEST_EXAMPLES, affordable)))
    data = source.data
    if isinstance(data, Stream):
        with untouched(source):
            return list(itertools.islice(source.epoch(0), math.ceil(count / size) if isinstance(size, int) else 1))
    drawn = torch.randperm(len(data), generator=generator(seed, "race"))[:count]
    sample = data.part(sorted(drawn.tolist()))
    return list(Batches(sample, Order(BATCH_SIZE, shuffle=False), source.dtype, source.device).epoch(0))


def told(won: Won, total: int) -> dict[str, Any]:
    """A race as `run.json` holds it."""
    tried = sorted(won.candidates, key=lambda c: c.choice.learning_rate)
    return {
        "learning_rate": won.choice.learning_rate,
        "optimizer": won.choice.optimizer,
        "began_with": won.candidate.choice.learning_rate,
        "steps": won.candidate.step,
        "cost": round(won.cost, 4),
        "total_steps": total,
        "tried": [
            {
                "learning_rate": c.choice.learning_rate,
                "losses": {str(step): loss if math.isfinite(loss) else None for step, loss in c.scores.items()},
            }
            for c in tried
        ],
    }


def as_decided(chosen: Chosen, forward: Forward, loss: Loss | None, settings: Settings, record: RunRecord) -> Chosen:
    """What was left open as an earlier part of the run has chosen it, so that its state fits."""
    found = record.decided.get("search")
    if found is None:
        return chosen
    if settings.optimizer == "auto":
        settings = replace(settings, optimizer=found["optimizer"])
    if settings.learning_rate == "auto":
        settings = replace(settings, learning_rate=found["learning_rate"])
    parts = again(chosen, forward, loss, settings)
    record.decided |= {**parts.decided, "plan": record.decided.get("plan")}
    return parts


def _set_rate(training: Training, rate: float) -> None:
    """From here on a training has this rate; its schedule's part in it stays."""
    optimizer = training.setup.optimizer
    first = optimizer.param_groups[0]["initial_lr"]
    for group in optimizer.param_groups:
        if group["initial_lr"] == first:  # a group with a rate of its own keeps it
            group["initial_lr"] = rate
            group["lr"] *= rate / first
