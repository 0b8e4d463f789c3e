"""Pictures of a search for the learning rate."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from thalweg.records.learning_rate import LearningRate, Trial
from thalweg.reports.learning_rate import figure
from thalweg.reports.learning_rate_svg import drawn, page
from thalweg.reports.rates import Rates, words
from thalweg.reports.searching import Progress

TRIALS = (
    Trial(0, 1e-3, 0.9, 100),
    Trial(1, 1e-2, 0.40, 100),
    Trial(2, 3e-2, 0.41, 100),
    Trial(3, 1e-1, math.inf, 7, "diverged", {}, "the loss was not finite at update 7"),
    Trial(4, 1e-2, 0.7, 20, "dropped", {"momentum": 0.5}),
)
FOUND = LearningRate(
    0.01, (0.01, 0.03), ((1e-3, 0.9), (1e-2, 0.40), (3e-2, 0.41)), 3.3, "grid", "0.01 was best <of> all. It cost 3.3 "
    "trainings.", {"optimizer": "sgd"}, TRIALS,
)  # fmt: skip


def test_what_is_shown() -> None:
    shown = Rates.of(FOUND)
    assert [trial.number for trial in shown.others] == [4]
    assert [trial.number for trial in shown.diverged] == [3]
    assert shown.x[0] < 1e-3 < 1e-1 < shown.x[1]
    assert shown.y[0] < 0.40 < 0.9 < shown.y[1]
    assert not shown.log_y


RACE = {
    "learning_rate": 0.012,
    "optimizer": "adamw",
    "tried": [
        {"optimizer": "adamw", "learning_rate": 0.001, "losses": {"5": 2.0}},
        {"optimizer": "adamw", "learning_rate": 0.01, "losses": {"5": 1.0, "20": 0.5}},
        {"optimizer": "adamw", "learning_rate": 0.1, "losses": {"5": None}},
        {"optimizer": "momentum", "learning_rate": 0.4, "losses": {"5": 0.8}},
    ],
}


def test_a_race_has_a_curve_for_each_rule_and_rung() -> None:
    shown = Rates.of_race(RACE, "It came out of a race.")
    told = [(curve.name, curve.colour, curve.is_faint, len(curve.points)) for curve in shown.curves]
    assert told == [
        ("adamw after 5 steps", 0, True, 2),
        ("adamw after 20 steps", 0, False, 1),
        ("momentum after 5 steps", 1, False, 1),
    ]
    assert [(trial.learning_rate, trial.options) for trial in shown.diverged] == [(0.1, {"optimizer": "adamw"})]
    picture = ET.fromstring(drawn(shown))
    assert len([node for node in picture.iter() if node.tag.endswith("circle")]) == 4


def test_a_search_over_rules_has_a_curve_for_each() -> None:
    adamw, momentum = {"optimizer": "adamw"}, {"optimizer": "momentum"}
    trials = (
        Trial(0, 1e-3, 0.5, 20, "complete", adamw),
        Trial(1, 0.1, 0.9, 5, "dropped", momentum),
        Trial(2, 0.2, 0.8, 5, "dropped", momentum),
    )
    found = LearningRate(1e-3, (1e-3, 1e-3), ((1e-3, 0.5),), 0.3, "race", "", adamw, trials)
    shown = Rates.of(found)
    assert [(curve.name, curve.points) for curve in shown.curves] == [
        ("adamw", ((1e-3, 0.5),)), ("momentum", ((0.1, 0.9), (0.2, 0.8)))
    ]  # fmt: skip
    assert not shown.others
    assert [trace.name for trace in figure(found).data] == ["adamw", "momentum"]


def test_losses_over_decades_have_a_logarithmic_axis() -> None:
    wide = LearningRate(0.1, (0.1, 0.1), ((0.1, 1e-6), (1.0, 3.0)), 2, "grid", "")
    assert Rates.of(wide).log_y
    below_zero = LearningRate(0.1, (0.1, 0.1), ((0.1, -5.0), (1.0, 3e6)), 2, "grid", "")
    assert not Rates.of(below_zero).log_y


def test_the_figure_has_the_curve_the_others_and_what_diverged() -> None:
    drawn = figure(FOUND)
    assert drawn.layout.xaxis.type == "log"
    assert [trace.name for trace in drawn.data] == ["loss", "other trials", "diverged"]
    assert list(drawn.data[0].x) == [1e-3, 1e-2, 3e-2]
    assert list(drawn.data[2].x) == [1e-1]
    band, line = drawn.layout.shapes
    assert (band.x0, band.x1) == FOUND.interval
    assert line.x0 == line.x1 == FOUND.value
    assert "&lt;of&gt;" in drawn.layout.title.text
    assert FOUND.plot() == drawn


@pytest.mark.parametrize("found", [FOUND, LearningRate(0.1, (0.1, 0.1), ((0.1, 0.0),), 1, "range", "")])
def test_the_svg_is_well_formed_and_inside_its_box(found: LearningRate) -> None:
    root = ET.fromstring(drawn(found, alone=True))
    places = [float(node.get(key, "")) for node in root.iter() for key in ("cx", "x", "x1", "x2") if node.get(key)]
    assert all(0 <= place <= 720 for place in places)
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(circles) == len(found.curve) + len(Rates.of(found).others)


def test_one_decade_has_one_width() -> None:
    root = ET.fromstring(drawn(FOUND))
    x = {node[0].text.split(":")[0]: float(node.get("cx", "")) for node in root.iter() if node.tag.endswith("circle")}  # type: ignore[union-attr]
    decade = x["rate 0.01"] - x["rate 0.001"]
    assert x["rate 0.03"] - x["rate 0.01"] == pytest.approx(decade * math.log10(3), abs=0.2)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    path = FOUND.picture(tmp_path / "rates.html")
    text = path.read_text()
    assert text == page(FOUND)
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert "&lt;of&gt;" in text
    assert "<of>" not in text
    assert "the loss was not finite at update 7" in text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "sentence"), [("a.png", "written as .html or .svg"), ("no/a.svg", "cannot be written")]
)
def test_where_a_picture_cannot_be_written(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FOUND.picture(tmp_path / name)


def test_a_trial_in_a_line() -> None:
    assert words(TRIALS[4]) == "trial 4, rate 0.01, momentum 0.5: loss 0.7, dropped"
    assert words(TRIALS[3]).endswith("no finite loss, diverged: the loss was not finite at update 7")


def test_progress_comes_when_it_is_due_and_not_before() -> None:
    stream = io.StringIO()
    quiet = Progress(stream, quiet=1e9)
    quiet.show(lambda: pytest.fail("nothing is due"))
    told = Progress(stream, quiet=0.0)
    told.show(lambda: ["trial 1 of 3", "rate 0.1"])
    told.show(lambda: pytest.fail("a plain line comes every ten seconds"))
    told.close()
    assert stream.getvalue() == "trial 1 of 3, rate 0.1\n"


def test_progress_rewrites_a_terminals_line_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("thalweg.reports.line.is_terminal", lambda stream: True)
    told = Progress(stream, quiet=0.0)
    told.show(lambda: ["trial 1 of 3", "x" * 100])
    told.close()
    assert stream.getvalue() == "\rtrial 1 of 3\x1b[K\r\x1b[K"


def test_progress_survives_a_stream_that_has_gone() -> None:
    stream = io.StringIO()
    told = Progress(stream, quiet=0.0)
    stream.close()
    told.show(lambda: ["trial 1"])
    told.close()
