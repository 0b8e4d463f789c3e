"""What the clinic found, as tables: on the screen, and in docs/clinic.md between its marks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from configurations import Configuration
from scores import Run
from truth import Truth

PAGE = Path(__file__).parents[2] / "docs" / "clinic.md"
BEGIN, END = "<!-- made by benchmarks/clinic/run.py -->", "<!-- until here -->"
SICKNESSES = {
    1: "vanishing gradient", 2: "exploding gradient", 3: "dying ReLU", 4: "oscillating loss", 5: "rate too high",
    6: "rate too low", 7: "rule's settings", 8: "first weights", 9: "plateau", 10: "saddle point", 11: "local minimum",
    12: "overfitting", 13: "loss and output", 14: "scale of data", 15: "NaN and Inf", 16: "faults of code",
    17: "two faults",
}  # fmt: skip
LINES = {
    "precision": ("precision", "≥ 0.97"), "recall": ("recall", "≥ 0.95"),
    "false_healthy": ("false alarms, healthy", "≤ 0.02"), "false_hard": ("false alarms, hard-healthy", "≤ 0.05"),
    "first": ("right cause first", "≥ 0.85"), "f1": ("causes, F1", "≥ 0.85"), "both": ("both causes", "≥ 0.6"),
    "alarm": ("alarm, share of the run", "≤ 0.15"), "stuck": ("kind of standstill", "≥ 0.9"),
}  # fmt: skip
"""Field of the scores -> column, and the line that is to be reached."""


def counts(
    configurations: tuple[Configuration, ...],
    judged: dict[str, Truth],
    runs: list[Run],
    part_of: dict[str, str],
    part: str,
) -> dict[str, Any]:
    """How many configurations of each kind there are by the truth, and how many runs are scored."""
    kinds = Counter(of.kind for of in judged.values())
    here = Counter(of.kind for name, of in judged.items() if part in ("all", part_of[name]))
    labels = Counter(
        "unclear" if (label := r.truth.runs[r.seed]) == "unclear" else "sick" if label == "sick" else r.truth.kind
        for r in runs
    )
    return {"configurations": dict(kinds), "in_part": dict(here), "runs": dict(labels), "defined": len(configurations)}


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if value < 0.995 or value >= 1 else f"{value:.3f}"


def table(found: dict[str, Any]) -> str:
    """Detectors by scores; sicknesses by share found; kinds of standstill; rules for stopping."""
    detectors = found["detectors"]
    ours = next(iter(detectors.values()))
    lines = [
        "| | " + " | ".join(title for title, _ in LINES.values()) + " |",
        "|---" * (len(LINES) + 1) + "|",
        "| *to reach* | " + " | ".join(goal for _, goal in LINES.values()) + " |",
        *(
            f"| {name} | " + " | ".join(shown(of[word]) for word in LINES) + " |"
            for name, of in detectors.items()
        ),
        "",
        "| sickness | sick runs | found | right cause first |",
        "|---|---|---|---|",
        *(
            f"| {number} {SICKNESSES[int(number)]} | {of[0]} | {shown(of[1])} | {shown(of[2])} |"
            for number, of in ours["by_sickness"].items()
        ),
        "",
        "| stands at | runs | told rightly |",
        "|---|---|---|",
        *(f"| {kind} | {of[0]} | {shown(of[1])} |" for kind, of in ours["by_stuck"].items()),
        "",
        f"{found['stopping']['runs']} runs that are well and of at least sixteen evaluations would have been stopped:",
        "",
        "| rule | in time, with at most 1 % lost | more lost | of the updates | loss above the best: median, 90 % |",
        "|---|---|---|---|---|",
        "| *to reach* | ≥ 0.9 | | | |",
        *(
            f"| `{rule}` | {shown(of['good'])} | {shown(of['lossy'])} | {shown(of['updates'])} | "
            f"{100 * of['lost'][0]:.1f} %, {100 * of['lost'][1]:.1f} % |"
            for rule, of in found["stopping"]["rules"].items()
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def summary(found: dict[str, Any]) -> str:
    """What was scored, in one paragraph."""
    of = found["counts"]
    kinds = ", ".join(f"{n} {kind.replace('_', '-')}" for kind, n in sorted(of["configurations"].items()))
    labels = ", ".join(f"{n} {kind.replace('_', '-')}" for kind, n in sorted(of["runs"].items()))
    return (
        f"Of {of['defined']} configurations, by their outcomes ({_seeds(found['truth'])}): {kinds}. "
        f"Scored on the {found['part']} part, {found['seeds']} seeds: {labels} runs."
    )


def _seeds(truth: dict[str, dict[str, Any]]) -> str:
    """Over how many seeds how many configurations were judged: fewer where not all is recorded."""
    counted = Counter(of["seeds"] for of in truth.values())
    return ", ".join(f"{seeds} seeds of {count}" for seeds, count in sorted(counted.items(), reverse=True))


def tell_misjudged(ours: dict[str, Any], stopping: dict[str, Any]) -> None:
    """Every misjudged run, with its file."""
    print(f"\n{len(ours['misjudged'])} misjudged runs")
    for m in sorted(ours["misjudged"], key=lambda m: (m["wrong"], m["file"])):
        print(f"{m['wrong']:40} {m['file']:80} told {', '.join(m['told']) or 'nothing'}; gain {m['gain']}")
    print(f"\n{len(stopping['late'])} stopped late or too early: file, stop, within 1 % of the best from, share lost")
    for row in stopping["late"]:
        print(*row)


def compact(found: dict[str, Any]) -> dict[str, Any]:
    """For the results file: of the peers no misjudged runs, and truth a line each."""
    detectors = {
        name: {word: value for word, value in of.items() if word != "misjudged" or i == 0}
        for i, (name, of) in enumerate(found["detectors"].items())
    }
    return found | {"detectors": detectors}


def write(found: dict[str, Any]) -> None:
    """Put the tables into the page, between its marks."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{summary(found)}\n\n{table(found)}\n\n{END}{after}")
