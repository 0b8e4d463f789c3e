"""What the user left open is chosen here: batches, rule, rate, schedule, limits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim import Optimizer

from thalweg.loop.evaluate import BATCH_SIZE, model_dtype
from thalweg.loop.metrics import Metrics, resolve_metrics
from thalweg.loop.setup import Limits
from thalweg.optim import catalogue, schedules
from thalweg.optim.averages import WeightAverage
from thalweg.optim.schedule_free import FreeAverage, ScheduleFree
from thalweg.optim.schedules import Schedule
from thalweg.records.settings import Settings, shown
from thalweg.repairs.rows import finite_rows
from thalweg.run.agreement import check_classes, check_clipping, check_measured
from thalweg.run.inputs import check_model, check_values, has_batch_norm, trial
from thalweg.run.lazy import materialise
from thalweg.run.placing import follow_parameters
from thalweg.step import keras
from thalweg.step.batches import Batches, Order, automatic_size
from thalweg.step.data import Arrays, Data, Stream, cast, num_examples, read
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.plan import Plan
from thalweg.step.update import Clip, Update
from thalweg.tensors.named import num_bytes
from thalweg.tensors.seeds import generator

#: Passes over the data at most, where no limit was given.
EPOCHS = 100
#: Schedules that end low: a plateau before their end says little.
ANNEALING = ("cosine", "one_cycle", "warmup_stable_decay")
#: Weight averaging by equal parts begins after this share of a training of known length (Izmailov et al. 2018, 4.1).
SWA_START = 0.75


@dataclass(slots=True)
class Chosen:
    """The parts of a training that follow from the settings and the data."""

    batches: Batches
    validation: Batches | None
    optimizer: Optimizer
    update: Update
    schedule: Schedule
    metrics: Metrics
    average: WeightAverage | None
    limits: Limits
    has_norm: bool
    anneals: bool
    decided: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def planned(self) -> int | None:
        """Updates of the training, where that is known."""
        total: int | None = self.decided["total_steps"]
        return total


def choose(forward: Forward, loss: Loss | None, data: Any, settings: Settings, device: torch.device) -> Chosen:
    """Read and check the data, then choose a rule and its schedule for it.

    Raises:
        ValueError, TypeError: see `fit`.
    """
    if settings.plan != "auto":
        Plan.of(settings.plan)
    dtype = model_dtype(forward.model)
    notes: list[str] = []
    training, held_out = _data(data, settings, dtype, notes)
    order = _order(training, settings, keep_single=not has_batch_norm(forward.model))
    batches = Batches(_placed(training, dtype, device), order, dtype, device)
    if forward.is_keras:
        keras.build(forward.model, batches.first(1)[0])
    else:
        materialise(forward, batches, makes_loss=loss is None)
    check_model(forward)
    metrics = resolve_metrics(settings.metrics, loss.name if loss is not None else None)
    trial(forward, loss, batches, metrics)
    validation = None
    if held_out is not None:
        validation = Batches(held_out, _held_out_order(held_out, order), dtype, device)
        trial(forward, loss, validation, metrics)
    chosen = _assembled(forward, loss, settings, batches, validation)
    chosen.notes[:0] = notes
    return chosen


def again(chosen: Chosen, forward: Forward, loss: Loss | None, settings: Settings) -> Chosen:
    """The same data under settings that differ in rule, rate or batch size: parts that share nothing that changes."""
    batches = chosen.batches
    if not isinstance(batches.data, Stream):
        # A batch norm may have come in, which cannot normalise one row.
        order = replace(batches.order, keep_single=batches.order.keep_single and not has_batch_norm(forward.model))
        if settings.batch_size != "auto":
            order = _order(batches.data, settings, order.keep_single)
        made = Batches(batches.data, order, batches.dtype, batches.device)
        batches = batches if made.is_cut_like(batches) else made
    return _assembled(forward, loss, settings, batches, chosen.validation)


def _assembled(
    forward: Forward, loss: Loss | None, settings: Settings, batches: Batches, validation: Batches | None
) -> Chosen:
    """Rule, schedule and limits for data that was read and checked."""
    has_norm = has_batch_norm(forward.model)
    limits, total = _limits(settings, batches)
    metrics = resolve_metrics(settings.metrics, loss.name if loss is not None else None)
    check_measured(settings, metrics, loss is not None, validation is not None)
    check_classes(metrics, batches)
    optimizer = _optimizer(forward, loss, settings)
    check_clipping(optimizer, settings)
    chosen = Chosen(
        batches=batches,
        validation=validation,
        optimizer=optimizer,
        update=Update(optimizer, Clip(settings.clip_norm, settings.clip_value)),
        schedule=schedules.build(_schedule(settings, batches), optimizer, total, batches.per_epoch),
        metrics=metrics,
        average=_average(forward, settings, batches, total),
        limits=limits,
        has_norm=has_norm,
        anneals=_schedule(settings, batches) in ANNEALING
        or (_schedule(settings, batches) == "auto" and total is not None),
        decided={},
    )
    chosen.decided = _decided(forward, loss, settings, chosen, total)
    chosen.notes = _notes(settings, batches, has_norm)
    return chosen


def _notes(settings: Settings, batches: Batches, has_norm: bool) -> list[str]:
    """What the user should know of what was asked."""
    notes, order = [], batches.order
    if isinstance(batches.data, Stream) and settings.batch_size != "auto":
        notes.append("The data brings batches of its own: batch_size was not used.")
    if isinstance(batches.data, Stream) and batches.data.once and _wants_more(settings):
        notes.append(
            "The data can be gone through once: training ends with it. For more epochs give a list, a DataLoader, or a "
            "function that returns a fresh iterator."
        )
    if settings.optimizer == "lbfgs" and order.batch_size is not None:
        notes.append("L-BFGS takes what differs between two batches for curvature: batch_size='full' is meant for it.")
    if has_norm and (order.accumulate > 1 or order.batch_size is None):
        notes.append(
            "Batch norm normalises each micro-batch by itself, so the gradient differs from that of the whole batch."
        )
    return notes


def _wants_more(settings: Settings) -> bool:
    """Whether a training is to go through its data several times, as far as it says."""
    return settings.epochs > 1 if settings.epochs is not None else settings.steps is None


def _sound(data: Data, name: str, settings: Settings, notes: list[str]) -> Data:
    """Data whose values were checked; at `repair="full"` rows with NaN or Inf are set aside, and told of."""
    if settings.repair == "full" and isinstance(data, Arrays):
        good = finite_rows((data.x, data.y))
        bad = (~good).nonzero().flatten().tolist()
        if bad and len(bad) < len(data):
            of = f"the {name} data" if name else "the data"
            rows = "1 row" if len(bad) == 1 else f"{len(bad):,} rows"
            notes.append(f"NaN or Inf in {rows} of {of}, the first is row {bad[0]}: set aside.")
            return data.part(good.nonzero().flatten().tolist())
    check_values(data, name)
    return data


def _data(data: Any, settings: Settings, dtype: torch.dtype, notes: list[str]) -> tuple[Data, Data | None]:
    """Training and held-out data, values checked."""
    training = _sound(read(data, dtype), "", settings, notes)
    if settings.validation_data is not None:
        held_out = _sound(read(settings.validation_data, dtype), "validation", settings, notes)
        if isinstance(held_out, Stream) and held_out.once:
            raise ValueError("validation_data can be iterated only once; give a list, a DataLoader or arrays")
        return training, held_out
    if not settings.validation_split:
        return training, None
    if isinstance(training, Stream):
        raise ValueError("validation_split needs arrays or a Dataset to draw from; give validation_data instead")
    held = round(len(training) * settings.validation_split)
    if not 0 < held < len(training):
        raise ValueError(
            f"validation_split={settings.validation_split} of {len(training)} examples leaves one part empty; "
            f"give validation_data, or another share"
        )
    drawn = torch.randperm(len(training), generator=generator(settings.seed, "validation")).tolist()
    return training.part(sorted(drawn[held:])), training.part(sorted(drawn[:held]))


def _order(data: Data, settings: Settings, keep_single: bool) -> Order:
    count = None if isinstance(data, Stream) else len(data)
    size: int | None
    if settings.batch_size == "full":
        if count is None:
            raise ValueError('batch_size="full" needs arrays or a Dataset: an iterable brings batches of its own')
        size = None
    elif settings.batch_size == "auto":
        rule = catalogue.RULES.get(settings.optimizer) if isinstance(settings.optimizer, str) else None
        size = automatic_size(count) if rule is None else rule.batch_size(count)
        if size is None and count is None:
            raise ValueError(f"{settings.optimizer} takes all data in one batch: give arrays or a Dataset")
    else:
        assert isinstance(settings.batch_size, int)
        size = settings.batch_size if count is None else min(settings.batch_size, count)
    return Order(size, settings.shuffle, settings.seed, settings.accumulate, keep_single, by_length=True)


def _held_out_order(data: Data, order: Order) -> Order:
    """As many examples at once as a pass without gradients takes; of sequences, which may be long, as in training."""
    has_sequences = isinstance(data, Arrays) and data.lengths is not None
    size = min(BATCH_SIZE, order.batch_size or BATCH_SIZE) if has_sequences else BATCH_SIZE
    return Order(size, shuffle=False, by_length=True)


def _placed(data: Data, dtype: torch.dtype, device: torch.device) -> Data:
    """Arrays are kept on the device where they take less than half of what is free there."""
    if device.type != "cuda" or not isinstance(data, Arrays):
        return data
    free, _ = torch.cuda.mem_get_info(device)
    if data.lengths is not None or num_bytes((data.x, data.y)) > free // 2:
        return data
    return Arrays(*cast((data.x, data.y), dtype, device))


def _limits(settings: Settings, batches: Batches) -> tuple[Limits, int | None]:
    """When to stop, and the number of updates where that is known beforehand."""
    asked = (settings.epochs, settings.steps, settings.time_budget)
    epochs = EPOCHS if all(limit is None for limit in asked) else settings.epochs
    limits = Limits(
        settings.steps,
        epochs,
        settings.time_budget,
        settings.target or {},
        settings.patience,
        settings.checkpoint_every,
    )
    known = [settings.steps] if settings.steps is not None else []
    if settings.epochs is not None and batches.per_epoch is not None:
        known.append(settings.epochs * batches.per_epoch)
    return limits, min(known) if known else None


def _optimizer(forward: Forward, loss: Loss | None, settings: Settings) -> Optimizer:
    given = settings.optimizer
    if isinstance(given, Optimizer):
        return _own_optimizer(given, forward, settings)
    if not isinstance(given, str):
        kind = f"the class {given.__name__}" if isinstance(given, type) else shown(given)
        raise TypeError(f"optimizer takes a rule's name or a torch.optim.Optimizer, got {kind}")
    named, rate, options = forward.parameters().items(), settings.learning_rate, settings.optimizer_options
    return catalogue.build(given, named, rate, options, forward.model, loss)


def _own_optimizer(given: Optimizer, forward: Forward, settings: Settings) -> Optimizer:
    """A user's own optimizer, as it is: it must own what is trained."""
    if settings.optimizer_options or settings.learning_rate != "auto":
        raise ValueError("an optimizer object brings its own learning rate and options; set them on it")
    owned = {id(p) for group in given.param_groups for p in group["params"]}
    trained = forward.parameters()
    missing = [name for name, p in trained.items() if id(p) not in owned]
    if len(missing) == len(trained):
        raise ValueError("the optimizer holds none of the model's parameters; make it from model.parameters()")
    for group in given.param_groups:
        group.setdefault("initial_lr", group["lr"])
    follow_parameters(given)
    return given


def _average(forward: Forward, settings: Settings, batches: Batches, total: int | None) -> WeightAverage | None:
    """Exponential averages follow every update; equal-part ones take the end of each epoch, late in the training."""
    kind = settings.weight_average
    if isinstance(settings.optimizer, ScheduleFree):
        if kind is not None:
            raise ValueError(f"a schedule-free rule averages by itself; leave out weight_average={kind!r}")
        return FreeAverage(settings.optimizer)
    if kind is None:
        return None
    tensors = list(forward.weights().values())
    if kind == "ema":
        return WeightAverage("ema", tensors, start_step=1, every=1)
    every = batches.per_epoch or 100
    begin = int(SWA_START * total) if total is not None else 5 * every
    return WeightAverage("swa", tensors, start_step=max(1, begin), every=min(every, max(1, (total or every) // 20)))


def _decided(
    forward: Forward, loss: Loss | None, settings: Settings, chosen: Chosen, total: int | None
) -> dict[str, Any]:
    """What was chosen, for `run.json`, the summary and the report."""
    batches = chosen.batches
    rule = settings.optimizer if isinstance(settings.optimizer, str) else type(settings.optimizer).__name__
    x = batches.first(1)[0]
    return {
        "optimizer": "adamw" if rule == "auto" else rule,
        "loss": loss.name if loss is not None else None,
        "learning_rate": chosen.optimizer.param_groups[0]["initial_lr"],
        "schedule": _schedule_name(_schedule(settings, batches), total),
        "batch_size": _batch_size(batches),
        "device": str(batches.device),
        "plan": None,
        "num_parameters": sum(p.numel() for p in forward.parameters().values()),
        "num_examples": batches.num_examples,
        "num_validation_examples": chosen.validation.num_examples if chosen.validation else None,
        "steps_per_epoch": batches.per_epoch,
        "total_steps": total,
        "total_epochs": chosen.limits.epochs,
        "inputs": _shapes(x),
    }


def _schedule(settings: Settings, batches: Batches) -> Any:
    """The schedule that was asked for; where a rule finds the length of its steps on all the data, "auto" is none.

    Raises:
        ValueError: L-BFGS, and another schedule than a constant one.
    """
    if settings.optimizer == "lbfgs" and settings.schedule not in ("auto", "constant"):
        raise ValueError(
            "lbfgs finds the length of each step by a line search, which a schedule would mislead: leave schedule out"
        )
    is_full = not isinstance(batches.data, Stream) and batches.order.batch_size is None
    own = settings.optimizer == "lbfgs" or (settings.optimizer == "gauss_newton" and is_full)
    return "constant" if own and settings.schedule == "auto" else settings.schedule


def _schedule_name(schedule: Any, total: int | None) -> str:
    if not isinstance(schedule, str):
        return "own schedule"
    if schedule == "auto":
        return "warm-up, then constant" if total is None else "warm-up, then cosine"
    return schedule


def _batch_size(batches: Batches) -> int | str:
    """Examples of an update; an iterable says it by its first batch."""
    if isinstance(batches.data, Stream):
        return num_examples(batches.first(1))
    return batches.order.batch_size or "full"


def _shapes(x: Any) -> Any:
    """Inputs of one example, as shape and dtype: what an export needs to know."""
    if isinstance(x, torch.Tensor):
        return {"shape": list(x.shape[1:]), "dtype": str(x.dtype).removeprefix("torch.")}
    if isinstance(x, dict):
        return {"names": {str(name): _shapes(part) for name, part in x.items()}}
    return [_shapes(part) for part in x]
