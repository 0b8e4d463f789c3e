"""Runs, each recorded once: its history as a detector sees it, and apart from that its outcome.

    CACHE/runs/CONFIGURATION/SEED.history.json.gz      every series and fact
    CACHE/runs/CONFIGURATION/SEED.outcome.json         scores and losses of the validation, how it ended, what it is of

The outcome comes last, so a run that was cut off is made again. It carries the fingerprint of the code that made it: a
change to a family or a sickness records again only what it touches.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from data import CACHE, DATA
from families import Case, chance, metric

import thalweg
from thalweg.records.history import History
from thalweg.records.step import StepRecord

VERSION = 1
"""Of what every run does: another number records all of them again."""
SIGNALS = 2
"""Of what histories hold: another number records those again that are scored, and not the outcomes that truth is of."""
TOLD_LATER = (
    "ended_at",
    "landscape_",
    "largest_curvature",
    "smallest_curvature",
    "descent",
    "escape",
    "flatness",
    "neighbour_loss",
)
"""Beginnings of facts that are told when a training ends, and that one under way does not have."""

Outcome = dict[str, Any]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for a run, in memory where there is such a place: what is kept is kept elsewhere."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="clinic-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def train(case: Case, seed: int, folder: Path) -> tuple[Any, torch.nn.Module]:
    """One training of a case, as a user would have it who lets nothing be mended; the run and the model."""
    torch.manual_seed(seed)
    model = case.model()
    words = dict(case.fit)
    if case.optimizer is not None:
        words["optimizer"] = case.optimizer(model, words.pop("learning_rate"))
    given = case.dataset(case.train) if case.dataset is not None else case.train
    if isinstance(given, list):
        words.pop("batch_size")
    run = thalweg.fit(
        model, given, case.loss, validation_data=case.validation, metrics=(metric(case),), seed=seed,
        plan="eager", repair="off", patience=None, verbose=False, run_dir=folder / "run", **words,
    )  # fmt: skip
    return run, model


def recorded(case: Case, seed: int) -> tuple[dict[str, Any], Outcome]:
    """The history and the outcome of one training."""
    started = time.process_time()
    with scratch() as folder:
        run, model = train(case, seed, folder)
        outcome: Outcome = outcome_of(run, case)
        outcome["seconds"] = round(time.process_time() - started, 2)
        if case.certified:
            from certificates import certificate

            thalweg.load(folder / "run", "last", model)
            outcome["certificate"] = certificate(model, case)
    return packed(run.history), outcome


def outcome_of(run: Any, case: Case) -> Outcome:
    """What became of the training: by evaluations `[evaluations]`, which lie at `steps`."""
    history = run.history
    name, none = metric(case).__name__, ([], [])  # it may be over before the first evaluation
    steps, scores = history.series(f"validation_{name}") if f"validation_{name}" in history.names else none
    losses = history.series("validation_loss")[1] if "validation_loss" in history.names else []
    return {
        "metric": name,
        "chance": round(chance(case), 4),
        "steps": [int(step) for step in steps],
        "scores": [short(v) for v in scores],
        "losses": [short(v) for v in losses],
        "updates": run.steps,
        "planned": case.steps,
        "stopped_because": run.stopped_because,
    }


def short(value: float) -> float:
    """To seven digits: what a float32 holds."""
    return float(f"{value:.7g}") if math.isfinite(value) else float(value)


# ── histories in little room ──


def packed(history: History) -> dict[str, Any]:
    """Every series and fact of a history, as JSON holds it."""
    return {
        "facts": history.facts,
        "evaluated": sorted(history._evaluated),
        "series": {
            name: [column["steps"], [short(v) for v in column["values"]]]
            for name, column in history.to_dict().items()
        },
    }  # fmt: skip


def unpacked(held: dict[str, Any], share: float = 1.0) -> History:
    """The history as it was, or as it stood after a share of the updates that were planned."""
    history = History()
    history.note({name: fact for name, fact in held["facts"].items() if share >= 1 or not name.startswith(TOLD_LATER)})
    planned = held["facts"].get("planned_steps") or max(s[0][-1] for s in held["series"].values())
    last = math.ceil(share * planned)
    rows: dict[bool, dict[int, dict[str, float]]] = {False: defaultdict(dict), True: defaultdict(dict)}
    for name, (steps, values) in held["series"].items():
        table = rows[name in held["evaluated"]]
        for step, value in zip(steps, values, strict=True):
            if step > last:
                break
            table[step][name] = value
    epoch = held["facts"].get("steps_per_epoch") or 1
    for is_evaluated, add in ((False, history.append), (True, history.evaluate)):
        for step in sorted(rows[is_evaluated]):
            add(StepRecord(step, step / epoch, 0.0, rows[is_evaluated][step]))
    return history


def path(name: str, seed: int, kind: str) -> Path:
    """Of a configuration's run: `kind` is history.json.gz or outcome.json."""
    return CACHE / "runs" / name / f"{seed}.{kind}"


def load(file: Path | str, share: float = 1.0) -> History:
    """A run's history, with facts, read from its file."""
    with gzip.open(file, "rt") as text:
        return unpacked(json.load(text), share)


def write(name: str, seed: int, history: dict[str, Any], outcome: Outcome) -> None:
    for kind, content in (("history.json.gz", history), ("outcome.json", outcome)):
        file = path(name, seed, kind)
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_name(f".{file.name}.{os.getpid()}")
        text = json.dumps(content, separators=(",", ":")).encode()
        written.write_bytes(gzip.compress(text, 6, mtime=0) if kind.endswith("gz") else text)
        written.replace(file)


def outcome(name: str, seed: int, fingerprint: str) -> Outcome | None:
    """What was recorded, where it was made by the configuration as it is."""
    file = path(name, seed, "outcome.json")
    if not file.exists():
        return None
    found: Outcome = json.loads(file.read_text())
    return found if found.get("fingerprint") == fingerprint else None


__all__ = ["DATA", "SIGNALS", "VERSION", "Outcome", "load", "outcome", "path", "recorded", "short", "unpacked", "write"]
