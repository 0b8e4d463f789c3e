"""How many leading directions SOAP is to have, on how long sides, from which step on, and what they may cost.

    python benchmarks/rules/ranks.py [--data ../shared/data] [--jobs 2] [--seeds 3]

Defaults are not to be chosen on the problems by which rules are judged (run.py), so these five are in no table of
rules: spoken digits by a convolutional network, an autoencoder and a dense network on Fashion-MNIST, the quality of
wines from numbers, and captions by a Transformer, character by character (MLP and wines by the loss of the data they
are trained on: that of others is at its least after a tenth of the time). The target is the best loss of fused AdamW
in the problem's time, at the best of three rates, seed 0. Each variant is trained at two rates, up to one and a half
times the problem's time; shown is the rate with the least median seconds. A miss counts as all of the time. One thread
each. Results go to benchmarks/results/rules-ranks.json, and the table into docs/optim.md (--table alone: of the
results there are).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from entrants import ENTRANTS, Entrant
from problems import CACHE, DATA, PROBLEMS, Problem, autoencoder, dense, images, own
from worker import trained
from workloads import CHARACTERS, Data, Transformer, over_speech, speech
from workloads import _split as split
from workloads import _windows as windows

sys.path.append(str(Path(__file__).parents[1]))  # for what the benchmarks share
from machine import machine

RESULTS = Path(__file__).parents[1] / "results" / "rules-ranks.json"
RATES, ADAMW_RATES = (3e-3, 1e-2), (1e-3, 3e-3, 1e-2)
LONGEST = 1.5
PAGE, BEGIN, END = Path(__file__).parents[2] / "docs" / "optim.md", "<!-- ranks -->", "<!-- end of ranks -->"
LENGTH = 32
"""Characters of an example."""


def wines(folder: Path, cache: Path) -> Data:
    """White ones: 11 numbers of each, and what it was given, all standardised."""
    with (folder / "tabular" / "winequality-white.csv").open() as file:
        rows = [[float(word) for word in row] for row in list(csv.reader(file))[1:]]
    table = torch.tensor(rows)
    table = (table - table.mean(0)) / table.std(0)
    return split(table[:, :-1].contiguous(), table[:, -1:].contiguous(), held_out=900)


def captions(folder: Path, cache: Path) -> Data:
    """Windows of what is seen in pictures, in English; what is not among the commonest characters is one of them."""
    with gzip.open(folder / "text" / "multi30k" / "train.en.gz", "rt", encoding="utf-8") as file:
        symbols, coded, counts = np.unique(list(file.read(200_000)), return_inverse=True, return_counts=True)
    by_count = np.empty(len(symbols), np.int64)
    by_count[np.argsort(-counts)] = np.arange(len(symbols))
    text = torch.from_numpy(by_count[coded]).clamp_max(CHARACTERS - 1)
    return windows(text[: 2000 * LENGTH + 1], LENGTH), windows(text[-100 * LENGTH - 1 :], LENGTH)


fashion = images("fashion-mnist", 6000, 1000, (784,))
OURS = {
    "speech": Problem(over_speech, speech, "cross_entropy", 64, 8.0),
    "fashion autoencoder": Problem(lambda: autoencoder(784, 256, 64), own(fashion), "mse", 128, 5.0),
    "fashion MLP": Problem(lambda: dense(784, 256, 128, 10), fashion, "cross_entropy", 128, 4.0, held_out=False),
    "wines": Problem(lambda: dense(11, 64, 64, 64, 1), wines, "mse", 128, 4.0, held_out=False),
    "captions": Problem(Transformer, captions, "cross_entropy", 32, 8.0),
}
USUAL: dict[str, Any] = {"rank": 16, "up_to": 128, "start": 5, "gentle": 0.1, "budget": None}
"""`up_to`: the longest side of all directions, where there are leading ones at all; `gentle`: `soap.GENTLE`."""
VARIANTS: dict[str, dict[str, Any]] = {
    "all directions": USUAL | {"rank": None},
    **{f"16 directions, all up to {longest}": USUAL | {"up_to": longest} for longest in (24, 64, 128, 256)},
    "8 directions, all up to 128": USUAL | {"rank": 8},
    "32 directions, all up to 128": USUAL | {"rank": 32},
    "16 and 128, start 3": USUAL | {"start": 3},
    "16 and 128, start 10": USUAL | {"start": 10},
    "16 and 128, start at the whole rate": USUAL | {"gentle": 1.0},
    "16 and 128, start without a move": USUAL | {"gentle": 0.0},
    "16 and 128, followed every 10th step": USUAL | {"statistics_period": 10},
    "16 and 128, budget 0.25": USUAL | {"budget": 0.25},
}


@cache
def parts(problem: str, data: Path) -> tuple[Any, ...]:
    """The examples of a problem, read once by each process."""
    return tuple(
        tuple(t.float() if t.is_floating_point() else t for t in part) for part in OURS[problem].read(data, CACHE)
    )


def one(problem: str, name: str, rate: float, seed: int, target: float | None, data: Path) -> dict[str, Any]:
    """A training in this process."""
    torch.set_num_threads(1)
    PROBLEMS.update(OURS)
    seconds = OURS[problem].seconds
    if name != "adamw":
        from thalweg.optim import SOAP, frames, soap

        options = dict(VARIANTS[name])
        soap.GENTLE = options.pop("gentle")
        frames.SLACK = options.pop("up_to") / (options["rank"] or 1)
        ENTRANTS[name] = Entrant(name, lambda model, loss, rate: SOAP(model, rate, **options), rate, ours=True)
    asked = {"problem": problem, "entrant": name, "seed": seed, "target": target, "seconds": seconds, "rate": rate}
    found = trained(asked, parts(problem, data), seconds * (LONGEST if target is not None else 1.0))
    del found["curve"]
    return asked | found


def shown(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over seeds at the better rate."""
    by_rate = {}
    for rate in RATES:
        own_cells = [cell for cell in cells if cell["rate"] == rate]
        seconds = [(c["reached"] or {"seconds": LONGEST * c["seconds_given"]})["seconds"] for c in own_cells]
        steps = [(c["reached"] or {"steps": math.inf})["steps"] for c in own_cells]
        by_rate[rate] = statistics.median(seconds), statistics.median(steps)
    rate = min(by_rate, key=lambda rate: by_rate[rate])
    seconds, steps = by_rate[rate]
    return {"rate": rate, "seconds": round(seconds, 2), "steps": int(steps) if steps < math.inf else None}


def told(cell: dict[str, Any] | None) -> str:
    """Seconds and steps; nothing where a problem was measured before there was the variant."""
    if cell is None:
        return ""
    return f"{cell['seconds']:.2f}, {cell['steps']:,}" if cell["steps"] else "–"


def write(tables: dict[str, Any]) -> None:
    """Put the table into the page."""
    lines = ["| | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    lines.append(
        "| AdamW | " + " | ".join(f"{OURS[p].seconds:.2f}, {tables[p]['adamw_steps']:,}" for p in tables) + " |"
    )
    for name in VARIANTS:
        lines.append(f"| {name} | " + " | ".join(told(tables[problem].get(name)) for problem in tables) + " |")
    before, after = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + after.split(END)[1]]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--problems", nargs="+", choices=OURS, default=list(OURS), help="others stay as they are known")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.table:
        write(json.loads(RESULTS.read_text())["tables"])
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"tables": {}, "cells": []}
    tables = {problem: found for problem, found in known["tables"].items() if problem in OURS}
    raw = [cell for cell in known["cells"] if cell["problem"] not in options.problems]
    with ProcessPoolExecutor(options.jobs) as pool:
        for problem in options.problems:
            waiting = [pool.submit(one, problem, "adamw", rate, 0, None, options.data) for rate in ADAMW_RATES]
            raw += (references := [done.result() for done in waiting])
            target = min(cell["loss"] for cell in references if cell["loss"] is not None)
            asked = [(name, rate, seed) for name in VARIANTS for rate in RATES for seed in range(options.seeds)]
            runs = [pool.submit(one, problem, *of, target, options.data) for of in asked]
            cells = [done.result() | {"seconds_given": OURS[problem].seconds} for done in runs]
            raw += cells
            steps = statistics.median(cell["steps"] for cell in references)
            print(f"{problem}: AdamW has {target:.4g} after {OURS[problem].seconds:g} s, {steps:,} steps", flush=True)
            tables[problem] = {"target": target, "adamw_steps": steps}
            for name in VARIANTS:
                found = shown([cell for cell in cells if cell["entrant"] == name])
                tables[problem][name] = found
                print(f"  {name:32} {found['seconds']:6.2f} s  {found['steps'] or '–':>6} steps  at {found['rate']:g}")
    record = {"command": " ".join(sys.argv).replace(str(options.data), "FOLDER"), "tables": tables, "cells": raw}
    record |= {"machine": machine("thalweg", "torch")}
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write(tables)


if __name__ == "__main__":
    main()
