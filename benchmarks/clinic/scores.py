"""How right a detector is, on what was recorded. A detector is a function History -> list[Finding].

What a detector says counts from a warning on; notes are for a person who asks.

    precision, recall      runs with an alarm, of sick and well runs
    false alarms           share of well runs with an alarm: healthy (with references), hard-healthy
    right cause first      of sick runs whose cause is known, the first cause that is told is an injected one
    causes, F1             micro: every cause told of sick runs, against the injected ones
    both causes            of sick runs with a double fault, both are told
    alarm                  median over the runs of faults that diverge: share of the run at the first alarm, 1 for none
    stuck                  balanced accuracy over saddle, minimum, plateau, slow, converged; of runs measured at the end

A cause counts by the injected fault's group of codes, any of which is right. A flow that is broken (vanishing, dead …)
or an overfitting counts as a told cause where nothing deeper is told, or where it is right.
"""

from __future__ import annotations

import gzip
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import recording
import truth
from configurations import Configuration
from truth import Truth

from thalweg.records.finding import Finding
from thalweg.records.history import History

Detector = Callable[[History], list[Finding]]

CAUSES = frozenset({
    "learning_rate_too_high", "learning_rate_too_low", "bad_initialization", "loss_output_mismatch", "unscaled_inputs",
    "unscaled_targets", "bad_labels", "class_imbalance", "frozen_parameters", "stale_gradients", "wrong_mode",
    "batch_too_small", "data_leak", "optimizer_misconfigured",
})  # fmt: skip
LATER = frozenset({
    "vanishing_gradient", "exploding_gradient", "dead_units", "saturated_units", "non_finite", "overfitting",
    "underfitting",
})  # fmt: skip
"""Symptoms that are causes where nothing lies deeper."""
SHARES = (0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0)
STUCK = {
    "saddle_point": "saddle", "local_minimum": "minimum", "plateau": "plateau", "slow_convergence": "slow",
    "learning_rate_too_low": "slow",
}  # fmt: skip
"""What is measured at the end is a slope, or none: whether short steps or noise keep a training there is not."""


@dataclass(frozen=True)
class Run:
    """A recorded run that is scored, with the truth about it."""

    of: Configuration
    truth: Truth
    seed: int
    stuck: str | None

    @property
    def is_sick(self) -> bool:
        return self.truth.runs[self.seed] == "sick"

    @property
    def file(self) -> str:
        return str(recording.path(self.of.name, self.seed, "history.json.gz").relative_to(recording.CACHE))

    def history(self) -> dict[str, Any]:
        """As it lies in the file: `recording.unpacked` makes a history of it."""
        with gzip.open(recording.path(self.of.name, self.seed, "history.json.gz"), "rt") as text:
            return json.load(text)


def outcomes(configurations: tuple[Configuration, ...], seeds: int) -> dict[str, dict[int, recording.Outcome]]:
    """Configuration -> seed -> outcome, of what was recorded by the code as it is."""
    found: dict[str, dict[int, recording.Outcome]] = {}
    for c in configurations:
        mark = c.fingerprint()
        known = {seed: recording.outcome(c.name, seed, mark) for seed in range(seeds)}
        found[c.name] = {seed: outcome for seed, outcome in known.items() if outcome is not None}
    return found


def truths(
    configurations: tuple[Configuration, ...], known: dict[str, dict[int, recording.Outcome]]
) -> dict[str, Truth]:
    """Of every configuration of which at least three runs are there, and three of its reference."""
    found = {}
    for c in configurations:
        reference = known.get(f"{c.family}/{c.rule}/reference", {})
        if len(known[c.name]) >= 3 and len(reference) >= 3:
            found[c.name] = truth.judge(c, known[c.name], reference)
    return found


def runs(
    configurations: tuple[Configuration, ...],
    judged: dict[str, Truth],
    known: dict[str, dict[int, recording.Outcome]],
    seeds: int,
) -> list[Run]:
    """The runs of the first seeds that are plainly sick or well, and those that were measured at their end.

    A history with other signals than are recorded now is none that a detector could be asked about.
    """
    found = []
    for c in configurations:
        of = judged.get(c.name)
        for seed, label in (of.runs if of else {}).items():
            outcome = known[c.name][seed]
            if seed >= seeds or of.kind == "excluded" or outcome.get("signals") != recording.SIGNALS:
                continue
            kind = truth.stuck(outcome, of.gains[seed])
            if label != "unclear" or kind is not None:
                found.append(Run(c, of, seed, kind))
    return found


# ── what a detector says of a run ──


@dataclass
class Said:
    """Of one run: codes from a warning on, in order; for a fault that diverges the share at the first alarm."""

    codes: list[str]
    alarm: float = 1.0


def alarms(found: list[Finding]) -> list[str]:
    return list(dict.fromkeys(f.code for f in found if f.severity != "note"))


def ask(detector: Detector, run: Run) -> Said:
    """What a detector says of a whole run; and of a fault that diverges, how soon it says anything."""
    held = run.history()
    said = Said(alarms(detector(recording.unpacked(held))))
    if said.codes and run.is_sick and run.of.is_divergent:
        said.alarm = next((s for s in SHARES if alarms(detector(recording.unpacked(held, s)))), 1.0)
    return said


def told(codes: list[str], groups: tuple[tuple[str, ...], ...]) -> list[str]:
    """The causes among the codes, in their order."""
    right = {code for group in groups for code in group}
    deep = [code for code in codes if code in CAUSES or code in right]
    return deep or [code for code in codes if code in LATER]


# ── scores ──


@dataclass
class Scores:
    """All numbers of one detector; None where there is nothing to count."""

    precision: float | None = None
    recall: float | None = None
    false_healthy: float | None = None
    false_hard: float | None = None
    first: float | None = None
    f1: float | None = None
    both: float | None = None
    alarm: float | None = None
    stuck: float | None = None
    by_sickness: dict[str, list[float]] = field(default_factory=dict)
    """Number of the sickness -> sick runs, share with an alarm, share with the right cause first of those that have a
    cause (a task that few units seldom learn, or none does by descent, has none)."""
    by_stuck: dict[str, list[float]] = field(default_factory=dict)
    misjudged: list[dict[str, Any]] = field(default_factory=list)


def share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def score(scored: list[Run], said: list[Said]) -> Scores:
    """Hold what was said of each run against the truth."""
    pairs = list(zip(scored, said, strict=True))
    clear = [(r, s) for r, s in pairs if r.truth.runs[r.seed] != "unclear"]
    sick, well = [p for p in clear if p[0].is_sick], [p for p in clear if not p[0].is_sick]
    hard = [p for p in well if p[0].truth.kind == "hard_healthy"]
    healthy = [p for p in well if p[0].truth.kind != "hard_healthy"]
    hits, false = sum(bool(s.codes) for _, s in sick), sum(bool(s.codes) for _, s in well)
    known = [(r, told(s.codes, r.of.causes)) for r, s in sick if r.of.causes]
    double = [right_groups(r, codes) for r, codes in known if len(r.of.causes) > 1]
    found = Scores(
        precision=hits / (hits + false) if hits + false else None,
        recall=share([bool(s.codes) for _, s in sick]),
        false_healthy=share([bool(s.codes) for _, s in healthy]),
        false_hard=share([bool(s.codes) for _, s in hard]),
        first=share([is_first(r, codes) for r, codes in known]),
        f1=_f1(known),
        both=share([all(groups) for groups in double]),
        alarm=_median([s.alarm for r, s in sick if r.of.is_divergent]),
        misjudged=[m for r, s in pairs if (m := _misjudged(r, s))],
    )
    found.stuck, found.by_stuck = _stuck(pairs)
    by_number = defaultdict(list)
    for r, s in sick:
        by_number[r.of.sickness].append(
            (bool(s.codes), is_first(r, told(s.codes, r.of.causes)) if r.of.causes else None)
        )
    found.by_sickness = {
        str(number): [len(of), share([a for a, _ in of]), share([b for _, b in of if b is not None])]
        for number, of in sorted(by_number.items())
    }
    return found


def is_first(run: Run, codes: list[str]) -> bool:
    """Whether the first cause told is an injected one."""
    return bool(codes) and any(codes[0] in group for group in run.of.causes)


def right_groups(run: Run, codes: list[str]) -> list[bool]:
    return [any(code in group for code in codes) for group in run.of.causes]


def _f1(known: list[tuple[Run, list[str]]]) -> float | None:
    counts: Counter[str] = Counter()
    for run, codes in known:
        groups = right_groups(run, codes)
        counts["right"] += sum(groups)
        counts["missed"] += len(groups) - sum(groups)
        counts["wrong"] += sum(not any(code in group for group in run.of.causes) for code in codes)
    total = 2 * counts["right"] + counts["missed"] + counts["wrong"]
    return 2 * counts["right"] / total if total else None


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _stuck(pairs: list[tuple[Run, Said]]) -> tuple[float | None, dict[str, list[float]]]:
    by_kind = defaultdict(list)
    for r, s in pairs:
        if r.stuck is not None:
            by_kind[r.stuck].append(kind_told(s.codes) == r.stuck)
    each = {kind: [len(of), share(of)] for kind, of in sorted(by_kind.items())}
    return (statistics.fmean(of[1] for of in each.values()) if each else None), each


def kind_told(codes: list[str]) -> str:
    """Where a training stands, by the first code that says so; without one it has converged."""
    return next((STUCK[code] for code in codes if code in STUCK), "converged")


def _misjudged(r: Run, s: Said) -> dict[str, Any] | None:
    wrong = []
    label = r.truth.runs[r.seed]
    codes = told(s.codes, r.of.causes)
    if label == "sick" and not s.codes:
        wrong.append("missed")
    elif label == "well" and s.codes:
        wrong.append("false alarm")
    elif label == "sick" and r.of.causes and not is_first(r, codes):
        wrong.append("other cause first")
    if r.stuck is not None and kind_told(s.codes) != r.stuck:
        wrong.append(f"is {r.stuck}, told {kind_told(s.codes)}")
    if not wrong:
        return None
    return {
        "file": r.file, "wrong": ", ".join(wrong), "truth": r.truth.kind, "told": s.codes,
        "causes": [list(group) for group in r.of.causes], "gain": round(r.truth.gains[r.seed], 3),
    }  # fmt: skip
