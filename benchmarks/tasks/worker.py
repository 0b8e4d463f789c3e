"""One cell of the table in a process of its own: our task as a user runs it, or the same network in a loop by hand."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lines import BY_NAME, Line
from torch import nn

import thalweg
from thalweg.loop.evaluate import measure
from thalweg.loop.metrics import resolve_metrics
from thalweg.step.batches import Batches, Order, automatic_size
from thalweg.step.data import read
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.tensors.named import assign, copied

#: Decoupled weight decay of the loop by hand, and its share of steps in warm-up: what is usual.
DECAY, WARM_UP = 0.01, 0.05


def ours(line: Line, data: Path, scratch: Path, runs: Path) -> dict[str, Any]:
    """`thalweg fit TASK --data DIR`, nothing else."""
    started = time.perf_counter()
    recipe = thalweg.recipe(line.task, data=str(line.folder(data, scratch)), **line.options)
    run = recipe.fit(run_dir=runs / f"run-{line.name}", verbose=True)
    return {
        "seconds": time.perf_counter() - started, "training_seconds": run.seconds, "metrics": dict(run.metrics),
        "epochs": run.record.epochs, "steps": run.steps, "stopped_because": run.stopped_because,
        "learning_rate": run.learning_rate, "batch_size": run.record.decided["batch_size"],
        "verdict": run.verdict.sentence if run.verdict else None,
        "findings": [f"{f.severity}: {f.sentence}" for f in run.findings],
        "num_parameters": run.record.decided["num_parameters"],
    }  # fmt: skip


class ByHand:
    """What a callback of a task is given at the end of a loop that has no run: it adds metrics here."""

    def __init__(self, model: nn.Module, metrics: dict[str, float]) -> None:
        self.model = model
        self.metrics = metrics
        self.stopped_because = "epochs"

    def add_metrics(self, **numbers: float) -> None:
        self.metrics |= numbers

    def show(self, section: Any) -> None:
        """Pictures are left out."""


def by_hand(line: Line, data: Path, scratch: Path, rate: float, epochs: float, size: int) -> dict[str, Any]:
    """The same network and data: eager PyTorch, AdamW, warm-up and cosine; the best weights by validation are kept."""
    started = time.perf_counter()
    recipe = thalweg.recipe(line.task, data=str(line.folder(data, scratch)), **line.options)
    given = recipe.arguments
    model, loss = given["model"], resolve(given["loss"]) if given.get("loss") is not None else None
    torch.manual_seed(given.get("seed", 0))
    batches, held = batches_by_hand(given, size)
    metrics = resolve_metrics(given.get("metrics", ()), loss.name if loss else None)
    total = math.ceil(epochs) * (batches.per_epoch or 1)
    rule = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(rule, lambda step: _share(step, total))
    forward, best, kept = Forward(model), math.inf, None
    training_started = time.perf_counter()
    for epoch in range(math.ceil(epochs)):
        model.train()
        for x, y in batches.epoch(epoch):
            rule.zero_grad()
            (forward.own_loss(x, y) if loss is None else loss(forward(x), y)).backward()
            rule.step()
            schedule.step()
        measured = measure(forward, loss, held.epoch(0), metrics)
        if measured["loss"] < best:
            best, kept = measured["loss"], copied(forward.state())
            numbers = {f"validation_{name}": value for name, value in measured.items()}
    seconds = time.perf_counter() - training_started
    if kept is None:
        return {"seconds": seconds, "metrics": {}, "epochs": epochs, "learning_rate": rate, "diverged": True}
    assign(forward.state(), kept)
    run = ByHand(model.eval(), numbers)
    for callback in _listed(given.get("callbacks", ())):
        if hasattr(callback, "on_end"):
            callback.on_end(run)
    return {
        "seconds": time.perf_counter() - started, "training_seconds": seconds, "metrics": run.metrics,
        "epochs": epochs, "steps": total, "learning_rate": rate, "batch_size": size,
    }  # fmt: skip


def batches_by_hand(given: dict[str, Any], size: int) -> tuple[Batches, Batches]:
    cpu = torch.device("cpu")
    training, held = read(given["data"]), given.get("validation_data")
    size = size or given.get("batch_size") or automatic_size(len(training))
    if held is None:
        share = given["validation_split"]
        drawn = torch.randperm(len(training), generator=torch.Generator().manual_seed(0)).tolist()
        count = round(len(training) * share)
        training, held = training.part(sorted(drawn[count:])), training.part(sorted(drawn[:count]))
    else:
        held = read(held)
    order = Order(size, seed=0, keep_single=False, by_length=True)
    return Batches(training, order, torch.float32, cpu), Batches(
        held, Order(min(size, 256), shuffle=False, by_length=True), torch.float32, cpu
    )


def _share(step: int, total: int) -> float:
    """Of the peak rate: linear warm-up, then half a cosine."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _listed(callbacks: Any) -> list[Any]:
    return list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("line", choices=sorted(BY_NAME))
    parser.add_argument("who", choices=("ours", "hand"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--epochs", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--runs", type=Path, help="where our run is kept; without it, nowhere")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        line, scratch = BY_NAME[asked.line], Path(folder)
        if asked.who == "ours":
            found = ours(line, asked.data, scratch, asked.runs or scratch)
        else:
            found = by_hand(line, asked.data, scratch, asked.rate, asked.epochs, asked.size)
    asked.out.write_text(json.dumps(found))
