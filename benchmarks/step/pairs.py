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

from contenders import CONTENDERS, EVERYONE, REFERENCE, Contender
from load import MOST, Others

WORKER = Path(__file__).with_name("worker.py")
COMPARED = 20
"""Steps from the same weights whose losses are compared."""
FEWEST = 3
"""Blocks without which there is no figure."""


LONG = 3.0
"""Seconds of three steps where a turn is one step, or the fewest there can be."""
WARM = 10
"""A turn's tenth goes before it and does not count."""


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


REFERENCES = 3
"""Processes of the reference, one after the other, that share a cell's blocks: what the stock allocator makes of an
address space differs from process to process, by 15 % for the convolutions."""


def clean(contender: Contender, cache: str) -> dict[str, str]:
    """An environment in which allocator and threads are as they come, and nothing compiled is found again."""
    unset = ("OMP_", "MKL_", "MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "TORCHINDUCTOR_", "TF_", "XLA_", "JAX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TORCHINDUCTOR_CACHE_DIR": cache, "XDG_CACHE_HOME": cache}
    return kept | quiet | dict(contender.environ)


class Worker:
    """A contender's process."""

    def __init__(self, name: str, workload: str, deadline: float) -> None:
        contender = EVERYONE[name]
        if not contender.python.exists():
            raise Failed(f"absent: no environment {contender.environment} (environments.sh makes it)")
        self.cache, self.errors = tempfile.mkdtemp(), tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with it)
        self.deadline, self.unread = deadline, b""
        self.process = subprocess.Popen(
            [contender.python, WORKER, name, workload], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, env=clean(contender, self.cache), start_new_session=True,
        )  # fmt: skip
        try:
            self._answer()
        except Failed:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
    times: dict[str, list[float]] = {"contender": [], "reference": []}
    cell: dict[str, Any] = {}
    try:
        with Worker(name, workload, deadline) as contender:
            found = contender.ask("first", COMPARED)
            for blocks in _shares(effort.blocks, REFERENCES):
                with Worker(REFERENCE, workload, deadline) as reference:
                    cell = _firsts(reference.ask("first", COMPARED), found, CONTENDERS[name].same_weights) | cell
                    with Others([os.getpid(), contender.process.pid, reference.process.pid]) as others:
                        _blocks(contender, reference, blocks, effort.seconds, times)
                cell["others_cores"] = max(others.cores, cell.get("others_cores", 0.0))
    except OverTime:
        cell["note"] = f"over {effort.limit:.0f} s"
    except Failed as failure:
        cell["note"] = str(failure)
    if len(times["contender"]) >= FEWEST:
        cell |= _figures(times)
    else:
        cell.setdefault("note", f"fewer than {FEWEST} turns")
    if not undisturbed(cell):
        cell["note"] = f"disturbed: others took {cell['others_cores']:.1f} cores; measured again next time"
    return cell | {"seconds": round(time.monotonic() - started)}


def _shares(blocks: int, processes: int) -> list[int]:
    """How many blocks each process of the reference has."""
    return [share for i in range(processes) if (share := (blocks + i) // processes)]


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


def _blocks(contender: Worker, reference: Worker, blocks: int, seconds: float, times: dict[str, list[float]]) -> None:
    """Turns of both, every second block the other way round; one of each before anything counts."""
    steps = {worker: _steps(worker, seconds) for worker in (contender, reference)}
    for block in range(blocks):
        turn = {}
        for worker in (reference, contender) if block % 2 else (contender, reference):
            # A library's threads may still spin from the other's turn: the first steps do not count.
            if steps[worker] >= WARM:
                worker.ask("run", steps[worker] // WARM)
            turn[worker] = worker.ask("run", steps[worker])["seconds"]
        times["contender"].append(turn[contender])
        times["reference"].append(turn[reference])


def _steps(worker: Worker, seconds: float) -> int:
    """Of a turn that takes about so long."""
    tried = worker.ask("run", 3)
    if tried["in_all"] >= LONG:
        return 1
    tried = worker.ask("run", max(1, round(seconds / 4 / tried["seconds"])))
    return max(1, round(seconds / tried["seconds"]))


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


def undisturbed(cell: dict[str, Any]) -> bool:
    """Whether others left the machine to it."""
    return cell.get("others_cores", 0.0) <= MOST


def known(cell: dict[str, Any], holds: dict[str, Any]) -> bool:
    """Whether a cell stands: measured undisturbed, on what holds now."""
    return undisturbed(cell) and all(cell.get(key) == value for key, value in holds.items())


def better(new: dict[str, Any], old: dict[str, Any], holds: dict[str, Any]) -> dict[str, Any]:
    """The new cell, unless it was disturbed and the old one stands."""
    return old if "ratio" in old and known(old, holds) and not undisturbed(new) else new


def versions(contender: Contender) -> dict[str, str]:
    """Of what a contender runs on; empty where its environment is absent."""
    python = contender.python
    if not python.exists():
        return {}
    done = subprocess.run([python, WORKER, "--versions"], capture_output=True, text=True, check=True, cwd="/")
    return json.loads(done.stdout)
