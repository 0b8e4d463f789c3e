"""A contender and the reference, a process each, in turn: only one of them computes at a time."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, REFERENCE, Contender
from load import MOST, Others

WORKER = Path(__file__).with_name("worker.py")
COMPARED = 20
"""Steps from the same weights whose losses are compared."""
FEWEST = 3
"""Blocks without which there is no figure."""


LONG = 3.0
"""Seconds of a turn that needs no steps before it which do not count."""


class Failed(Exception):
    """A contender has no figure; the sentence says why."""


class OverTime(Failed):
    """It did not answer within the time it had."""


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    blocks: int = 9
    seconds: float = 0.6
    """Of one turn, about; a step or fifty where they take longer."""
    limit: float = 240.0
    """Seconds that a contender has on one workload, compiling and the reference's turns included."""


def clean(contender: Contender, cache: str) -> dict[str, str]:
    """An environment in which allocator and threads are as they come, and nothing compiled is found again."""
    unset = ("OMP_", "MKL_", "MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "TORCHINDUCTOR_", "TF_", "XLA_", "JAX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TORCHINDUCTOR_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
    return kept | quiet | dict(contender.environ)


class Worker:
    """A contender's process."""

    def __init__(self, name: str, workload: str, deadline: float) -> None:
        contender = CONTENDERS[name]
        if not contender.python.exists():
            raise Failed(f"absent: no environment {contender.environment} (environments.sh makes it)")
        self.cache, self.errors = tempfile.mkdtemp(), tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with it)
        self.deadline, self.unread = deadline, b""
        self.process = subprocess.Popen(
            [contender.python, WORKER, name, workload], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, env=clean(contender, self.cache), start_new_session=True,
        )  # fmt: skip
        self._answer()

    def ask(self, command: str, steps: int) -> dict[str, Any]:
        self.process.stdin.write(f"{command} {steps}\n".encode())
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        while b"\n" not in self.unread:
            left = self.deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise OverTime("over its time")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                raise Failed(f"cannot: its process ended with {self.process.wait()}: {self._last_words()}")
            self.unread += piece
        line, self.unread = self.unread.split(b"\n", 1)
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def _last_words(self) -> str:
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or [""])[-1][:160]

    def close(self) -> None:
        # Its group: compilers leave workers of their own.
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close(), self.process.stdout.close(), self.errors.close()
        shutil.rmtree(self.cache, ignore_errors=True)


def side_by_side(name: str, workload: str, effort: Effort) -> dict[str, Any]:
    """The cell of a contender on a workload: ratios to the reference, or why there are none."""
    started = time.monotonic()
    deadline = started + effort.limit
    workers: list[Worker] = []
    cell: dict[str, Any] = {}
    times: dict[str, list[float]] = {"contender": [], "reference": []}
    try:
        for part in (REFERENCE, name):
            workers.append(Worker(part, workload, deadline))
        reference, contender = workers
        expected, found = (worker.ask("first", COMPARED) for worker in workers)
        cell |= _firsts(expected, found, CONTENDERS[name].same_weights)
        others = Others([os.getpid(), *(worker.process.pid for worker in workers)])
        try:
            _blocks(contender, reference, effort, times)
        finally:
            cell["others_cores"] = others.cores()
    except OverTime:
        cell["note"] = f"over {effort.limit:.0f} s"
    except Failed as failure:
        cell["note"] = str(failure)
    finally:
        for worker in workers:
            worker.close()
    if len(times["contender"]) >= FEWEST:
        cell |= _figures(times)
    if (cell.get("others_cores") or 0) > MOST:
        cell["note"] = f"disturbed: others took {cell['others_cores']:.1f} cores; measured again next time"
    return cell | {"seconds": round(time.monotonic() - started)}


def _firsts(expected: dict[str, Any], found: dict[str, Any], compared: bool) -> dict[str, Any]:
    apart = [abs(a - b) for a, b in zip(expected["losses"], found["losses"], strict=True)]
    return {
        "first_call_seconds": round(found["first_call_seconds"], 3),
        "reference_first_call_seconds": round(expected["first_call_seconds"], 3),
        f"loss_{COMPARED}": found["losses"][-1],
        f"reference_loss_{COMPARED}": expected["losses"][-1],
        **({"largest_loss_difference": max(apart)} if compared else {}),
        **({"plan": found["plan"]} if "plan" in found else {}),
    }


def _blocks(contender: Worker, reference: Worker, effort: Effort, times: dict[str, list[float]]) -> None:
    """Turns of both, every second block the other way round; one of each before anything counts."""
    steps, long = {}, {}
    for worker in (contender, reference):
        tried = worker.ask("run", 3)
        if tried["in_all"] < LONG:
            tried = worker.ask("run", max(1, round(effort.seconds / 4 / tried["seconds"])))
        steps[worker] = max(1, round(effort.seconds / tried["seconds"]))
        long[worker] = tried["in_all"] >= LONG
    both = ((reference, times["reference"]), (contender, times["contender"]))
    for block in range(effort.blocks):
        turn = {}
        for worker, _ in both if block % 2 else both[::-1]:
            # A library's threads may still spin from its other's turn: its first steps do not count.
            if not long[worker]:
                worker.ask("run", max(1, steps[worker] // 10))
            turn[worker] = worker.ask("run", steps[worker])["seconds"]
        for worker, kept in both:
            kept.append(turn[worker])


def _figures(times: dict[str, list[float]]) -> dict[str, Any]:
    over, under = times["contender"], times["reference"]
    low, median, high = quartiles([a / b for a, b in zip(over, under, strict=True)])
    return {
        "ratio": round(median, 4),
        "middle_half": [round(low, 4), round(high, 4)],
        "contender_us": round(statistics.median(over) * 1e6, 1),
        "reference_us": round(statistics.median(under) * 1e6, 1),
        "blocks": len(over),
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def known(cell: dict[str, Any], holds: dict[str, Any]) -> bool:
    """Whether a cell stands: measured undisturbed, on what holds now."""
    return (cell.get("others_cores") or 0) <= MOST and all(cell.get(key) == value for key, value in holds.items())


def versions(contender: Contender) -> dict[str, str]:
    """Of what a contender runs on; empty where its environment is absent."""
    python = contender.python
    if not python.exists():
        return {}
    done = subprocess.run([python, WORKER, "--versions"], capture_output=True, text=True, check=True, cwd="/")
    return json.loads(done.stdout)
