"""The six steps on a GPU, in microseconds: stock PyTorch, torch.compile, JAX and ours, in turn.

    python benchmarks/step/on_gpu.py [--workloads seed mlp …] [--blocks 7] [--seconds 0.15]

As run.py, but every contender of a workload is a process that is ready before any is timed (a GPU keeps them all), and
they take turns block by block: a figure is the median over blocks of contender ÷ reference, stock PyTorch with fused
Adam, and its spread the middle half of these. Each framework multiplies as it comes: PyTorch in fp32, its convolutions
in tf32, JAX both in tf32. Results go to benchmarks/results/step-gpu.json. What runs JAX stands in $THALWEG_PEERS/jax.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from contenders import EVERYONE, REFERENCE
from pairs import COMPARED, Failed, Worker, quartiles, versions
from tables import gpu, ours, save
from workloads import WORKLOADS

RESULTS = Path(__file__).parents[1] / "results" / "step-gpu.json"
PEERS = ["torch-compile", "torch-reduce-overhead", "jax-jit", "jax-scan"]
NAMES = [REFERENCE, *PEERS, "thalweg", "thalweg-several", "thalweg-fast"]
#: So many processes compile at once, each with as many threads; and JAX takes the GPU's memory as it needs it.
AT_ONCE, SETTINGS = 48, (("TORCHINDUCTOR_COMPILE_THREADS", "1"), ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"))


def prepared(workload: str, name: str, deadline: float) -> tuple[Worker | None, dict[str, Any]]:
    """A contender that has made its first steps, and what is known of these; no worker where it cannot."""
    try:
        worker = Worker(name, workload, deadline)
        try:
            found = worker.ask("first", COMPARED)
        except Failed:
            worker.close()
            raise
    except Failed as failure:
        return None, {"note": str(failure)}
    return worker, {"first_call_seconds": round(found["first_call_seconds"], 2), "losses": found["losses"]} | (
        {"plan": found["plan"]} if "plan" in found else {}
    )


def timed(workers: dict[str, Worker], blocks: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of a step, block by block, each time beginning with another contender."""
    steps = {name: max(50, round(seconds / worker.ask("run", 100)["seconds"])) for name, worker in workers.items()}
    times: dict[str, list[float]] = {name: [] for name in workers}
    names = list(workers)
    for block in range(blocks):
        for name in names[block % len(names) :] + names[: block % len(names)]:
            times[name].append(workers[name].ask("run", steps[name])["seconds"])
    return times


def cells(known: dict[str, dict[str, Any]], times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """What was found of each contender of a workload."""
    expected = known[REFERENCE].get("losses")
    for name, cell in known.items():
        losses = cell.pop("losses", None)
        if losses and expected and EVERYONE[name].same_weights:
            cell["largest_loss_difference"] = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        if name in times and REFERENCE in times:
            ratios = [a / b for a, b in zip(times[name], times[REFERENCE], strict=True)]
            low, median, high = quartiles(ratios)
            cell |= {"us": round(statistics.median(times[name]) * 1e6, 1), "ratio": round(median, 4)}
            cell["middle_half"] = [round(low, 4), round(high, 4)]
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.15, help="of one turn")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds until all must be ready")
    options = parser.parse_args()
    os.environ["STEP_DEVICE"] = os.environ.get("STEP_DEVICE", "cuda")
    for name, contender in EVERYONE.items():
        EVERYONE[name] = replace(contender, environ=contender.environ + SETTINGS)
    started, deadline = time.monotonic(), time.monotonic() + options.limit
    pairs = [(workload, name) for workload in options.workloads for name in options.only]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = dict(zip(pairs, pool.map(lambda pair: prepared(*pair, deadline), pairs), strict=True))
    print(f"all ready after {time.monotonic() - started:.0f} s", flush=True)
    table: dict[str, Any] = {"machine": gpu(), "command": " ".join(sys.argv), "thalweg.step": ours("step")}
    table["versions"] = {name: versions(EVERYONE[name]) for name in (REFERENCE, "jax-jit") if name in options.only}
    table["workloads"] = {}
    for workload in options.workloads:
        workers = {name: made[workload, name][0] for name in options.only}
        for worker in workers.values():
            if worker is not None:
                worker.deadline = time.monotonic() + options.limit
        ready = {name: worker for name, worker in workers.items() if worker is not None}
        times = timed(ready, options.blocks, options.seconds)
        found = cells({name: made[workload, name][1] for name in options.only}, times)
        table["workloads"][workload] = found
        save(RESULTS, table)
        for name, cell in found.items():
            print(f"{workload:12} {EVERYONE[name].title:50} {cell}", flush=True)
        for worker in ready.values():
            worker.close()


if __name__ == "__main__":
    main()
