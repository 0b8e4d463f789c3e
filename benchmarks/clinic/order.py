"""Which prescription mends what: each one that is thought of at the first finding, alone, on sick trainings.

    python benchmarks/clinic/order.py [--data ../shared/data] [--seeds 20 21] [--truth-seeds 10] [--only TEXT …]

Each sick configuration of the tuning part is trained once for each prescription that `full` thinks of where something
is found first, up to `MANY`, counted under the first of the findings; that prescription is kept whatever a trial would
have said, and nothing is mended afterwards. Mended is what reaches the reference's mean less one deviation. The counts
go to src/thalweg/repairs/success.json: finding, prescription, trainings mended, trainings tried. What is tried first in
a training follows from them. Outcomes are kept in CACHE/order and made again where the configuration, or
`repair.VERSION`, has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import arms
import recording
import repair
import split
import truth
from configurations import by_name, every
from data import CACHE, DATA
from record import prepare

FILE = Path(__file__).parents[2] / "src" / "thalweg" / "repairs" / "success.json"
#: Prescriptions of one finding at most.
MANY = 16


def forced(number: int, told: dict[str, Any]) -> AbstractContextManager[None]:
    """Of all prescriptions for the first finding that has any, the one of this number is kept, and no other later."""
    from thalweg.repairs import answers, prescriptions

    def prescribe(findings: Any, body: Any, level: str, goes_back: bool = True) -> list[Any]:
        found = [] if told else prescriptions.candidates(findings, body, level)
        found = [made for made in found if goes_back or not made.is_from_the_start]
        if found:
            code = next(finding.code for finding in findings if finding.code in answers.TABLE)
            told.update(finding=code, names=[made.key for made in found])
        return found[number : number + 1]

    return arms.untried(prescribe)


def made(name: str, seed: int, data: Path) -> str:
    """All prescriptions for one training, kept in a file."""
    found, outcomes = by_name()[name], []
    for number in range(MANY):
        told: dict[str, Any] = {}
        with recording.scratch() as folder, forced(number, told):
            try:
                outcome = arms.treated(found.case(data), seed, "full", folder)
            except Exception as error:  # what cannot be done to this network mends nothing
                outcome = {"scores": [], "wrong": f"{type(error).__name__}: {error}"}
        if number >= len(told.get("names", ())):
            break
        outcomes.append({**told, "name": told["names"][number], "outcome": outcome})
    file = kept_in(name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"fingerprint": found.fingerprint(), "version": repair.VERSION, "made": outcomes}
    file.write_text(json.dumps(kept, separators=(",", ":")))
    return name


def kept_in(name: str, seed: int) -> Path:
    return CACHE / "order" / name / f"{seed}.json"


def known(name: str, seed: int) -> list[dict[str, Any]] | None:
    file = kept_in(name, seed)
    if not file.exists():
        return None
    found = json.loads(file.read_text())
    if (found["fingerprint"], found["version"]) != (by_name()[name].fingerprint(), repair.VERSION):
        return None
    made: list[dict[str, Any]] = found["made"]
    return made


def counted(runs: list[repair.Judged], seeds: list[int]) -> dict[str, dict[str, list[int]]]:
    """Finding → prescription → mended, tried."""
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for run in runs:
        for seed in seeds:
            for one in known(run.of.name, seed) or []:
                outcome = one["outcome"]
                good = bool(outcome["scores"]) and truth.final(outcome, outcome["chance"]) >= run.goal - run.spread
                counts[one["finding"]][one["name"]][0] += good
                counts[one["finding"]][one["name"]][1] += 1
    return {code: dict(sorted(of.items())) for code, of in sorted(counts.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=[20, 21])
    parser.add_argument("--truth-seeds", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    part_of = split.parts(every())
    chosen = [c for c in every() if part_of[c.name] == "tuning" and any(text in c.name for text in options.only)]
    runs = [
        run for run in repair.judged(chosen, options.truth_seeds)
        if run.kind == "sick" and not run.is_apart
    ]  # fmt: skip
    missing = [(run.of.name, seed) for seed in options.seeds for run in runs if known(run.of.name, seed) is None]
    print(f"{len(runs)} configurations, {len(missing)} trainings to make, each with every prescription", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"), initializer=prepare) as pool:
        waiting = [pool.submit(made, *one, options.data.resolve()) for one in missing]
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            if done % 10 == 0 or done == len(missing):
                left = (time.perf_counter() - started) / done * (len(missing) - done) / 60
                print(f"{done:5} of {len(missing)}, {left:5.1f} min left", flush=True)
    found = counted(runs, options.seeds)
    for code, of in found.items():
        print(code, {name: f"{good}/{tried}" for name, (good, tried) in of.items()})
    if options.only == [""]:
        lines = [f"  {json.dumps(code)}: {json.dumps(of)}" for code, of in found.items()]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
