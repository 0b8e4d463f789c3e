"""One contender on one workload, in a process of its own, told over a pipe what to run. Used by run.py.

    python worker.py CONTENDER WORKLOAD

A line in is a command, a line out its answer as JSON:

- `first N`: makes the step (anything compiled is compiled here) and runs N of them; `first_call_seconds` from data in
  memory to the first loss, and the `losses`.
- `run N`: `seconds` a step, over N of them or the fewest it can; `in_all`, what they took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from typing import Any, Protocol

from contenders import EVERYONE, PACKAGES
from workloads import named


class Contender(Protocol):
    """What a framework's module makes of a workload."""

    def losses(self, steps: int) -> list[float]:
        """Train that many steps, at least; the loss of each before its update."""

    def seconds(self, steps: int) -> float:
        """Train about that many steps; seconds of one."""


@dataclass
class Stepping:
    """A contender whose framework has a step to call."""

    step: Callable[[Any, Any], Any]
    """(x, y) -> loss, updating the parameters."""
    ring: list[tuple[Any, Any]]
    wait: Callable[[Any], Any] = lambda loss: None
    """Until what was asked for is computed, where a framework returns before."""
    read: Callable[[Any], float] = float
    """The number in a loss."""
    plan: Callable[[], str] | None = None
    """In words, how the step is run."""
    batches: Iterator[tuple[Any, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = cycle(self.ring)

    def losses(self, steps: int) -> list[float]:
        return [self.read(self.step(*next(self.batches))) for _ in range(steps)]

    def seconds(self, steps: int) -> float:
        step, batches = self.step, self.batches
        started = time.perf_counter()
        for _ in range(steps):
            x, y = next(batches)
            loss = step(x, y)
        self.wait(loss)
        return (time.perf_counter() - started) / steps


class AtOnce:
    """A contender that trains many steps with each call."""

    number: int

    def call(self) -> Any:
        """Train `number` steps; the losses, an array that has `tolist`."""
        raise NotImplementedError

    def wait(self, losses: Any) -> None:
        """Until they are computed, where a framework returns before."""

    def losses(self, steps: int) -> list[float]:
        found: list[float] = []
        while len(found) < steps:
            found += self.call().tolist()
        return found

    def seconds(self, steps: int) -> float:
        times = max(1, round(steps / self.number))
        started = time.perf_counter()
        for _ in range(times):
            losses = self.call()
        self.wait(losses)
        return (time.perf_counter() - started) / (times * self.number)


def first(contender: Callable[[], Contender], steps: int) -> tuple[Contender, dict[str, Any]]:
    started = time.perf_counter()
    made = contender()
    losses = made.losses(1)
    seconds = time.perf_counter() - started
    if len(losses) < steps:
        losses += made.losses(steps - len(losses))
    plan = getattr(made, "plan", None)
    return made, {"first_call_seconds": seconds, "losses": losses[:steps]} | ({"plan": plan()} if plan else {})


def versions() -> dict[str, str]:
    """Of the packages that matter, where installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def reason(error: BaseException) -> str:
    """Why there is no figure, in one line."""
    if isinstance(error, ModuleNotFoundError) or getattr(error, "absent", False):
        return f"absent: {error}"
    lines = str(error).strip().splitlines() or [""]
    return f"cannot: {type(error).__name__}: {lines[0]}"[:200]


def main() -> None:
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    name, workload = sys.argv[1:]
    try:
        make = getattr(import_module(EVERYONE[name].module), EVERYONE[name].function)(named(workload))
        made: Any = None
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            command, steps = line.split()
            if command == "first":
                made, answer = first(make, int(steps))
            else:
                started = time.perf_counter()
                answer = {"seconds": made.seconds(int(steps)), "in_all": time.perf_counter() - started}
            print(json.dumps(answer), file=answers)
    except Exception as error:
        print(json.dumps({"failed": reason(error)}), file=answers)
        raise


if __name__ == "__main__":
    if sys.argv[1:] == ["--versions"]:
        print(json.dumps(versions()))
    else:
        main()
