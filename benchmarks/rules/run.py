"""Seconds and steps to a target, rule by rule, each at its best rate; beside others.

    python benchmarks/rules/run.py [--data ../shared/data] [--jobs 2] [--only kfac adamw …] [--problems autoencoder …]
                                   [--seeds 5] [--quick] [--again] [--tables]

Eleven problems (problems.py), one thread each. The target is what fused AdamW at the best rate of its grid has reached,
by its best evaluation, in the first nine tenths of the problem's time, seed 0. Every rule is then tried at seven
rates, a half decade apart about the one that its authors name, from the same first weights and over the same batches,
with seed 0; the rate that reaches the target first is trained with the other seeds. A constant rate, no schedule. A
training that does not get there within three times the problem's time is a miss (*) and counts as that time.

The clock runs while updates are made (worker.py); evaluations stand beside it. Memory is what the rule keeps, in
numbers beside the parameters.

Results go to benchmarks/results/rules.json, cell by cell: one made on the same machine with the same versions, problem
and target is kept unless --again, so a run that was cut off goes on where it stopped; one that was timed while others
computed is measured again by the next run. --tables measures nothing. --quick is a tenth of the time, two rates and one
seed, and leaves the file alone. environments.sh makes the peers' environment, found beside the checkout or in the
folder THALWEG_PEERS names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from entrants import ENTRANTS, POINTS
from problems import CACHE, DATA, PROBLEMS

sys.path.append(str(Path(__file__).parents[1] / "search"))  # for what the benchmarks share
from cells import RESULTS, Cell, Table, machine, ours

FILE = RESULTS / "rules.json"
NAMES = ("problem", "entrant", "rate", "seed", "kind")
LIMIT = 300.0
"""Seconds of a process."""
LEAST = 0.8
"""Of the time of a cell that its process computed; below it, others did."""
OWN = Path(__file__).parent
SOURCE = Path(find_spec("thalweg").origin).parents[1]
REFERENCE = "adamw"


def made_with(name: str) -> dict[str, Any]:
    """What a cell of a rule holds for."""
    entrant = ENTRANTS[name]
    if entrant.package is None:
        return {"torch": version("torch")} | ({"thalweg": ours("optim")} if entrant.ours else {})
    if not entrant.python.exists():
        return {}
    words = ["torch", entrant.package]
    code = f"from importlib.metadata import version as v; import json; print(json.dumps({{w: v(w) for w in {words}}}))"
    done = subprocess.run([entrant.python, "-c", code], capture_output=True, text=True, cwd="/")
    return json.loads(done.stdout) if done.returncode == 0 else {}


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own found, or why there is nothing."""
    entrant = ENTRANTS[asked["entrant"]]
    if not entrant.python.exists():
        return {"note": f"absent: no {entrant.python} (environments.sh makes it)"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        command = [entrant.python, OWN / "worker.py", json.dumps(asked), out]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=LIMIT, cwd=folder)
        except subprocess.TimeoutExpired:
            return {"note": f"over {LIMIT:.0f} s"}
        if done.returncode:
            return {"note": f"cannot: {(done.stderr.strip().splitlines() or [''])[-1][:160]}"}
        return json.loads(out.read_text())


class Bench:
    """The cells that are known, and the way to those that are not."""

    def __init__(self, table: Table, options: argparse.Namespace) -> None:
        self.table, self.options = table, options
        self.versions = {name: made_with(name) for name in {*options.only, REFERENCE}}

    def cell(self, problem: str, entrant: str, rate: float, seed: int, target: float | None) -> dict[str, Any]:
        """What a cell is of and holds for."""
        seconds = PROBLEMS[problem].seconds * (0.1 if self.options.quick else 1.0)
        kind = "reference" if target is None else "to target"
        return {
            "problem": problem, "entrant": entrant, "rate": rate, "seed": seed, "kind": kind, "target": target,
            "seconds_given": seconds, "made_with": self.versions[entrant],
        }  # fmt: skip

    def stands(self, of: dict[str, Any]) -> bool:
        cell = self.table.cells.get(self.table.key(of), {})
        return all(cell.get(word) == value for word, value in of.items()) and "note" not in cell and undisturbed(cell)

    def fill(self, cells: Iterable[dict[str, Any]]) -> None:
        """Measure what is not known."""
        folders = {"data": str(self.options.data.resolve()), "cache": str(self.options.cache.resolve())}
        jobs = [of for of in cells if not self.stands(of)]
        with ThreadPoolExecutor(self.options.jobs) as pool:
            running = {pool.submit(measured, of | folders | {"seconds": of["seconds_given"]}): of for of in jobs}
            for done in as_completed(running):
                cell = running[done] | done.result()
                self.table.add(cell)
                print(line(cell), flush=True)
                if not self.options.quick:
                    command = " ".join(sys.argv).replace(str(self.options.data), "FOLDER")
                    self.table.save(command=command)

    def rates(self, entrant: str) -> list[float]:
        found = ENTRANTS[entrant].rates
        return found[POINTS // 2 : POINTS // 2 + 2] if self.options.quick else found

    def target(self, problem: str) -> float | None:
        """What the reference reached in nine tenths of the time, at its best rate."""
        cells = [self.cell(problem, REFERENCE, rate, 0, None) for rate in self.rates(REFERENCE)]
        self.fill(cells)
        known = [self.table.cells[self.table.key(of)] for of in cells]
        seen = [
            loss
            for cell in known
            for at, loss in cell.get("curve", ())
            if at <= 0.9 * cell["seconds_given"] and loss == loss
        ]
        return min(seen, default=None)

    def measure(self) -> None:
        for problem in self.options.problems:
            target = self.target(problem)
            if target is None:
                print(f"{problem}: the reference reached nothing")
                continue
            grid = {e: [self.cell(problem, e, rate, 0, target) for rate in self.rates(e)] for e in self.options.only}
            self.fill(of for cells in grid.values() for of in cells)
            seeds = range(1, 1 if self.options.quick else self.options.seeds)
            best = {e: self.best(problem, e, target) for e in self.options.only}
            chosen = [(e, rate) for e, rate in best.items() if rate is not None]
            self.fill(self.cell(problem, e, rate, seed, target) for seed in seeds for e, rate in chosen)

    def best(self, problem: str, entrant: str, target: float) -> float | None:
        """The rate that reached the target first; of those that did not, the one with the lowest loss."""
        cells = self.table.where(problem=problem, entrant=entrant, seed=0, kind="to target", target=target)
        known = [cell for cell in cells if "note" not in cell and cell["loss"] is not None]
        if not known:
            return None
        return min(known, key=lambda c: (c["reached"] is None, (c["reached"] or {}).get("seconds", c["loss"])))["rate"]


def undisturbed(cell: Cell) -> bool:
    return cell["processor_seconds"] >= LEAST * cell["seconds"]


def line(cell: Cell) -> str:
    start = f"{cell['problem']:18} {ENTRANTS[cell['entrant']].title:38} rate {cell['rate']:8.2g} seed {cell['seed']}"
    if "note" in cell:
        return f"{start}  {cell['note']}"
    reached = cell["reached"]
    where = f"target after {reached['seconds']:6.2f} s, {reached['steps']:6,} steps" if reached else "no target"
    loss = "diverged" if cell["loss"] is None else f"loss {cell['loss']:.4g}"
    return f"{start}  {loss}, {where}{'' if undisturbed(cell) else '  (disturbed: measured again next time)'}"


def tables(bench: Bench) -> list[str]:
    """For each problem the rules in order: seconds and steps to the target, misses, what is kept."""
    rows = []
    for problem in bench.options.problems:
        cells = [c for c in bench.table.where(problem=problem, kind="to target") if "note" not in c]
        by_rule: dict[str, list[Cell]] = {}
        for entrant in bench.options.only:
            of_rule = [c for c in cells if c["entrant"] == entrant]
            for target in {c["target"] for c in of_rule}:
                rate = bench.best(problem, entrant, target)
                by_rule[entrant] = [c for c in of_rule if c["target"] == target and c["rate"] == rate]
        if not by_rule:
            continue
        rows += [f"{problem}: target {next(iter(by_rule.values()))[0]['target']:.5g}"]
        for entrant, found in sorted(by_rule.items(), key=lambda item: _seconds(item[1])):
            missed = sum(c["reached"] is None for c in found)
            steps = statistics.median((c["reached"] or c)["steps"] for c in found)
            kept = found[0]["state_bytes"] / max(1, found[0]["parameter_bytes"])
            mark = "*" if missed else " "
            rows.append(
                f"  {ENTRANTS[entrant].title:38} rate {found[0]['rate']:8.2g}  {_seconds(found):7.2f} s{mark} "
                f"{steps:8,.0f} steps  {len(found) - missed} of {len(found)} reached  "
                f"keeps {kept:5.1f} times the parameters"
            )
    return rows


def _seconds(cells: list[Cell]) -> float:
    return statistics.median((c["reached"] or {"seconds": 3 * c["seconds_given"]})["seconds"] for c in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=ENTRANTS, default=list(ENTRANTS), metavar="RULE")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="PROBLEM")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time; the results file is left alone")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--tables", action="store_true", help="show what is known")
    options = parser.parse_args()
    bench = Bench(Table(FILE, NAMES, {"machine": machine()}, options.again or options.quick), options)
    if not options.tables:
        bench.measure()
    print("", *tables(bench), sep="\n")


if __name__ == "__main__":
    main()
