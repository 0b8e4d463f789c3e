"""The trainings of a search: candidates made of what `fit` prepared, run one after the other, told on the display."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from thalweg.gradients.lanczos import extreme_eigenvalues
from thalweg.gradients.products import Curvature
from thalweg.loop.train import EVALUATE_EVERY
from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.learning_rate import Trial
from thalweg.records.settings import Settings
from thalweg.records.step import StepRecord
from thalweg.run.candidates import Maker
from thalweg.run.course import Prepared
from thalweg.run.identity import identity
from thalweg.search.candidate import Candidate, Choice, leader
from thalweg.search.result import plain
from thalweg.search.trials import Failed, by_evaluations, to_the_end
from thalweg.tensors import seeds

#: Examples whose curvature at the first weights bounds a range test.
CURVED = 256
#: What to give instead of data that a search cannot go through again.
REPLAYABLE = "every trial must see the same batches: give arrays, a Dataset or a DataLoader"


class Trainings:
    """Makes the candidates of a search, all from the same weights and the same random state."""

    def __init__(self, prepared: Prepared, settings: Settings, display: Display) -> None:
        self.prepared = prepared
        self.settings = settings
        self.display = display
        self._maker = Maker(prepared.chosen, prepared.forward, prepared.loss, settings)

    def __call__(self, choice: Choice) -> Candidate:
        """A training that has not begun."""
        candidate, _ = self._maker(choice)
        candidate.training.setup.events = self.display
        return candidate

    def run(self, number: int, choice: Choice, goes_on: Callable[[int, float], bool] | None = None) -> Trial:
        """Train one candidate, whole or while `goes_on` says so."""
        self.display.begins(choice, self.updates)
        candidate = self(choice)
        try:
            if goes_on is None:
                trial = to_the_end(number, candidate)
            else:
                trial = by_evaluations(number, candidate, goes_on)
        except Failed as error:
            raise ValueError(f"the trial at rate {plain(choice.learning_rate)} failed: {error}") from error
        if trial.steps == 0:
            raise ValueError(f"the data gave no batch to the trial at rate {plain(choice.learning_rate)}: {REPLAYABLE}")
        self.display.ended(trial)
        return trial

    def stability(self, rule: str) -> float:
        """The rate from which plain descent with the rule's momentum β leaves along the steepest curvature,
        2 (1 + β)/λ_max, at the first weights (Cohen et al. 2021, section 2); infinite where that is not known.
        """
        if rule not in ("sgd", "momentum", "nesterov") or self.prepared.forward.is_keras:
            return math.inf
        momentum = 0.0 if rule == "sgd" else 0.9
        batch = self.prepared.chosen.batches.first(CURVED)
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            curvature = Curvature(self.prepared.forward.model, batch, self.prepared.loss)
            largest = extreme_eigenvalues(curvature, tolerance=0.1, max_products=20).largest
            if largest > 0:
                return 2 * (1 + momentum) / float(largest)
        return math.inf

    @property
    def updates(self) -> int | None:
        """Of one training, where that is known beforehand."""
        total: int | None = self.prepared.chosen.decided["total_steps"]
        return total

    @property
    def evaluations(self) -> int:
        """Of one training: at the end of each epoch, or every so many updates where an epoch has no known end."""
        every = self.prepared.chosen.batches.per_epoch or EVALUATE_EVERY
        return max(1, -(-self.updates // every)) if self.updates else self.settings.epochs or 1

    def identity(self, **words: Any) -> dict[str, Any]:
        """What a study of these trainings is of."""
        prepared = self.prepared
        with seeds.untouched():  # looking at a data set that draws must not change what the trials draw
            return words | identity(prepared.forward, prepared.loss, prepared.chosen, self.settings)

    @property
    def loss_name(self) -> str:
        """What trials are judged by, as it is said."""
        return "validation loss" if self.prepared.chosen.validation is not None else "training loss"

    @property
    def note(self) -> str:
        """Said where the data are no more than one batch."""
        batches = self.prepared.chosen.batches
        asked, count = self.settings.batch_size, batches.num_examples
        size = asked if isinstance(asked, int) else batches.order.batch_size
        if count is None or size is None or count >= size:
            return ""
        if count == 1:
            return f"There is one example and not a batch of {size}: each update took it."
        return f"The {count} examples are fewer than a batch of {size}: each update took all of them."


class Display:
    """Who is told what happens in the trials: the display, when it is due."""

    def __init__(self, stack: ExitStack, verbose: bool | str) -> None:
        self._progress: Any = None
        if verbose:
            from thalweg.reports.searching import QUIET, Progress

            self._progress = Progress(quiet=0.0 if verbose is True else QUIET)
            stack.callback(self._progress.close)
        self.total: int | None = None
        self._done: list[Trial] = []
        self._rate = 0.0
        self._updates: int | None = None

    def begins(self, choice: Choice, updates: int | None) -> None:
        """A trial is about to be run here."""
        self._rate, self._updates = choice.learning_rate, updates

    def ended(self, trial: Trial) -> None:
        """A trial was run here."""
        self._done.append(trial)

    def step(self, record: StepRecord) -> None:
        """After a reported update."""
        if self._progress is not None:
            self._progress.show(lambda: self._parts(record))

    def validated(self, record: StepRecord) -> None:
        """It is shown with the next line."""

    def event(self, event: Finding | Action) -> None:
        """Trials are not diagnosed."""

    def halving(self, candidates: Sequence[Candidate]) -> None:
        """How halving stands."""
        best = leader(candidates)
        left = sum(c.ended is None for c in candidates)
        self.race(
            f"{left} of {len(candidates)} rates left" + (f", {plain(best.choice.learning_rate)} leads" if best else "")
        )

    def race(self, words: str) -> None:
        """How a race stands."""
        if self._progress is not None:
            self._progress.show(lambda: [words])

    def waiting(self, left: int) -> None:
        """All that is left is run by others."""
        if self._progress is not None:
            words = "1 trial that another process runs" if left == 1 else f"{left} trials that other processes run"
            self._progress.show(lambda: [f"waiting for {words}"])

    def _parts(self, record: StepRecord) -> Iterator[str]:
        of = f" of {self.total}" if self.total else ""
        yield f"trial {len(self._done) + 1}{of}"
        yield f"rate {plain(self._rate)}"
        yield f"{100 * record.step / self._updates:.0f} %" if self._updates else f"{record.step} updates"
        if complete := [trial for trial in self._done if trial.state == "complete"]:
            best = min(complete, key=lambda trial: trial.loss)
            yield f"best so far {best.loss:.4g} at {plain(best.learning_rate)}"
