"""What an application shows of its model → HTML: every word escaped, images only as PNG written into the page."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

from thalweg.records.section import Curves, Matrix, Part, Picture, Prose, Section, Table
from thalweg.reports import svg
from thalweg.reports.chart import Chart, Line
from thalweg.reports.style import NUM_SHADES
from thalweg.reports.words import brief

#: Rows and columns of a matrix up to which each number is written into its cell.
NUMBERED = 16
#: Rows of a table that are shown; the rest are counted.
SHOWN = 200
#: Pictures up to this wide stand two beside each other, where the window is wide enough.
HALF = 560


def drawn(sections: Iterable[Section]) -> list[tuple[str, str]]:
    """(title, HTML) of each section, as the page takes them."""
    return [(section.title, _body(section)) for section in sections]


def _body(section: Section) -> str:
    words = f'<p class="soft flow">{escape(section.words)}</p>' if section.words else ""
    return f'{words}<div class="shown">{"".join(_part(part) for part in section.parts)}</div>'


def _part(part: Part) -> str:
    if isinstance(part, Table):
        return _card(_table(part))
    if isinstance(part, Picture):
        return _card(_picture(part), "half" if (part.width or _width(part.png)) <= HALF else "")
    if isinstance(part, Curves):
        return _card(svg.figure(_chart(part)))
    if isinstance(part, Matrix):
        return _card(_matrix(part))
    assert isinstance(part, Prose)
    return _card(f'<p class="prose{" letters" if part.monospace else ""}">{escape(part.text)}</p>')


def _card(body: str, kind: str = "") -> str:
    return f'<div class="card{f" {kind}" if kind else ""}">{body}</div>'


def _table(part: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in part.columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row)}</tr>" for row in part.rows[:SHOWN]
    )
    left = len(part.rows) - SHOWN
    more = f'<p class="soft">and {left} more</p>' if left > 0 else ""
    table = f'<table class="told-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return table + more + _said(part.caption)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else brief(value)


def _said(caption: str) -> str:
    return f'<p class="soft">{escape(caption)}</p>' if caption else ""


def _picture(part: Picture) -> str:
    data = base64.b64encode(part.png).decode()
    width = f' width="{int(part.width)}"' if part.width else ""
    enlarged = ' class="enlarged"' if part.width and part.width > _width(part.png) else ""
    caption = escape(part.caption)
    return (
        f'<figure class="image"><img alt="{caption}"{width}{enlarged} src="data:image/png;base64,{data}">'
        f'<figcaption class="soft">{caption}</figcaption></figure>'
    )


def _width(png: bytes) -> int:
    """Pixels of a row of an image, as its header says."""
    return int.from_bytes(png[16:20], "big")


def _chart(part: Curves) -> Chart:
    """Points and lines beside each other, in the colours of the page's other charts."""
    lines = tuple(
        Line(name, tuple(map(float, x)), tuple(map(float, y)), colour=colour, scattered=part.points)
        for colour, (name, (x, y)) in enumerate(part.lines.items())
    )
    return Chart(part.title, part.x_label, lines, y_label=part.y_label)


def _matrix(part: Matrix) -> str:
    """A table whose cells have a shade between the least and the largest value."""
    values = [float(value) for row in part.values for value in row if math.isfinite(value)]
    low, high = min([0.0, *values]), max(values, default=1.0)
    numbered = max(len(part.rows), len(part.columns)) <= NUMBERED
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in part.columns)
    body = ""
    for name, row in zip(part.rows, part.values, strict=True):
        cells = (_shaded(v, low, high, numbered, (name, column)) for v, column in zip(row, part.columns, strict=True))
        body += f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'
    return (
        f'<div class="matrix"><h3>{escape(part.title)}</h3><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{_said(part.caption)}"
    )


def _shaded(value: float, low: float, high: float, numbered: bool, names: Sequence[str]) -> str:
    """One cell; away from its number the value is said under the pointer."""
    share = (value - low) / (high - low) if math.isfinite(value) and high > low else 0.0
    shade = min(NUM_SHADES - 1, int(share * NUM_SHADES))
    side = "late" if shade >= NUM_SHADES // 2 else "early"
    said = escape(f"{names[0]}, {names[1]}: {brief(value) if math.isfinite(value) else value}")
    words = escape(brief(value)) if numbered and value and math.isfinite(value) else ""
    return f'<td class="h{shade}" title="{said}"><b class="{side}">{words}</b></td>'
