"""`thalweg runs`: what is kept in a folder of runs, read without torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import thalweg
from thalweg.cli.usage import print_json, say, table

_HEADERS = ("run", "started", "state", "best validation loss", "steps", "seconds")


def add_runs(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg runs`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path, help="default runs")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_runs)


def _runs(asked: argparse.Namespace) -> int:
    folder = asked.directory or Path("runs")
    if asked.directory is not None and not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one that holds runs")
    rows = sorted(_rows(folder), key=lambda row: (row["started"], row["run"]))
    if asked.json:
        print_json({"directory": str(folder), "runs": rows})
    elif rows:
        print(table(_HEADERS, [_cells(row) for row in rows]))
    else:
        say(f"no runs in {folder} yet: `thalweg fit digits` makes one")
    return 0


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*/run.json")):
        try:
            yield _row(path.parent)
        except (ValueError, OSError) as error:
            say(str(error))


def _row(directory: Path) -> dict[str, Any]:
    """One run in a few numbers; what a run that has not ended lacks in its record is read from its history."""
    record = thalweg.RunRecord.read(directory)
    try:
        history = thalweg.History.open(directory / "history.sqlite")
    except OSError:  # moved away: the record says most of it
        history = thalweg.History()
    losses: Any = history.series("validation_loss")[1] if "validation_loss" in history.names else []
    finite = [float(loss) for loss in losses if loss == loss]
    steps = max((int(history.series(name)[0][-1]) for name in history.names), default=0)
    state = str((record.verdict or {}).get("state", "ended"))
    return {
        "run": directory.name,
        "started": record.started,
        "state": _state(state, record.stopped_because),
        "best_validation_loss": min(finite, default=None),
        "steps": record.steps or steps,
        "seconds": record.seconds,
    }


def _state(verdict: str, stopped_because: str | None) -> str:
    """Where it stands, and why it stopped where that is something else."""
    if stopped_because is None:
        return "unfinished"
    return verdict if stopped_because == verdict else f"{verdict} ({stopped_because})"


def _cells(row: dict[str, Any]) -> list[str]:
    best = row["best_validation_loss"]
    started = str(row["started"]).replace("T", " ").removesuffix("+00:00")
    return [
        row["run"],
        started,
        row["state"],
        "" if best is None else f"{best:.4g}",
        str(row["steps"]),
        f"{row['seconds']:.1f}" if row["seconds"] else "",
    ]
