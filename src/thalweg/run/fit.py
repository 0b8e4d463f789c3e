"""Train a model on data: everything is checked, chosen and prepared here, then `loop` runs it."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thalweg.loop.checkpoint import Checkpoints
from thalweg.loop.saver import Saver
from thalweg.loop.setup import Setup
from thalweg.loop.train import Training
from thalweg.records import facts as kept_facts
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings, expanded
from thalweg.repairs.change import Body
from thalweg.repairs.network import fold
from thalweg.run import directory as directories
from thalweg.run.candidates import Maker, assemble
from thalweg.run.choices import Chosen, choose
from thalweg.run.facts import facts, of_settings
from thalweg.run.finish import finish
from thalweg.run.going_on import as_decided, go_on
from thalweg.run.interrupts import interruptible
from thalweg.run.mending import Mending, body_of, is_mended, mended_before
from thalweg.run.race import Raced, Stage, is_raced, likely_steps, why_not
from thalweg.run.recipe import Recipe
from thalweg.run.run import Run
from thalweg.run.telling import Telling
from thalweg.search.candidate import NothingFinite
from thalweg.search.race import Interrupted
from thalweg.step import keras
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss, resolve
from thalweg.step.plan import Plan
from thalweg.step.planned import Asked, PlannedStep
from thalweg.step.planner import Budget
from thalweg.step.whole import Step
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
    with ExitStack() as stack:
        prepared = prepare(stack, model, data, loss, settings)
        directory = directories.make(settings.run_dir, run_name(model, source))
        stack.enter_context(directories.locked(directory))
        old = _earlier_run(directory, settings)
        record = old or new_record(directory.name, given, prepared, source)
        own = recipe.notes if recipe is not None else []
        record.notes += [note for note in [*own, *hints, *prepared.notes] if note not in record.notes]
        if recipe is not None and recipe.facts is not None:
            kept_facts.write(directory, recipe.facts)
        return carry_out(stack, prepared, settings, record, directory, resuming=old is not None)


class Prepared:
    """A checked model and data with everything that was chosen for them."""

    def __init__(self, forward: Forward, loss: Loss | None, chosen: Chosen) -> None:
        self.forward = forward
        self.loss = loss
        self.chosen = chosen
        self.notes = chosen.notes


def prepare(stack: ExitStack, model: Any, data: Any, loss: Any, settings: Settings) -> Prepared:
    """Check what the user gave, and choose what was left open; global random state is seeded until the stack ends."""
    keras.require_torch_backend(model)
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model must be a torch.nn.Module (or a Keras 3 model on torch), got {type(model).__name__}"
        )
    rule = resolve(loss) if loss is not None else None
    device = devices.choose(settings.device)
    stack.enter_context(seeds.seeded(settings.seed))
    stack.enter_context(_modes(model))
    if settings.deterministic:
        stack.enter_context(_deterministic())
    model.to(device)
    forward = Forward(model)
    if forward.is_keras:
        stack.enter_context(keras.seeded(settings.seed))
    chosen = choose(forward, rule, data, settings, device)
    return Prepared(forward, rule, chosen)


def carry_out(
    stack: ExitStack, prepared: Prepared, settings: Settings, record: RunRecord, directory: Path, resuming: bool
) -> Run:
    """Train what was prepared in a directory that is held, from the start or from where it was left."""
    telling = Telling(record, settings)
    checkpoints = Checkpoints(directory, telling.warn)
    checkpoint = checkpoints.latest() if resuming else None
    mended = None
    if checkpoint is not None:
        prepared.chosen = as_decided(prepared.chosen, prepared.forward, prepared.loss, settings, record)
        if record.decided.get("repairs"):
            mended = mended_before(prepared.forward, prepared.loss, prepared.chosen, settings, record, checkpoint)
            prepared.loss, prepared.chosen = mended[0].loss, mended[1]
    history = History(directory / "history.sqlite", telling.warn)
    stack.callback(history.close)
    run = telling.run = Run(prepared.forward.model, prepared.chosen.optimizer, history, record, directory)
    record.stopped_because, record.verdict = None, None
    if checkpoint is None:
        plain_step = Step(prepared.forward, prepared.loss, prepared.chosen.update)
        history.note(facts(plain_step, prepared.chosen, settings))
    else:  # of the first batch no more can be said: its weights are gone
        history.note(of_settings(prepared.chosen, settings))
    raced, step = None, _planned(stack, prepared, settings, record, directory, resuming=checkpoint is not None)
    if checkpoint is None and (reason := why_not(settings, prepared.chosen)):
        telling.warn(reason)
    if checkpoint is None and is_raced(settings, prepared.chosen):
        stage = Stage(Maker(prepared.chosen, prepared.forward, prepared.loss, settings, step), telling.search)
        step.open()
        with interruptible(stage):
            raced = _race(stage, record, directory, telling)
            if stage.interrupt:
                return _nothing_done(run, directory, telling)
        if raced is not None:
            is_other = type(raced.parts.optimizer) is not type(prepared.chosen.optimizer)
            prepared.chosen, run.optimizer = raced.parts, raced.parts.optimizer
            history.note({"learning_rate": raced.told["learning_rate"]})
            if is_other:  # than the rule that the step was planned for
                step.close()
                step = _planned(stack, prepared, settings, record, directory, resuming=False)
        step.serve(prepared.chosen.update, 0)
    saver = Saver(checkpoints, before=history.flush)
    stack.callback(saver.finish)
    signals = raced.training.setup.signals if raced is not None else None
    watched, mends = settings.repair != "off", is_mended(settings, prepared.chosen)

    def assembled(step: PlannedStep, chosen: Chosen, signals: Any = None) -> Setup:
        return assemble(step, chosen, history, saver, telling, signals, watched, looks=True, mends=mends)

    setup = assembled(step, prepared.chosen, signals)
    training = raced.training.moved(setup) if raced is not None else Training(setup, prepared.chosen.limits)
    if resuming:
        go_on(training, checkpoints, checkpoint, settings, telling)
    record.write(directory)
    step.begin(training.at.step)
    step.open()
    telling.start()
    body = mended[0] if mended is not None else body_of(prepared.forward, prepared.loss, prepared.chosen, settings)
    mending = Mending(
        training,
        body,
        prepared.chosen,
        record,
        directory,
        telling,
        lambda body, chosen: _mended_step(stack, body, chosen, settings, record, directory),
        assembled,
    )
    with interruptible(mending):
        if raced is not None:
            raced.kept.hand_over(training)
        record.stopped_because = mending.run()
        finish(run, mending.training, checkpoints)
        if record.stopped_because != "interrupted" and record.decided.get("repairs"):
            fold(prepared.forward.model)
        telling.end()
    return run


def _mended_step(
    stack: ExitStack, body: Body, chosen: Chosen, settings: Settings, record: RunRecord, directory: Path
) -> PlannedStep:
    """The step of a mended training: planned anew, and eager where the plan was given, or updates are left out."""
    plan = settings.plan if settings.plan == "auto" and not body.skips else "eager"
    prepared = Prepared(body.forward, body.loss, chosen)
    return _planned(stack, prepared, replace(settings, plan=plan), record, directory, resuming=False)


def _race(stage: Stage, record: RunRecord, directory: Path, telling: Telling) -> Raced | None:
    """Choose by a race what was left open; None where it was interrupted, or where no rate gave a finite loss."""
    own = record.decided
    record.decided = {**own, "learning_rate": None, "search": None}
    record.write(directory)
    telling.start()
    try:
        raced = stage.run()
    except Interrupted:
        return None
    except NothingFinite as error:  # a training that shows it says more than none
        record.decided = {**own, "plan": record.decided["plan"]}
        telling.warn(f"{str(error)[0].upper()}{str(error)[1:]}. It is trained with the rule's own rate.")
        return None
    found = {"learning_rate": raced.told["learning_rate"], "search": raced.told, "plan": record.decided["plan"]}
    record.decided = {**raced.parts.decided, **found}
    return raced


def _nothing_done(run: Run, directory: Path, telling: Telling) -> Run:
    """Interrupted before the first update that counts: the race begins anew where the run is gone on with."""
    run.record.stopped_because = "interrupted"
    run.record.write(directory)
    telling.end()
    return run


def _planned(
    stack: ExitStack, prepared: Prepared, settings: Settings, record: RunRecord, directory: Path, resuming: bool
) -> PlannedStep:
    """The step, run as the plan says that was asked for or that the run has; else as will be found best.

    What is chosen is on the disk before the first update that follows it, so that a resumed run does the same.
    """
    chosen = prepared.chosen
    plan = None if settings.plan == "auto" else Plan.of(settings.plan)
    begun = None
    if resuming and record.decided["plan"] is not None:
        found = Plan.of(record.decided["plan"])
        plan, begun = (found, None) if found.is_settled else (None, found)

    def changed(plan: Plan) -> None:
        record.decided["plan"] = plan.to_dict()
        with contextlib.suppress(OSError):  # a full disk: the saver says so, and training goes on
            record.write(directory)

    asked = Asked(
        plan=plan,
        begun=begun,
        budget=Budget(likely_steps(chosen), settings.time_budget),
        outputs=bool(chosen.metrics.names),
        is_fast=settings.precision == "fast",
        by_clock=not settings.deterministic,
    )
    step = PlannedStep(prepared.forward, prepared.loss, chosen.update, asked, changed)
    record.decided["plan"] = step.plan.to_dict()
    stack.callback(step.close)
    return step


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
