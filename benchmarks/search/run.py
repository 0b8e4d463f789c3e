"""How good the learning rate is that a search finds, what it costs, and how soon a training is good; beside others.

    python benchmarks/search/run.py [--data ../shared/data] [--jobs 2] [--only thalweg grid …] [--workloads digits …]
                                    [--seeds 3] [--plan eager] [--quick] [--again] [--tables]

Eight workloads (workloads.py), SGD with momentum and AdamW, three seeds; the grid of reference.py says what is best.
Each contender searches in its own way, then trains with what it found, from the same first weights, in a fresh process
of one thread; contenders take turns within a workload and a seed. The clock starts when packages are imported and data
are in memory; from then on everything counts, evaluations (one an epoch) and search included.

- Regret: the validation loss of what is handed over, beside the mean of the grid's best rate.
- Cost of the search, in trainings of the same length.
- Time to target, in seconds and in updates: to the validation loss that the grid's best rate had at nine tenths of its
  training, mean over the seeds. A training that does not get there counts as search and twice a whole training (*).
  `first` counts the trainings of a search, too, as if one knew at once that a trial was good enough.
- Range test: whether the grid's best rate lies in the bracket, and what others' range tests suggest.

Results go to benchmarks/results/search.json, cell by cell: one made on the same machine with the same versions and the
same target is kept unless --again, so a run that was cut off goes on where it stopped; one that was timed while others
computed is measured again by the next run. --tables measures nothing.
environments.sh makes the peers' environment. Ours and the peers' loops run eager PyTorch, so that searches are compared
and not steps; --plan auto gives ours the step that `fit` would choose.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cells import RESULTS, Cell, Table, fingerprint, machine, ours
from contenders import CONTENDERS, Contender
from verdicts import tables
from workloads import CACHE, DATA, RULES, WORKLOADS

import reference

FILE = RESULTS / "search.json"
NAMES = ("workload", "rule", "contender", "seed")
LIMIT = 900.0
"""Seconds of a cell."""
LEAST = 0.8
"""Of the time of a cell that its process computed; below it, others did."""
OWN = Path(__file__).parent
SOURCE = Path(find_spec("thalweg").origin).parents[1]
"""The Thalweg that is measured, and whose rules and schedules the peers train with."""


def level(known: Table, workload: str, rule: str) -> float:
    """The target: what the best rate has reached at nine tenths of its training."""
    return float(f"{statistics.mean(cell['at_90'] for cell in reference.best(known, workload, rule)[1]):.5g}")


def made_with(contender: Contender) -> dict[str, Any]:
    """What a cell of a contender holds for."""
    if contender.ours:
        return {"torch": version("torch"), "thalweg": ours()}
    if not contender.python.exists():
        return {}
    words = ["torch", *([contender.package] if contender.package else [])]
    code = f"from importlib.metadata import version as v; import json; print(json.dumps({{w: v(w) for w in {words}}}))"
    done = subprocess.run([contender.python, "-c", code], capture_output=True, text=True, cwd="/")
    return json.loads(done.stdout) if done.returncode == 0 else {}


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """What a process of its own found, or why there is nothing."""
    contender = CONTENDERS[asked["contender"]]
    if not contender.python.exists():
        return {"note": f"absent: no {contender.python} (environments.sh makes it)"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
        command = [contender.python, OWN / "worker.py", json.dumps(asked), out]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=LIMIT, cwd=folder)
        except subprocess.TimeoutExpired:
            return {"note": f"over {LIMIT:.0f} s"}
        if done.returncode:
            return {"note": f"cannot: {(done.stderr.strip().splitlines() or [''])[-1][:160]}"}
        return json.loads(out.read_text())


def line(cell: Cell) -> str:
    """A row for a person."""
    start = f"{cell['workload']:18} {cell['rule']:9} seed {cell['seed']} {CONTENDERS[cell['contender']].title:36}"
    if "note" in cell:
        return f"{start} {cell['note']}"
    if cell["contender"] == "thalweg-range":
        low, high = cell["interval"]
        return f"{start} {low:.2g} to {high:.2g}, search {cell['cost']:5.2f} trainings"
    mark = "*" if cell["is_missed"] else " "
    loss = "diverged" if cell["loss"] is None else f"loss {cell['loss']:8.4g}"
    disturbed = "" if undisturbed(cell) else "  (disturbed: measured again next time)"
    return (
        f"{start} rate {cell['rate']:8.2g}, {loss}, search {cell['cost']:5.2f} trainings, "
        f"target after {cell['target']['seconds']:6.1f} s{mark}, {cell['target']['steps']:7,} updates{mark}{disturbed}"
    )


def wanted(options: argparse.Namespace, known: Table) -> list[dict[str, Any]]:
    """What every cell is of and holds for, in the order of measuring."""
    prints = {n: fingerprint(WORKLOADS[n], WORKLOADS[n].data(options.data, options.cache)) for n in options.workloads}
    versions = {name: made_with(CONTENDERS[name]) for name in options.only}
    return [
        {
            "workload": workload, "rule": rule, "contender": name, "seed": seed, "fingerprint": prints[workload],
            "level": level(known, workload, rule), "made_with": versions[name],
        } | ({"plan": options.plan} if CONTENDERS[name].ours else {})
        for seed in range(1 if options.quick else options.seeds)
        for workload in options.workloads
        for rule in RULES
        for name in options.only
        if rule in CONTENDERS[name].rules
    ]  # fmt: skip


def stands(cell: Cell, of: dict[str, Any]) -> bool:
    same = all(cell.get(word) == value for word, value in of.items())
    return same and "note" not in cell and undisturbed(cell)


def undisturbed(cell: Cell) -> bool:
    """Whether its one thread had a core to itself; of a range test, no time is compared."""
    return cell["contender"] == "thalweg-range" or cell["processor_seconds"] >= LEAST * cell["whole"]["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CONTENDER")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--seeds", type=int, default=reference.SEEDS)
    parser.add_argument("--plan", choices=("eager", "auto"), default="eager", help="how our steps are run")
    parser.add_argument(
        "--quick", action="store_true", help="short trainings, one seed; the results file is left alone"
    )
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--tables", action="store_true", help="show what is known")
    options = parser.parse_args()
    known = reference.read()
    table = Table(FILE, NAMES, {"machine": machine()}, options.again or options.quick)
    if not options.tables:
        measure(options, known, table)
    print("", *tables(known, table), sep="\n")


def measure(options: argparse.Namespace, known: Table, table: Table) -> None:
    jobs = [of for of in wanted(options, known) if not stands(table.cells.get(table.key(of), {}), of)]
    asked = {"data": str(options.data.resolve()), "cache": str(options.cache.resolve()), "is_quick": options.quick}
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(measured, of | asked | {"plan": options.plan}): of for of in jobs}
        try:
            for done in as_completed(running):
                cell = running[done] | done.result()
                table.add(cell)
                print(line(cell), flush=True)
                if not options.quick:
                    table.save(command=" ".join(sys.argv).replace(str(options.data), "FOLDER"))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
