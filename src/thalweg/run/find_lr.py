"""Search for a learning rate before a training, in the user's model and data, which are left as they were found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from thalweg.records.learning_rate import LearningRate
from thalweg.records.settings import Settings
from thalweg.run.fit import prepare
from thalweg.run.placing import told_once
from thalweg.run.race import LIKELY_EPOCHS
from thalweg.run.searches import METHODS, Search
from thalweg.run.trainings import REPLAYABLE, Display, Trainings
from thalweg.run.untouched import untouched
from thalweg.step.data import Stream
from thalweg.tensors import devices, seeds
from thalweg.tensors.named import leaves


def find_lr(
    model: Any,
    data: Any,
    loss: Any = None,
    *,
    method: str = "auto",
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
        method: "auto" is the race that `fit` begins with, at a third of a training or less, and where a training is
            too short for one a grid; "halving", "grid", "random"; "range" only brackets; "tpe" and "asha" with the
            extra `search` (Optuna).
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
    devices.begin(devices.choose(device))
    with told_once(), ExitStack() as stack:
        stack.enter_context(untouched(model, data, validation_data))
        if isinstance(loss, nn.Module):
            stack.enter_context(untouched(loss))
        prepared = prepare(stack, model, data, loss, settings)
        display = Display(stack, verbose)
        return METHODS[method](search, Trainings(prepared, settings, display))


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
