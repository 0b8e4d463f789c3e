"""Whether a race could choose the batch size: what half and double of it do at equal epochs, and what is seen early.

    python benchmarks/search/sizes.py [--data ../shared/data] [--jobs 2] [--only digits …] [--again] [--tables]

Each workload of workloads.py is trained by AdamW with the size that batch_size="auto" takes, half of it and double of
it, for the same number of epochs, each at rates of the reference's grid about its best one (that of the reference,
times the root of the ratio of the sizes), further while the best lies at an end; from a seed that no bench scores on.
Printed is, for the best rate of each size: its validation loss ÷ that of the size "auto" takes, the processor's seconds
likewise, and the losses after 3 and 7.5 % of the epochs and a cool-down, as a race judges.

Results go to benchmarks/results/search-sizes.json, a training on a line; one made with the same workload and versions
is kept unless --again.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, Cell, Table, filled, fingerprint, parser, rounded
from verdicts import geometric
from workloads import WORKLOADS

from reference import best, grid, holds, read
from thalweg.records.settings import Settings
from thalweg.run.candidates import Maker
from thalweg.run.fit import prepare
from thalweg.run.race import Sample
from thalweg.search.candidate import Choice
from thalweg.step.batches import automatic_size

FILE = RESULTS / "search-sizes.json"
NAMES = ("workload", "size", "rate")
RATIOS = (0.5, 1, 2)
DEPTHS = (0.03, 0.075)
RULE, SEED = "adamw", 100


def one(of: dict[str, Any], folder: Path, cache: Path) -> Cell:
    """One training, looked at on its way."""
    workload = WORKLOADS[of["workload"]]
    train, validation = workload.data(folder, cache)
    settings = Settings(
        validation_data=validation, optimizer=RULE, learning_rate=of["rate"], batch_size=of["size"],
        epochs=workload.epochs, patience=None, plan="eager", seed=SEED, verbose=False,
    )  # fmt: skip
    with ExitStack() as stack:
        prepared = prepare(stack, workload.make_model(SEED), train, workload.loss, settings)
        chosen, forward, loss = prepared.chosen, prepared.forward, prepared.loss
        total = chosen.decided["total_steps"]
        sample = Sample(chosen, forward, loss, total, SEED)
        candidate, _ = Maker(chosen, forward, loss, settings)(Choice(of["rate"], RULE))
        early: list[float | None] = []
        seconds = -time.process_time()
        for depth in DEPTHS:
            step = max(1, round(depth * total))
            candidate.advance(step)
            seconds += time.process_time()
            early.append(rounded(candidate.judge(step, sample)))
            seconds -= time.process_time()
        candidate.finish()
        seconds += time.process_time()
        return of | {"early": early, "loss": rounded(candidate.loss()), "steps": total, "seconds": round(seconds, 2)}


def sizes(workload: str, folder: Path, cache: Path) -> list[int]:
    (x, _), _ = WORKLOADS[workload].data(folder, cache)
    return [round(ratio * automatic_size(len(x))) for ratio in RATIOS]


def at_a_size(job: tuple[dict[str, Any], float, dict[float, Cell], Path, Path]) -> list[Cell]:
    """Trainings at rates about a likely one, until the best lies between two; those known are not made again."""
    of, likely, known, folder, cache = job
    torch.set_num_threads(1)
    rates = grid(RULE)
    middle = min(range(1, len(rates) - 1), key=lambda i: abs(math.log(rates[i] / likely)))
    cells: dict[int, Cell] = {}
    wanted = [middle - 1, middle, middle + 1]
    while wanted:
        for i in wanted:
            cells[i] = known.get(rates[i]) or one(of | {"rate": rates[i]}, folder, cache)
        lowest = min(cells, key=lambda i: _finite(cells[i]["loss"]))
        beside = {lowest - 1, lowest + 1} & set(range(len(rates)))
        wanted = sorted(beside - set(cells))
    return list(cells.values())


def _finite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def tables(table: Table) -> list[str]:
    """A row for each workload: by size, beside the one in the middle."""
    lines = [f"{'':18} {'sizes':>16} {'loss ÷':>16} {'seconds ÷':>16} {'seen at 0.03 ÷':>16} {'seen at 0.075 ÷':>16}"]
    columns: list[list[list[float]]] = []
    for name in WORKLOADS:
        cells = table.where(workload=name)
        found = sorted({cell["size"] for cell in cells})
        if len(found) < len(RATIOS):
            continue
        ends = [min((c for c in cells if c["size"] == size), key=lambda c: _finite(c["loss"])) for size in found]
        seen = [
            [min(_finite(c["early"][depth]) for c in cells if c["size"] == size) for size in found]
            for depth in range(len(DEPTHS))
        ]
        row = [[c["loss"] for c in ends], [c["seconds"] for c in ends], *seen]
        row = [[value / values[1] for value in values] for values in row]
        columns.append(row)
        shown = [" ".join(f"{value:.3f}" for value in values[::2]) for values in row]
        lines.append(f"{name:18} {' '.join(map(str, found)):>16} " + " ".join(f"{words:>16}" for words in shown))
    if columns:
        means = [[geometric([row[i][j] for row in columns]) for j in (0, 2)] for i in range(len(columns[0]))]
        shown = [" ".join(f"{value:.3f}" for value in values) for values in means]
        lines.append(f"{'geometric mean':35} " + " ".join(f"{words:>16}" for words in shown))
    return lines


def main() -> None:
    flags = parser(__doc__, list(WORKLOADS))
    flags.add_argument("--tables", action="store_true", help="show what is known")
    options = flags.parse_args()
    table = Table(FILE, NAMES, holds(), options.again)
    if not options.tables:
        measure(options, table)
    print(*tables(table), sep="\n")


def measure(options: argparse.Namespace, table: Table) -> None:
    known, jobs = read(), []
    for name in options.only:
        workload = WORKLOADS[name]
        mark = fingerprint(workload, workload.data(options.data, options.cache))
        rate, _ = best(known, name, RULE)
        for size in sizes(name, options.data, options.cache):
            cells = {c["rate"]: c for c in table.where(workload=name, size=size) if c["fingerprint"] == mark}
            of = {"workload": name, "fingerprint": mark, "size": size}
            jobs.append((of, rate * math.sqrt(size / workload.batch_size), cells, options.data, options.cache))
    list(filled(table, at_a_size, jobs, options))


if __name__ == "__main__":
    main()
