"""What the best learning rate is: full trainings at eleven rates, three seeds each.

    python benchmarks/search/reference.py [--data ../shared/data] [--jobs 2] [--only digits …] [--quick] [--again]

Eleven rates on a logarithmic grid over four decades (AdamW 1e-5 to 1e-1, SGD with momentum 1e-4 to 1), eight workloads
(workloads.py), each training by `thalweg.fit` with a warm-up and a cosine over its known length, one thread each. A
cell has the validation loss of what was handed over (`loss`, null where the training diverged), of the last epoch, the
best within nine tenths of the training (`at_90`), and the curve, every so many epochs (`every`) up to the last.

Results go to benchmarks/results/search-reference.json after each training; those known are kept unless --again. About
25 minutes with two jobs.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import RESULTS, Cell, Table, filled, fingerprint, machine, parser, rounded
from workloads import RULES, WORKLOADS, Data, Workload

FILE = RESULTS / "search-reference.json"
NAMES = ("workload", "rule", "rate", "seed")
SEEDS = 3
POINTS = 11
CURVE = 25
"""Points of a curve that are kept, at most."""
SPAN = {"momentum": (1e-4, 1.0), "adamw": (1e-5, 1e-1)}

_data: dict[str, Data] = {}
"""Of this process, by workload."""


def grid(rule: str, points: int = POINTS) -> list[float]:
    """Rates evenly spaced by their logarithm, ends included."""
    low, high = SPAN[rule]
    return [float(f"{low * (high / low) ** (i / (points - 1)):.5g}") for i in range(points)]


def train(workload: Workload, data: Data, rule: str, rate: float, seed: int) -> Cell:
    """A whole training."""
    import thalweg

    with tempfile.TemporaryDirectory() as folder:
        run = thalweg.fit(
            workload.make_model(seed), data[0], workload.loss, validation_data=data[1], optimizer=rule,
            learning_rate=rate, batch_size=workload.batch_size, epochs=workload.epochs, patience=None, plan="eager",
            seed=seed, run_dir=folder, verbose=False, device="cpu",
        )  # fmt: skip
        name = "validation_loss"  # of which there is none where it diverged within the first epoch
        steps, losses = run.history.series(name) if name in run.history.names else (np.array([0]), np.array([np.nan]))
    diverged = run.stopped_because == "diverged" or not np.isfinite(losses[-1])
    early = losses[(steps <= 0.9 * workload.steps(data[0])) & np.isfinite(losses)]
    every = math.ceil(workload.epochs / CURVE)
    return {
        "loss": None if diverged else rounded(run.metrics["validation_loss"]),
        "last": rounded(losses[-1]),
        "at_90": rounded(early.min()) if len(early) and not diverged else None,
        "steps": run.steps,
        "seconds": round(run.seconds, 2),
        "stopped_because": "diverged" if diverged else run.stopped_because,
        "every": every,
        "curve": [rounded(loss) for loss in losses[::-1][::every][::-1]],
    }


def one(job: tuple[dict[str, Any], bool, Path, Path]) -> Cell:
    """A cell, in a process that keeps the data it has read."""
    of, is_quick, folder, cache = job
    torch.set_num_threads(1)
    workload = WORKLOADS[of["workload"]]
    if of["workload"] not in _data:
        _data[of["workload"]] = workload.data(folder, cache)
    if is_quick:
        workload = replace(workload, epochs=max(1, workload.epochs // 20))
    return of | train(workload, _data[of["workload"]], of["rule"], of["rate"], of["seed"])


# ── what the table says ──


def holds() -> dict[str, Any]:
    return {"torch": torch.__version__, "machine": machine()}


def read() -> Table:
    """What is known, wherever it was made."""
    table = Table(FILE, NAMES, {})
    if not table.cells:
        raise SystemExit(f"there is no {FILE}: run benchmarks/search/reference.py first")
    return table


def best(table: Table, workload: str, rule: str) -> tuple[float, list[Cell]]:
    """The rate whose mean loss over the seeds is smallest, none of them diverged, and its cells."""
    rates: dict[float, list[Cell]] = {}
    for cell in table.where(workload=workload, rule=rule):
        rates.setdefault(cell["rate"], []).append(cell)
    most = max(map(len, rates.values()))
    whole = {r: c for r, c in rates.items() if len(c) == most and all(cell["loss"] is not None for cell in c)}
    rate = min(whole, key=lambda r: statistics.mean(cell["loss"] for cell in whole[r]))
    return rate, whole[rate]


def line(table: Table, workload: str, rule: str) -> str:
    """A row for a person; ! where the best is at the grid's end, so that a better one may lie outside."""
    rate, cells = best(table, workload, rule)
    losses = [cell["loss"] for cell in cells]
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    shown = []
    for other in grid(rule):
        found = [cell["loss"] for cell in table.where(workload=workload, rule=rule, rate=other)]
        finite = [loss for loss in found if loss is not None]
        shown.append(f"{statistics.mean(finite):.4g}" if found and len(finite) == len(found) else "–" if found else "?")
    seconds = statistics.mean(cell["seconds"] for cell in cells)
    end = "!" if rate in SPAN[rule] else " "
    return (
        f"{workload:18} {rule:9} best at {rate:8.2g}{end}: {statistics.mean(losses):.4g} ± {spread:.2g}, "
        f"{seconds:4.1f} s; by rate {' '.join(shown)}"
    )


def main() -> None:
    flags = parser(__doc__, list(WORKLOADS))
    flags.add_argument("--quick", action="store_true", help="see that it runs; the results file is left alone")
    options = flags.parse_args()
    table = Table(FILE, NAMES, holds(), options.again or options.quick)
    prints = {
        name: fingerprint(WORKLOADS[name], WORKLOADS[name].data(options.data, options.cache)) for name in options.only
    }
    wanted = [
        {"workload": name, "fingerprint": prints[name], "rule": rule, "rate": rate, "seed": seed}
        for seed in range(1 if options.quick else SEEDS)
        for name in options.only
        for rule in RULES
        for rate in (grid(rule)[::5] if options.quick else grid(rule))
    ]
    known = {(*table.key(cell), cell["fingerprint"]) for cell in table.cells.values()}
    jobs = [
        (of, options.quick, options.data, options.cache)
        for of in wanted
        if (*table.key(of), of["fingerprint"]) not in known
    ]
    for cell in filled(table, one, jobs, options):
        if options.quick:
            print({name: cell[name] for name in (*NAMES, "loss", "seconds", "stopped_because")}, flush=True)
    for name in options.only:
        for rule in RULES:
            print(line(table, name, rule))


if __name__ == "__main__":
    main()
