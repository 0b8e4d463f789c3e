"""What an application shows: drawn, escaped, and nothing fetched."""

from __future__ import annotations

import base64
from html import escape

import made_up
import pytest
from test_page import Elements

from thalweg.records.section import PNG, Curves, Matrix, Picture, Prose, Section, Table
from thalweg.reports.page import page
from thalweg.reports.sections import NUMBERED, SHOWN, drawn

HOSTILE = "</h2><script>alert(1)</script><img src=x onerror=alert(1)>"


def html(*parts: object, title: str = "Shown", words: str = "") -> str:
    return drawn([Section(title, words, parts)])[0][1]  # type: ignore[arg-type]


def test_a_picture_is_written_into_the_page_and_only_then_images_are_allowed() -> None:
    png = PNG + bytes(range(50))
    text = page(made_up.record(), made_up.history(), drawn([Section("Boxes", "", [Picture(png, "two cells", 320)])]))
    [image] = [attributes for tag, attributes in Elements(text).tags if tag == "img"]
    assert image == {
        "alt": "two cells", "width": "320", "src": "data:image/png;base64," + base64.b64encode(png).decode()
    }  # fmt: skip
    assert "img-src data:;" in text
    assert "img-src" not in page(made_up.record(), made_up.history())


@pytest.mark.parametrize(
    ("native", "width", "is_half", "is_enlarged"),
    [(28, 112, True, True), (640, 480, True, False), (300, None, True, False), (1200, None, False, False)],
)
def test_small_pictures_stand_beside_each_other(
    native: int, width: int | None, is_half: bool, is_enlarged: bool
) -> None:
    text = html(Picture(PNG + bytes(8) + native.to_bytes(4, "big"), "a digit", width))
    assert ('class="card half"' in text) is is_half
    assert ('class="enlarged"' in text) is is_enlarged, "only pixels that are enlarged keep their edges"


@pytest.mark.parametrize(
    "part",
    [Table([HOSTILE], [[HOSTILE]], HOSTILE), Prose(HOSTILE), Picture(PNG, HOSTILE),
     Matrix(HOSTILE, [HOSTILE], [HOSTILE], [[1]], HOSTILE), Curves(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: ([1], [1])})],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_words_are_never_markup(part: object) -> None:
    text = html(part, words=HOSTILE)
    assert HOSTILE not in text
    assert escape(HOSTILE) in text
    tags = Elements(text).tags
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "style"]


def test_a_table_shows_numbers_shortly_and_counts_what_it_leaves_out() -> None:
    text = html(Table(["word", "share"], [["a", 0.25]] + [["b", 1]] * SHOWN))
    assert "<td>a</td><td>0.25</td>" in text
    assert text.count("<tr>") == SHOWN + 1
    assert "and 1 more" in text


def test_a_matrix_shades_by_size_and_numbers_its_cells_where_they_are_few() -> None:
    text = html(Matrix("confusions", ["cat", "dog"], ["cat", "dog"], [[9, 0], [3, 10]]))
    assert '<td class="h19" title="dog, dog: 10"><b class="late">10</b></td>' in text
    assert '<td class="h0" title="cat, dog: 0"><b class="early"></b></td>' in text
    many = [str(number) for number in range(NUMBERED + 1)]
    assert '<b class="late"></b>' in html(Matrix("m", many, many, [[5.0] * len(many)] * len(many)))
    assert "nan" in html(Matrix("m", ["a"], ["b"], [[float("nan")]]))


def test_points_are_points_and_lines_are_lines() -> None:
    lines = {"one": ([0.0, 1.0, 2.0], [1.0, 0.0, 1.0])}
    assert html(Curves("c", "x", "y", lines)).count('<path class="c0" d="M') == 1
    points = html(Curves("c", "x", "y", lines, points=True))
    assert '<path class="c0" d' not in points
    assert points.count("h0") == 3
