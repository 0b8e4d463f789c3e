"""One training among several that take turns in one model: its weights and its random state are put in while it runs.

What differs between candidates is said by a `Choice`; all begin from the same weights, the same random state and the
same batches, so that a difference of their losses is one of their choices.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from thalweg.loop.train import Training
from thalweg.step.batches import Batches
from thalweg.step.trial import Snapshot
from thalweg.tensors.named import assign, copied


@dataclass(frozen=True, slots=True)
class Choice:
    """What a candidate is trained with."""

    learning_rate: float
    optimizer: str = "auto"
    """A rule of the catalogue."""
    options: tuple[tuple[str, float], ...] = field(default=())
    """Further arguments of the rule that are searched, as weight_decay and momentum."""


#: Length of the cool-down before a candidate is judged, in shares of its updates.
COOL_DOWN = 0.25


def cool_down(depth: int) -> int:
    """Updates of the cool-down of a candidate that stands at a depth."""
    return max(1, round(COOL_DOWN * depth))


class NothingFinite(ValueError):
    """No rate gave a finite loss."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        tried = sorted(candidates, key=lambda c: c.choice.learning_rate)
        rates = [c.choice.learning_rate for c in tried]
        after = "one update" if tried[0].step == 1 else f"{tried[0].step} updates"
        super().__init__(
            f"no learning rate gave a finite loss: {len(rates)} from {rates[0]:g} to {rates[-1]:g} were tried, and "
            f"even the smallest had none after {after}; look at the model's outputs and the loss"
        )


class Candidate:
    """A training that can be gone on with, and judged, at any time; between its turns the model is another's."""

    def __init__(self, choice: Choice, training: Training, enter: Callable[[], None] = lambda: None) -> None:
        """`training` has not begun: its model holds the weights, and the generators the state, that all begin with.

        `enter` is called where a turn begins, and before each update of a cool-down.
        """
        self.choice = choice
        self.training = training
        self.enter = enter
        self.ended: str | None = None
        """Why it can go on no more."""
        self.scores: dict[int, float] = {}
        """Depth that it was to be trained to → held-out loss after a cool-down from there."""
        self.spent = 0
        """Updates made in all, those of cool-downs included."""
        self._first = self._weights = copied(training.forward.state())
        self._random = training.memory.random()

    @property
    def step(self) -> int:
        """Updates that its training stands after."""
        return self.training.at.step

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Inside, model and generators are this candidate's; what becomes of them is its own again afterwards."""
        state = self.training.forward.state()
        assign(state, self._weights)
        self.training.memory.set_random(self._random)
        self.enter()
        yield
        self._weights = copied(state)
        self._random = self.training.memory.random()

    def advance(self, to: int) -> None:
        """Train up to an update, unless it has ended."""
        if self.ended is not None or self.step >= to:
            return
        before = self.step
        with self.turn():
            self.ended = self.training.advance(to)
        self.spent += self.step - before

    def finish(self) -> None:
        """Train to the end, with the evaluation that is made there."""
        if self.ended == "diverged":
            return
        before = self.step
        with self.turn():
            self.ended = self.training.run()
        self.spent += self.step - before

    def fails_from_the_start(self) -> bool:
        """Whether the batch that it stands before cannot be trained on from its first weights either."""
        try:
            with self.turn():
                batch = next(self._batches(), None)
                assign(self.training.forward.state(), self._first)
                if batch is not None:
                    self.training.setup.step.gradients(batch)
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError):
            return True
        finally:
            self.training.setup.optimizer.zero_grad()
        return False

    def loss(self) -> float:
        """What it stands at: the best evaluation, which `fit` hands over; without held-out data the mean over the last
        epoch, or over what there was of the first. Infinite where it is not finite, or has diverged.
        """
        at, history = self.training.at, self.training.setup.history
        if self.ended == "diverged":
            return math.inf
        if self.training.setup.validation is not None:
            value = at.best_value
        elif (value := history.last("epoch_loss")) is None and at.epoch_count:
            value = at.epoch_sum / at.epoch_count
        return value if value is not None and math.isfinite(value) else math.inf

    def judge(self, depth: int, measure: Callable[[], float]) -> float:
        """The loss after a cool-down, updates whose rate falls to zero along a line; its training is left alone.

        Short trainings that end with a high rate are judged by the noise of their last updates: the rate that is best
        for them is far below the one that is best in the end (Wu et al. 2018). Infinite where it is not finite.
        """
        if self.ended == "diverged":
            self.scores[depth] = math.inf
            return math.inf
        training, setup = self.training, self.training.setup
        with self.turn():
            snapshot = Snapshot(training.forward, setup.optimizer)
            random = training.memory.random()
            rates = [group["lr"] for group in setup.optimizer.param_groups]
            training.model.train()
            length = cool_down(depth)
            for number, batch in enumerate(itertools.islice(self._batches(), length)):
                for group, rate in zip(setup.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - (number + 1) / (length + 1))
                self.enter()  # each is a step from where the training stands
                setup.step(batch)
            value = measure()
            for group, rate in zip(setup.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            snapshot.restore()
            training.memory.set_random(random)
        self.spent += length
        self.scores[depth] = value if math.isfinite(value) else math.inf
        return self.scores[depth]

    def sweep(self, rates: Sequence[float], seed: int) -> list[float]:
        """Losses before updates with these rates, over batches in the order of a seed; ended where one is not finite.

        Its training is of no more use afterwards.
        """
        training, setup = self.training, self.training.setup
        batches = setup.batches
        if batches.repeatable:
            batches = Batches(batches.data, replace(batches.order, seed=seed), batches.dtype, batches.device)
        losses: list[float] = []
        with self.turn():
            training.model.train()
            for rate, batch in zip(rates, endless(batches, 0), strict=False):
                for group in setup.optimizer.param_groups:
                    group["lr"] = rate
                losses.append(float(setup.step(batch)))
                if not math.isfinite(losses[-1]):
                    break
        self.spent += len(losses)
        self.drop()
        return losses

    def take(self) -> Training:
        """Put this candidate into the model for good; its training is gone on with from there."""
        assign(self.training.forward.state(), self._weights)
        self.training.memory.set_random(self._random)
        self.enter()
        self.drop()
        return self.training

    def drop(self) -> None:
        """It will have no further turn: what only it holds is let go."""
        self.ended = self.ended or "dropped"
        self._weights, self._random = {}, {}
        if self.ended == "dropped":
            self.training.setup.optimizer.state.clear()

    def _batches(self) -> Iterator[Any]:
        """What its training would see next, over the ends of epochs."""
        at, batches = self.training.at, self.training.setup.batches
        yield from self.training.memory.batches(at)
        yield from endless(batches, at.epoch + 1)


def spent(candidates: Iterable[Candidate], price: float) -> float:
    """Updates of all, where each measurement costs as much as `price` of them."""
    return sum(c.spent + price * len(c.scores) for c in candidates)


def leader(candidates: Iterable[Candidate]) -> Candidate | None:
    """The best of those that were judged at the greatest depth."""
    judged = [c for c in candidates if c.scores]
    return min(judged, key=lambda c: (-max(c.scores), c.scores[max(c.scores)]), default=None)


def endless(batches: Batches, epoch: int) -> Iterator[Any]:
    """The batches from an epoch on, until one has none."""
    for number in itertools.count(epoch):
        seen = False
        for batch in batches.epoch(number):
            seen = True
            yield batch
        if not seen:
            return
