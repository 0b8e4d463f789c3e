"""What became of a training, in a dozen lines that a person understands."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from thalweg.records.finding import Finding, ranked
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.verdict import Verdict
from thalweg.reports.words import (
    STOPPED,
    VALIDATION,
    changed,
    counted,
    duration,
    measured,
    number,
    pairs,
    plain,
    printable,
    spoken,
)

#: Findings that the summary tells; the report has them all.
_TOLD = 3

_COLOURS = {"converged": "green", "improving": "blue", "overfitting": "yellow", "stuck": "magenta", "diverged": "red"}


class RunView(Protocol):
    """What the display reads of a run."""

    @property
    def record(self) -> RunRecord: ...  # noqa: D102
    @property
    def history(self) -> History: ...  # noqa: D102
    @property
    def verdict(self) -> Verdict | None: ...  # noqa: D102
    @property
    def findings(self) -> Sequence[Finding]: ...  # noqa: D102
    @property
    def metrics(self) -> Mapping[str, float]: ...  # noqa: D102
    @property
    def seconds(self) -> float: ...  # noqa: D102
    @property
    def steps(self) -> int: ...  # noqa: D102
    @property
    def stopped_because(self) -> str | None: ...  # noqa: D102
    @property
    def directory(self) -> Path: ...  # noqa: D102


def summary(run: RunView, report: Path | None = None, *, colour: bool = False, columns: int = 80) -> str:
    """What became of a training: verdict, numbers, why it stopped, how it was trained, findings, notes, the report.

    Plain text, or with `colour` the same drawn by rich for a terminal `columns` wide.
    """
    sentence = printable(run.verdict.sentence if run.verdict else "There was too little to judge by.")
    rows = [(name, printable(value)) for name, value in _facts(run, report)]
    if colour:
        return _drawn(run.verdict.state if run.verdict else "", sentence, rows, columns)
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", sentence, *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)])


def rule(decided: Mapping[str, object]) -> str:
    """The rule in words: "adamw, learning rate 0.001, cosine"."""
    rate = decided.get("learning_rate")
    words = (
        decided.get("optimizer"),
        f"learning rate {plain(rate)}" if rate is not None else None,
        decided.get("schedule"),
    )
    return ", ".join(plain(word) for word in words if word)


def rate_words(decided: Mapping[str, object]) -> str:
    """How the rate was chosen, in words; nothing where it was given."""
    search = decided.get("search")
    if not isinstance(search, Mapping):
        return ""
    tried, cost = search["tried"], plain(float(f"{search['cost']:.2g}"))
    rules = list(dict.fromkeys(plain(each["optimizer"]) for each in tried if "optimizer" in each))
    of = f"{len(tried)} of {' and '.join(rules)}" if len(rules) > 1 else f"{len(tried)}"
    return f"out of a race of {of} over the first {counted(search['steps'], 'step')}, at {cost} trainings' cost"


def step_words(decided: Mapping[str, object]) -> str:
    """How a step was run, in words; nothing where that is not known yet."""
    plan = decided.get("plan")
    return plain(plan["words"]) if isinstance(plan, Mapping) and plan.get("words") else ""


def _facts(run: RunView, report: Path | None) -> list[tuple[str, str]]:
    """The rows of the summary; an empty name continues the row above."""
    rows = []
    for name in pairs(run.metrics):
        both = [word for word in (VALIDATION + name, name) if word in run.metrics]
        values = [f"{measured(word, run.metrics[word])}{'' if word == both[0] else ' in training'}" for word in both]
        rows.append((spoken(both[0]), ", ".join(values)))
    reason = run.stopped_because
    rows.append(("stopped because", STOPPED.get(reason, reason) if reason else "it has not stopped"))
    epochs = f"{counted(round(run.record.epochs, 2), 'epoch')}, " if run.record.epochs else ""
    rows.append(("trained", f"{epochs}{counted(run.steps, 'step')}, {duration(run.seconds)}"))
    if how := rule(run.record.decided):
        rows.append(("rule", how))
    if rate := rate_words(run.record.decided):
        rows.append(("rate", rate))
    if step := step_words(run.record.decided):
        rows.append(("step", step))
    kept = [action for action in run.history.actions if action.kept]
    for row, action in enumerate(kept[:_TOLD]):
        words = changed(action.before, action.after)
        rows.append(("mended" if not row else "", f"step {number(action.step)}: {words}"))
    weighty = ranked(run.findings)
    rows.append(("findings", number(len(weighty)) if weighty else "none"))
    rows += [("", f"{finding.severity}: {finding.sentence}") for finding in weighty[:_TOLD]]
    rows += [("note" if not row else "", note) for row, note in enumerate(run.record.notes)]
    path = report or run.directory / "report.html"
    if report is not None or path.exists():
        rows.append(("report", str(path)))
    return rows


def _drawn(state: str, sentence: str, rows: Sequence[tuple[str, str]], columns: int) -> str:
    """The summary in colour. `Text` keeps brackets in names from being read as rich's markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), force_terminal=True, width=columns, highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(f"  {name}"), Text(value))
    console.print()
    console.print(Text(sentence, style=f"bold {_COLOURS.get(state, '')}".strip()))
    console.print(grid)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n"))
