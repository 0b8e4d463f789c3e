"""Repairs, judged by what becomes of the clinic's trainings: mended, harmed, and at what cost.

    python benchmarks/clinic/repair.py [--data ../shared/data] [--arms off safe full default random autotrainer]
                                       [--seeds 10 11 12] [--part scoring] [--only TEXT …] [--jobs 2]

An arm is a way to treat a training: `off` lets it go, `safe` and `full` are the levels of `thalweg.fit`, `default` is
what people do without looking (Adam at 0.001, He's initialisation, batch or layer norm, the gradient's norm at most 1,
inputs standardised), `random` makes one change of ours, drawn at random, at the first finding, and keeps it;
`autotrainer` trains anew with that tool's solutions, in its order, until its monitor is silent.

    repaired     of sick runs (the configuration is sick by truth.py, and so is this seed's `off`), the final score
                 reaches the reference's mean less one deviation; also of those alone whose settings are the fault,
                 which is what `safe` may touch
    regained     of sick runs, the part of the way from the score of `off` to that bar, from 0 to 1, the mean
    harmed       of runs that are well by themselves, the score is worse than `off` by more than a deviation of the
                 reference
    cost         updates, those of trials included, beside the reference's

Seeds are others than those that truth and diagnosis are of. What each run came to stands in
benchmarks/results/clinic-repair-runs.json and is made again where the configuration has changed, or, of arms that make
our repairs, `VERSION`: a run of this program that was cut off, or moved to another machine, goes on where it stopped.
Runs of what is well are compared to the last bit and made again on a machine whose bits are others.
What the references came to stands in clinic-truths.json beside it, and is taken from there where they are not recorded
here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import networks
import recording
import scores
import split
import torch
import truth
from arms import ARMS, treated
from configurations import Configuration, by_name, every
from data import DATA
from families import chance
from record import prepare
from scipy import stats

sys.path += [str(Path(__file__).parents[1] / room) for room in ("search", "step")]  # for what the benchmarks share
from cells import RESULTS, Cell, Table
from tables import machine, ours, save

FILE, RUNS, TRUTHS = (RESULTS / f"clinic-{name}.json" for name in ("repair", "repair-runs", "truths"))
VERSION = 25
"""Of our repairs: a run of an arm that makes them is of the version it was made with."""
APART = (
    "12-few-examples", "12-noise-learned", "16-labels-shuffled", "16-too-few-epochs", "16-detached",
)  # fmt: skip
"""Faults that no repair of a training reaches: what is missing is in the data, the time or the code around it."""
OTHERS = ("default", "random", "autotrainer")
"""Arms of sick runs alone."""
OURS = ("safe", "full", "default", "random")
"""Arms that make changes of ours."""
SETTINGS = {"fit", "rate", "rate_factor", "options", "small_batches", "certified"}
"""Changes of the clinic that make a training sick by its settings alone: what `safe` may touch."""


def runs_of_now(file: Path = RUNS) -> Table:
    """The runs that are known."""
    return Table(file, ("configuration", "arm", "seed"), {})


def mark(c: Configuration, arm: str) -> str:
    """What a run follows from: its configuration, and our repairs where the arm makes them."""
    return c.fingerprint() + (f"/{VERSION}" if arm in OURS else "")


def cell(c: Configuration, arm: str, seed: int, outcome: dict[str, Any]) -> Cell:
    """What is kept of a run: its final score, its updates and what was done to it."""
    scores = hashlib.sha256(json.dumps(outcome["scores"]).encode()).hexdigest()[:12]
    return {
        "configuration": c.name, "arm": arm, "seed": seed, "fingerprint": mark(c, arm),
        "score": truth.final(outcome, outcome["chance"]), "scores": scores,
        "updates": outcome["updates"] + outcome.get("tried_steps", 0),
        "actions": [action[:3] for action in outcome.get("actions", ())], "findings": outcome.get("findings", []),
    }  # fmt: skip


def made(name: str, arm: str, seed: int, data: Path) -> Cell:
    """One training; one that fails is told, is in no figure, and is made again by the next run of this program."""
    found, wrong = by_name()[name], ""
    try:
        with recording.scratch() as folder:
            outcome = treated(found.case(data), seed, arm, folder)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
        level = round(chance(found.case(data)), 4)
        outcome = {"scores": [], "chance": level, "updates": 0, "stopped_because": "failed"}
    return cell(found, arm, seed, outcome) | {"bits": bits()} | ({"wrong": wrong} if wrong else {})


@cache
def bits() -> str:
    """What a few updates come to here, to the last bit: machines of one name differ."""
    digest, threads = hashlib.sha256(), torch.get_num_threads()
    torch.set_num_threads(1)  # as runs are made
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for model, x in (
            (networks.residual(), torch.randn(32, 1, 14, 14)),
            (networks.even(196, 10, 64, 2), torch.randn(64, 196)),
        ):
            update, y = torch.optim.SGD(model.parameters(), lr=0.1), torch.randint(10, (len(x),))
            for _ in range(3):
                update.zero_grad()
                torch.nn.functional.cross_entropy(model(x), y).backward()
                update.step()
            for p in model.parameters():
                digest.update(p.detach().numpy().tobytes())
    torch.set_num_threads(threads)
    return digest.hexdigest()[:12]


def is_of_here(kept: Cell, kind: str) -> bool:
    """Whether a run can stay: what is well is compared to the last bit, with what was made here alone."""
    return "wrong" not in kept and (kind == "sick" or kept.get("bits") == bits())


def known(runs: Table, c: Configuration, arm: str, seed: int) -> Cell | None:
    """A run that was made by the configuration as it is; one that was let go may have been recorded."""
    found = runs.cells.get((c.name, arm, seed))
    if found is not None and found["fingerprint"] == mark(c, arm):
        return found
    if arm == "off" and (recorded := recording.outcome(c.name, seed, c.fingerprint())) is not None:
        runs.add(cell(c, arm, seed, recorded))
        return runs.cells[c.name, arm, seed]
    return None


@dataclass
class Judged:
    """What is needed of a configuration to judge its runs."""

    of: Configuration
    kind: str
    """As `truth.Truth` has it."""
    goal: float
    spread: float
    steps: int
    own: tuple[float, ...]
    """The reference's own scores, a seed each."""

    @property
    def bar(self) -> float:
        """The score from which on a run is repaired."""
        return self.goal - self.spread

    @property
    def is_apart(self) -> bool:
        """Whether the fault is one that no repair reaches."""
        return any(title in self.of.title for title in APART)

    def is_sick(self, score: float) -> bool:
        """Whether a run of this score, let go, is to be repaired."""
        return self.kind == "sick" and score < self.goal - (2 * self.spread if self.of.reach is None else 0)


def judged(configurations: list[Configuration], truth_seeds: int) -> list[Judged]:
    """Configurations with their truth, the reference's score, and its updates."""
    rows = json.loads(TRUTHS.read_text())["rows"] if TRUTHS.exists() else {}
    if of_now := truths_of_now(truth_seeds):
        better = {name for name, row in of_now.items() if name in rows and _is_of_more(rows[name], row)}
        rows |= {name: row for name, row in of_now.items() if name not in better}
        written = TRUTHS.with_suffix(".tmp")
        written.write_text(told(rows))
        written.replace(TRUTHS)
    found = []
    for c in configurations:
        if c.name in rows and rows[c.name][0] == c.fingerprint():
            _, kind, goal, spread, steps, own = rows[c.name]
            found.append(Judged(c, kind, goal, spread, steps, tuple(own)))
    return found


def _is_of_more(known: list[Any], now: list[Any]) -> bool:
    """Whether a row is of the same configuration and of more seeds: what is recorded here may be a part."""
    return known[0] == now[0] and len(known[-1]) > len(now[-1])


def told(rows: dict[str, list[Any]]) -> str:
    """A configuration a line: fingerprint, kind, the reference's mean and deviation, its updates, its own scores."""
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    return f'{{\n "rows": {{\n{lines}\n }}\n}}\n'


def truths_of_now(truth_seeds: int) -> dict[str, list[Any]]:
    """The rows of what is recorded here."""
    outcomes = scores.outcomes(every(), truth_seeds)
    truths = scores.truths(every(), outcomes)
    rows = {}
    for c in every():
        if c.name not in truths:
            continue
        of = outcomes[f"{c.family}/{c.rule}/reference"]
        level = next(iter(outcomes[c.name].values()))["chance"]
        values = [truth.final(outcome, level) for outcome in of.values()]
        goal, spread = statistics.fmean(values), statistics.stdev(values)
        if c.reach is not None:
            goal, spread = level + truth.GAIN * (c.reach - level), 0.0
        steps = next(iter(of.values()))["planned"]
        rows[c.name] = [c.fingerprint(), truths[c.name].kind, goal, spread, steps, values]
    return rows


def summary(runs: list[Judged], table: Table, arm: str, seeds: list[int]) -> dict[str, Any]:
    """What an arm came to."""
    sick, apart, well = [], [], []
    failed = []
    for run in runs:
        for seed in seeds:
            off, here = known(table, run.of, "off", seed), known(table, run.of, arm, seed)
            if off is None or here is None or "wrong" in off | here:
                continue
            bar, before, after = run.bar, off["score"], here["score"]
            cost = here["updates"] / max(1, run.steps)
            if run.kind == "sick":
                if run.is_sick(before):
                    group = apart if run.is_apart else sick
                    part = min(max((after - before) / (bar - before), 0.0), 1.0) if before < bar else 1.0
                    group.append((run, seed, after >= bar, cost, part))
                    if group is sick and after < bar:
                        failed.append((run.of.name, seed, round(before, 3), round(after, 3), round(bar, 3),
                                       here["actions"], here["findings"]))  # fmt: skip
            elif run.kind != "excluded" and off.get("bits") == here.get("bits") is not None:
                same = here["scores"] == off["scores"]
                well.append((run, seed, after < before - max(run.spread, 1e-9), cost, same, bool(here["actions"])))
    by_sickness = defaultdict(list)
    for run, _, good, *_ in sick:
        by_sickness[run.of.sickness].append(good)
    rate = lambda group: sum(g[2] for g in group) / len(group) if group else None  # noqa: E731
    of_settings = [g for g in sick if all(change.name in SETTINGS for change in g[0].of.changes)]
    return {
        "sick": len(sick), "repaired": rate(sick),
        "regained": statistics.fmean(g[4] for g in sick) if sick else None, "of_settings": len(of_settings),
        "repaired_settings": rate(of_settings), "apart": len(apart), "repaired_apart": rate(apart),
        "well": len(well), "harmed": rate(well), "same": sum(g[4] for g in well) / len(well) if well else None,
        "acted_on_well": sum(g[5] for g in well) / len(well) if well else None,
        "cost_sick": statistics.median(g[3] for g in sick) if sick else None,
        "cost_well": statistics.median(g[3] for g in well) if well else None,
        "by_sickness": {k: [len(v), sum(v) / len(v)] for k, v in sorted(by_sickness.items())},
        "harms": [[g[0].of.name, g[1]] for g in well if g[2]],
        "failed": failed,
    }  # fmt: skip


def beside(runs: list[Judged], table: Table, arm: str, seeds: list[int]) -> dict[str, Any]:
    """`full` beside another arm on the same sick runs: repaired by it alone, by the other alone, and the chance.

    The chance of so uneven a count, were both as good, is of the sign test, both ways.
    """
    alone = [0, 0]
    for run, seed in ((run, seed) for run in runs if not run.is_apart for seed in seeds):
        ours, other, off = (known(table, run.of, word, seed) for word in ("full", arm, "off"))
        if ours is None or other is None or off is None or "wrong" in ours | other | off:
            continue
        if run.is_sick(off["score"]):
            good = [ours["score"] >= run.bar, other["score"] >= run.bar]
            alone = [alone[0] + (good == [True, False]), alone[1] + (good == [False, True])]
    chance = float(stats.binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0
    return {"full_alone": alone[0], "other_alone": alone[1], "chance": chance}


def by_itself(runs: list[Judged]) -> float:
    """The share of the references' own runs that reach the bar: what a training that was never sick comes to."""
    bars = {(run.of.family, run.of.rule): run for run in runs if run.of.reach is None and run.kind == "sick"}
    reached = [value >= run.goal - run.spread for run in bars.values() for value in run.own]
    return sum(reached) / len(reached) if reached else float("nan")


COLUMNS = {
    "sick": "sick runs", "repaired": "sick, repaired", "regained": "sick, regained",
    "repaired_settings": "sick by settings, repaired", "repaired_apart": "apart, repaired", "harmed": "well, harmed",
    "same": "well, the same to the last bit", "cost_sick": "cost, sick", "cost_well": "cost, well",
}  # fmt: skip
BEGIN, END = "<!-- made by benchmarks/clinic/repair.py -->", "<!-- until here, of repairs -->"


def shown(value: float | None, word: str = "") -> str:
    """As it stands in the table."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if word == "harmed" else f"{value:.2f}"


def write(found: dict[str, Any], references: float, margins: dict[str, Any]) -> None:
    """The table into docs/clinic.md, between its marks."""
    page = Path(__file__).parents[2] / "docs" / "clinic.md"
    full = found.get("full") or next(iter(found.values()))
    lines = [
        f"{full['sick']} sick runs, {full['of_settings']} of them by settings alone, "
        f"{full['apart']} apart, {full['well']} well. "
        f"Of the references' own runs {references:.2f} reach the bar.\n",
        "| | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        "| *to reach* | | full ≥ 0.95 | | safe ≥ 0.75 | | ≤ 0.005 | | ≤ 1.3 | 1.00 |",
        *(f"| {arm} | " + " | ".join(shown(of[word], word) for word in COLUMNS) + " |" for arm, of in found.items()),
        "\n| of the same sick runs | repaired by `full` alone | by the other alone | chance |",
        "|---" * 4 + "|",
        *(f"| {arm} | {of['full_alone']} | {of['other_alone']} | {of['chance']:.2g} |" for arm, of in margins.items()),
        "\n| sickness | " + " | ".join(found) + " |",
        "|---" * (len(found) + 1) + "|",
        *(
            f"| {number} ({count}) | "
            + " | ".join(shown(of["by_sickness"].get(number, [0, None])[1]) for of in found.values())
            + " |"
            for number, (count, _) in full["by_sickness"].items()
        ),
    ]
    text = page.read_text(encoding="utf-8")
    first, last = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text(text[:first] + "\n\n" + "\n".join(lines) + "\n\n" + text[last:], encoding="utf-8")


def record(runs: list[tuple[str, str, int]], table: Table, jobs: int, data: Path) -> None:
    """Make what is missing."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.perf_counter()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=prepare) as pool:
        waiting = [pool.submit(made, *run, data) for run in runs]
        for done, future in enumerate(as_completed(waiting), 1):
            table.add(found := future.result())
            if "wrong" in found:
                print(found["configuration"], found["arm"], f"seed {found['seed']}: {found['wrong']}", flush=True)
            table.save()
            if done % 50 == 0 or done == len(runs):
                left = (time.perf_counter() - started) / done * (len(runs) - done) / 60
                print(f"{done:5} of {len(runs)}, {left:5.1f} min left", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--truth-seeds", type=int, default=10)
    parser.add_argument("--part", choices=(*split.PARTS, "all"), default="scoring")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--every", type=int, default=1, help="of so many configurations one")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sick", action="store_true", help="sick configurations alone")
    parser.add_argument("--known", action="store_true", help="make no run: the table of what is known")
    parser.add_argument("--failed", action="store_true", help="list what was not repaired, and what was harmed")
    options = parser.parse_args()
    part_of = split.parts(every())
    chosen = [
        c for c in every()
        if options.part in ("all", part_of[c.name]) and any(text in c.name for text in options.only)
    ][:: options.every]  # fmt: skip
    runs, table = judged(chosen, options.truth_seeds), runs_of_now()
    if options.sick:
        runs = [run for run in runs if run.kind == "sick"]
    if not runs:
        raise SystemExit("nothing is recorded whose truth is known: run benchmarks/clinic/run.py first")
    arms = list(dict.fromkeys(["off", *options.arms]))
    missing = [
        (run.of.name, arm, seed) for seed in options.seeds for run in runs for arm in arms
        if run.kind != "excluded" and not (arm in OTHERS and run.kind != "sick")
        and ((kept := known(table, run.of, arm, seed)) is None or not is_of_here(kept, run.kind))
    ]  # fmt: skip
    print(f"{len(runs)} configurations, {len(missing)} runs to make", flush=True)
    if missing and not options.known:
        record(missing, table, options.jobs, options.data.resolve())
    found = {arm: summary(runs, table, arm, options.seeds) for arm in arms}
    table.save()
    if len({of["well"] for arm, of in found.items() if arm not in OTHERS}) > 1:
        print("arms have been compared on other machines: their well runs are not the same ones", flush=True)
    for arm, of in found.items():
        told = {
            k: round(v, 3) if isinstance(v, float) else v
            for k, v in of.items()
            if k not in ("failed", "harms", "by_sickness")
        }
        print(arm, told)
        print("   ", {k: [n, round(v, 2)] for k, (n, v) in of["by_sickness"].items()})
        if options.failed and arm != "off":
            for line in of["failed"]:
                print("   not repaired:", *line)
            for line in of["harms"]:
                print("   harmed:", *line)
    if options.part == "scoring" and options.only == [""] and not options.sick:
        command = " ".join(sys.argv).replace(str(options.data), "FOLDER")
        about = {"machine": machine(), "thalweg": ours(), "command": command, "seeds": options.seeds}
        references = by_itself(runs)
        margins = {arm: beside(runs, table, arm, options.seeds) for arm in found if arm not in ("off", "full")}
        numbers = {"configurations": len(runs), "of": len(every()), "references": references, "margins": margins}
        kept = {arm: {word: of[word] for word in of if word != "failed"} for arm, of in found.items()}  # RUNS has them
        save(FILE, about | numbers | {"arms": kept})
        write(found, references, margins)


if __name__ == "__main__":
    main()
