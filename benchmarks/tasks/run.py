"""The applications on real data, each as a user runs it, beside the same network in a loop by hand.

    python benchmarks/tasks/run.py --data DIR [--lines mnist housing …] [--hand]

Each cell runs in a process of its own on all cores and is kept in benchmarks/results/tasks.json at once, so that a
later call goes on where this one ended; `--again` measures the cells named by `--lines` anew. By hand: eager PyTorch,
AdamW, warm-up and cosine over as many epochs as ours took, at three rates; the best of them counts. Ours is everything
from the start of the command: reading, choosing the rate, training, the final metrics. Nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lines import BY_NAME, LINES, Line

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import machine  # noqa: E402

RESULTS = HERE.parent / "results" / "tasks.json"
PAGE = HERE.parents[1] / "docs" / "tasks.md"
RATES = (3e-4, 1e-3, 3e-3)
BEGIN, END = "<!-- benchmarks/tasks/run.py -->\n", "<!-- end -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of data; without it only the page is written again")
    parser.add_argument("--lines", nargs="+", choices=sorted(BY_NAME), default=[line.name for line in LINES])
    parser.add_argument("--hand", action="store_true", help="the loops by hand as well")
    parser.add_argument("--again", action="store_true", help="measure anew what was measured before")
    parser.add_argument("--runs", type=Path, help="where our runs and their reports are kept")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}
    for line in (BY_NAME[name] for name in asked.lines if asked.data):
        for cell, words in cells(line, results, asked.hand):
            if cell in results["cells"] and not asked.again:
                continue
            print(f"{cell} …", flush=True)
            words += ["--runs", str(asked.runs)] if asked.runs else []
            results["cells"][cell] = {**measured(words, asked.data), "machine": machine("torch", "thalweg")}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            print(f"  {results['cells'][cell]['metrics']} in {results['cells'][cell]['seconds']:.0f} s", flush=True)
    write_page(results["cells"])


def cells(line: Line, results: dict[str, Any], hand: bool) -> Any:
    """Name and arguments of each cell of a line; those by hand follow ours, whose epochs they take."""
    yield f"{line.name}/ours", [line.name, "ours"]
    if not hand:
        return
    own = results["cells"][f"{line.name}/ours"]
    for rate in RATES:
        words = ["--rate", str(rate), "--epochs", str(own["epochs"]), "--size", str(own["batch_size"])]
        yield f"{line.name}/hand/{rate:g}", [line.name, "hand", *words]


def measured(words: list[str], data: Path) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, str(HERE / "worker.py"), *words, "--data", str(data), "--out", out.name]
        subprocess.run(command, check=True)
        return json.loads(Path(out.name).read_text())


def write_page(found: dict[str, Any]) -> None:
    """The table between the page's marks."""
    rows = [row(line, found) for line in LINES if f"{line.name}/ours" in found]
    table = "\n".join(
        ["| data | task | reached | line | minutes | line | by hand | its minutes | time |", "|" + "---|" * 9, *rows]
    )
    text = PAGE.read_text()
    if BEGIN not in text:
        sys.exit(f"{PAGE} has no place for the table: {BEGIN.strip()} … {END.strip()}")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table}\n{END}{after}")


def row(line: Line, found: dict[str, Any]) -> str:
    own = found[f"{line.name}/ours"]
    goal = line.aim(own["metrics"])
    sign = "≤" if line.lower else "≥"
    met = "✓" if line.reached(own["metrics"]) else "✗"
    minutes = own["seconds"] / 60
    hand = [
        cell for name, cell in found.items() if name.startswith(f"{line.name}/hand/") and line.metric in cell["metrics"]
    ]
    beside = ["", "", ""]
    if hand:
        # The same steps at every rate: the quickest of the three is the one that was disturbed least.
        seconds = min(cell["seconds"] for cell in hand)
        best = sorted(hand, key=lambda cell: cell["metrics"][line.metric])[0 if line.lower else -1]
        beside = [
            f"{best['metrics'][line.metric]:.4g} at {best['learning_rate']:g}", f"{seconds / 60:.1f}",
            f"{own['seconds'] / seconds:.2f} ({own['seconds'] / (len(hand) * seconds):.2f})",
        ]  # fmt: skip
    in_time = "✓" if minutes <= line.minutes else "✗"
    told = [
        line.name, f"`{line.task}`", f"{line.metric.replace('_', ' ')} {own['metrics'][line.metric]:.4g} {met}",
        f"{sign} {goal:.4g}",
        f"{minutes:.1f} {in_time}", f"{line.minutes:g}", *beside,
    ]  # fmt: skip
    return f"| {' | '.join(told)} |"


if __name__ == "__main__":
    main()
