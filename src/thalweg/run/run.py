"""A training as its user sees it: live while it runs, readable ever after."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from thalweg.records import section as shown
from thalweg.records.action import Action
from thalweg.records.finding import Finding, ranked
from thalweg.records.history import History
from thalweg.records.landscape import Landscape, Plane
from thalweg.records.run import RunRecord
from thalweg.records.section import Section
from thalweg.records.verdict import Verdict
from thalweg.step.plan import Plan

REPORT = "report.html"


class Run:
    """What `fit` returns. It needs its directory no more: all numbers are in memory.

    Attributes:
        model: the trained module, with the best validation weights if there is validation data, else the last.
        optimizer: the torch optimizer as the last update left it.
        history: all that was reported; `history.series("loss")`.
        verdict: where the training stands; `verdict.sentence` for a person. None while it runs.
        record: what was asked and decided, versions and machine; the content of `run.json`.
        directory: where the run is kept.
        sections: what `show` was given for the report.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, history: History, record: RunRecord, directory: Path):
        self.model = model
        self.optimizer = optimizer
        self.history = history
        self.record = record
        self.directory = directory
        self.verdict: Verdict | None = None
        self.sections: list[Section] = []

    @property
    def findings(self) -> list[Finding]:
        """What was found wrong, the likeliest cause first; symptoms after the causes that they follow from."""
        return ranked(self.history.findings)

    @property
    def actions(self) -> list[Action]:
        """What was changed while it ran."""
        return self.history.actions

    @property
    def metrics(self) -> dict[str, float]:
        """Final numbers by name: `loss`, `validation_loss`, each metric and its `validation_` twin."""
        return self.record.metrics

    @property
    def learning_rate(self) -> float:
        """The rate that was asked for or chosen: the peak of its schedule; NaN while it is being chosen."""
        rate = self.record.decided["learning_rate"]
        return math.nan if rate is None else float(rate)

    @property
    def plan(self) -> Plan:
        """How a step was run; given to `fit(plan=…)`, another run does the same."""
        return Plan.of(self.record.decided["plan"] or {})

    @property
    def seconds(self) -> float:
        """Wall-clock time in training so far, over all resumed parts [s]."""
        return self.record.seconds

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self.record.steps

    @property
    def stopped_because(self) -> str | None:
        """converged, epochs, steps, time, target, patience, diverged or interrupted; None while it runs."""
        return self.record.stopped_because

    def add_metrics(self, **numbers: float) -> None:
        """Add final numbers of one's own, too dear to be taken every epoch: `run.add_metrics(bleu=33.2)`.

        They stand in `metrics`, in `run.json` and in the summary.
        """
        self.record.metrics |= {name: float(number) for name, number in numbers.items()}
        with contextlib.suppress(OSError):  # a full disk: the run in memory has them
            self.record.write(self.directory)

    def show(self, section: Section) -> None:
        """Add a section to the report, in place of an earlier one of the same title.

        Kept in the run's directory, so that `thalweg.report` shows it too.
        """
        self.sections = [*(old for old in self.sections if old.title != section.title), section]
        with contextlib.suppress(OSError):
            shown.write(self.directory, self.sections)

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        landscape: Landscape | Plane | Iterable[Landscape | Plane] = (),
    ) -> Path:
        """Write the page with all pictures; by default `report.html` in the run's directory.

        Args:
            path: the file to write.
            landscape: what `thalweg.landscape` or `Trajectory.plane` returned, or several, each shown in a section of
                its own.

        Raises:
            TypeError: `landscape` holds something else.
        """
        from thalweg.reports.page import write
        from thalweg.reports.plane_svg import sections
        from thalweg.reports.sections import drawn

        target = Path(path) if path is not None else self.directory / REPORT
        target.parent.mkdir(parents=True, exist_ok=True)
        return write(self.record, self.history, target, [*drawn(self.sections), *sections(landscape)])

    def plot(self) -> Any:
        """The curves of the run as a plotly figure."""
        from thalweg.reports.chart import charts
        from thalweg.reports.figures import figure
        from thalweg.reports.heat import heat_maps

        return figure([*charts(self.history, self.record), *heat_maps(self.history, self.record)], self.record.name)

    def __repr__(self) -> str:
        state = self.verdict.sentence if self.verdict else "training"
        return f"<Run {self.record.name}: {self.steps} steps. {state}>"


def report(run_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a run directory, also while it trains; by default into the directory.

    Raises:
        FileNotFoundError: there is no run in it.
    """
    from thalweg.reports.page import write
    from thalweg.reports.sections import drawn

    directory = Path(run_dir)
    record = RunRecord.read(directory)
    history = History.open(directory / "history.sqlite")
    target = Path(path) if path is not None else directory / REPORT
    return write(record, history, target, drawn(shown.read(directory)))
