"""What the bench of rules found, as tables: on the screen, and in docs/rules.md between its marks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entrants import ENTRANTS
from problems import PROBLEMS
from worker import LONGEST

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"
BEGIN, END = "<!-- benchmarks/rules/run.py -->", "<!-- end of run.py -->"
REFERENCE = "adamw"
Cells = Sequence[dict[str, Any]]


class Best(NamedTuple):
    """The quickest of ours and of all others on a problem; the first by the second, of medians and seed by seed."""

    ours: str
    others: str
    ratio: float
    ratios: list[float]

    def __str__(self) -> str:
        spread = f" ({min(self.ratios):.2f} to {max(self.ratios):.2f})" if len(self.ratios) > 1 else " (one seed)"
        return f"{self.ratio:.2f}{spread}"


def seconds(cells: Cells) -> float:
    """To the target; a training that missed it counts as long as it may last."""
    return statistics.median((c["reached"] or {"seconds": LONGEST * c["seconds_given"]})["seconds"] for c in cells)


def steps(cells: Cells) -> float:
    return statistics.median((c["reached"] or c)["steps"] for c in cells)


def has_reached(cells: Cells) -> bool:
    return 2 * sum(c["reached"] is not None for c in cells) > len(cells)


def best(by_rule: Mapping[str, Cells]) -> Best | None:
    sides = [[e for e in by_rule if ENTRANTS[e].ours is ours and has_reached(by_rule[e])] for ours in (True, False)]
    if not all(sides):
        return None
    ours, others = (min(side, key=lambda e: seconds(by_rule[e])) for side in sides)
    of, beside = ({c["seed"]: seconds([c]) for c in by_rule[e]} for e in (ours, others))
    ratio = seconds(by_rule[ours]) / seconds(by_rule[others])
    return Best(ours, others, ratio, [of[seed] / beside[seed] for seed in of if seed in beside])


def lines(found: Mapping[str, Mapping[str, Cells]]) -> list[str]:
    """For each problem the rules in order: seconds and steps to the target, misses, what is kept; and the ratio."""
    rows = []
    for problem, by_rule in found.items():
        if not by_rule:
            continue
        rows += [f"{problem}: target {next(iter(by_rule.values()))[0]['target']:.5g}"]
        for entrant, cells in sorted(by_rule.items(), key=lambda item: seconds(item[1])):
            missed = sum(c["reached"] is None for c in cells)
            kept = cells[0]["state_bytes"] / max(1, cells[0]["parameter_bytes"])
            rows.append(
                f"  {ENTRANTS[entrant].title:38} rate {cells[0]['rate']:8.2g}  {seconds(cells):7.2f} s"
                f"{'*' if missed else ' '} {steps(cells):8,.0f} steps  {len(cells) - missed} of {len(cells)} reached  "
                f"keeps {kept:5.1f} times the parameters"
            )
        if told := best(by_rule):
            rows += [f"  {ENTRANTS[told.ours].title} ÷ {ENTRANTS[told.others].title}: {told}"]
    return rows


def write(found: Mapping[str, Mapping[str, Cells]]) -> None:
    """Put the tables into the page."""
    found = {problem: by_rule for problem, by_rule in found.items() if by_rule}
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    made = "\n\n".join([_bests(found), _every(found)])
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


def _bests(found: Mapping[str, Mapping[str, Cells]]) -> str:
    head = (
        "| problem | AdamW | best of the others | best of ours | ÷ | wanted | at AdamW's price of a step |\n"
        "|---|---|---|---|---|---|---|"
    )
    rows = []
    for problem, by_rule in found.items():
        told, goal = best(by_rule), PROBLEMS[problem].goal
        sides = ["–", "–"]
        if told is not None:
            sides = [f"{ENTRANTS[e].title}, {_shown(by_rule[e])}" for e in (told.others, told.ours)]
        reference = _shown(by_rule[REFERENCE]) if REFERENCE in by_rule else "–"
        wanted = f"≤ {goal}" if goal else ""
        rows.append(
            f"| {problem} | {reference} | {sides[0]} | {sides[1]} | {told or '–'} | {wanted} | {_free(by_rule)} |"
        )
    return "\n".join([head, *rows])


def _free(by_rule: Mapping[str, Cells]) -> str:
    """What the ratio would be if a step of ours cost as little as AdamW's: as many steps, no work of their own."""
    told, reference = best(by_rule), by_rule.get(REFERENCE)
    if told is None or reference is None or ENTRANTS[told.ours].is_full:
        return "–"
    price = statistics.median(c["seconds"] / c["steps"] for c in reference)
    return f"{steps(by_rule[told.ours]) * price / seconds(by_rule[told.others]):.2f}"


def _every(found: Mapping[str, Mapping[str, Cells]]) -> str:
    """Seconds of every rule."""
    head = "| seconds to the target | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|"
    rows = []
    for entrant, of in ENTRANTS.items():
        told = [
            f"{seconds(r[entrant]):.2f}" if entrant in r and has_reached(r[entrant]) else "–" for r in found.values()
        ]
        rows.append(f"| {of.title} | " + " | ".join(told) + " |")
    return "\n".join([head, *rows])


def _shown(cells: Cells) -> str:
    return f"{seconds(cells):.2f} s, {steps(cells):,.0f} steps" if has_reached(cells) else "–"
