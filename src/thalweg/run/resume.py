"""Go on with a run that ended early."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from thalweg.records.run import RunRecord
from thalweg.records.settings import OTHER_WORDS, Settings, expanded
from thalweg.run import directory as directories
from thalweg.run.course import Course
from thalweg.run.fit import plain, prepare
from thalweg.run.placing import told_once
from thalweg.run.recipe import listed, recipe_of
from thalweg.run.run import Run
from thalweg.step.plan import Plan


def resume(
    run_dir: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    data: Any = None,
    loss: Any = None,
    **changes: Any,
) -> Run:
    """Go on with a run from its last whole checkpoint, with the settings it was started with.

    On the CPU the result is the one that the run would have had without the interruption, to the last bit, where the
    order of batches is Thalweg's own (arrays, tensors, datasets); an iterable of the user's is taken up in its epoch.

    Args:
        run_dir: the directory of the run.
        model: the model the run was started with (its weights are replaced), `data` and `loss` likewise; all three are
            needed unless the run came from a task or a script.
        data: see `model`.
        loss: see `model`.
        **changes: keywords of `fit` that are to differ from now on, say more `epochs`.

    Raises:
        FileNotFoundError: there is no run in the directory.
        ValueError: the run is in use, or its model, data or script are not the ones it was started with.
    """
    directory = Path(run_dir)
    record = RunRecord.read(directory)
    arguments: dict[str, Any] = {}
    if model is None or data is None:
        if record.source is None:
            missing = "model" if model is None else "data"
            raise ValueError(f"{directory} was not started from a task or script: give {missing}= (and loss=) again")
        arguments = dict(recipe_of(record.source, directory).arguments)
    changes = expanded(changes)
    changed = {OTHER_WORDS.get(word, word): value for word, value in changes.items()}
    if own := arguments.get("callbacks"):  # a task's own belong to it
        changed["callbacks"] = [*listed(own), *listed(changed.get("callbacks", ()))]
    given = {**_asked(record, arguments, changed), **changed}
    settings, _ = Settings.of({**given, "run_dir": directory, "resume": True})
    with told_once(), ExitStack() as stack:
        prepared = prepare(
            stack,
            arguments.get("model") if model is None else model,
            arguments.get("data") if data is None else data,
            arguments.get("loss") if loss is None and "loss" in arguments else loss,
            settings,
        )
        stack.enter_context(directories.locked(directory))
        _check_same(record.decided, prepared.chosen.decided)
        plan = record.decided.get("plan")
        if "plan" in changed and settings.plan != "auto":
            plan = replace(Plan.of(settings.plan), is_settled=True).to_dict()
        repairs = _overruled(record.decided.get("repairs"), changed)
        kept: dict[str, Any] = {"search": record.decided.get("search"), "repairs": repairs}
        if "tried_steps" in record.decided:
            kept["tried_steps"] = record.decided["tried_steps"]
        record.decided = {**prepared.chosen.decided, "plan": plan, **kept}
        record.asked |= {word: plain(value) for word, value in changes.items()}  # to be gone on with, once more
        return Course(stack, prepared, settings, record, directory).run(resuming=True)


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Data and inputs must be those the run was started with.

    Raises:
        ValueError: they differ; the message says in what.
    """
    for name in ("num_examples", "num_validation_examples", "inputs"):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"the data is not what the run was started with: {name} was {before.get(name)}, is {now.get(name)}"
            )


#: Changes of settings, and the words of `fit` that say the same.
_SAID_BY = {
    "change_rule": {"optimizer"},
    "decay_weights": {"optimizer", "optimizer_options"},
    "restart_schedule": {"schedule"},
    "change_batch": {"batch_size"},
    "clip_gradients": {"clip_norm", "clip_value"},
}


def _overruled(repairs: list[dict[str, Any]] | None, changed: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Repairs without what is asked for otherwise from now on; a rate that is given takes the place of theirs."""
    if repairs is None:
        return None
    rate = changed.get("learning_rate", "auto")
    new = {"learning_rate": rate} if rate != "auto" else {}

    def left(changes: list[Any]) -> list[Any]:
        kept = [(code, words) for code, words in changes if not _SAID_BY.get(code, set()) & changed.keys()]
        return [[code, {**words, **(new if "learning_rate" in words else {})}] for code, words in kept]

    return [{**repair, "changes": left(repair["changes"])} for repair in repairs]


def _asked(record: RunRecord, arguments: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The keywords the run was started with; objects that JSON could not hold come from the recipe or are missing.

    Raises:
        ValueError: an object was given then, and is not given now.
    """
    names = {setting.name for setting in fields(Settings)}
    asked: dict[str, Any] = {}
    for word, value in record.asked.items():
        name = OTHER_WORDS.get(word, word)
        if name not in names or name in ("run_dir", "resume"):
            continue
        if _is_object(value):
            if name in arguments:
                asked[name] = arguments[name]
            elif name not in given and name != "callbacks":
                raise ValueError(
                    f"{name} was given as an object ({value}), which run.json cannot hold: give {name}= again"
                )
            continue
        asked[name] = value
    return {**{k: v for k, v in arguments.items() if k in names and k not in asked}, **asked}


def _is_object(value: Any) -> bool:
    """Whether a value stands for an object that JSON could not hold, as `<Adam>`."""
    if isinstance(value, list):
        return any(_is_object(entry) for entry in value)
    return isinstance(value, str) and value.startswith("<") and value.endswith(">")
