"""Seconds and steps to a target, rule by rule, each at its best rate; beside others.

    python benchmarks/rules/run.py [--data ../shared/data] [--jobs 2] [--only kfac adamw …] [--problems autoencoder …]
                                   [--seeds 5] [--quick] [--again] [--tables]

Eleven problems (problems.py), one thread each. The target is what fused AdamW at the best rate of its grid has reached,
by its best evaluation, in the first nine tenths of the problem's time, seed 0. Every rule is then tried at seven
rates, a half decade apart about the one that its authors name, and at up to two more beyond an end that is the best,
from the same first weights and over the same batches, with seed 0 (worker.py says which rates need not be tried); the
rate that reaches the target first is trained with the other seeds. A constant rate, no schedule. A training that does
not get there within 1.25 times the problem's time is a miss (*) and counts as that time; a rule that misses at every
rate is not trained with other seeds. The twelfth problem, deep_autoencoder, is the classic of the second-order
literature in full; it is run where --problems names it.

The clock runs while updates are made (worker.py); evaluations stand beside it. Memory is what the rule keeps, in
numbers beside the parameters.

Results go to benchmarks/results/rules.json, cell by cell: one made on the same machine with the same versions, code of
the rule, problem and target is kept unless --again, so a run that was cut off goes on where it stopped; one that was
timed while others computed is measured again by the next run, of a grid all of it. Tables go into docs/rules.md, too,
each problem as the machine of its reference did it: the ratio of a problem is the best of ours by the best of all
others, of medians, and the least and greatest seed by seed. --tables measures nothing. --quick is a tenth of the time,
two rates and one seed, and leaves the file alone. environments.sh makes the peers' environment, found beside the
checkout or in the folder THALWEG_PEERS names.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer
from typing import Any

import page
from entrants import ENTRANTS
from page import REFERENCE
from problems import CACHE, DATA, PROBLEMS
from worker import LONGEST

sys.path.append(str(Path(__file__).parents[1] / "search"))  # for what the benchmarks share
from cells import RESULTS, Cell, Table, machine

FILE = RESULTS / "rules.json"
NAMES = ("problem", "entrant", "rate", "seed", "kind")
STARTS = 60.0
"""Seconds that a process may need beside its trainings."""
LEAST = 0.8
"""Of the time of a cell that its process computed; below it, others did."""
ROOMS = ("thalweg.optim", "thalweg.gradients", "thalweg.tensors")
"""Where the code of rules is."""
OWN, BENCH = Path(__file__).parent, ("worker.py", "problems.py")
PASSED = "passed over"
"""How the notes of rates begin that need not be tried."""
SOURCE = Path(find_spec("thalweg").origin).parents[1]


def hashed(*sources: str) -> str:
    """Of code alone: comments, docstrings and the way it is set may change."""
    trees = [ast.parse(source) for source in sources]
    for node in (node for tree in trees for node in ast.walk(tree)):
        for name, body in ast.iter_fields(node):
            if name == "body" and isinstance(body, list):
                said = [isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) for part in body]
                node.body = [part for part, is_said in zip(body, said, strict=True) if not is_said]
    return hashlib.sha256("\n".join(map(ast.unparse, trees)).encode()).hexdigest()[:12]


def code_of(rule: str) -> str:
    """A hash of what a rule of ours is made of: a change to another leaves its cells standing."""
    from thalweg.optim.catalogue import RULES

    files: dict[str, str] = {}
    left = [RULES[rule].make.__module__]
    while left:
        module = left.pop()
        spec = find_spec(module)
        if module in files or spec is None or spec.origin is None:
            continue
        files[module] = Path(spec.origin).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(files[module])):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(ROOMS):
                inside = [f"{node.module}.{alias.name}" for alias in node.names if node.module in ROOMS]
                left += inside or [str(node.module)]
    return hashed(*(files[module] for module in sorted(files)))


def made_with(name: str) -> dict[str, Any]:
    """What a cell of a rule holds for; nothing where the rule's package is absent."""
    entrant = ENTRANTS[name]
    bench = {"bench": hashed(*((OWN / file).read_text(encoding="utf-8") for file in BENCH))}
    if entrant.package is None:
        ours = {"thalweg": code_of(name.partition("-")[0])} if entrant.ours else {}
        return {"torch": version("torch")} | ours | bench
    if not entrant.python.exists():
        return {}
    words = ["torch", entrant.package]
    code = f"from importlib.metadata import version as v; import json; print(json.dumps({{w: v(w) for w in {words}}}))"
    done = subprocess.run([entrant.python, "-c", code], capture_output=True, text=True, cwd="/")
    return json.loads(done.stdout) | bench if done.returncode == 0 else {}


def measured(trainings: list[Cell], options: argparse.Namespace, **asked: Any) -> Iterator[Cell]:
    """What a process of its own finds, training by training, or why there is nothing."""
    entrant = ENTRANTS[trainings[0]["entrant"]]
    if not entrant.python.exists():
        yield from (of | {"note": "absent: environments.sh makes its environment"} for of in trainings)
        return
    there, here = (words.partition("+")[0] for words in (trainings[0]["made_with"].get("torch", ""), version("torch")))
    if there != here:
        yield from (
            of | {"note": f"absent: torch {there} there, {here} here: make its environment anew"} for of in trainings
        )
        return
    asked |= {"trainings": [of | {"seconds": of["seconds_given"]} for of in trainings]}
    asked |= {"data": str(options.data.resolve()), "cache": str(options.cache.resolve())}
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    command = [str(entrant.python), str(OWN / "worker.py"), json.dumps(asked)]
    limit = STARTS + 3 * sum(LONGEST * of["seconds_given"] for of in trainings)  # what stands beside the clock, too
    left = {(of["rate"], of["seed"]): of for of in trainings}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ, cwd="/") as process,
    ):
        watch = Timer(limit, process.kill)
        watch.start()
        for found in map(json.loads, process.stdout):
            del left[found["rate"], found["seed"]]
            yield found
        process.wait()
        watch.cancel()
        errors.seek(0)
        said = (errors.read().strip().splitlines() or [""])[-1][:160]
    yield from (of | {"note": f"cannot: {said or 'no answer in time'}"} for of in left.values())


class Bench:
    """The cells that are known, and the way to those that are not."""

    def __init__(self, table: Table, options: argparse.Namespace) -> None:
        self.table, self.options = table, options
        self.lock = Lock()
        self.versions = {name: made_with(name) for name in {*options.only, REFERENCE}}
        self.machine = ", ".join(f"{value}" for value in machine().values())

    def cell(self, problem: str, entrant: str, rate: float, seed: int, target: float | None) -> dict[str, Any]:
        """What a cell is of and holds for."""
        seconds = PROBLEMS[problem].seconds * (0.1 if self.options.quick else 1.0)
        kind = "reference" if target is None else "to target"
        return {
            "problem": problem, "entrant": entrant, "rate": rate, "seed": seed, "kind": kind, "target": target,
            "seconds_given": seconds, "made_with": self.versions[entrant], "machine": self.machine,
        }  # fmt: skip

    def stands(self, of: dict[str, Any]) -> bool:
        cell = self.table.cells.get(self.table.key(of), {})
        same = all(cell.get(word) == value for word, value in of.items())
        done = cell.get("note", PASSED).startswith(PASSED)
        return same and done and undisturbed(cell) and not self.options.again

    def fill(self, cells: Iterable[dict[str, Any]], race: bool = False) -> None:
        """Measure what is not known; a process for each rule. `race`: trainings give up where another was quicker."""
        groups: dict[str, list[Cell]] = {}
        for of in cells:
            groups.setdefault(of["entrant"], []).append(of)
        with ThreadPoolExecutor(self.options.jobs) as pool:
            for done in [pool.submit(self._fill, of_rule, race) for of_rule in groups.values()]:
                done.result()

    def _fill(self, cells: list[Cell], race: bool) -> None:
        missing = [of for of in cells if not self.stands(of)]
        if race and missing:  # what one rate comes to decides which others are tried
            missing = cells
        for cell in measured(missing, self.options, race=race) if missing else ():
            with self.lock:
                self.table.add(cell)
                print(line(cell), flush=True)
                if not self.options.quick:
                    command = " ".join(sys.argv).replace(str(self.options.data), "FOLDER")
                    self.table.save(command=command)

    def rates(self, entrant: str, has_ends: bool = False) -> list[float]:
        """From the middle of the grid outwards, and beyond its ends."""
        found = ENTRANTS[entrant].rates
        return found[:2] if self.options.quick else found + (ENTRANTS[entrant].beyond if has_ends else [])

    def target(self, problem: str) -> float | None:
        """What the reference reached in nine tenths of the time, at its best rate; of what is known."""
        keys = [self.table.key(self.cell(problem, REFERENCE, rate, 0, None)) for rate in self.rates(REFERENCE)]
        known = [self.table.cells[key] for key in keys if key in self.table.cells]
        seen = [
            loss
            for cell in known
            for at, loss in cell.get("curve", ())
            if at <= 0.9 * cell["seconds_given"] and loss == loss
        ]
        return min(seen, default=None)

    def measure(self) -> None:
        for problem in self.options.problems:
            self.fill(self.cell(problem, REFERENCE, rate, 0, None) for rate in self.rates(REFERENCE))
            target = self.target(problem)
            if target is None:
                print(f"{problem}: the reference reached nothing")
                continue
            grid = {
                e: [self.cell(problem, e, rate, 0, target) for rate in self.rates(e, has_ends=True)]
                for e in self.options.only
            }
            self.fill((of for cells in grid.values() for of in cells), race=True)
            seeds = range(1, 1 if self.options.quick else self.options.seeds)
            best = {e: self.best(problem, e, target) for e in self.options.only}
            chosen = [(e, cell["rate"]) for e, cell in best.items() if cell and cell["reached"]]
            self.fill(self.cell(problem, e, rate, seed, target) for seed in seeds for e, rate in chosen)

    def at_best(self, problem: str) -> dict[str, list[Cell]]:
        """The cells of each rule at its best rate, seed by seed."""
        target, found = self.target(problem), {}
        for entrant in self.options.only if target is not None else ():
            if best := self.best(problem, entrant, target):
                of = {"problem": problem, "entrant": entrant, "kind": "to target", "target": target}
                cells = self.table.where(**of, rate=best["rate"])
                found[entrant] = sorted(filter(self.is_current, cells), key=lambda c: c["seed"])
        return found

    def is_current(self, cell: Cell) -> bool:
        """Whether a cell was measured: by this code and versions, where they are here, on its problem's machine."""
        keys = [self.table.key(self.cell(cell["problem"], REFERENCE, r, 0, None)) for r in self.rates(REFERENCE)]
        machines = {self.table.cells[key]["machine"] for key in keys if key in self.table.cells}
        same = self.versions[cell["entrant"]] in ({}, cell["made_with"])
        return "note" not in cell and same and machines == {cell["machine"]}

    def best(self, problem: str, entrant: str, target: float) -> Cell | None:
        """Where the target was reached first; if nowhere, where the loss was lowest."""
        cells = self.table.where(problem=problem, entrant=entrant, seed=0, kind="to target", target=target)
        known = [cell for cell in cells if self.is_current(cell) and cell["loss"] is not None]
        return min(
            known, key=lambda c: (c["reached"] is None, (c["reached"] or {}).get("seconds", c["loss"])), default=None
        )


def undisturbed(cell: Cell) -> bool:
    return "note" in cell or cell["processor_seconds"] >= LEAST * cell["seconds"]


def line(cell: Cell) -> str:
    start = f"{cell['problem']:18} {ENTRANTS[cell['entrant']].title:38} rate {cell['rate']:8.2g} seed {cell['seed']}"
    if "note" in cell:
        return f"{start}  {cell['note']}"
    reached = cell["reached"]
    where = f"target after {reached['seconds']:6.2f} s, {reached['steps']:6,} steps" if reached else "no target"
    loss = "diverged" if cell["loss"] is None else f"loss {cell['loss']:.4g}"
    return f"{start}  {loss}, {where}{'' if undisturbed(cell) else '  (disturbed: measured again next time)'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=ENTRANTS, default=list(ENTRANTS), metavar="RULE")
    usual = [name for name, problem in PROBLEMS.items() if not problem.is_extra]
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=usual, metavar="PROBLEM")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time; the results file is left alone")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--tables", action="store_true", help="show what is known, and put it into docs/rules.md")
    options = parser.parse_args()
    bench = Bench(Table(FILE, NAMES, {}, options.quick), options)
    if not options.tables:
        bench.measure()
    found = {problem: bench.at_best(problem) for problem in options.problems}
    print("", *page.lines(found), sep="\n")
    if not options.quick and options.only == list(ENTRANTS):
        page.write({problem: bench.at_best(problem) for problem in PROBLEMS})


if __name__ == "__main__":
    main()
