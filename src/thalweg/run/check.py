"""A training looked over before it begins: data, loss and output, first pass, memory, and whether it learns a batch."""

from __future__ import annotations

import copy
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.diagnosis import before
from thalweg.diagnosis.data import details
from thalweg.loop.evaluate import model_device
from thalweg.records.finding import Finding, ranked
from thalweg.records.history import History
from thalweg.records.settings import Settings
from thalweg.run.course import Prepared
from thalweg.run.facts import facts
from thalweg.run.fit import prepare
from thalweg.run.placing import told_once
from thalweg.signals.data import holds_repeated, sample
from thalweg.step.backward import objective
from thalweg.step.data import Batch, cast, num_examples
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.step.refusal import Refusal
from thalweg.step.whole import Step
from thalweg.tensors.devices import free_bytes
from thalweg.tensors.seeds import untouched

#: Examples to be learned by heart, updates that may take, and seconds after which the question is left open.
BATCH, UPDATES, SECONDS = 32, 200, 5.0
#: Rates that are tried: Adam's own, and ten times that, which small networks want.
RATES = (1e-3, 1e-2)
#: Share of the loss of an answer that knows nothing at which a batch counts as learned; its labels alone give less.
LEARNED = 0.5
#: Copies of the weights that training with Adam needs: themselves, gradients, two moments.
COPIES = 4
#: What to do about what `fit` refuses, beside what its sentence says.
REFUSED = {
    "wrong_shape": "Print the shapes of x, of y and of the model's output: the first axis is the examples.",
    "bad_labels": "Number the classes from 0 up, as whole numbers, and give the last layer an output for each.",
    "non_finite": "Look at where the value came from: a division by zero, a logarithm, a gap in the table.",
    "frozen_parameters": "Call requires_grad_(True) on what is to learn.",
    "loss_output_mismatch": "Take the loss that belongs to the output, or change the last layer.",
}


def check(
    model: nn.Module, data: Any, loss: Any = None, *, validation_data: Any = None, batch_size: int | str = "auto"
) -> list[Finding]:
    """Look a training over before it begins, the gravest finding first.

    Looked at are shapes, the range of labels and values that are not finite; the scale of inputs and targets, classes,
    validation examples that are in the training data too; the pairing of loss and output; the first loss against its
    expected value, weights that begin alike, parameters that no gradient reaches, modules stuck in evaluation mode; the
    memory that training takes; and whether a copy of the model can learn 32 examples by heart. Model, data and random
    state are left as they are, but that a lazy module gets its weights. Takes seconds.

    Args:
        model: a `torch.nn.Module`, as `fit` takes it.
        data: any form that `fit` takes.
        loss: a name, a function (output, target), or None where the model returns its loss.
        validation_data: the same for the validation, to be compared with `data`.
        batch_size: of the training to come; decides its memory.

    Returns:
        Findings; a sound training has none above a note. What `fit` would refuse, shapes that do not fit or labels
        out of range, is a critical one in its words, and then the only one: nothing else can be looked at.

    Raises:
        ValueError: no data, or a loss that is not known.
        TypeError: a form that is not understood.

    >>> x, y = torch.randn(64, 4), torch.arange(64) % 3
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    >>> check(model, (x, y), "cross_entropy")[0].code
    'loss_output_mismatch'
    """
    settings, _ = Settings.of(
        {
            "validation_data": validation_data,
            "batch_size": batch_size,
            "device": str(model_device(model)),
            "optimizer": "adam",
            "learning_rate": RATES[0],
        }
    )
    with told_once(), ExitStack() as stack:
        stack.enter_context(untouched())
        try:
            prepared = prepare(stack, model, data, loss, settings)
        except Refusal as refusal:
            return [_refused(refusal)]
        step = Step(prepared.forward, prepared.loss, prepared.chosen.update)
        history = History()
        history.note(facts(step, prepared.chosen, settings))
        found = [*before.findings(history), *details(history)]
        batches = prepared.chosen.batches
        batch = cast(sample(batches, BATCH), batches.dtype, batches.device)
        if (short := _memory(prepared, batch)) is not None:
            found.append(short)
        if (stuck := _by_heart(prepared, batch, history)) is not None:
            found = _explained(found, stuck)
    return ranked(found)


def _refused(refusal: Refusal) -> Finding:
    """What `fit` would raise."""
    return Finding(refusal.code, "critical", 0, f"This cannot be trained: {refusal}.", REFUSED[refusal.code])


def _explained(found: list[Finding], stuck: Finding) -> list[Finding]:
    """A batch that is not learned by heart: where a scale explains it, that is no mere suspicion any more."""
    causes = [f for f in found if f.code in ("unscaled_inputs", "unscaled_targets")]
    if not causes:
        return [*found, stuck]
    numbers = {"lowest_loss": stuck.evidence["lowest_loss"]}
    return [replace(f, severity="warning", evidence={**f.evidence, **numbers}) if f in causes else f for f in found]


def _memory(prepared: Prepared, batch: Batch) -> Finding | None:
    """Whether weights, gradients, moments and what the backward pass keeps fit into what is free."""
    forward, rows = prepared.forward, num_examples(batch)
    size = prepared.chosen.decided["batch_size"]
    size = prepared.chosen.batches.num_examples if size == "full" else size
    weights = sum(p.numel() * p.element_size() for p in forward.parameters().values())
    needed = COPIES * weights + _kept(forward, prepared.loss, batch) / rows * (size or rows)
    free = free_bytes(prepared.chosen.batches.device)
    if free is None or needed <= free:
        return None
    return Finding(
        "out_of_memory",
        "critical",
        0,
        f"Training takes about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free.",
        "Use a smaller batch_size, or accumulate=n, which cuts each batch into n parts.",
        "memory",
        evidence={"needed_bytes": needed, "free_bytes": float(free)},
        confidence=0.8,
    )


def _kept(forward: Forward, loss: Loss | None, batch: Batch) -> float:
    """Bytes that a forward pass keeps for the backward pass, weights left out."""
    copied = Forward(copy.deepcopy(forward.model))
    weights = {p.data_ptr() for p in copied.parameters().values()}
    held: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if t.data_ptr() not in weights:
            held[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    copied.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        kept_alive = objective(copied, loss, batch)
    del kept_alive
    return float(sum(held.values()))


def _by_heart(prepared: Prepared, batch: Batch, history: History) -> Finding | None:
    """Whether a copy of the model can learn one batch by heart; what cannot do that will not learn the data."""
    begun, expected = history.facts.get("initial_loss"), history.facts.get("expected_initial_loss")
    known = [value for value in (begun, expected) if isinstance(value, int | float) and math.isfinite(value)]
    if not known or min(known) <= 0 or prepared.forward.is_keras or holds_repeated(batch[0]):
        return None
    bound, lowest = LEARNED * min(known), math.inf
    end = time.perf_counter() + SECONDS
    for rate in RATES:
        lowest = min(lowest, _lowest(prepared, batch, rate, bound, end))
        if lowest <= bound:
            return None
    if time.perf_counter() >= end:
        return None  # too large a network to say in so short a time
    return Finding(
        "underfitting",
        "warning",
        0,
        f"The network cannot learn even {num_examples(batch)} examples by heart: in {UPDATES} updates their loss came "
        f"down to {lowest:.3g} only.",
        "Look at the other findings; else the network is too small, parts of it get no gradient, or a layer throws "
        "away what tells the examples apart.",
        evidence={"lowest_loss": lowest, "bound": bound},
        confidence=0.8,
    )


def _lowest(prepared: Prepared, batch: Batch, rate: float, bound: float, end: float) -> float:
    """The lowest loss of a batch that Adam reaches on a copy of the model, until it is low enough or the time is up."""
    forward = Forward(copy.deepcopy(prepared.forward.model))
    forward.model.train()
    optimizer = torch.optim.Adam([p for p in forward.model.parameters() if p.requires_grad], rate)
    lowest = math.inf
    for _ in range(UPDATES):
        optimizer.zero_grad()
        value, _ = objective(forward, prepared.loss, batch)
        number = float(value.detach())
        if not math.isfinite(number):
            break
        lowest = min(lowest, number)
        if lowest <= bound or time.perf_counter() >= end:
            break
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return lowest
