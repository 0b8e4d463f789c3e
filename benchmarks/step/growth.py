"""How the time of a step grows with the parameters and with the batch: ours and stock PyTorch.

    python benchmarks/step/growth.py [--only parameters mlp cnn] [--blocks 5] [--quick] [--again]

Parameters: dense networks w-w-w-10 at batch 32, from a thousand parameters to a hundred million. Batch: the MLP
784-512-512-10 and the CNN of the bench, from one example to thousands. Ours and the reference are processes of their
own that take turns, as in run.py; a point has both times and the median of their ratios. Numbers go to
benchmarks/results/step-growth.json, point by point; the picture, made from that file, to
docs/pictures/step-growth.svg. The line: nowhere above 1.02 × stock, that is, no crossing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from contenders import CONTENDERS
from pairs import Effort, known, side_by_side, versions
from tables import machine, ours, save

RESULTS = Path(__file__).parents[1] / "results" / "step-growth.json"
PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "step-growth.svg"
WIDTHS = {int(10**power): round(math.sqrt(10**power / 2 + 4) - 3) for power in (3, 4, 5, 6, 7, 8)}
"""Parameters, about -> the width whose 2 w² + 12 w + 10 they are."""
SERIES: dict[str, tuple[str, dict[int, str]]] = {
    "parameters": ("parameters (dense, batch 32)", {n: f"dense-{width}" for n, width in WIDTHS.items()}),
    "mlp": ("batch (MLP 784-512-512-10)", {n: f"mlp@{n}" for n in (1, 4, 16, 64, 256, 1024, 4096)}),
    "cnn": ("batch (CNN on 28 × 28)", {n: f"cnn@{n}" for n in (1, 4, 16, 64, 256, 1024)}),
}
MOST = 1.02
Table = dict[str, dict[str, dict[str, Any]]]
"""series -> where on its axis -> cell."""
COLOURS = {"contender_us": "#0b6e99", "reference_us": "#b3541e"}
WIDE, HIGH, LEFT, TOP, BELOW = 300, 240, 62, 34, 44


def measure(series: str, table: Table, options: argparse.Namespace) -> None:
    """The points of a series: those known on the same versions and machine stay."""
    effort = Effort(2, 0.05) if options.quick else Effort(options.blocks, 0.4)
    holds = {"versions": versions(CONTENDERS["thalweg"]) | {"thalweg.step": ours("step")}, "machine": machine()}
    for at, workload in SERIES[series][1].items():
        cell = table[series].get(str(at), {})
        if options.again or options.quick or not known(cell, holds):
            cell = side_by_side("thalweg", workload, effort) | holds | {"command": " ".join(sys.argv)}
            table[series][str(at)] = cell
            if not options.quick:
                save(RESULTS, table)
        print(f"{workload:14} {line(cell)}", flush=True)


def line(cell: dict[str, Any]) -> str:
    """A point for a person."""
    if "ratio" not in cell:
        return cell["note"]
    low, high = cell["middle_half"]
    times = f"{cell['contender_us']:12,.0f} µs beside {cell['reference_us']:12,.0f}"
    return f"{times}  {cell['ratio']:6.3f} ({low:.3f} to {high:.3f})  {cell.get('note', '')}".rstrip()


def picture(table: Table) -> str:
    """A panel a series, both axes logarithmic."""
    panels = [_panel(i, SERIES[name][0], table[name]) for i, name in enumerate(SERIES)]
    wide, high = len(SERIES) * (WIDE + LEFT) + 16, TOP + HIGH + BELOW
    style = (
        "text{font:12px system-ui,sans-serif;fill:#444}path{fill:none;stroke-width:2}"
        ".grid{stroke:#ddd}@media(prefers-color-scheme:dark){text{fill:#bbb}.grid{stroke:#444}}"
    )
    keys = "".join(
        f'<text x="{LEFT + 130 * i}" y="14" style="fill:{colour};font-weight:600">{words}</text>'
        for i, (words, colour) in enumerate(zip(("thalweg.fast_step", "PyTorch eager"), COLOURS.values(), strict=True))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}">'
        f"<title>Microseconds of a step by parameters and by batch, ours and stock PyTorch</title>"
        f"<style>{style}</style>{keys}{''.join(panels)}</svg>\n"
    )


def _panel(number: int, title: str, cells: dict[str, dict[str, Any]]) -> str:
    points = sorted((int(at), cell) for at, cell in cells.items() if "ratio" in cell)
    if not points:
        return ""
    times = [cell[name] for _, cell in points for name in COLOURS]
    x = _axis([at for at, _ in points], 0, WIDE)
    y = _axis([10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times)))], HIGH, 0)
    parts = [f'<text x="{WIDE / 2}" y="{HIGH + 38}" text-anchor="middle">{escape(title)}</text>']
    for power in range(math.floor(math.log10(min(times))), math.ceil(math.log10(max(times))) + 1):
        at = f"{y(10**power):.1f}"
        parts.append(f'<line class="grid" x2="{WIDE}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="-6" y="{at}" dy=".32em" text-anchor="end">{_time(10**power)}</text>')
    for at, _ in points:
        parts.append(f'<text x="{x(at):.1f}" y="{HIGH + 18}" text-anchor="middle">{_count(at)}</text>')
    for name, colour in COLOURS.items():
        path = " ".join(f"{x(at):.1f},{y(cell[name]):.1f}" for at, cell in points)
        parts.append(f'<path style="stroke:{colour}" d="M{path}"/>')
    return f'<g transform="translate({LEFT + number * (WIDE + LEFT)} {TOP})">{"".join(parts)}</g>'


def _axis(values: list[float], start: float, end: float) -> Callable[[float], float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    return lambda value: start + (end - start) * (math.log10(value) - low) / (high - low or 1.0)


def _time(microseconds: float) -> str:
    return next(f"{microseconds / n:.0f} {u}" for n, u in ((1e6, "s"), (1e3, "ms"), (1, "µs")) if microseconds >= n)


def _count(number: int) -> str:
    return next(f"{number // n}{unit}" for n, unit in ((10**6, "M"), (10**3, "k"), (1, "")) if number % n == 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERIES, default=list(SERIES), metavar="SERIES")
    parser.add_argument("--blocks", type=int, default=5, help="timed turns of each")
    parser.add_argument("--quick", action="store_true", help="see that it runs; results and picture are left alone")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    options = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    table: Table = {series: kept.get(series, {}) for series in SERIES}
    for series in options.only:
        measure(series, table, options)
    found = {f"{name} {at}": c["ratio"] for name in SERIES for at, c in table[name].items() if "ratio" in c}
    if not found:
        return
    worst = max(found, key=lambda place: found[place])
    met = "met" if found[worst] <= MOST else "MISSED"
    print(f"ours ÷ stock at worst ({worst}): {found[worst]:.3f}  at most {MOST}: {met}")
    if not options.quick:
        PICTURE.write_text(picture(table))


if __name__ == "__main__":
    main()
