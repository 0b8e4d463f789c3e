"""What the cells say: tables for a person, and each target beside what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from cells import Cell, Table
from contenders import CONTENDERS
from workloads import RULES, WORKLOADS

import reference

REGRET, WORST, SHARE = 0.02, 0.10, 0.90
"""A loss within 2 % of the best (or one standard deviation of its seeds, where that is more), in nine tenths of all
cases; never worse than 10 %."""
WIDEST = 100
"""A bracket's ends, as a ratio."""


def tables(known: Table, table: Table) -> list[str]:
    """All that run.py shows, line by line."""
    return [
        *_regret(known, table, "thalweg", judged=True),
        *_regret(known, table, "thalweg-halving", judged=False),
        *_cost(known, table),
        *_times(known, table, "seconds"),
        *_times(known, table, "steps"),
        *_brackets(known, table),
    ]


def _pairs(known: Table) -> list[tuple[str, str]]:
    """Workloads and rules of which it is known what is best."""
    return [(w, r) for w in WORKLOADS for r in RULES if any(c["loss"] for c in known.where(workload=w, rule=r))]


def _cells(table: Table, workload: str, rule: str, contender: str) -> list[Cell]:
    """Those that hold a figure, by their seeds."""
    found = table.where(workload=workload, rule=rule, contender=contender)
    return sorted((cell for cell in found if "note" not in cell), key=lambda cell: cell["seed"])


def best(known: Table, workload: str, rule: str) -> tuple[float, float, float]:
    """The grid's best rate, the mean of its losses, and how far above it a loss is as good."""
    rate, cells = reference.best(known, workload, rule)
    losses = [cell["loss"] for cell in cells]
    mean = statistics.mean(losses)
    return rate, mean, max(REGRET * mean, statistics.stdev(losses) if len(losses) > 1 else 0.0)


def _verdict(what: str, value: float, bound: float, at_least: bool = False) -> str:
    met = value >= bound if at_least else value <= bound
    word = "at least" if at_least else "at most"
    return f"{what:84} {value:7.3f}  {word} {bound:.2f}: {'met' if met else 'MISSED'}"


def geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


# ── regret and cost ──


def _regret(known: Table, table: Table, contender: str, judged: bool) -> list[str]:
    title = CONTENDERS[contender].title
    lines, beside, good, own = [f"Regret of {title}: loss ÷ the grid's best, by seed (as good: up to)"], [], [], []
    for workload, rule in _pairs(known):
        cells = _cells(table, workload, rule, contender)
        if not cells:
            continue
        rate, mean, margin = best(known, workload, rule)
        ratios = [math.inf if cell["loss"] is None else cell["loss"] / mean for cell in cells]
        good += [ratio <= 1 + margin / mean for ratio in ratios]
        own += [cell["loss"] <= mean + margin for cell in reference.best(known, workload, rule)[1]]
        beside += ratios
        rates = " ".join(f"{cell['rate']:.2g}" for cell in cells)
        shown = " ".join(f"{ratio:6.3f}" for ratio in ratios)
        lines.append(
            f"  {workload:18} {rule:9} {shown} ({1 + margin / mean:.3f})  rates {rates}, the grid's {rate:.2g}"
        )
    if not beside:
        return [f"Regret of {title}: no figures", ""]
    share, worst = sum(good) / len(good), max(beside) - 1
    lines.append(
        f"  {len(good)} cases; of the best rate's own seeds {sum(own) / len(own):.3f} are as good as their mean"
    )
    if judged:
        lines.append(_verdict("  share as good as the grid's best", share, SHARE, at_least=True))
        lines.append(_verdict("  worst of all, above the grid's best", worst, WORST))
    else:
        lines.append(f"  share as good {share:.3f}, worst {worst:+.3f}")
    return [*lines, ""]


def _cost(known: Table, table: Table) -> list[str]:
    lines = ["Cost of a search, in trainings: mean, largest"]
    for name, contender in CONTENDERS.items():
        costs = [cell["cost"] for w, r in _pairs(known) for cell in _cells(table, w, r, name)]
        if costs:
            lines.append(f"  {contender.title:40} {statistics.mean(costs):7.3f} {max(costs):7.3f}")
    for name, bound in (("thalweg", 0.5), ("thalweg-halving", 3.0)):
        costs = [cell["cost"] for w, r in _pairs(known) for cell in _cells(table, w, r, name)]
        if costs:
            lines.append(_verdict(f"  {CONTENDERS[name].title}, largest", max(costs), bound))
    return [*lines, ""]


# ── time to target ──


def _time(cells: list[Cell], unit: str, first: bool = False) -> float:
    """Mean over the seeds; of the first training that got there, where one did before the one that counts."""
    return statistics.mean((cell["first"] if first and cell["first"] else cell["target"])[unit] for cell in cells)


def _times(known: Table, table: Table, unit: str) -> list[str]:
    """Ours beside each contender, workload by workload."""
    others = [name for name, contender in CONTENDERS.items() if not contender.ours]
    lines = [f"Time to target in {unit}, mean over seeds; * where a seed missed it; o where the default rate is right"]
    lines.append(_row("workload", "rule", ("thalweg", *others)))
    ratios: dict[str, list[float]] = {name: [] for name in ("searching", "there", "all", "first", "right", *others)}
    for workload, rule in _pairs(known):
        mine = _cells(table, workload, rule, "thalweg")
        found = {name: cells for name in others if (cells := _cells(table, workload, rule, name))}
        shown = [_shown(cells, unit) for cells in (mine, *(found.get(name, []) for name in others))]
        if not (mine or found):
            continue
        right = _default_is_right(known, found.get("default", []), workload, rule)
        lines.append(_row(workload, rule, shown) + " o" * right)
        if not mine:
            continue
        own = _time(mine, unit)
        times = {name: _time(cells, unit) for name, cells in found.items()}
        for name, other in times.items():
            ratios[name].append(own / other)
        if right:
            ratios["right"].append(own / times["default"])
        searching = [name for name in found if CONTENDERS[name].searches]
        there = [name for name in searching if not any(cell["is_missed"] for cell in found[name])]
        rateless = [name for name in found if name != "default"]
        if there:
            ratios["there"].append(own / min(times[name] for name in there))
        if searching:
            ratios["searching"].append(own / min(times[name] for name in searching))
            ratios["first"].append(own / min(_time(found[name], unit, first=True) for name in searching))
            ratios["all"].append(own / min(times[name] for name in rateless))
    return [*lines, *_beside(ratios, unit, others), ""]


def _row(workload: str, rule: str, shown: Iterable[str]) -> str:
    return f"  {workload:18} {rule:9}" + "".join(f"{word:>16}" for word in shown)


def _shown(cells: list[Cell], unit: str) -> str:
    if not cells:
        return "–"
    return f"{_time(cells, unit):,.{1 if unit == 'seconds' else 0}f}{'*' if any(c['is_missed'] for c in cells) else ''}"


def _default_is_right(known: Table, cells: list[Cell], workload: str, rule: str) -> bool:
    """Its losses are as good as the grid's best, in the mean."""
    _, mean, margin = best(known, workload, rule)
    losses = [cell["loss"] for cell in cells]
    return bool(losses) and all(loss is not None for loss in losses) and statistics.mean(losses) <= mean + margin


def _beside(ratios: dict[str, list[float]], unit: str, others: list[str]) -> list[str]:
    lines = [
        f"  ours ÷ {CONTENDERS[name].title:40} {geometric(ratios[name]):6.3f} over {len(ratios[name])}"
        for name in others
        if ratios[name]
    ]
    judged = (
        ("searching", "the best that searches", 0.5),
        ("right", "the default rate, where it is right", 1.0),
    )
    for name, words, bound in judged:
        if ratios[name]:
            what = f"  ours ÷ {words}, {unit}, geometric mean over {len(ratios[name])}"
            lines.append(_verdict(what, geometric(ratios[name]), bound))
    for name, words in (
        ("there", "the best that searches and got there with every seed"),
        ("all", "the best that searches or says it need not"),
        ("first", "the best that searches, had it known at once that a trial was good enough"),
    ):
        if ratios[name]:
            lines.append(f"  ours ÷ {words}: {geometric(ratios[name]):.3f} over {len(ratios[name])}")
    return lines


# ── range tests ──


def _brackets(known: Table, table: Table) -> list[str]:
    lines = ["Range test: bracket by seed, the grid's best rate, others' suggestions"]
    inside = []
    for workload, rule in _pairs(known):
        rate, *_ = best(known, workload, rule)
        brackets = [cell["interval"] for cell in _cells(table, workload, rule, "thalweg-range")]
        inside += [low <= rate <= high and high / low <= WIDEST * 1.001 for low, high in brackets]
        suggested = [
            f"{name} " + " ".join(f"{cell['rate']:.1e}" for cell in cells)
            for name in ("lightning", "torch-lr-finder")
            if (cells := _cells(table, workload, rule, name))
        ]
        shown = " ".join(f"{low:.1e}–{high:.1e}" for low, high in brackets) or "no bracket"
        lines.append(f"  {workload:18} {rule:9} {shown}; best {rate:.1e}; {'; '.join(suggested)}")
    if inside:
        lines.append(_verdict("  share of brackets with the best rate inside", sum(inside) / len(inside), 1.0, True))
    return lines
