from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import made_up
import pytest

from thalweg.records.action import Action
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord
from thalweg.records.verdict import Verdict
from thalweg.reports import terminal
from thalweg.reports.summary import summary
from thalweg.reports.terminal import Terminal, opening, progress, table


@dataclass
class Run:
    record: RunRecord = field(default_factory=made_up.record)
    history: History = field(default_factory=made_up.history)
    directory: Path = Path("nowhere")

    @property
    def verdict(self) -> Verdict | None:
        return Verdict(**self.record.verdict) if self.record.verdict else None

    @property
    def findings(self) -> list[Finding]:
        return self.history.findings

    @property
    def metrics(self) -> dict[str, float]:
        return self.record.metrics

    @property
    def seconds(self) -> float:
        return self.record.seconds

    @property
    def steps(self) -> int:
        return self.record.steps

    @property
    def stopped_because(self) -> str | None:
        return self.record.stopped_because


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(terminal.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Clock(monkeypatch)


def step(number: int) -> StepRecord:
    return StepRecord(number, number / made_up.LENGTH, 0.01 * number, {"loss": 1.0})


def train(shown: Terminal, clock: Clock, steps: int, seconds: float) -> None:
    run = Run()
    for number in range(1, steps + 1):
        clock.now += seconds
        shown.on_step(run, step(number))


def test_a_terminal_has_one_line_rewritten_at_most_five_times_a_second(clock: Clock) -> None:
    screen = Screen()
    train(Terminal(screen), clock, steps=1000, seconds=0.01)
    drawn = screen.getvalue()
    assert 45 <= drawn.count("\r") <= 50
    assert "\n" not in drawn
    assert drawn.count("\x1b[K") == drawn.count("\r")


def test_elsewhere_a_plain_line_comes_every_ten_seconds(clock: Clock) -> None:
    stream = io.StringIO()
    shown = Terminal(stream)
    shown.on_start(Run())
    assert stream.getvalue().count("\n") == 1
    train(shown, clock, steps=1000, seconds=0.05)
    lines = stream.getvalue().splitlines()[1:]
    assert 4 <= len(lines) <= 5
    assert lines[0].startswith("epoch 5/45, loss ")
    assert lines[-1].endswith("20 steps/s")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


def test_the_line_says_where_the_training_is() -> None:
    run = Run()
    assert progress(run, step(900), speed=45.0) == [
        "epoch 20/45",
        f"loss {run.history.last('loss'):.3g}",
        f"validation loss {run.history.last('validation_loss'):.3g}, accuracy 96.1 %",
        "0:25 left",
        "rate 0",
        "45 steps/s",
    ]


def test_signals_of_layers_are_told_nowhere() -> None:
    run = Run()
    before, told = progress(run, step(900), speed=45.0), summary(run)
    run.history.evaluate(StepRecord(2025, 45.0, 4.3, {"validation_dead_share/0": 0.5, "gradient_norm/0": 0.5}))
    run.record.metrics["gradient_norm/0"] = 0.5
    assert progress(run, step(900), speed=45.0) == before
    assert summary(run) == told


def test_few_epochs_are_told_in_percent() -> None:
    run = Run()
    run.record.decided["total_epochs"] = 2
    run.record.decided["total_steps"] = 90
    assert progress(run, step(30), speed=None)[:2] == ["epoch 1/2", "33 %"]


def test_without_a_known_length_the_line_counts_steps() -> None:
    run = Run(RunRecord("endless"), History())
    assert progress(run, StepRecord(7, 0.2, 1.0, {}), speed=None) == ["epoch 1", "7 steps"]


def test_a_time_budget_bounds_what_is_left() -> None:
    run = Run(RunRecord("short", asked={"time_budget": 60.0}, decided={"total_steps": 10_000}), History())
    assert progress(run, StepRecord(100, 0.2, 45.0, {}), speed=1.0)[1:3] == ["75 %", "0:15 left"]


def test_a_narrow_terminal_drops_the_last_parts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    shown = Terminal(screen)
    monkeypatch.setattr(shown, "_columns", lambda: 30)
    train(shown, clock, steps=1, seconds=1.0)
    assert screen.getvalue() == f"\repoch 1/45  loss {Run().history.last('loss'):.3g}\x1b[K"


def test_an_event_stands_above_the_live_line(clock: Clock) -> None:
    screen = Screen()
    shown, run = Terminal(screen), Run()
    shown.on_step(run, step(1))
    for _ in range(2):
        shown.on_event(run, Finding("plateau", "warning", 5, "Flat since\x1b[2J step 5."))
    shown.on_event(run, Finding("plateau", "note", 5, "Quiet."))
    shown.on_event(run, Action("rate", 6, {"learning_rate": 0.1}, {"learning_rate": 0.05}, True, "It was flat."))
    assert screen.getvalue().split("\x1b[K", 2)[2].splitlines() == [
        "warning since step 5: Flat since [2J step 5.",
        "step 6: learning rate from 0.1 to 0.05. It was flat.",
    ]


def test_a_closed_terminal_never_stops_a_training(clock: Clock) -> None:
    screen = Screen()
    shown, run = Terminal(screen), Run()
    screen.close()
    shown.on_start(run)
    train(shown, clock, steps=3, seconds=1.0)
    shown.on_end(run)
    assert clock.now < shown._due


def test_the_opening_says_what_is_trained() -> None:
    assert opening(made_up.record()) == (
        "digits-3: 7,960 parameters, 1,438 examples, batch 32, adamw, learning rate 0.001, cosine, on cpu"
    )
    assert opening(RunRecord("bare\n")) == "bare "


def test_the_summary_is_what_a_person_wants_to_know(tmp_path: Path) -> None:
    run = Run(directory=tmp_path)
    lines = summary(run, Path("runs/digits-3/report.html")).splitlines()
    assert lines[1] == "Converged at epoch 38: validation loss has been flat within its noise for 7 epochs."
    facts = [tuple(part.strip() for part in line.split("  ") if part.strip()) for line in lines[2:]]
    assert facts == [
        ("validation accuracy", "96.1 %, 98.8 % in training"),
        ("validation loss", f"{run.metrics['validation_loss']:.4g}, {run.metrics['loss']:.4g} in training"),
        ("stopped because", "it converged"),
        ("trained", "45 epochs, 2,025 steps, 4.3 s"),
        ("rule", "adamw, learning rate 0.001, cosine"),
        ("mended", "step 620: clip norm from off to 5"),
        ("findings", "2"),
        ("warning: The loss jumped to nine times its course and came back within a step.",),
        ("note: The inputs have a spread of 6.02 where rules expect about 1.",),
        ("note", "The batch size was chosen from the number of examples."),
        ("report", "runs/digits-3/report.html"),
    ]


def test_the_summary_names_a_report_only_where_there_is_one(tmp_path: Path) -> None:
    run = Run(RunRecord("bare"), History(), tmp_path)
    assert "report" not in summary(run)
    assert "findings         none" in summary(run)
    (tmp_path / "report.html").touch()
    assert str(tmp_path / "report.html") in summary(run)


def test_the_summary_tells_the_three_weightiest_findings() -> None:
    history = History()
    for number, severity in enumerate(["note", "warning", "critical", "warning", "note"]):
        history.found(Finding("plateau", severity, number, f"Sentence {number}."), number)
    told = [line.strip() for line in summary(Run(RunRecord("a"), history)).splitlines() if "Sentence" in line]
    assert told == ["critical: Sentence 2.", "warning: Sentence 1.", "warning: Sentence 3."]


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, no_colour: str, coloured: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_colour)
    screen = Screen()
    Terminal(screen).on_end(Run())
    assert ("\x1b[" in screen.getvalue()) is coloured
    assert "it converged" in screen.getvalue()


def test_brackets_are_no_markup_in_colour() -> None:
    run = Run()
    run.record.notes = ["[red]not a colour[/red]"]
    assert "[red]not a colour[/red]" in summary(run, colour=True, columns=120)


def test_heavy_packages_wait_until_they_are_used() -> None:
    code = (
        "import sys, thalweg.reports.page, thalweg.reports.terminal; "
        "print({'rich', 'plotly', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_table_lines_up_also_in_chinese() -> None:
    assert table(["名", "n"], [["数字", 1], ["a", 20]]).splitlines() == ["名     n", "数字   1", "a     20"]


def test_a_table_without_rows_has_its_headers() -> None:
    assert table(["run", "state"], []) == "run  state"
