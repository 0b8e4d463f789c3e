"""How the best learning rate moves with the length of a training: what the race's judgement stands on.

    python benchmarks/search/depths.py [--data ../shared/data] [--jobs 2] [--only digits …] [--quick] [--again]

Each workload of workloads.py is trained at the eleven rates of the reference, from a seed that no bench scores on, and
looked at on the way: after 3 to 15 % of its updates its validation loss as it stands, and after a cool-down, as a race
judges. The bottom of the parabola through the losses over log rate is the rate that seems best there. Printed is by how
many steps of the grid (10^0.4) it lies above the rate that is best in the end, with mean and deviation over all cases,
beside what the race's law says. Then in how many cases the rate of the grid that a depth points to, brought to the
whole length by that law, is as good as the best (by the margin of run.py), and how far above it the worst of them is:
what a race could reach that judged all eleven rates at that depth. Last, how the rules compare on the way: momentum's
best loss ÷ AdamW's.

Results go to benchmarks/results/search-depths.json, cell by cell; one made with the same workload and versions is kept
unless --again.
"""

from __future__ import annotations

import math
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, Cell, Table, filled, fingerprint, parser, rounded
from verdicts import best
from workloads import RULES, WORKLOADS

from reference import grid, holds, read
from thalweg.records.settings import Settings
from thalweg.run.candidates import Maker
from thalweg.run.fit import prepare
from thalweg.run.race import Sample
from thalweg.search.candidate import Choice
from thalweg.search.race import HORIZON, bottom

FILE = RESULTS / "search-depths.json"
NAMES = ("workload", "rule", "rate")
DEPTHS = (0.03, 0.05, 0.075, 0.1, 0.15)
SEED = 100
WAYS = ("as it stands", "after a cool-down")


def one(job: tuple[dict[str, Any], bool, Path, Path]) -> Cell:
    """One training, looked at on its way."""
    of, is_quick, folder, cache = job
    torch.set_num_threads(1)
    workload = WORKLOADS[of["workload"]]
    train, validation = workload.data(folder, cache)
    settings = Settings(
        validation_data=validation, optimizer=of["rule"], learning_rate=of["rate"], batch_size=workload.batch_size,
        epochs=max(3, workload.epochs // 20) if is_quick else workload.epochs, patience=None, plan="eager", seed=SEED,
        verbose=False,
    )  # fmt: skip
    with ExitStack() as stack:
        prepared = prepare(stack, workload.make_model(SEED), train, workload.loss, settings)
        chosen, forward, loss = prepared.chosen, prepared.forward, prepared.loss
        total = chosen.decided["total_steps"]
        sample = Sample(chosen, forward, loss, total, SEED)
        candidate, _ = Maker(chosen, forward, loss, settings)(Choice(of["rate"], of["rule"]))
        losses: dict[str, list[float | None]] = {}
        for depth in DEPTHS:
            step = max(1, round(depth * total))
            candidate.advance(step)
            with candidate.turn():
                plain = sample() if candidate.ended is None else math.inf
            losses[str(depth)] = [rounded(plain), rounded(candidate.judge(step, sample))]
        candidate.finish()
        return of | {"losses": losses, "loss": rounded(candidate.loss()), "steps": total}


def seems_best(losses: list[float]) -> float:
    """Where on the grid the parabola through the lowest and its neighbours is lowest."""
    place = min(range(len(losses)), key=lambda i: losses[i])
    low, high = (losses[i] if 0 <= i < len(losses) else math.inf for i in (place - 1, place + 1))
    return place + (bottom(low, losses[place], high) if 0 < place < len(losses) - 1 else 0.0)


def shifts(table: Table, workload: str, rule: str) -> dict[tuple[float, str], float] | None:
    """(depth, way) → steps of the grid by which what seems best there is above what is best in the end."""
    cells = sorted(table.where(workload=workload, rule=rule), key=lambda cell: cell["rate"])
    if len(cells) < len(grid(rule)):
        return None
    end = seems_best([_finite(cell["loss"]) for cell in cells])
    return {
        (depth, way): seems_best([_finite(cell["losses"][str(depth)][i]) for cell in cells]) - end
        for depth in DEPTHS
        for i, way in enumerate(WAYS)
    }


def _finite(loss: float | None) -> float:
    return math.inf if loss is None else loss


def rules(table: Table, workload: str) -> list[float] | None:
    """Momentum's best loss ÷ AdamW's after a cool-down at each depth, and in the end."""
    lowest = {}
    for rule in RULES:
        cells = table.where(workload=workload, rule=rule)
        if len(cells) < len(grid(rule)):
            return None
        early = [min(_finite(cell["losses"][str(depth)][1]) for cell in cells) for depth in DEPTHS]
        lowest[rule] = [*early, min(_finite(cell["loss"]) for cell in cells)]
    return [a / b for a, b in zip(lowest["momentum"], lowest["adamw"], strict=True)]


def tables(table: Table) -> list[str]:
    found = {(w, r): moved for w in WORKLOADS for r in RULES if (moved := shifts(table, w, r)) is not None}
    lines = []
    for way in WAYS:
        lines.append(f"\nsteps of 10^0.4 above the best in the end, {way}" + " " * 12 + "by depth")
        for (workload, rule), moved in found.items():
            row = " ".join(f"{moved[depth, way]:+5.1f}" for depth in DEPTHS)
            lines.append(f"{workload:18} {rule:9} {row}")
        if len(found) > 1:
            spread = [[moved[depth, way] for moved in found.values()] for depth in DEPTHS]
            lines.append(f"{'mean':28} " + " ".join(f"{statistics.mean(row):+5.1f}" for row in spread))
            lines.append(f"{'deviation':28} " + " ".join(f"{statistics.stdev(row):5.1f}" for row in spread))
    law = " ".join(f"{-HORIZON * math.log10(depth) / 0.4:+5.1f}" for depth in DEPTHS)
    lines += [f"{'T^-0.32 says':28} {law}", f"{'depths':28} " + " ".join(f"{depth:5g}" for depth in DEPTHS)]
    lines.append("\nmomentum's best loss ÷ AdamW's after a cool-down" + " " * 12 + "by depth, and in the end")
    lines += [f"{w:28} " + " ".join(f"{r:5.2f}" for r in found) for w in WORKLOADS if (found := rules(table, w))]
    return lines


def picked(table: Table, workload: str, rule: str, depth: float, way: int) -> float:
    """Loss in the end, ÷ the best, of the rate that a depth points to."""
    cells = sorted(table.where(workload=workload, rule=rule), key=lambda cell: cell["rate"])
    end = [_finite(cell["loss"]) for cell in cells]
    place = seems_best([_finite(cell["losses"][str(depth)][way]) for cell in cells])
    if way:  # as the race does
        place += HORIZON * math.log10(depth) / 0.4
    return end[max(0, min(len(end) - 1, round(place)))] / min(end)


def shares(table: Table, known: Table) -> list[str]:
    """How often a depth points to a rate that is as good as the best, and the worst case."""
    found = [(w, r) for w in WORKLOADS for r in RULES if shifts(table, w, r) is not None]
    lines = [f"\n{'as good in the end; worst':28} " + " ".join(f"{depth:11g}" for depth in DEPTHS)]
    margins = {case: 1 + margin / mean for case in found for _, mean, margin in [best(known, *case)]}
    for i, way in enumerate(WAYS):
        row = []
        for depth in DEPTHS:
            ratios = {case: picked(table, *case, depth, i) for case in found}
            good = sum(ratio <= margins[case] for case, ratio in ratios.items()) / len(found)
            row.append(f"{good:5.2f} {max(ratios.values()) - 1:+5.2f}")
        lines.append(f"{way:28} " + " ".join(row))
    return lines


def main() -> None:
    flags = parser(__doc__, list(WORKLOADS))
    flags.add_argument("--quick", action="store_true", help="see that it runs; the results file is left alone")
    options = flags.parse_args()
    table = Table(FILE, NAMES, holds(), options.again or options.quick)
    prints = {n: fingerprint(WORKLOADS[n], WORKLOADS[n].data(options.data, options.cache)) for n in options.only}
    jobs = [
        ({"workload": name, "fingerprint": prints[name], "rule": rule, "rate": rate}, options.quick, options.data,
         options.cache)
        for name in options.only
        for rule in RULES
        for rate in grid(rule)
        if table.cells.get((name, rule, rate), {}).get("fingerprint") != prints[name]
    ]  # fmt: skip
    list(filled(table, one, jobs, options))
    print(*tables(table), *shares(table, read()), sep="\n")


if __name__ == "__main__":
    main()
