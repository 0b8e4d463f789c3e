"""What `fit` was left to choose by trying: candidates are raced, and the winner's training is the run's own.

A training that takes the winner's rate from the beginning makes the same updates up to the end of the race; from there
on the rate is the one that the race ends with.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from thalweg.loop.evaluate import BATCH_SIZE, measure
from thalweg.loop.memory import untouched
from thalweg.loop.metrics import resolve_metrics
from thalweg.loop.train import Training
from thalweg.optim import catalogue
from thalweg.records.settings import Settings
from thalweg.run.candidates import Kept, Maker
from thalweg.run.choices import Chosen
from thalweg.search.candidate import Candidate, Choice, endless, leader
from thalweg.search.race import FEWEST, Interrupted, Lane, Race, Won
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Stream, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.planned import PlannedStep
from thalweg.tensors.seeds import generator

#: What optimizer="auto" races: the rule it means, and the other family. SGD without momentum is this one at a tenth of
#: the rate, Nesterov's little else, and those that divide by √s are told apart from AdamW by less than a race can see.
RULES = (catalogue.AUTO, "momentum")
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
#: Measurements of the shortest race, and what they may take of a training for its cap to be kept.
SHORTEST, MOST_MEASURED = 6, 0.2
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
    return is_open(settings) and not _is_once(chosen) and ends_low and total is not None and is_long(chosen, total)


def is_long(chosen: Chosen, total: int) -> bool:
    """Whether a training is long enough for a race of it to keep its cap; small batches make measurements dear."""
    return total >= FEWEST and SHORTEST * price(chosen, _num_measured(chosen, total)) <= MOST_MEASURED * total


def is_open(settings: Settings) -> bool:
    """Whether the rate was left open; an optimizer of the user's own brings one, and some rules find their steps."""
    named = isinstance(settings.optimizer, str) and catalogue.RULES.get(settings.optimizer)
    return settings.learning_rate == "auto" and isinstance(settings.optimizer, str) and (not named or named.is_searched)


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


def likely_steps(chosen: Chosen) -> int | None:
    """Updates of the training: as many as were asked for, else as many as it is likely to take, where that is known."""
    total: int | None = chosen.decided["total_steps"]
    if total is None and chosen.batches.per_epoch is not None:
        return LIKELY_EPOCHS * chosen.batches.per_epoch
    return total


def expected_steps(chosen: Chosen) -> int:
    """The same, with a guess where even that is not known."""
    return likely_steps(chosen) or LIKELY_STEPS


def lanes(settings: Settings) -> list[Lane]:
    """The rates of the rule that was asked for, or of each that may be chosen; options are those of one rule."""
    if settings.optimizer != "auto":
        return [lane(settings.optimizer)]
    return [lane(name) for name in (RULES if settings.optimizer_options is None else RULES[:1])]


def lane(name: str) -> Lane:
    """The rates of a rule."""
    rule = catalogue.RULES[name]
    return Lane(Choice(rule.learning_rate, name), *rule.range)


class Stage:
    """A race of trainings in one model; made once, run once. `interrupt` may be set at any time."""

    def __init__(self, maker: Maker, tell: Callable[[str], None]) -> None:
        """The step that candidates share, where they share one, is planned first."""
        self.maker = maker
        self.settings = maker.settings
        self.tell = tell
        self.parts: dict[Choice, Chosen] = {}
        """What the training of each candidate is made of."""
        self.race: Race | None = None
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        """Whether it is to end."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value
        if self.race is not None:
            self.race.interrupt = value

    def begin(self) -> Race:
        """Plan the step, and what is to be raced with it.

        Raises:
            Interrupted: it was interrupted.
        """
        maker = self.maker
        if maker.step is not None:
            self._plan(maker.step)
        if self.interrupt:
            raise Interrupted
        total = self._paced(expected_steps(maker.chosen))
        sample = Sample(maker.chosen, maker.forward, maker.loss, total, self.settings.seed)
        self.race = Race(self._make, sample, total, sample.price, tell=self._told)
        if self.interrupt:  # since the race was not there to be told
            raise Interrupted
        return self.race

    def run(self) -> Raced:
        """Race; the model, the generators and what is returned are the winner's.

        Raises:
            NothingFinite: no rate gave a finite loss; Interrupted: it was interrupted. All is as it was found then.
        """
        begun = time.perf_counter()
        try:
            race = self.begin()
            won = race.run(*lanes(self.settings))
        except BaseException:
            self.maker.put_back()
            raise
        training = won.candidate.take()
        _set_rate(training, won.rate)
        training.at.seconds = time.perf_counter() - begun
        kept = training.setup.events
        assert isinstance(kept, Kept)
        return Raced(training, self.parts[won.candidate.choice], kept, told(won, race.total))

    def _plan(self, step: PlannedStep) -> None:
        """Find the fastest way to run the step, on the first batches that candidates will see."""
        self.tell("finding the fastest step")
        step.forward.model.train()
        source = self.maker.chosen.batches
        with untouched(source):
            batches = endless(source, 0)
            step.plan_on(itertools.takewhile(lambda _: not self.interrupt, batches))

    def _paced(self, total: int) -> int:
        """As many updates as there is time for, where a time was given: the only thing that the clock decides."""
        if self.settings.time_budget is None:
            return total
        choice = lanes(self.settings)[0].choice
        for _ in range(2):  # the first time a plan that was given may have a program compiled
            candidate, _ = self.maker(choice)
            begun = time.perf_counter()
            done = len(candidate.sweep([choice.learning_rate] * PACED, self.settings.seed))
            seconds = (time.perf_counter() - begun) / max(1, done)
        self.maker.put_back()
        return max(1, min(total, int(self.settings.time_budget / seconds)))

    def _make(self, choice: Choice) -> Candidate:
        candidate, self.parts[choice] = self.maker(choice)
        events = candidate.training.setup.events
        assert isinstance(events, Kept)
        events.tell = self._told
        return candidate

    def _told(self) -> None:
        """Say how the race stands."""
        words = "choosing the learning rate"
        if self.race is not None and (best := leader(self.race.field.values())) is not None:
            rule = f" with {best.choice.optimizer}" if len(lanes(self.settings)) > 1 else ""
            words += f": {len(self.race.field)} tried, {best.choice.learning_rate:g}{rule} leads"
        self.tell(words)


class Sample:
    """Examples that candidates are measured on; called, the loss of the model as it stands on them."""

    def __init__(self, chosen: Chosen, forward: Forward, loss: Loss | None, total: int, seed: int) -> None:
        self.forward = forward
        self.loss = loss
        self.batches = held_out(chosen, total, seed)
        self.price = price(chosen, sum(num_examples(batch) for batch in self.batches))
        """Of a measurement, in updates."""

    def __call__(self) -> float:
        """Measure."""
        return measure(self.forward, self.loss, self.batches, resolve_metrics((), None))["loss"]


def held_out(chosen: Chosen, total: int, seed: int) -> list[Any]:
    """Batches that candidates are measured on: of held-out data where there is any, else of the training data."""
    source = chosen.validation or chosen.batches
    size = chosen.decided["batch_size"]
    count = _num_measured(chosen, total)
    data = source.data
    if isinstance(data, Stream):
        with untouched(source):
            return list(itertools.islice(source.epoch(0), math.ceil(count / size) if isinstance(size, int) else 1))
    drawn = torch.randperm(len(data), generator=generator(seed, "race"))[:count]
    sample = data.part(sorted(drawn.tolist()))
    return list(Batches(sample, Order(BATCH_SIZE, shuffle=False), source.dtype, source.device).epoch(0))


def price(chosen: Chosen, rows: int) -> float:
    """What it costs to measure so many examples, in updates."""
    size = chosen.decided["batch_size"]
    return FORWARD * rows / (size if isinstance(size, int) else max(1, rows))


def _num_measured(chosen: Chosen, total: int) -> int:
    """Examples that candidates are measured on: what is a small part of the cap, but enough to tell them apart."""
    size, known = chosen.decided["batch_size"], (chosen.validation or chosen.batches).num_examples
    affordable = MEASURED * 0.3 * total * (size if isinstance(size, int) else MOST_EXAMPLES) / (FORWARD * MEASUREMENTS)
    count = int(min(MOST_EXAMPLES, max(FEWEST_EXAMPLES, affordable)))
    return count if known is None else min(count, known)


def told(won: Won, total: int) -> dict[str, Any]:
    """A race as `run.json` holds it."""
    tried = sorted(won.candidates, key=lambda c: c.choice.learning_rate)
    return {
        "learning_rate": won.rate,
        "optimizer": won.candidate.choice.optimizer,
        "began_with": won.candidate.choice.learning_rate,
        "steps": won.candidate.step,
        "cost": round(won.cost, 4),
        "total_steps": total,
        "tried": [
            {
                "optimizer": c.choice.optimizer,
                "learning_rate": c.choice.learning_rate,
                "losses": {str(step): loss if math.isfinite(loss) else None for step, loss in c.scores.items()},
            }
            for c in tried
        ],
    }


def _set_rate(training: Training, rate: float) -> None:
    """From here on a training has this rate; its schedule's part in it stays."""
    optimizer = training.setup.optimizer
    first = optimizer.param_groups[0]["initial_lr"]
    for group in optimizer.param_groups:
        if group["initial_lr"] == first:  # a group with a rate of its own keeps it
            group["initial_lr"] = rate
            group["lr"] *= rate / first
