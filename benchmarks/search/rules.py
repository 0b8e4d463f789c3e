"""Whether the race of rules, optimizer="auto", finds the better one, and what it costs beside a race of AdamW alone.

    python benchmarks/search/rules.py [--data ../shared/data] [--jobs 2] [--only digits …] [--quick] [--again]
                                      [--tables]

The eight workloads of workloads.py, three seeds: `thalweg.fit` with learning_rate="auto", once with optimizer="auto"
and once with optimizer="adamw". Printed are the validation loss of what is handed over ÷ the best over both rules of
the reference's grid (mean over its seeds), the rule that won with its rate, the cost in trainings, and at how many
rungs momentum was in the race, with its loss ÷ AdamW's at the first of them. Then the same for two trainings whose
targets are in the thousands of dollars that they come in, beside AdamW and momentum, each with a race of its own.

Results go to benchmarks/results/search-rules.json, a training on a line; one made with the same workload and versions
is kept unless --again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, Cell, Table, filled, fingerprint, ours, parser, rounded
from verdicts import geometric
from workloads import RULES, WORKLOADS, Data, Workload, dense, housing

from reference import SEEDS, best, holds, read

FILE = RESULTS / "search-rules.json"
NAMES = ("workload", "optimizer", "seed")
ASKED = ("auto", "adamw")
MEAN, DEVIATION = 206.9, 115.4
"""Of the value of a house, in thousands of dollars."""


def in_thousands(folder: Path, cache: Path) -> Data:
    (x, y), (held_x, held_y) = housing(folder, cache)
    return (x, MEAN + DEVIATION * y), (held_x, MEAN + DEVIATION * held_y)


UNSCALED = {
    "housing, linear": Workload(lambda: dense(13, 1), in_thousands, "mse", 64, 16),
    "housing, network": Workload(WORKLOADS["housing"].network, in_thousands, "mse", 64, 16),
}
ALL = WORKLOADS | UNSCALED


def one(job: tuple[dict[str, Any], bool, Path, Path]) -> Cell:
    """One training that begins with a race."""
    import thalweg

    of, is_quick, folder, cache = job
    torch.set_num_threads(1)
    workload = ALL[of["workload"]]
    if is_quick:
        workload = replace(workload, epochs=max(3, workload.epochs // 10))
    train, validation = workload.data(folder, cache)
    with tempfile.TemporaryDirectory() as run_dir:
        run = thalweg.fit(
            workload.make_model(of["seed"]), train, workload.loss, validation_data=validation,
            optimizer=of["optimizer"], batch_size=workload.batch_size, epochs=workload.epochs, patience=None,
            plan="eager", seed=of["seed"], run_dir=run_dir, verbose=False, device="cpu",
        )  # fmt: skip
    search = run.record.decided.get("search")
    if search is None:
        return of | {"loss": None, "rule": of["optimizer"], "note": "no rate that was tried gave a finite loss"}
    first = min((step for each in search["tried"] for step in each["losses"]), key=int)
    seen = {rule: [each for each in search["tried"] if each["optimizer"] == rule] for rule in RULES}
    lowest = {
        rule: min((each["losses"].get(first) or math.inf for each in own), default=math.inf)
        for rule, own in seen.items()
    }
    return of | {
        "loss": rounded(run.metrics["validation_loss"]),
        "rule": search["optimizer"],
        "rate": rounded(run.learning_rate),
        "cost": search["cost"],
        "tried": len(search["tried"]),
        "rungs_of_momentum": max((len(each["losses"]) for each in seen["momentum"]), default=0),
        "momentum_at_first": rounded(lowest["momentum"] / lowest["adamw"]),
    }


def tables(table: Table) -> list[str]:
    """A row for each workload, a column for each seed, and the means."""
    known, lines = read(), []
    for asked in ASKED:
        beside: list[float] = []
        costs: list[float] = []
        lines.append(f'\noptimizer="{asked}": loss ÷ the best over both rules, by seed (which); the race')
        for name in WORKLOADS:
            cells = sorted(table.where(workload=name, optimizer=asked), key=lambda cell: cell["seed"])
            if not cells:
                continue
            bests = {rule: statistics.mean(cell["loss"] for cell in best(known, name, rule)[1]) for rule in RULES}
            which = min(bests, key=lambda rule: bests[rule])
            ratios = [cell["loss"] / bests[which] for cell in cells]
            beside += ratios
            costs += [cell["cost"] for cell in cells]
            shown = " ".join(f"{ratio:6.3f}" for ratio in ratios)
            raced = ", ".join(
                f"{cell['rule']} {cell['rate']:.2g} at {cell['cost']:.2f}"
                + (f" ({cell['rungs_of_momentum']}: {cell['momentum_at_first']:.2f})" if asked == "auto" else "")
                for cell in cells
            )
            lines.append(f"{name:18} {shown} ({which}); {raced}")
        if beside:
            lines.append(
                f"loss ÷ the best: median {statistics.median(beside):.3f}, geometric mean {geometric(beside):.3f}, "
                f"worst {max(beside):.3f}; cost: mean {statistics.mean(costs):.3f}, largest {max(costs):.3f}"
            )
    lines.append("\nTargets in thousands of dollars: loss by seed; the rule")
    for name in UNSCALED:
        for asked in ("auto", *RULES):
            cells = sorted(table.where(workload=name, optimizer=asked), key=lambda cell: cell["seed"])
            losses = " ".join(f"{cell['loss']:8.1f}" if cell["loss"] else "diverged" for cell in cells)
            lines.append(f"{name:18} {asked:9} {losses}; {', '.join(cell['rule'] for cell in cells)}")
    return lines


def main() -> None:
    flags = parser(__doc__, list(ALL))
    flags.add_argument("--quick", action="store_true", help="see that it runs; the results file is left alone")
    flags.add_argument("--tables", action="store_true", help="show what is known")
    options = flags.parse_args()
    table = Table(FILE, NAMES, holds(), options.again or options.quick)
    if not options.tables:
        measure(options, table)
    print(*tables(table), sep="\n")


def measure(options: argparse.Namespace, table: Table) -> None:
    prints = {n: fingerprint(ALL[n], ALL[n].data(options.data, options.cache)) for n in options.only}
    made_with = ours()
    wanted = [
        {"workload": name, "fingerprint": prints[name], "optimizer": asked, "seed": seed, "made_with": made_with}
        for seed in range(1 if options.quick else SEEDS)
        for name in options.only
        for asked in (ASKED if name in WORKLOADS else ("auto", *RULES))
    ]
    jobs = [
        (of, options.quick, options.data, options.cache)
        for of in wanted
        if of.items() - table.cells.get(table.key(of), {}).items()
    ]
    list(filled(table, one, jobs, options))


if __name__ == "__main__":
    main()
