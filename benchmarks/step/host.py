"""What of a compiled step is the program itself, and what the host adds: microseconds, the least of five turns.

    python benchmarks/step/host.py [--workload seed]

`run` is the call of the compiled program on tensors that are at hand; `looks` is finding out that model, rule and batch
are what it was made for; `step` is all of `thalweg.fast_step`'s step. Allocator and threads are as the plan has them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch_models
from workloads import LEARNING_RATE, WORKLOADS, named

import thalweg

CALLS, TURNS, STEPS = 4000, 5, 1_000_000


def microseconds(function: Callable[[], Any], seconds: float = 0.4) -> float:
    """Of one call."""
    started = time.perf_counter()
    function()
    calls = max(3, min(CALLS, int(seconds / (time.perf_counter() - started))))
    best = float("inf")
    for _ in range(TURNS):
        started = time.perf_counter()
        for _ in range(calls):
            function()
        best = min(best, (time.perf_counter() - started) / calls)
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="seed")
    workload = parser.parse_args().workload
    model = torch_models.model(workload)
    rule = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    batch = torch_models.ring(named(workload))[0]
    with thalweg.fast_step(model, torch_models.loss, rule, steps=STEPS, example=batch) as step:
        for _ in range(10):
            step(*batch)
        program = step._step.program
        if program is None:
            raise SystemExit(f"the step is not compiled: {step.plan.notes}")
        arguments = [*program._held, *batch]
        found = {
            "run": microseconds(lambda: program._run(arguments)),
            "looks": microseconds(lambda: program.takes(batch)),
            "step": microseconds(lambda: step(*batch)),
        }
    print(", ".join(f"{name} {value:,.1f} µs" for name, value in found.items()))


if __name__ == "__main__":
    main()
