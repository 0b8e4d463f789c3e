"""Search for a learning rate before a training, in the user's model and data, which are left as they were found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from thalweg.loop.train import EVALUATE_EVERY
from thalweg.records.learning_rate import LearningRate, Trial
from thalweg.records.settings import Settings, positive, unknown, whole
from thalweg.records.step import StepRecord
from thalweg.run.candidates import training_of
from thalweg.run.fit import LIKELY_EPOCHS, Prepared, prepare
from thalweg.run.identity import identity
from thalweg.run.untouched import untouched
from thalweg.search import grid, random, tpe
from thalweg.search.candidate import Candidate, Choice
from thalweg.search.result import Searched, judged, plain
from thalweg.search.space import Space, space
from thalweg.search.study import opened, share
from thalweg.search.trials import Failed, by_evaluations, to_the_end
from thalweg.step.data import Stream
from thalweg.tensors import devices, seeds
from thalweg.tensors.named import assign, copied, leaves


def find_lr(
    model: Any,
    data: Any,
    loss: Any = None,
    *,
    method: str = "grid",
    low: float | None = None,
    high: float | None = None,
    trials: int | None = None,
    budget: float | None = None,
    optimizer: str = "adamw",
    batch_size: int | str = "auto",
    epochs: int | None = None,
    steps: int | None = None,
    validation_data: Any = None,
    validation_split: float = 0.0,
    also: Mapping[str, Any] | None = None,
    storage: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    verbose: bool | str = "auto",
) -> LearningRate:
    """Search for the learning rate of a training; model, data and random state are left as they were found.

    All trials begin from the model's weights, with the same seed and the same batches, and each is what `fit` would do
    with its rate; so a difference of their losses is one of their rates.

    Args:
        model: a `torch.nn.Module`, or a Keras 3 model on the torch backend.
        data: what `fit` takes, but nothing that can be iterated only once.
        loss: what `fit` takes.
        method: "grid", "random"; "tpe" and "asha" with the extra `search` (Optuna).
        low: the lowest rate to try; the rule's own where it is left out, and likewise `high`.
        high: the highest rate to try.
        trials: how many rates (grid) or trials (the others); 11 for grid and random, 20 for tpe and asha.
        budget: at most so many trainings.
        optimizer: a rule's name.
        batch_size: examples per update, as in `fit`.
        epochs: length of the training that the rate is for; 20 epochs where neither this nor `steps` is given.
        steps: the same in updates.
        validation_data: held-out data, whose best loss a trial is judged by; without, the training loss is.
        validation_split: share of the examples to hold out instead.
        also: further options of the rule to search: {"weight_decay": (1e-4, 0.3), "momentum": [0.8, 0.9, 0.95]}, a
            tuple being a logarithmic range and a list the values.
        storage: a file (or sqlite:///FILE; with tpe and asha any URL that Optuna takes) that keeps the trials. A search
            that was stopped goes on there, and several processes with one storage share the work.
        seed: of everything that is drawn.
        device: where to compute, as in `fit`.
        verbose: "auto" and True show progress on standard error, "auto" from the second second on.

    Returns:
        The rate, the interval of rates that do as well, the curve, the trials and the cost.

    Raises:
        ValueError: a bracket upside down, data that cannot be replayed, a storage that cannot be used or is of another
            search, no finite loss at any rate, or what `fit` raises.
        TypeError: an optimizer object, an option that the rule has not, or what `fit` raises.

    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> found = find_lr(
    ...     torch.nn.Linear(1, 1), (x, 2 * x), "mse", optimizer="sgd", low=0.01, high=1.0, trials=3, steps=30
    ... )
    >>> found.value, [rate for rate, loss in found.curve]
    (1.0, [0.01, 0.1, 1.0])
    """
    search = Search(method, optimizer, low, high, trials, budget, also, storage, seed)
    require_replayable(data)
    if epochs is None and steps is None:
        epochs = LIKELY_EPOCHS
    settings = Settings(
        optimizer=search.space.optimizer,
        batch_size=batch_size,
        epochs=epochs,
        steps=steps,
        validation_data=validation_data,
        validation_split=validation_split,
        seed=seed,
        device=device,
        patience=None,
        plan="eager",
        verbose=False,
    )
    if devices.choose(device).type == "cuda":
        torch.cuda.init()  # or its generators could not be put back
    with ExitStack() as stack:
        stack.enter_context(untouched(model, data, validation_data))
        prepared = prepare(stack, model, data, loss, settings)
        telling = Telling(stack, verbose)
        return METHODS[method](search, Trainings(prepared, settings, telling))


@dataclass(frozen=True, slots=True)
class Search:
    """What `find_lr` is asked for, in its words.

    Raises:
        ValueError, TypeError: see `find_lr`.
    """

    method: str = "grid"
    optimizer: str = "adamw"
    low: float | None = None
    high: float | None = None
    trials: int | None = None
    budget: float | None = None
    also: Mapping[str, Any] | None = None
    storage: str | os.PathLike[str] | None = None
    seed: int = 0
    space: Space = field(init=False)
    """Where it looks."""

    def __post_init__(self) -> None:
        if not isinstance(self.method, str):
            raise TypeError(f"method takes a word, one of {', '.join(METHODS)}, got {self.method!r}")
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, list(METHODS)))
        if self.trials is not None:
            whole("trials", self.trials)
            if self.trials < 2:
                raise ValueError(f"trials must be at least 2, or there is nothing to choose from, got {self.trials}")
        if self.budget is not None:
            positive("budget", self.budget)
        object.__setattr__(self, "space", space(self.optimizer, self.low, self.high, self.also))

    def num_trials(self, default: int) -> int:
        """Trials of a search whose trials are trainings."""
        found = self.trials if self.trials is not None else default
        if self.budget is None:
            return found
        if self.budget < 2:
            raise ValueError(f"budget is in trainings, and {self.method} needs at least 2, got {self.budget:g}")
        return min(found, int(self.budget))


class Trainings:
    """Makes the candidates of a search, all from the same weights and the same random state."""

    def __init__(self, prepared: Prepared, settings: Settings, telling: Telling) -> None:
        self.prepared = prepared
        self.settings = settings
        self.telling = telling
        self._weights = copied(prepared.forward.state())
        self._random: dict[str, Any] | None = None

    def __call__(self, choice: Choice) -> Candidate:
        """A training that has not begun; the model is put back to where all begin."""
        prepared = self.prepared
        assign(prepared.forward.state(), self._weights)
        training, _ = training_of(choice, prepared.chosen, prepared.forward, prepared.loss, self.settings)
        if self._random is None:
            self._random = training.memory.random()
        training.memory.set_random(self._random)
        training.setup.events = self.telling
        return Candidate(choice, training)

    def run(self, number: int, choice: Choice, goes_on: Callable[[int, float], bool] | None = None) -> Trial:
        """Train one candidate, whole or while `goes_on` says so."""
        self.telling.begins(choice, self.updates)
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
        self.telling.ended(trial)
        return trial

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
        return words | identity(self.prepared.forward, self.prepared.loss, self.prepared.chosen, self.settings)

    def searched(self, search: Search) -> Searched:
        """What the trials were trials of."""
        has_validation = self.prepared.chosen.validation is not None
        return Searched(
            method=search.method,
            bracket=(search.space.learning_rate.low, search.space.learning_rate.high),
            loss_name="validation loss" if has_validation else "training loss",
            updates=self.updates,
            options={"optimizer": search.space.optimizer},
            note=self._small(),
        )

    def _small(self) -> str:
        """Said where the data are no more than one batch."""
        batches = self.prepared.chosen.batches
        asked, count = self.settings.batch_size, batches.num_examples
        size = asked if isinstance(asked, int) else batches.order.batch_size
        if count is None or size is None or count >= size:
            return ""
        return f"The {count} examples are fewer than a batch of {size}: each update took all of them."


class Telling:
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


def _grid(search: Search, trainings: Trainings) -> LearningRate:
    choices = grid.points(search.space, search.trials, search.budget)
    return _shared(search, trainings, choices, rates=len({choice.learning_rate for choice in choices}))


def _random(search: Search, trainings: Trainings) -> LearningRate:
    count = search.num_trials(random.TRIALS)
    return _shared(search, trainings, [random.point(search.space, search.seed, number) for number in range(count)])


def _shared(search: Search, trainings: Trainings, choices: list[Choice], **words: Any) -> LearningRate:
    """Trials that are known beforehand, shared among all processes that have the storage."""
    told = trainings.telling
    told.total = len(choices)
    words = {"method": search.method, **search.space.as_words(), **words}
    with opened(search.storage, trainings.identity(**words)) as study:
        numbers = range(len(choices))
        found = share(study, numbers, lambda number: trainings.run(number, choices[number]), told.waiting)
    return judged(found, trainings.searched(search))


def _optuna(search: Search, trainings: Trainings) -> LearningRate:
    count = search.num_trials(tpe.TRIALS)
    trainings.telling.total = count
    asked = tpe.Asked(search.space, count, search.seed, search.method == "asha", trainings.evaluations)
    words = {"method": search.method, **search.space.as_words()}
    found = tpe.search(asked, trainings.run, search.storage, trainings.identity(**words))
    return judged(found, trainings.searched(search))


METHODS: dict[str, Callable[[Search, Trainings], LearningRate]] = {
    "grid": _grid,
    "random": _random,
    "tpe": _optuna,
    "asha": _optuna,
}

#: What to give instead of data that a search cannot go through again.
REPLAYABLE = "every trial must see the same batches: give arrays, a Dataset or a DataLoader"


def require_replayable(data: Any) -> None:
    """Refuse data that a second trial could not see again.

    Raises:
        ValueError: an iterator, or an iterable whose first batch is another one each time.
    """
    if isinstance(data, Iterator):
        raise ValueError(f"the data is a {type(data).__name__}, which can be gone through only once; {REPLAYABLE}")
    is_indexed = hasattr(data, "__getitem__") and not isinstance(data, IterableDataset)
    if is_indexed or isinstance(data, DataLoader) or not (callable(data) or hasattr(data, "__iter__")):
        return
    first, again = _first(data), _first(data)
    if len(first) != len(again) or not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
        raise ValueError(f"the data gives other batches each time it is gone through; {REPLAYABLE}")


def _first(data: Any) -> list[torch.Tensor]:
    """The tensors of the first batch, drawn from the random state as it is now, which is left so."""
    with seeds.untouched():
        return [t.clone() for t in leaves(next(Stream(data, None).batches(), ()))]
