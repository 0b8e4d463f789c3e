from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import made_up
import numpy as np
import pytest

from thalweg.records.history import History
from thalweg.records.step import StepRecord
from thalweg.reports.heat import CELLS, ROWS, HeatMap, heat_maps
from thalweg.reports.heat_svg import figure, shortened
from thalweg.reports.style import NUM_SHADES, shades
from thalweg.reports.words import width_of

NAN = math.nan
#: The most rows with the most columns that they may have.
SHAPE = (ROWS, CELLS // ROWS)
#: The elements that a figure is made of.
FIGURE = "figure-figcaption-h3-span-i-output-svg-rect-line-text-title-path-p"
NAMES = ["embed", "encoder.0", "encoder.1", "head"]


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def field(*values: tuple[float, ...], **more: Any) -> HeatMap:
    columns = tuple(map(float, range(len(values[0]) + 1)))
    rows = tuple(f"layer{n}" for n in range(len(values)))
    broken = tuple(tuple(False for _ in row) for row in values)
    return HeatMap(**{"title": "Norm", "x_label": "step", "rows": rows, "columns": columns, "values": values,
                      "broken": broken, **more})  # fmt: skip


def drawn(text: str) -> dict[str, list[tuple[int, int, int]]]:
    """The strokes of each class of path: row, left and right end."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for name, d in re.findall(r'<path class="(\w+)" d="([^"]+)"/>', text):
        x = row = 0
        for kind, a, b, wide in re.findall(r"([Mm])(-?\d+) (\d+)h(\d+)", d):
            x, row = (int(a), int(b)) if kind == "M" else (x + int(a), row + int(b))
            found.setdefault(name, []).append((row, x, x + int(wide)))
            x += int(wide)
    return found


def shade_of(text: str, row: int) -> float:
    """The mean shade of a row by length: 0 is low."""
    strokes = [(int(name[1:]), stop - start) for name, s in drawn(text).items() for r, start, stop in s if r == row]
    return sum(shade * wide for shade, wide in strokes) / sum(wide for _, wide in strokes)


def data(text: str) -> dict[str, Any]:
    (attributes,) = [attributes for tag, attributes in Elements(text).tags if tag == "figure"]
    read: dict[str, Any] = json.loads(attributes["data-heat"] or "")
    return read


@pytest.mark.parametrize(("growth", "falls"), [(0.01, True), (100, False)])
def test_a_gradient_that_vanishes_fades_and_one_that_explodes_darkens(growth: float, falls: bool) -> None:
    text = figure(heat_maps(made_up.layers(History(), growth, NAMES, range(1, 1001)))[0])
    found = [shade_of(text, row) for row in range(4)]
    assert found == sorted(found, reverse=falls)
    assert abs(found[0] - found[-1]) > 0.8 * NUM_SHADES
    high, low = ("head", "embed") if falls else ("embed", "head")
    assert re.search(rf"{high} \S+", text) and re.search(rf"{low} \S+", text)


def test_every_row_is_covered_once() -> None:
    text = figure(heat_maps(made_up.layers(History(), 0.3, NAMES, range(1, 300)))[0])
    for row in range(4):
        strokes = sorted((start, stop) for found in drawn(text).values() for r, start, stop in found if r == row)
        assert (strokes[0][0], strokes[-1][1]) == (0, 480)
        assert all(a[1] == b[0] for a, b in pairwise(strokes))


def test_equal_cells_are_one_stroke() -> None:
    found = drawn(figure(field((1.0,) * 50 + (100.0,) * 50)))
    assert found == {"h0": [(0, 0, 240)], f"h{NUM_SHADES - 1}": [(0, 240, 480)]}


def test_what_is_no_value_is_seen_and_said() -> None:
    shown = field((0.0, 1.0, NAN, NAN), (1.0, 100.0, 1.0, 1.0), broken=((False, False, False, True), (False,) * 4))
    text = figure(shown)
    assert drawn(text)["broken"] == [(0, 360, 480)]
    assert (0, 0, 240) in drawn(text)["h0"]
    assert text.count("not finite</") == 2
    assert "not measured</span>" in text
    told = data(text)
    codes = [[told["codes"].index(letter) for letter in row] for row in told["cells"]]
    words = [told["words"][code - told["levels"]] if code >= told["levels"] else code for code in codes[0]]
    assert words == ["0", 0, "not measured", "not finite"]
    assert codes[1] == [0, told["levels"] - 1, 0, 0]
    assert "not finite" not in figure(field((1.0, 2.0))).replace(json.dumps("not finite"), "").split("data-heat")[0]


def test_a_broken_cell_is_never_too_thin_to_see() -> None:
    shown = field((NAN, 1.0), columns=(0.0, 1.0, 100_000.0), broken=((True, False),))
    assert drawn(figure(shown))["broken"] == [(0, 0, 1)]


def test_the_data_give_the_values_back() -> None:
    values = tuple(10 ** (-5 + row / 4) for row in range(28))
    told = data(figure(field(values)))
    step = (told["high"] - told["low"]) / told["levels"]
    read = [10 ** (told["low"] + (told["codes"].index(letter) + 0.5) * step) for letter in told["cells"][0]]
    assert np.array(read) == pytest.approx(np.array(values), rel=0.11)
    assert told["columns"][-1] == 28
    assert len(set(told["codes"])) == len(told["codes"]) == told["levels"] + 5


def test_shares_are_said_in_percent() -> None:
    text = figure(field((0.0, 0.25, 1.0), log=False, title="Dead units"))
    assert "<output>0 % to 100 %</output>" in text
    assert ">50 %</text>" in text
    assert data(text)["words"][0] == "0 %"
    assert data(text)["words"][2] == "100 %"


@pytest.mark.parametrize(
    "values",
    [
        (1.0,),
        (0.0,),
        (NAN,),
        (1e-300, 1e149),
        (1e-45, 1.0),
        (5.0, 5.0),
        (1e-320,),
        (5e-324, 1.0),
        (5e-324,),
        (1.0, 1.0 + 1e-15),
    ],
)
def test_the_odd_ones_are_drawn(values: tuple[float, ...]) -> None:
    text = figure(field(values))
    numbers = [float(place) for place in re.findall(r'(?:[xy][12]?|width)="(-?[\d.]+)%"', text)]
    assert all(-0.01 <= place <= 100.01 for place in numbers)
    assert "nan%" not in text
    assert len(data(text)["cells"][0]) == len(values)


@pytest.mark.parametrize("noise", [0.3, 20.0])
def test_a_picture_of_a_deep_and_long_run_is_small(noise: float) -> None:
    history = History()
    draw = np.random.default_rng(0)
    for step in range(1, 5001):
        norms = draw.lognormal(0, noise, 200) * np.logspace(-6, 0, 200)
        values = {f"gradient_norm/encoder.layers.{n}.linear1": norm for n, norm in enumerate(norms)}
        history.append(StepRecord(step, 0, 0, values))
    (shown,) = heat_maps(history)
    assert len(figure(shown).encode()) < 40_000


def test_even_noise_is_small_and_so_are_long_names() -> None:
    draw = np.random.default_rng(0)
    noise = figure(field(*map(tuple, 10 ** draw.uniform(-6, 0, SHAPE))))
    assert len(noise.encode()) < 40_000
    rows = tuple(f"encoder.layers.{n}.{'attention' * 7}"[:80] for n in range(64))
    course = 10 ** (np.linspace(-4, 0, 64)[:, None] + draw.normal(0, 0.15, SHAPE))
    assert len(figure(field(*map(tuple, course), rows=rows)).encode()) < 40_000


def test_names_are_escaped_everywhere() -> None:
    hostile = "\"><script>alert('1')</script>&amp; … <img src=x>"
    shown = field((1.0, 2.0), (1.0, 2.0), rows=(hostile, hostile), title=hostile, x_label=hostile, caption=hostile)
    text = figure(shown)
    elements = Elements(text)
    allowed = {
        *["figure", "figcaption", "h3", "span", "output", "svg", "rect", "text", "title", "path", "line", "p", "i"]
    }
    assert not {tag for tag, _ in elements.tags} - allowed
    assert "<script" not in text
    assert elements.words.count(hostile) >= 4
    assert data(text)["rows"] == [hostile, hostile]


def test_names_are_shortened_with_the_whole_one_beside() -> None:
    whole = "encoder.layers.11.self_attention.out_proj"
    elements = Elements(figure(field((1.0,), (2.0,), rows=(whole, "head"))))
    assert elements.words.count(whole) == 1
    assert "e.l.11.…out_proj" in elements.words
    assert "head" in elements.words
    group = Elements(figure(field((1.0,), (2.0,), rows=("head … net.3.linear", "net.2.linear … net.0.linear"))))
    assert {"head…", "net.2.linear…", "net.2.linear … net.0.linear"} <= set(group.words)
    shared = Elements(figure(field((1.0,), (2.0,), rows=("net.a.0.linear", "net.a.1.linear"))))
    assert {"0.linear", "1.linear"} <= set(shared.words)


@pytest.mark.parametrize(
    "name", ["", ".", "a" * 500, "层" * 40, "a.b.c.d.e.f.g.h.i.j.k", "0.1.2.3.4.5.6.7.8.9.10", "é" * 30]
)
def test_a_short_name_fits(name: str) -> None:
    assert width_of(shortened(name, 16)) <= 16
    assert shortened(name, 16) or not name


def test_a_picture_of_many_layers_names_some() -> None:
    text = figure(field(*[(1.0, 2.0)] * 60))
    assert text.count('text-anchor="end"') == 30
    assert 'height="420"' in text


def test_shades_run_one_way_in_lightness() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    found = [luminance(colour) for colour in shades(NUM_SHADES)]
    assert found == sorted(found, reverse=True)
    assert (found[0] + 0.05) / (found[-1] + 0.05) > 12
