from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up
import numpy as np
import pytest
from test_browser import CHROMIUM, browse

from thalweg.records.landscape import Landscape, Plane
from thalweg.reports.page import page
from thalweg.reports.plane_svg import figure, sections

LIMIT = 60_000
#: What a section is made of.
ELEMENTS = "div-p-table-tr-th-td-figure-figcaption-h3-svg-rect-path-text-circle-span-i"
STEPS = (0, 10, 1200)
PATH = ((-3.0, 1.0), (-1.0, 2.0), (0.0, 0.0))


def valley(base: float = 0.1) -> Plane:
    """Losses x² + y² + `base`, over a path of three points."""
    x, y = np.linspace(-4, 1, 25), np.linspace(-1, 3, 25)
    losses = x[None, :] ** 2 + y[:, None] ** 2 + base
    return Plane(
        x=tuple(x.tolist()),
        y=tuple(y.tolist()),
        loss=tuple(map(tuple, losses.tolist())),
        x_label="first principal direction, 90.0% of the variance",
        y_label="second principal direction, 8.0% of the variance",
        sentence="Path of 3 points.",
        steps=STEPS,
        path=PATH,
        path_loss=tuple(a * a + b * b + base for a, b in PATH),
        explained=(0.9, 0.08),
        num_examples=2048,
    )


def point(plane: Plane | None = None) -> Landscape:
    numbers = {
        "loss": 0.1,
        "loss_scale": 2.3,
        "gradient_norm": 0.145,
        "gradient_error": 0.0571,
        "noise_scale": 331.4,
        "largest_eigenvalue": 1.968,
        "largest_eigenvalue_error": 2e-4,
        "smallest_eigenvalue": -0.0441,
        "smallest_eigenvalue_error": 0.0012,
        "trace": 23.77,
        "trace_error": 2.1,
        "max_stable_learning_rate": 1.016,
        "descent": 0.0,
        "escape": 0.1,
        "flatness": 3.0,
    }
    return Landscape(
        kind="saddle",
        sentence="Saddle: it goes <down>.",
        num_examples=1797,
        num_parameters=1810,
        num_products=40,
        plane=plane,
        **numbers,
    )


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str, kind: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and kind in (attrs.get("class") or "").split()]


def rows(text: str) -> dict[str, str]:
    return {name: unescape(value) for name, value in re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", text)}


# ── the numbers ──


def test_a_point_says_its_kind_and_its_numbers_with_their_errors() -> None:
    ((title, text),) = sections(point())
    assert title == "Landscape: saddle"
    assert "<svg" not in text and "Saddle: it goes &lt;down&gt;." in text
    assert rows(text) == {
        "kind of point": "saddle",
        "loss": "0.1",
        "gradient norm": "0.145 ± 0.06",
        "largest eigenvalue": "1.968 ± 0.0002",
        "smallest eigenvalue": "-0.0441 ± 0.001",
        "trace of the Hessian": "23.77 ± 2",
        "largest stable rate": "1.016",
        "noise scale": "331 examples",
        "measured on": "1,797 examples",
        "weights": "1,810",
    }


def test_what_is_not_known_is_said_in_words() -> None:
    unknown = replace(point(), max_stable_learning_rate=math.inf, gradient_error=math.nan, noise_scale=math.nan)
    found = rows(sections(unknown)[0][1])
    assert found["largest stable rate"] == "any: the loss curves up nowhere"
    assert (found["gradient norm"], found["noise scale"]) == ("0.145", "unknown")


def test_a_path_says_where_it_went() -> None:
    ((title, text),) = sections(valley())
    assert title == "Landscape along the training" and "Path of 3 points." in text
    assert rows(text) == {
        "points": "3",
        "steps": "0 to 1,200",
        "loss in the plane at the start": "10.1",
        "loss at the end": "0.1",
        "variance along the first direction": "90.0 %",
        "variance along the second": "8.0 %",
        "lowest loss of the picture": "0.1017",
        "highest": "25.1",
        "measured on": "2,048 examples",
    }


def test_several_are_shown_one_after_the_other() -> None:
    titles = [title for title, _ in sections([point(valley()), valley(), replace(valley(), path=(), steps=())])]
    assert titles == ["Landscape: saddle", "Landscape along the training", "Landscape"]
    assert sections([]) == []


# ── the picture ──


def test_the_path_goes_through_its_places() -> None:
    found = Elements(figure(valley()))
    (way,) = found.of("path", "way")
    numbers = [list(map(int, pair)) for pair in re.findall(r"[Ml](-?\d+) (-?\d+)", way["d"] or "")]
    across, down = np.cumsum(numbers, axis=0).T
    assert (across / 1000 * 5 - 4).tolist() == pytest.approx([-3, -1, 0], abs=0.01)
    assert (3 - down / 1000 * 4).tolist() == pytest.approx([1, 2, 0], abs=0.01)
    (start,), (end,) = found.of("circle", "start"), found.of("circle", "end")
    assert (start["cx"], start["cy"]) == ("20.00%", "50.00%")
    assert (end["cx"], end["cy"]) == ("80.00%", "75.00%")
    assert "start, step 0</text>" in figure(valley()) and "end, step 1,200</text>" in figure(valley())


def test_the_shades_lie_where_the_losses_are() -> None:
    """Each fills what is above its level: for a bowl, all of the field but a disc."""
    plane = valley(base=1)
    levels = Elements(figure(plane)).of("path", "level")
    assert [(attrs["class"] or "").split()[1] for attrs in levels] == [f"h{shade}" for shade in range(20)]
    low, high = np.min(plane.loss), np.max(plane.loss)
    for shade in (2, 5, 9, 14):
        loops = [loop for loop in (levels[shade]["d"] or "").split("z") if loop]
        numbers = [np.array(re.findall(r"[Ml](-?\d+) (-?\d+)", loop), dtype=int).cumsum(axis=0) for loop in loops]
        places = np.concatenate(numbers)
        places = places[((places > 0) & (places < 1000)).all(axis=1)]  # not along the border
        radius = np.hypot(places[:, 0] / 200 - 4, 3 - places[:, 1] / 250)
        expected = math.sqrt(low + shade * (high - low) / 20 - 1)
        assert len(radius) > 10
        assert radius == pytest.approx(np.full_like(radius, expected), rel=0.02)


def test_a_wide_range_has_a_logarithmic_scale() -> None:
    assert "<h3>Loss, log scale</h3>" in figure(valley())
    assert "<h3>Loss</h3>" in figure(replace(valley(), loss=((1.0, 2.0), (3.0, 4.0)), x=(-4, 1), y=(-1, 3)))


def test_the_point_stands_at_the_origin() -> None:
    plane = replace(valley(), path=(), path_loss=(), steps=(), explained=None)
    text = figure(plane, 0.1)
    ((spot),) = Elements(text).of("circle", "end")
    assert (spot["cx"], spot["cy"]) == ("80.00%", "75.00%")
    assert "the model</text>" in text and 'class="way"' not in text
    assert "at the model 0.1" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0, 0.0])
def test_a_field_without_heights(value: float) -> None:
    plane = replace(valley(), loss=((value,) * 25,) * 25, path_loss=(value,) * 3)
    text = figure(plane)
    assert ("not finite</span>" in text) == (not math.isfinite(value))
    assert ("everywhere" in text) == math.isfinite(value) or not math.isfinite(value)
    assert "nan" not in text and "inf" not in text.replace("infinity", "")


def noise() -> Plane:
    draw = np.random.default_rng(0)
    losses, places = draw.random((25, 25)), draw.random((200, 2)) * [5, 4] - [4, 1]
    return replace(
        valley(),
        loss=tuple(map(tuple, losses.tolist())),
        steps=tuple(range(200)),
        path=tuple(map(tuple, places.tolist())),
        path_loss=tuple(draw.random(200).tolist()),
    )


@pytest.mark.parametrize("plane", [valley(), noise()], ids=["valley", "noise"])
def test_a_section_is_small_and_carries_no_style_nor_script(plane: Plane) -> None:
    for _, text in sections([plane, point(plane)]):
        assert len(text.encode()) < LIMIT
        tags = Elements(text).tags
        assert {tag for tag, _ in tags} <= {*ELEMENTS.split("-")}
        assert not any(name == "style" or name.startswith("on") for _, attrs in tags for name in attrs)


def test_a_label_is_no_html() -> None:
    text = sections(replace(valley(), x_label="<b>&", y_label='">', sentence="<i>"))[0][1]
    assert "<b>" not in text and "&lt;b&gt;&amp;" in text and "&lt;i&gt;" in text


# ── in a browser ──

WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><style>body{margin:0}iframe{border:0;display:block}</style>
<iframe width="%d" height="2400" srcdoc="%s"></iframe><pre id="seen"></pre><script>
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const plot = page.querySelector(".plane"), box = plot.getBoundingClientRect();
  const text = [...plot.querySelectorAll("text")].map(words => words.getBoundingClientRect());
  const colour = (which, what) => getComputedStyle(page.querySelector(which))[what];
  const names = [...plot.querySelectorAll(".name")].map(words => words.getBoundingClientRect());
  document.querySelector("#seen").textContent = JSON.stringify({
    wide: root.scrollWidth, plot: [box.width, box.height],
    smallest: Math.min(...text.map(words => words.height)),
    outside: text.filter(words => words.left < 0 || words.right > root.clientWidth).length,
    beside: names.filter(words => words.left < box.left || words.right > box.right).length,
    fills: [colour(".h0.level", "fill"), colour(".h19.level", "fill"), colour(".way", "fill")],
    cards: [...plot.closest(".charts").children].map(card => card.getBoundingClientRect().top),
    way: colour(".way", "stroke"),
  });
});
</script>"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser: /usr/bin/chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (1200, False), (1200, True)])
def test_the_section_fits_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    wrapper = tmp_path / "wrapper.html"
    text = page(made_up.record(), made_up.history(), sections([valley(), point(valley())]))
    wrapper.write_text(WRAPPER % (width, escape(text)), encoding="utf-8")
    theme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    seen = look(browse(tmp_path, theme, f"--window-size={max(width, 500)},2400", "--dump-dom", wrapper.as_uri()))
    assert seen["wide"] <= width
    assert seen["plot"][0] > 220 and seen["plot"][1] == 320
    assert seen["smallest"] >= 11 and seen["outside"] == seen["beside"] == 0
    dim, bright = sorted(seen["fills"][:2], key=brightness)
    assert brightness(bright) > brightness(dim) + 300
    assert (seen["fills"][0] == dim) is dark  # low losses are near the page's ground
    assert seen["fills"][2] == "none"
    assert seen["way"] == ("rgb(245, 150, 79)" if dark else "rgb(201, 79, 0)")
    assert (seen["cards"][0] == seen["cards"][1]) is (width == 1200)


def look(dumped: str) -> dict[str, Any]:
    found = re.search(r'<pre id="seen">(.+?)</pre>', dumped)
    assert found is not None
    seen: dict[str, Any] = json.loads(unescape(found[1]))
    return seen


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)))
