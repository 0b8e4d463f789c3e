"""Records every run that is not there yet, seed by seed over all configurations, in processes that do many runs each.

    python benchmarks/clinic/record.py [--data ../shared/data] [--seeds 10] [--first 0] [--jobs 2] [--only TEXT …]

What was recorded by the code as it is stays; a recording that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import recording
from configurations import Configuration, by_name, every
from data import DATA

SCORED = 3
"""Seeds whose histories are scored, and all that healthy and hard-healthy configurations have."""
AHEAD = 4
"""Runs that wait for each process."""
Run = tuple[str, int]


def prepare() -> None:
    """A process of the pool: one thread, nothing printed by what it runs."""
    import torch

    torch.set_num_threads(1)


def made(name: str, seed: int, folder: Path) -> tuple[str, int, float, str]:
    """Record one run; configuration, seed, seconds, and what went wrong."""
    found = by_name()[name]
    started = time.perf_counter()
    try:
        history, outcome = recording.recorded(found.case(folder), seed)
    except Exception as error:  # a configuration that cannot be trained is told of, and the others go on
        return name, seed, time.perf_counter() - started, f"{type(error).__name__}: {error}"
    recording.write(name, seed, history, outcome | {"fingerprint": found.fingerprint(), "signals": recording.SIGNALS})
    return name, seed, time.perf_counter() - started, ""


def missing(configurations: tuple[Configuration, ...], seeds: int, first: int = 0) -> list[Run]:
    """What is to be recorded of seeds `first` to `seeds` − 1, in its order.

    What is meant to be well is not tested for harm, and has the first `SCORED` of them; of those histories are scored.
    """
    prints = {c.name: c.fingerprint() for c in configurations}

    def is_there(name: str, seed: int) -> bool:
        known = recording.outcome(name, seed, prints[name])
        return known is not None and (seed >= SCORED or known.get("signals") == recording.SIGNALS)

    return [
        (c.name, seed)
        for seed in range(first, seeds)
        for c in configurations
        if (seed < SCORED or c.kind in ("reference", "sick")) and not is_there(c.name, seed)
    ]


def record(runs: list[Run], jobs: int, folder: Path, tell: Callable[[str], None] = print) -> list[str]:
    """Record runs; what could not be."""
    wrong: list[str] = []
    todo = list(reversed(runs))
    started, done = time.perf_counter(), 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=prepare) as pool:
        running: set[Future[tuple[str, int, float, str]]] = set()
        while todo or running:
            while todo and len(running) < AHEAD * jobs:
                running.add(pool.submit(made, *todo.pop(), folder))
            ended, running = wait(running, return_when="FIRST_COMPLETED")
            for future in ended:
                try:
                    name, seed, seconds, error = future.result()
                except BrokenProcessPool:
                    raise SystemExit("a process of the recording ended; start it again to go on") from None
                done += 1
                if error:
                    wrong.append(f"{name} seed {seed}: {error}")
                    tell(wrong[-1])
                elif done % 20 == 0 or done == len(runs):
                    left = (time.perf_counter() - started) / done * (len(runs) - done) / 60
                    tell(f"{done:5} of {len(runs)}, {left:5.1f} min left: {name} seed {seed}, {seconds:.1f} s")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="configurations with this in their name"
    )
    options = parser.parse_args()
    chosen = tuple(c for c in every() if any(text in c.name for text in options.only))
    runs = missing(chosen, options.seeds, options.first)
    print(f"{len(chosen)} configurations, {len(runs)} runs to record", flush=True)
    wrong = record(runs, options.jobs, options.data.resolve(), lambda text: print(text, flush=True))
    print(f"{len(wrong)} could not be recorded")


if __name__ == "__main__":
    main()
