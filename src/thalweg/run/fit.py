"""Train a model on data: everything is checked, chosen and prepared here, then `loop` runs it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg.loop.evaluate import place
from thalweg.records import facts as kept_facts
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings, expanded, instead, plain_number
from thalweg.run import directory as directories
from thalweg.run.choices import choose
from thalweg.run.course import Course, Prepared
from thalweg.run.placing import told_once
from thalweg.run.recipe import Recipe
from thalweg.run.run import Run
from thalweg.step import keras
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.step.plan import Plan
from thalweg.tensors import devices, seeds


def fit(model: nn.Module, data: Any, loss: Any = None, **settings: Any) -> Run:
    """Train a model until it has converged, or until a limit is reached.

    The model is trained in place. Afterwards it holds the best validation weights if there is validation data, else
    the last ones, and is the stock module it was before.

    Args:
        model: a `torch.nn.Module`, or a Keras 3 model on the torch backend.
        data: `(x, y)` of arrays or tensors, examples along axis 0 (x may be a tuple or dict of them); a `Dataset`; a
            `DataLoader`; any iterable of `(x, y)` batches that can be iterated again.
        loss: a name (`cross_entropy`, `categorical_cross_entropy`, `binary_cross_entropy`, `mse`, `mae`, `huber`,
            `nll`, `kl_divergence`, `ctc`), a callable `(output, target) -> scalar`, or None where the model returns
            its loss.
        **settings: the keywords of `thalweg.Settings`, each described there.

    Returns:
        The run: its history, verdict, metrics and report.

    Raises:
        ValueError: something does not fit, said in one sentence before any training.
        TypeError: something is of a kind that is not understood, or a keyword is unknown.

    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> run = fit(nn.Linear(1, 1), (x, 2 * x + 1), "mse", steps=100, learning_rate=0.1, run_dir=tmp, verbose=False)
    >>> run.stopped_because, round(run.model.weight.item(), 1)
    ('steps', 2.0)
    """
    return start({"model": model, "data": data, "loss": loss, **settings})


def start(arguments: Mapping[str, Any], recipe: Recipe | None = None) -> Run:
    """Train from the keywords of `fit` in one mapping; `recipe` says which task or script made them."""
    source = recipe.source if recipe is not None else None
    given = expanded(arguments)
    model, data, loss = given.pop("model"), given.pop("data"), given.pop("loss", None)
    settings, hints = Settings.of(given)
    with told_once(), ExitStack() as stack:
        prepared = prepare(stack, model, data, loss, settings)
        directory = directories.make(settings.run_dir, run_name(model, source))
        stack.enter_context(directories.locked(directory))
        old = _earlier_run(directory, settings)
        record = old or new_record(directory.name, given, prepared, source)
        own = recipe.notes if recipe is not None else []
        record.notes += [note for note in [*own, *hints, *prepared.notes] if note not in record.notes]
        if recipe is not None and recipe.facts is not None:
            kept_facts.write(directory, recipe.facts)
        return Course(stack, prepared, settings, record, directory).run(resuming=old is not None)


def prepare(stack: ExitStack, model: Any, data: Any, loss: Any, settings: Settings) -> Prepared:
    """Check what the user gave, and choose what was left open; global random state is seeded until the stack ends."""
    keras.require_torch_backend(model)
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise TypeError(f"{model.__name__} is a class, and a model is made of it: {instead(model)}")
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model must be a torch.nn.Module (or a Keras 3 model on torch), got {type(model).__name__}"
        )
    rule = resolve(loss) if loss is not None else None
    device = devices.choose(settings.device)
    devices.begin(device)
    stack.enter_context(seeds.seeded(settings.seed))
    stack.enter_context(_modes(model))
    if settings.deterministic:
        stack.enter_context(_deterministic())
    model.to(device)
    place(loss, device)
    forward = Forward(model)
    if forward.is_keras:
        stack.enter_context(keras.seeded(settings.seed))
    chosen = choose(forward, rule, data, settings, device)
    return Prepared(forward, rule, chosen)


def _earlier_run(directory: Path, settings: Settings) -> RunRecord | None:
    """The run that the directory holds, if it is to be resumed.

    Raises:
        ValueError: it holds one and resuming was not asked for.
    """
    if not directories.holds_run(directory):
        return None
    if not settings.resume:
        raise ValueError(
            f"the run directory {directory} holds a run already; give resume=True to go on with it, or another run_dir"
        )
    return RunRecord.read(directory)


def new_record(name: str, given: Mapping[str, Any], prepared: Prepared, source: dict[str, Any] | None) -> RunRecord:
    """What is known before the first step."""
    return RunRecord(
        name=name,
        asked={key: plain(value) for key, value in given.items()},
        decided=prepared.chosen.decided,
        source=source,
        versions=directories.versions(),
        machine=directories.machine(),
        started=directories.now(),
    )


def run_name(model: nn.Module, source: Mapping[str, Any] | None) -> str:
    """What a run is called: after its task, its script or its model, in lower-case words."""
    if source is not None:
        name = source.get("task") or Path(source["script"]).stem
    else:
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(model).__name__)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


def plain(value: Any) -> Any:
    """A keyword's value as JSON holds it, objects by what they print."""
    value = plain_number(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Plan):
        return value.to_dict()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and len(value) < 20:
        return [plain(entry) for entry in value]
    return f"<{type(value).__name__}>"


@contextmanager
def _modes(model: nn.Module) -> Any:
    """Every module is in its old mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _deterministic() -> Any:
    """Operations whose result depends on thread timing are refused inside."""
    before, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)


def _signature() -> inspect.Signature:
    """The signature that help and editors show: model, data, loss and every setting with its default."""
    leading = list(inspect.signature(fit).parameters.values())[:3]
    words = [
        inspect.Parameter(s.name, inspect.Parameter.KEYWORD_ONLY, default=s.default, annotation=s.type)
        for s in fields(Settings)
    ]
    return inspect.Signature([*leading, *words], return_annotation="Run")


fit.__signature__ = _signature()  # type: ignore[attr-defined]
