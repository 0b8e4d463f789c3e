from __future__ import annotations

import json
import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from thalweg.reports.chart import Chart, Line, Mark
from thalweg.reports.svg import figure, log_ticks, ticks

NAN = float("nan")
#: The elements that a figure is made of.
FIGURE = "figure-figcaption-h3-span-i-output-svg-rect-line-text-g-title-path-circle"


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def chart(y: tuple[float, ...], **more: object) -> Chart:
    return Chart("Loss", "step", (Line("training", tuple(map(float, range(len(y)))), y),), **more)  # type: ignore[arg-type]


def test_a_falling_line_goes_down() -> None:
    (path,) = Elements(figure(chart((3.0, 2.0, 0.0)))).of("path")
    drawn = re.fullmatch(r"M(\d+) (\d+)l(-?\d+) (-?\d+)l(-?\d+) (-?\d+)", path["d"] or "")
    assert drawn is not None
    x, y, dx, dy, dx2, dy2 = map(int, drawn.groups())
    assert (x, dx, dx2) == (0, 1000, 1000)
    assert 0 < y < dy < dy2
    assert y + dy + dy2 == 1000


def test_a_gap_starts_a_new_stretch_and_a_lone_value_is_a_dot() -> None:
    path, dots = Elements(figure(chart((1.0, 2.0, NAN, 3.0)))).of("path")
    assert (path["d"] or "").count("M") == 2
    assert (dots["d"] or "").count("h0") == 1


def test_the_legend_and_the_data_hold_the_values() -> None:
    elements = Elements(figure(chart((0.5, NAN, 0.961234), percent=True)))
    assert "96.1 %" in elements.words
    data = json.loads(elements.of("figure")[0]["data-chart"] or "")
    assert data["lines"] == [[[0, 1, 2], [0.5, None, 0.96123]]]
    assert data["percent"] is True


@pytest.mark.parametrize("y", [(), (2.0,), (NAN,), (0.0, 0.0), (1e-300, 1e-300), (-1e149, 1e149), (1.0, 1.0 + 1e-15)])
def test_the_odd_ones_are_drawn(y: tuple[float, ...]) -> None:
    text = figure(chart(y))
    numbers = [float(place) for place in re.findall(r'[xy][12]?="(-?[\d.]+)%"', text)]
    assert len(numbers) > 2
    assert all(0 <= place <= 100 for place in numbers)
    assert "nan%" not in text


def test_log_scale_is_said_and_even() -> None:
    text = figure(chart((100.0, 10.0, 1.0), log_y=True))
    assert "log scale" in text
    (path,) = Elements(text).of("path")
    falls = [int(fall) for fall in re.findall(r"l\d+ (\d+)", path["d"] or "")]
    assert abs(falls[0] - falls[1]) <= 1


def test_names_are_escaped_everywhere() -> None:
    hostile = '"><script>alert(1)</script>'
    text = figure(Chart(hostile, hostile, (Line(hostile, (0.0, 1.0), (1.0, 2.0)),) * 2, (Mark(0.5, hostile),)))
    assert "<script" not in text
    elements = Elements(text)
    assert not {tag for tag, _ in elements.tags} - {*FIGURE.split("-")}
    assert elements.words.count(unescape(hostile)) >= 3


def test_marks_keep_their_words_apart() -> None:
    marks = (Mark(0.0, "first"), Mark(0.01, "second"), Mark(1.9, "third"), Mark(7.0, "outside"))
    text = figure(chart((1.0, 2.0, 3.0), marks=marks))
    assert re.findall(r"<title>(\w+)</title>", text) == ["first", "second", "third"]
    assert re.findall(r'y="-5" [^>]*>(\w+)<', text) == ["first", "third"]


@pytest.mark.parametrize(("low", "high"), [(0, 45), (-3, 3), (0.9991, 0.9999), (1e-12, 3e-12), (0, 123456789)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert low <= found[0] < found[-1] <= high
    apart = found[1] - found[0]
    assert f"{apart:.6e}"[0] in "125"
    assert f"{apart:.6e}"[1:8] == ".000000"
    assert all(b - a == pytest.approx(apart, rel=1e-6) for a, b in pairwise(found))


@pytest.mark.parametrize(("low", "high"), [(0.03, 2), (0.1, 100), (1e-30, 1e30), (1e-7, 5)])
def test_log_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert 3 <= len(found) <= 9
    assert low <= found[0] < found[-1] <= high
