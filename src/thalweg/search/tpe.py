"""Optuna's searches: TPE (Bergstra et al. 2011), and ASHA (Li et al. 2020), which drops trials at their evaluations.

TPE draws each trial from where earlier ones were good; ASHA draws at random, and a trial goes on only while it is among
the best third of those that came as far. Optuna drops trials and never goes on with them, so ASHA here judges short
trainings before their rate has come down: it is the quickest look over many dimensions, not the surest.

Any storage that Optuna takes can be shared, also from other machines. Trials of a worker that was killed stay marked as
running there; they are not counted, and others run what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.records.learning_rate import Trial
from thalweg.search.candidate import Choice
from thalweg.search.space import Range, Space
from thalweg.search.study import BUSY, record_of, require_same, trial_of
from thalweg.tensors.seeds import generator

#: Trials where nothing was asked; the first of them, that TPE draws at random before it has something to go by.
TRIALS, AT_RANDOM = 20, 6
#: Of the trials that came as far, one in so many goes on; and rungs below a whole training.
REDUCTION, RUNGS = 3, 2
#: Of the study in the storage.
NAME = "thalweg"

#: (number, choice, whether to go on after an evaluation) → the trial.
Run = Callable[[int, Choice, Callable[[int, float], bool] | None], Trial]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a study is asked for."""

    space: Space
    trials: int
    seed: int
    drops: bool
    """Whether trials that are not among the best are dropped: ASHA."""
    evaluations: int
    """Of a whole training."""


def search(asked: Asked, run: Run, storage: Any, identity: Mapping[str, Any]) -> list[Trial]:
    """Run trials until there are as many as asked for, by anyone; several workers at once may run a few more.

    Raises:
        ValueError: Optuna is not installed, the storage cannot be used, or is of another search.
    """
    optuna = _optuna()
    with _quiet(optuna), _opened(optuna, storage) as opened:
        study = _study(optuna, asked, opened, identity, storage)
        while len(finished := _finished(optuna, study)) < asked.trials:
            _one(optuna, study, asked, run)
        return finished


def _one(optuna: Any, study: Any, asked: Asked, run: Run) -> None:
    asking = study.ask()
    study.sampler = _sampler(optuna, asked, asking.number)
    try:
        bracket = asked.space.learning_rate
        rate = asking.suggest_float("learning_rate", bracket.low, bracket.high, log=True)
        options = {name: _suggested(asking, name, dimension) for name, dimension in asked.space.also.items()}

        def goes_on(evaluations: int, loss: float) -> bool:
            asking.report(loss, evaluations)
            return not asking.should_prune()

        trial = run(asking.number, asked.space.choice(rate, options), goes_on if asked.drops else None)
        asking.set_user_attr("trial", record_of(trial))
    except BaseException:
        study.tell(asking, state=optuna.trial.TrialState.FAIL)
        raise
    if trial.state == "dropped":
        study.tell(asking, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(asking, trial.loss)


def _suggested(asking: Any, name: str, dimension: Any) -> Any:
    if isinstance(dimension, Range):
        return asking.suggest_float(name, dimension.low, dimension.high, log=True)
    # By their places: Optuna keeps plain values only, and pairs such as betas are none.
    return dimension.values[asking.suggest_categorical(name, range(len(dimension.values)))]


def _finished(optuna: Any, study: Any) -> list[Trial]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return [trial_of(found.user_attrs["trial"]) for found in study.get_trials(deepcopy=False, states=states)]


def _sampler(optuna: Any, asked: Asked, number: int) -> Any:
    """What draws one trial; by its number, or workers that begin together would draw the same ones."""
    seed = int(generator(asked.seed, "optuna", number).initial_seed() % 2**32)
    if asked.drops:
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=AT_RANDOM)


def _study(optuna: Any, asked: Asked, opened: Any, identity: Mapping[str, Any], storage: Any) -> Any:
    least = max(1, math.ceil(asked.evaluations / REDUCTION**RUNGS))
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=least, reduction_factor=REDUCTION)
    with _said(storage):
        study = optuna.create_study(storage=opened, study_name=NAME, pruner=pruner, load_if_exists=True)
        found = study.user_attrs.get("identity")
        if found is None:
            study.set_user_attr("identity", dict(identity))
    if found is not None:
        require_same(found, identity, str(storage))
    return study


@contextlib.contextmanager
def _opened(optuna: Any, storage: Any) -> Iterator[Any]:
    """The storage as Optuna knows it; None is memory."""
    if storage is None:
        yield None
        return
    url = os.fspath(storage) if isinstance(storage, str | os.PathLike) else storage
    if not isinstance(url, str):
        raise TypeError(f"storage takes the path of a file, or a URL that Optuna takes, got {storage!r}")
    path = None if "://" in url else Path(url).absolute()
    with _said(storage), _first_alone(path):
        opened = _storage(optuna, url if path is None else f"sqlite:///{path}")
    try:
        yield opened
    finally:
        opened.remove_session()
        if (engine := getattr(opened, "engine", None)) is not None:
            engine.dispose()


def _storage(optuna: Any, url: str) -> Any:
    if url.startswith("redis"):
        return optuna.storages.get_storage(url)
    arguments = {"connect_args": {"timeout": BUSY}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


@contextlib.contextmanager
def _first_alone(path: Path | None) -> Iterator[None]:
    """Two workers that make the tables of one file at the same time would get into each other's way."""
    if path is None:
        yield
        return
    descriptor = os.open(f"{path}.claims", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _said(storage: Any) -> Iterator[None]:
    """What any database and its driver say, in one sentence."""
    try:
        yield
    except Exception as error:  # SQLAlchemy's, the driver's, Optuna's, the system's
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the storage {storage} cannot be used ({first}): give a file or URL that Optuna can write"
        ) from error


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna tells of each trial; inside only of what is wrong."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError("the methods tpe and asha need Optuna: pip install 'thalweg[search]'") from error
    return optuna
