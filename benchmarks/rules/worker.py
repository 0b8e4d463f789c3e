"""Trainings of one rule on one problem, one after the other in a process of their own; used by run.py.

python worker.py '{"trainings": [{"problem": …, "entrant": …, "rate": …, "seed": …, "target": …, …}, …], …}'

A line of JSON on the standard output for each. The clock runs while updates are made. Evaluations stand beside it: one
whenever a fortieth of the time that the problem is given has passed. The target is reached at the first evaluation that
shows it. Where trainings "race" for the best rate, none goes on longer than the quickest before it took to the target:
it cannot be better any more.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from entrants import ENTRANTS, Entrant
from problems import PROBLEMS, Problem
from torch import Tensor, nn
from torch.nn import functional as F

LOOKS, LONGEST = 40, 1.25
"""Evaluations in the time that a problem is given, and how many times that a training may last."""
EVALUATED = 1024


def loss_of(name: str, output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, y) if name == "mse" else F.cross_entropy(output.flatten(0, -2), y.flatten())


def batches(problem: Problem, entrant: Entrant, data: tuple[Tensor, Tensor], seed: int) -> Iterator[Any]:
    """Without end, each epoch in an order of its own."""
    x, y = data
    size = len(x) if problem.batch_size is None or entrant.is_full else problem.batch_size
    epoch = 0
    while True:
        if size == len(x):
            yield x, y
            continue
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        epoch += 1
        for rows in order.split(size):
            if len(rows) == size:
                yield x[rows], y[rows]


def evaluated(model: nn.Module, problem: Problem, part: tuple[Tensor, Tensor]) -> float:
    """The mean loss over a part, in evaluation mode; no number where it is not finite."""
    model.eval()
    total, count = 0.0, 0
    whole = len(part[0]) if problem.batch_size is None else EVALUATED
    with torch.no_grad():
        for x, y in zip(part[0].split(whole), part[1].split(whole), strict=True):
            total += float(loss_of(problem.loss, model(x), y)) * len(x)
            count += len(x)
    model.train()
    return total / count


def step(entrant: Entrant, optimizer: Any, model: nn.Module, problem: Problem, batch: Any) -> None:
    x, y = batch
    if entrant.way == "batch":
        optimizer.step(x, y)
        return

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(problem.loss, model(x), y)
        loss.backward()
        return loss.detach()

    if entrant.way == "closure":
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


class Readout:
    """The weights as they are, or their exponential average; and what a rule does of itself before it is measured."""

    def __init__(self, entrant: Entrant, model: nn.Module, optimizer: Any) -> None:
        self.modes = [getattr(optimizer, word, lambda: None) for word in ("eval", "train")]  # schedule-free's
        self.average = None
        if entrant.is_averaged:
            from thalweg.optim.averages import WeightAverage

            self.average = WeightAverage("ema", [*model.parameters(), *model.buffers()])

    def update(self, number: int) -> None:
        if self.average is not None:
            self.average.update(number)

    @contextmanager
    def measured(self) -> Iterator[None]:
        self.modes[0]()
        with self.average.averaged() if self.average is not None else nullcontext():
            yield
        self.modes[1]()


def trained(asked: dict[str, Any], data: tuple[Any, Any], limit: float) -> dict[str, Any]:
    """What came of a training: where its target was reached, its best loss and what it cost."""
    problem, entrant = PROBLEMS[asked["problem"]], ENTRANTS[asked["entrant"]]
    train, held = data
    part = held if problem.held_out else train
    model = problem.model(asked["seed"])
    optimizer = entrant.make(model, problem.loss, asked["rate"])
    readout = Readout(entrant, model, optimizer)
    target = asked["target"] if asked["target"] is not None else -math.inf
    spent = processor = 0.0
    number, looked, best, reached = 0, 0.0, math.inf, None
    curve: list[tuple[float, float]] = []
    readout.modes[1]()
    for batch in batches(problem, entrant, train, asked["seed"]):
        begun, on_processor = time.perf_counter(), time.process_time()
        step(entrant, optimizer, model, problem, batch)
        readout.update(number)
        spent += time.perf_counter() - begun
        processor += time.process_time() - on_processor
        number += 1
        if spent - looked < asked["seconds"] / LOOKS:
            continue
        looked = spent
        with readout.measured():
            loss = evaluated(model, problem, part)
        curve.append((round(spent, 3), float(f"{loss:.5g}")))
        if not math.isfinite(loss):
            break
        best = min(best, loss)
        if loss <= target and spent <= limit:
            reached = {"seconds": round(spent, 3), "steps": number}
            break
        if spent >= limit:
            break
    return {
        "reached": reached, "loss": best if math.isfinite(best) else None, "seconds": round(spent, 3), "steps": number,
        "processor_seconds": round(processor, 3), "curve": curve[-LOOKS:] if asked["target"] is None else [],
        "state_bytes": sum(_bytes(values) for values in getattr(optimizer, "state", {}).values()),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }  # fmt: skip


def _bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    found = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_bytes(value) for value in found)


def main() -> None:
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    trainings = asked["trainings"]
    entrant, problem = ENTRANTS[trainings[0]["entrant"]], PROBLEMS[trainings[0]["problem"]]
    if entrant.module:
        __import__(entrant.module)
    data = problem.read(Path(asked["data"]), Path(asked["cache"]))
    data = tuple(tuple(t.float() if t.is_floating_point() else t for t in part) for part in data)
    quickest = asked.get("quickest") or math.inf
    for one in trainings:
        longest = one["seconds"] * (1.0 if one["target"] is None else LONGEST)
        try:
            found = trained(one, data, min(longest, quickest))
        except Exception as error:  # of this rate alone
            words = " ".join(str(error).split())
            print(json.dumps(one | {"note": f"cannot: {type(error).__name__}: {words[:140]}"}), flush=True)
            continue
        if asked["race"] and found["reached"]:
            quickest = min(quickest, found["reached"]["seconds"])
        print(json.dumps(one | found), flush=True)


if __name__ == "__main__":
    main()
