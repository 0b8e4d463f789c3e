"""The learning rate of each healthy reference: the best of a small grid, kept in benchmarks/results/clinic_rates.json.

    python benchmarks/clinic/references.py [--data ../shared/data] [--only blob_mlp …] [--again]
    python benchmarks/clinic/references.py --reach ninety-to-ten

The second prints what a hard-healthy task allows: of the three rules at their rates the best score, which stands in
hard_healthy.py.

The score is that of the last tenth of the evaluations, mean over two seeds; of the rates
within half a hundredth of the best the middle one is taken, so that a reference stands at no edge.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from data import DATA
from families import FAMILIES, RULES, case
from recording import recorded

FILE = Path(__file__).parents[1] / "results" / "clinic_rates.json"
GRIDS = {
    "momentum": (0.003, 0.01, 0.03, 0.1, 0.3, 0.6),
    "adam": (0.0003, 0.001, 0.003, 0.01, 0.03),
    "rmsprop": (0.0001, 0.0003, 0.001, 0.003, 0.01),
}
SEEDS = (100, 101)
"""Other ones than those that are scored."""
MARGIN = 0.005


def final(scores: list[float]) -> float:
    """The mean over the last tenth of the evaluations; minus infinity where it is no number."""
    if not scores:
        return -math.inf
    value = statistics.fmean(scores[-max(1, len(scores) // 10) :])
    return value if math.isfinite(value) else -math.inf


def tuned(name: str, rule: str, folder: Path) -> dict[str, Any]:
    grid = {}
    for rate in GRIDS[rule]:
        scores = [final(recorded(case(name, rule, rate, folder), seed)[1]["scores"]) for seed in SEEDS]
        grid[rate] = round(statistics.fmean(scores), 4)
    best = max(grid.values())
    good = sorted(rate for rate, score in grid.items() if score >= best - MARGIN)
    rate = good[len(good) // 2]
    return {
        "rate": rate,
        "score": grid[rate],
        "grid": {f"{r:g}": s if math.isfinite(s) else None for r, s in grid.items()},
    }


def reach(title: str, folder: Path) -> dict[str, float]:
    """Family -> the best mean score of the three rules on a hard-healthy task."""
    from configurations import Configuration
    from hard_healthy import table

    found: dict[str, float] = {}
    for c in (c for c in table() if c.title == title):
        for rule in RULES:
            same = Configuration(c.family, rule, c.kind, c.title, c.changes)
            scores = [final(recorded(same.case(folder), seed)[1]["scores"]) for seed in SEEDS]
            found[c.family] = max(found.get(c.family, -math.inf), round(statistics.fmean(scores), 3))
    return found


def rates() -> dict[str, dict[str, dict[str, Any]]]:
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE")
    parser.add_argument("--again", action="store_true", help="what is known, too")
    parser.add_argument(
        "--reach", metavar="TITLE", help="print what this hard-healthy task allows, and do nothing else"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.reach:
        print(*reach(options.reach, options.data).items(), sep="\n")
        return
    known = rates()
    for name in options.only:
        for rule in options.rules:
            if options.again or rule not in known.get(name, {}):
                known.setdefault(name, {})[rule] = tuned(name, rule, options.data)
                FILE.write_text(json.dumps(known, indent=1) + "\n")
            print(f"{name:17} {rule:9} {known[name][rule]}", flush=True)


if __name__ == "__main__":
    main()
