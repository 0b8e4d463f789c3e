"""The clinic: sick and healthy trainings, and how rightly they are told apart. Records what is missing, then scores.

    python benchmarks/clinic/run.py [--data ../shared/data] [--jobs 2] [--seeds 3] [--truth-seeds 10] [--part scoring]
                                    [--quick] [--no-recording] [--no-peers]

Configurations are in configurations.py (families, sicknesses, healthy, hard_healthy), what became of them in truth.py,
which of them thresholds may be tuned on in split.py, the scores in scores.py and stopping.py, and others' criteria in
peers.py. Runs are kept in the cache folder (THALWEG_CLINIC, else benchmarks/clinic/cache) and made again only where the
code that made them has changed; the rates of the references are made by references.py.

Scored are the first --seeds runs of each configuration; truth is of --truth-seeds. With --part scoring, all seeds and
peers, the results go to benchmarks/results/clinic.json and the table into docs/clinic.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import page
import recording
import scores
import split
import stopping
from configurations import Configuration, every
from data import DATA
from peers import PEERS
from record import missing, record
from scores import Run, Said

sys.path.append(str(Path(__file__).parents[1] / "step"))  # for what the benchmarks share
from tables import machine, ours, save

from thalweg.diagnosis import engine
from thalweg.records.history import History

FILE = Path(__file__).parents[1] / "results" / "clinic.json"
OURS = "Thalweg"
QUICK = 8
"""Of so many configurations one, where it is to be quick."""


def findings(history: History) -> list[Any]:
    """What the diagnosis of this package says."""
    return engine.findings(history)


def asked(runs: list[Run], name: str) -> list[Said]:
    """What a detector says of runs."""
    if name == OURS:
        return [scores.ask(findings, run) for run in runs]
    with np.errstate(all="ignore"):  # thresholds are asked of series that may not be finite
        return [scores.ask(PEERS[name], run) for run in runs]


def stops(runs: list[Run]) -> list[tuple[str, dict[str, stopping.Stop] | None]]:
    """File -> where each rule stops, of runs that are well."""
    return [(run.file, stopping.stops(run.history())) for run in runs if not run.is_sick and run.truth.kind != "sick"]


def in_parts(work: Any, runs: list[Run], jobs: int) -> list[Any]:
    """`work` over runs, in processes."""
    if jobs == 1 or len(runs) < 40:
        return work(runs)
    size = -(-len(runs) // (4 * jobs))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return [one for some in pool.map(work, [runs[i : i + size] for i in range(0, len(runs), size)]) for one in some]


def scored(options: argparse.Namespace, configurations: tuple[Configuration, ...]) -> dict[str, Any]:
    """Everything that is printed, of what was recorded."""
    known = scores.outcomes(configurations, options.truth_seeds)
    judged = scores.truths(configurations, known)
    part_of = split.parts(every())
    chosen = [
        run
        for run in scores.runs(configurations, judged, known, options.seeds)
        if options.part in ("all", part_of[run.of.name])
    ]
    found: dict[str, Any] = {
        "part": options.part, "seeds": options.seeds, "truth_seeds": options.truth_seeds,
        "counts": page.counts(configurations, judged, chosen, part_of, options.part), "detectors": {},
    }  # fmt: skip
    for name in (OURS, *(() if options.no_peers else PEERS)):
        started = time.perf_counter()
        said = in_parts(partial(asked, name=name), chosen, options.jobs)
        found["detectors"][name] = vars(scores.score(chosen, said))
        print(f"{name}: {len(chosen)} runs in {time.perf_counter() - started:.0f} s", flush=True)
    halts = {file: at for file, at in in_parts(stops, chosen, options.jobs) if at is not None}
    found["stopping"] = stopping.summary(halts)
    found["truth"] = {
        name: {
            "kind": of.kind, "gain": recording.short(round(of.gain, 3)), "slower": round(of.slower, 2),
            "p": float(f"{of.p:.2g}"), "effect": float(f"{of.effect:.3g}"), "seeds": of.num_seeds,
        }
        for name, of in judged.items()
    }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=3, help="runs of a configuration that are scored")
    parser.add_argument("--truth-seeds", type=int, default=10, help="runs of a configuration that truth is of")
    parser.add_argument("--part", choices=(*split.PARTS, "all"), default="scoring")
    parser.add_argument("--quick", action="store_true", help="an eighth, three seeds; no file is written")
    parser.add_argument("--no-recording", action="store_true", help="score what is there")
    parser.add_argument("--no-peers", action="store_true", help="ours alone; no file is written")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    configurations = every()
    if options.quick:
        others = tuple(c for c in configurations if c.kind != "reference")[::QUICK]
        of = {(c.family, c.rule) for c in others}
        configurations = tuple(c for c in configurations if c.kind == "reference" and (c.family, c.rule) in of) + others
        options.truth_seeds = min(3, options.truth_seeds)
    if not options.no_recording:
        runs = missing(configurations, options.truth_seeds)
        print(f"{len(runs)} of {len(configurations) * options.truth_seeds} runs to record", flush=True)
        for line in record(runs, options.jobs, options.data.resolve(), lambda text: print(text, flush=True)):
            print(f"could not be recorded: {line}")
    found = scored(options, configurations)
    print(page.table(found))
    page.tell_misjudged(found["detectors"][OURS], found["stopping"])
    if not (options.quick or options.no_peers or options.part != "scoring"):
        command = " ".join(sys.argv).replace(str(options.data), "FOLDER")
        save(FILE, {"machine": machine(), "thalweg": ours(), "command": command} | page.compact(found))
        page.write(found)


if __name__ == "__main__":
    main()
