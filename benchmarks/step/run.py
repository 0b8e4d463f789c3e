"""How long a training step takes, beside the other frameworks and beside stock PyTorch.

    python benchmarks/step/run.py [--only thalweg jax-jit …] [--workloads seed mlp …] [--blocks 9] [--quick] [--again]

Six workloads (workloads.py), the same shapes, loss and rule (Adam at 1e-3, float32) in every framework, batches in
memory. A contender is a process of its own, and beside each runs another: stock PyTorch, eager, Adam fused, the
allocator and the threads as they come. The two take turns, block by block; a figure is the median over blocks of
contender ÷ reference, its spread the middle half of these ratios. What a first call costs, compiling included, stands
beside it, and how far the losses of twenty steps are from the reference's (the same first weights for whatever runs
torch_models.py; others draw their own).

Results go to benchmarks/results/step.json, cell by cell: one measured on the same machine with the same versions is
kept unless --again, so a run that was cut off goes on where it stopped. A contender that is absent, fails, or takes
longer than --limit seconds has a row that says so; a row that was timed while others computed is measured again by
the next run. The peers live in environments of their own (environments.sh).

Lines, geometric means over the six: 0.50 × stock PyTorch; 0.80 × the best of all peers, workload by workload; nowhere
above 1.02 × either; 0.40 × stock PyTorch with precision="fast".
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from contenders import CONTENDERS, REFERENCE
from pairs import Effort, better, known, side_by_side, undisturbed, versions
from tables import machine, ours, save
from workloads import WORKLOADS

RESULTS = Path(__file__).parents[1] / "results" / "step.json"
OURS = [name for name, contender in CONTENDERS.items() if contender.ours]
Table = dict[str, dict[str, dict[str, Any]]]
"""workload -> contender -> cell."""


def told(name: str) -> dict[str, Any]:
    """What a cell holds for: another version or machine makes it out of date."""
    mine = {"thalweg.step": ours("step")} if CONTENDERS[name].ours else {}
    return {
        "versions": versions(CONTENDERS[name]) | mine,
        "reference_versions": versions(CONTENDERS[REFERENCE]),
        "machine": machine(),
    }


def line(workload: str, name: str, cell: dict[str, Any]) -> str:
    """A row for a person."""
    start = f"{workload:12} {CONTENDERS[name].title:50}"
    if "ratio" not in cell:
        return f"{start} {cell['note']}"
    low, high = cell["middle_half"]
    times = f"{cell['contender_us']:10,.0f} µs beside {cell['reference_us']:8,.0f}"
    first = f"first call {cell['first_call_seconds']:6.1f} s"
    if "largest_loss_difference" in cell:
        first += f", losses {cell['largest_loss_difference']:.0e} off"
    return f"{start} {cell['ratio']:7.3f} ({low:.3f} to {high:.3f}) {times}  {first}  {cell.get('note', '')}".rstrip()


def geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def best_peer(cells: dict[str, dict[str, Any]]) -> tuple[float, str]:
    """The smallest ratio that is not ours; the reference's own, 1, is one of them."""
    peers = [(ratio, n) for n, cell in cells.items() if n not in (*OURS, REFERENCE) and (ratio := counted(cell))]
    return min([*peers, (1.0, REFERENCE)])


def counted(cell: dict[str, Any]) -> float | None:
    """The ratio of a cell that was measured undisturbed."""
    return cell.get("ratio") if undisturbed(cell) else None


def lines(table: Table) -> list[str]:
    """Every target beside what was measured."""
    shown = [
        f"best peer on {w:12} {CONTENDERS[n].title}, {r:.3f} × stock" for w in table for r, n in [best_peer(table[w])]
    ]
    for name, bound in (("thalweg", 0.50), ("thalweg-several", 0.50), ("thalweg-fast", 0.40)):
        ratios = {w: ratio for w, cells in table.items() if (ratio := counted(cells.get(name, {})))}
        title = CONTENDERS[name].title
        if len(ratios) < len(WORKLOADS):
            shown.append(f"{title}: {len(ratios)} of {len(WORKLOADS)} workloads, no mean")
            continue
        shown.append(_verdict(f"{title} ÷ stock, geometric mean", geometric(list(ratios.values())), bound))
        if name != "thalweg-fast":
            beside = {w: ratio / best_peer(table[w])[0] for w, ratio in ratios.items()}
            shown.append(_verdict(f"{title} ÷ best peer, geometric mean", geometric(list(beside.values())), 0.80))
            worst = max(beside, key=lambda w: beside[w])
            shown.append(_verdict(f"{title} ÷ best peer or stock at worst ({worst})", beside[worst], 1.02))
    return shown


def _verdict(what: str, value: float, bound: float) -> str:
    return f"{what:70} {value:6.3f}  at most {bound:.2f}: {'met' if value <= bound else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CONTENDER")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--blocks", type=int, default=Effort.blocks, help="timed turns of each contender")
    parser.add_argument("--limit", type=float, default=Effort.limit, help="seconds a contender has on a workload")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the results file is left alone")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    options = parser.parse_args()
    effort = Effort(3, 0.1, options.limit) if options.quick else Effort(options.blocks, limit=options.limit)
    table: Table = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table = {workload: table.get(workload, {}) for workload in WORKLOADS}
    holds = {name: told(name) for name in options.only}
    for workload in options.workloads:
        for name in options.only:
            cell = table[workload].get(name, {})
            if options.again or options.quick or not known(cell, holds[name]):
                found = side_by_side(name, workload, effort) | holds[name] | {"command": " ".join(sys.argv)}
                cell = table[workload][name] = better(found, cell, holds[name])
                if not options.quick:
                    save(RESULTS, table)
            print(line(workload, name, cell), flush=True)
    print("", *lines(table), sep="\n")


if __name__ == "__main__":
    main()
