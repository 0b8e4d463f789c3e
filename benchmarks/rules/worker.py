"""Trainings of one rule on one problem, one after the other in a process of their own; used by run.py.

python worker.py '{"trainings": [{"problem": …, "entrant": …, "rate": …, "seed": …, "target": …, …}, …], …}'

A line of JSON on the standard output for each. The clock runs while updates are made. Evaluations stand beside it: one
whenever a tenth of the time so far has passed, at least a 400th and at most a 40th of the time that the problem is
given. The target is reached at the first evaluation that shows it.

Where trainings "race" for the best rate, from the middle of the grid outwards, none goes on longer than the quickest
before it took to the target: it cannot be better any more. A side of the grid is left where a rate did worse there than
the one before it; and followed beyond its end as long as each rate is the quickest so far.
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

LOOKS, FIRST, AGAIN = 40, 400, 0.1
"""Evaluations in the time that a problem is given; how many at the pace of the first ones; the share of the time so far
after which the next one is due, between the two."""
LONGEST = 1.25
"""How many times the time that a problem is given a training may last."""
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
        if spent - looked < min(asked["seconds"] / LOOKS, max(AGAIN * looked, asked["seconds"] / FIRST)):
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
        "processor_seconds": round(processor, 3), "curve": curve if asked["target"] is None else [],
        "state_bytes": sum(_bytes(values) for values in getattr(optimizer, "state", {}).values()),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }  # fmt: skip


def _bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.numel() * tree.element_size()
    found = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return sum(_bytes(value) for value in found)


class Race:
    """The grid of a rule, from the middle outwards: what need not be tried, by what was found."""

    def __init__(self, entrant: Entrant, quickest: float) -> None:
        self.entrant = entrant
        self.quickest = quickest
        self.sides: dict[bool, list[dict[str, Any]]] = {False: [], True: []}

    def passes(self, rate: float) -> str:
        """Why a rate is not tried; empty where it is."""
        side = self.sides[rate > self.entrant.rate]
        if len(side) > 1 and _is_worse(side[-1], side[-2]):
            return "passed over: the rate before it did worse than the one before that"
        if rate in self.entrant.beyond and not (side and (side[-1]["reached"] or {}).get("seconds") == self.quickest):
            return "passed over: the end of the grid is not the best"
        return ""

    def add(self, rate: float, found: dict[str, Any]) -> None:
        for is_above, side in self.sides.items():
            if rate == self.entrant.rate or is_above is (rate > self.entrant.rate):
                side.append(found)
        if found["reached"]:
            self.quickest = min(self.quickest, found["reached"]["seconds"])


def _is_worse(one: dict[str, Any], other: dict[str, Any]) -> bool:
    if one["reached"] or other["reached"]:
        return not one["reached"]
    return bool((math.inf if one["loss"] is None else one["loss"]) > (other["loss"] or math.inf))


def main() -> None:
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    trainings = asked["trainings"]
    entrant, problem = ENTRANTS[trainings[0]["entrant"]], PROBLEMS[trainings[0]["problem"]]
    if entrant.module:
        __import__(entrant.module)
    data = problem.read(Path(asked["data"]), Path(asked["cache"]))
    data = tuple(tuple(t.float() if t.is_floating_point() else t for t in part) for part in data)
    race = Race(entrant, asked.get("quickest") or math.inf) if asked["race"] else None
    for one in trainings:
        if race is not None and (why := race.passes(one["rate"])):
            print(json.dumps(one | {"note": why}), flush=True)
            continue
        longest = one["seconds"] * (1.0 if one["target"] is None else LONGEST)
        try:
            found = trained(one, data, min(longest, race.quickest if race is not None else math.inf))
        except Exception as error:  # of this rate alone
            words = " ".join(str(error).split())
            print(json.dumps(one | {"note": f"cannot: {type(error).__name__}: {words[:140]}"}), flush=True)
            found = {"reached": None, "loss": None}
        else:
            print(json.dumps(one | found), flush=True)
        if race is not None:
            race.add(one["rate"], found)


if __name__ == "__main__":
    main()
