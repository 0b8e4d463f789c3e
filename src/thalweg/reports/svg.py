"""Charts as inline SVG: text in CSS pixels at every width, colours from CSS variables, values under the pointer.

A single viewBox would shrink the words with the picture, to five pixels on a phone. So the outer `<svg>` has none:
ticks and words stand at percentages of it, and only the curves lie in an inner `<svg>` that is stretched to fit
(`vector-effect` keeps their strokes even). `style.CHART` and
`style.SCRIPT` belong once on the page that shows the charts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from itertools import groupby, pairwise

from thalweg.reports.chart import Chart, Line, Mark
from thalweg.reports.words import brief, measured

#: The inner coordinate system; whole numbers in it are finer than a pixel.
_WIDE, _HIGH = 2000, 1000
#: Share of the width that the words of a mark take for each letter, on a phone.
_LETTER = 0.021


def figure(chart: Chart) -> str:
    """One `<figure>`: title, legend with the last values, and the picture."""
    x = _span_x([value for line in chart.lines for value in line.x])
    y = _span_y([value for line in chart.lines for value in line.y if math.isfinite(value)], log=chart.log_y)
    name = "accuracy" if chart.percent else ""
    named = [line for line in chart.lines if not line.faint]
    legend = "".join(_key(line, name, alone=len(named) == 1) for line in named)
    spots = "".join(f'<circle class="spot c{line.colour % 4}" r="4.5"/>' for line in named)
    words = f"{chart.title} by {chart.x_label}: " + ", ".join(
        f"{line.name} ends at {measured(name, _last(line))}" for line in named
    )
    return (
        f'<figure class="chart" data-chart="{escape(_data(chart, named, x, y))}">'
        f"<figcaption><h3>{escape(chart.title)}</h3>{legend}</figcaption>"
        f'<svg class="plot" role="img" aria-label="{escape(words)}">'
        '<rect width="100%" height="100%" fill="transparent"/>'
        f"{_axes(chart, x, y)}{_marks(chart.marks, x)}"
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" width="100%" height="100%" preserveAspectRatio="none" '
        'overflow="visible">'
        f"{''.join(_curve(line, x, y, log=chart.log_y) for line in chart.lines)}</svg>"
        '<line class="guide" y1="0" y2="100%"/>'
        f"{spots}</svg></figure>"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two, one, two or five apart: about `count` of them.

    >>> ticks(0, 45), ticks(0.82, 1.0)
    ([0.0, 10.0, 20.0, 30.0, 40.0], [0.85, 0.9, 0.95, 1.0])
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    apart = power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / rough)))
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return [float(f"{number_of * apart:.12g}") for number_of in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Powers of ten between two positive numbers, thinned where there are many; multiples of them where few.

    >>> log_ticks(0.03, 2), log_ticks(1e-9, 1e9)
    ([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], [1e-09, 1e-06, 0.001, 1.0, 1000.0, 1000000.0, 1000000000.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high) - math.log10(low)
    every = max(1, math.ceil(decades / (count + 1)))
    factors = (1,) if decades > 3.5 else (1, 3) if decades > 2 else (1, 2, 5)
    found = [float(f"{factor}e{power}") for power in range(first, last + 1) if power % every == 0 for factor in factors]
    return [tick for tick in found if low <= tick <= high]


def _axes(chart: Chart, x: tuple[float, float], y: tuple[float, float]) -> str:
    parts = []
    for tick in (log_ticks if chart.log_y else ticks)(*y):
        place = f"{100 - 100 * _share(tick, y, log=chart.log_y):.2f}%"
        words = f"{brief(100 * tick)} %" if chart.percent else brief(tick)
        parts.append(
            f'<line class="grid" x2="100%" y1="{place}" y2="{place}"/>'
            f'<text dx="-8" dy=".32em" y="{place}" text-anchor="end">{words}</text>'
        )
    for tick in ticks(*x):
        place = f"{100 * _share(tick, x):.2f}%"
        parts.append(f'<text x="{place}" y="100%" dy="17" text-anchor="middle">{brief(tick)}</text>')
    parts.append(f'<text class="at" x="50%" y="100%" dy="35" text-anchor="middle">{escape(chart.x_label)}</text>')
    if chart.log_y:
        parts.append('<text dx="-48" y="100%" dy="35">log scale</text>')
    if chart.y_label and chart.y_label.lower() != chart.title.lower():
        parts.append(f'<text dx="-48" y="-8">{escape(chart.y_label)}</text>')
    return "".join(parts) + '<line class="axis" x2="100%" y1="100%" y2="100%"/>'


def _marks(marks: Iterable[Mark], x: tuple[float, float]) -> str:
    """Vertical lines; the words stand at those that leave room for them, and under the pointer at all."""
    parts = []
    free_from = 0.0
    for mark in marks:
        share = _share(mark.x, x)
        if not 0 <= share <= 1:
            continue
        width = _LETTER * len(mark.words)
        left = share if share + width <= 1 else share - width
        words = ""
        if left >= free_from:
            side = 'dx="-1"' if left == share else 'dx="1" text-anchor="end"'
            words = f'<text x="{100 * share:.2f}%" y="-5" {side}>{escape(mark.words)}</text>'
            free_from = max(left + width, share) + 0.02
        parts.append(
            f'<g class="mark{" problem" if mark.problem else ""}"><title>{escape(mark.words)}</title>'
            f'<line x1="{100 * share:.2f}%" x2="{100 * share:.2f}%" y1="0" y2="100%"/>{words}</g>'
        )
    return "".join(parts)


def _curve(line: Line, x: tuple[float, float], y: tuple[float, float], *, log: bool) -> str:
    """The path of a line, one stretch for each run of finite values; a lone value is a dot."""
    path, dots = [], []
    for finite, group in groupby(zip(line.x, line.y, strict=True), key=lambda point: math.isfinite(point[1])):
        if not finite:
            continue
        places = [(round(_WIDE * _share(px, x)), round(_HIGH * (1 - _share(py, y, log=log)))) for px, py in group]
        steps = [f"l{b[0] - a[0]} {b[1] - a[1]}" for a, b in pairwise(places)]
        path.append(f"M{places[0][0]} {places[0][1]}" + "".join(steps))
        if line.dotted or line.scattered or len(places) == 1:
            dots += [f"M{px} {py}h0" for px, py in places]
    style = f"c{line.colour % 4}{' faint' if line.faint else ''}"
    drawn = f'<path class="{style}" d="{"".join(path)}"/>' if path and not line.scattered else ""
    looks = "dots many" if line.scattered else "dots"
    return drawn + (f'<path class="{style} {looks}" d="{"".join(dots)}"/>' if dots else "")


def _key(line: Line, name: str, *, alone: bool) -> str:
    """The legend of a line: its last value, after its name where there are several; points have no last one."""
    which = "" if alone and not line.scattered else f'<i class="c{line.colour % 4}"></i>{escape(line.name)} '
    value = "" if line.scattered else escape(measured(name, _last(line)))
    return f'<span class="key">{which}<output>{value}</output></span>'


def _data(chart: Chart, lines: list[Line], x: tuple[float, float], y: tuple[float, float]) -> str:
    """What the script needs to say the values under the pointer."""
    data = {
        "label": chart.x_label,
        "percent": chart.percent,
        "log": chart.log_y,
        "x": x,
        "y": y,
        "lines": [[[_short(v) for v in line.x], [_short(v) for v in line.y]] for line in lines],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded


def _last(line: Line) -> float:
    return line.y[-1] if line.y else math.nan


def _share(value: float, span: tuple[float, float], *, log: bool = False) -> float:
    """Where a value lies between two others: 0 at the first, 1 at the second."""
    low, high = span
    if log:
        value, low, high = math.log10(value), math.log10(low), math.log10(high)
    return (value - low) / (high - low)


def _span_x(values: list[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 <= low <= 0.05 * high:
        low = 0.0
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _span_y(values: list[float], *, log: bool) -> tuple[float, float]:
    """The range of the values with a little air; from zero on where they come near it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log:
        air = 10 ** (0.04 * (math.log10(high) - math.log10(low)))
        return low / air, high * air
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
    air = 0.05 * (high - low)
    return (0.0 if 0 <= low <= 0.3 * high else low - air), high + air
