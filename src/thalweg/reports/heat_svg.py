"""Heat maps as inline SVG, like the charts of `svg.py`: words in CSS pixels, colours from CSS, values on touch.

The cells lie in an inner `<svg>` that is stretched to fit, in which a column is some units wide and a row is one high:
each shade is one `<path>` of horizontal strokes, a stroke for every run of equal cells. A bitmap would be smaller, but
its colours could not follow the page's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from html import escape
from itertools import groupby, takewhile

import numpy as np
import numpy.typing as npt

from thalweg.reports.heat import COLUMNS, HeatMap
from thalweg.reports.style import NUM_SHADES
from thalweg.reports.svg import log_ticks, ticks
from thalweg.reports.words import brief, number, width_of

#: Values that the data of a picture tell apart, four to a shade; then what a cell can be besides.
_LEVELS = 4 * NUM_SHADES
_ZERO, _BELOW, _ABOVE, _MISSING, _BROKEN = range(_LEVELS, _LEVELS + 5)
#: A letter for each of them that neither JSON nor HTML needs to escape.
_LETTERS = "".join(letter for letter in map(chr, range(35, 127)) if letter not in "&'<>\\")[: _BROKEN + 1]
#: Units across the inner coordinate system, four for each of the most columns: few digits in every stroke.
_WIDE = 4 * COLUMNS
#: The height of a row and of the whole [px], and the least between two names [px].
_ROW, _LEAST_ROW, _HIGH, _NAME = 22, 7, 400, 14
#: Letters that a layer's name may take beside the picture.
_SHORT = 16
#: Letters up to which the names fit where the other charts have their ticks.
_BRIEF = 5

Codes = npt.NDArray[np.int64]


def figure(shown: HeatMap) -> str:
    """One `<figure>`: title, what is under the pointer, the field, its legend and what it means."""
    codes = _codes(shown)
    rows = len(shown.rows)
    tall = max(_LEAST_ROW, min(_ROW, _HIGH // rows))
    marked = " marked" if _BROKEN in codes else ""
    looks = marked + (" apart" if 2 * tall >= _ROW else "") + (" brief" if max(map(len, shown.rows)) <= _BRIEF else "")
    return (
        f'<figure class="chart heat" data-heat="{escape(_data(shown, codes))}">'
        f'<figcaption><h3>{escape(shown.title)}</h3><span class="key"><output>{escape(_range(shown))}</output></span>'
        f'</figcaption><svg class="plot field{looks}" height="{rows * tall}" role="img" '
        f'aria-label="{escape(_words(shown))}">'
        f'<rect class="ground" width="100%" height="100%"/>{_names(shown, math.ceil(_NAME / tall))}{_times(shown)}'
        f'<svg viewBox="0 -.5 {_WIDE} {rows}" width="100%" height="100%" preserveAspectRatio="none">'
        f"{_cells(shown, codes)}</svg>"
        f'<rect class="spot"/></svg>{_legend(shown, codes)}<p>{escape(shown.caption)}</p></figure>'
    )


def shortened(name: str, letters: int) -> str:
    """A module path in so many letters: its words abbreviated, then its middle left out; numbers and end stay longest.

    >>> shortened("encoder.layers.11.linear1", 16), shortened("classification_head", 16)
    ('en.la.11.linear1', 'classif…ion_head')
    """
    parts = name.split(".")
    for length in (6, 4, 3, 2, 1):
        if width_of(name) <= letters:
            break
        name = ".".join([part if part.isdigit() else part[:length] for part in parts[:-1]] + parts[-1:])
    if width_of(name) <= letters:
        return name
    for kept in range(letters - 1, 0, -1):
        name_cut = f"{name[: kept // 2]}…{name[len(name) - (kept + 1) // 2 :]}"
        if width_of(name_cut) <= letters:
            return name_cut
    return "…"


def ramp(ticks: Iterable[tuple[float, str]]) -> str:
    """What is in the legend's `<svg class="ramp">`: all shades in a row, and words below at shares of its width."""
    wide = 100 / NUM_SHADES
    bar = "".join(
        f'<rect class="h{which}" x="{wide * which:g}%" y="8" width="{wide + 0.2:g}%" height="10"/>'
        for which in range(NUM_SHADES)
    )
    return bar + "".join(
        f'<text x="{100 * place:.1f}%" y="31" text-anchor="middle">{words}</text>' for place, words in ticks
    )


def _codes(shown: HeatMap) -> Codes:
    """What each cell is `[rows, columns]`: a level, or one of the five others."""
    values, (low, high) = np.array(shown.values), _ends(shown)
    with np.errstate(divide="ignore"):
        scaled = np.log10(values) if shown.log else values
    share = (np.nan_to_num(scaled, nan=low, neginf=low) - low) / (high - low)
    codes: Codes = np.clip((share * _LEVELS).astype(np.int64), 0, _LEVELS - 1)
    codes[scaled < low - 1e-9] = _BELOW
    codes[scaled > high + 1e-9 if shown.log else scaled >= high] = _ABOVE
    codes[values == 0] = _ZERO
    codes[np.isnan(values)] = _MISSING
    codes[np.array(shown.broken)] = _BROKEN
    return codes


def _ends(shown: HeatMap) -> tuple[float, float]:
    """The span on the scale that the colours follow."""
    low, high = shown.span
    return (math.log10(low), math.log10(high)) if shown.log else (low, high)


def _cells(shown: HeatMap, codes: Codes) -> str:
    """A path for each shade; what is not finite lies on top and is never thinner than a unit."""
    shade = np.clip(codes // (_LEVELS // NUM_SHADES), 0, NUM_SHADES)
    for code, drawn in ((_ZERO, 0), (_BELOW, 0), (_ABOVE, NUM_SHADES - 1), (_MISSING, -1), (_BROKEN, NUM_SHADES)):
        shade[codes == code] = drawn
    first, last = shown.columns[0], shown.columns[-1]
    places = [round(_WIDE * (edge - first) / (last - first)) for edge in shown.columns]
    paths: list[list[str]] = [[] for _ in range(NUM_SHADES + 1)]
    for row, cells in enumerate(shade.tolist()):
        ends = dict.fromkeys(range(NUM_SHADES + 1), -1)
        start = 0
        for which, run in groupby(cells):
            left, stop = places[start], start + len(list(run))
            right = max(places[stop], left + 1 if which == NUM_SHADES else left)
            start = stop
            if which >= 0 and right > left:
                move = f"M{left} {row}" if ends[which] < 0 else f"m{left - ends[which]} 0"
                paths[which].append(f"{move}h{right - left}")
                ends[which] = right
    names = [f"h{which}" for which in range(NUM_SHADES)] + ["broken"]
    return "".join(f'<path class="{name}" d="{"".join(d)}"/>' for name, d in zip(names, paths, strict=True) if d)


def _names(shown: HeatMap, every: int) -> str:
    """The layers beside their rows, as many as there is room for, without what all begin with; the first of a group."""
    paths = [name.split(".")[:-1] for row in shown.rows for name in row.split(" … ")]
    shared = "".join(f"{level[0]}." for level in takewhile(lambda level: len({*level}) == 1, zip(*paths, strict=False)))
    parts = []
    for row in range(0, len(shown.rows), every):
        place = f"{100 * (row + 0.5) / len(shown.rows):.2f}%"
        first, *more = (name.removeprefix(shared) for name in shown.rows[row].split(" … "))
        short = f"{shortened(first, _SHORT - 1)}…" if more else shortened(first, _SHORT)
        title = f"<title>{escape(shown.rows[row])}</title>" if short != shown.rows[row] else ""
        parts.append(f'<text dx="-8" dy=".34em" y="{place}" text-anchor="end">{escape(short)}{title}</text>')
    return "".join(parts)


def _times(shown: HeatMap) -> str:
    """The axis below, and above it the word where something was first not finite."""
    first, last = shown.columns[0], shown.columns[-1]
    parts = []
    for tick in ticks(first, last, 4):
        place = f"{100 * (tick - first) / (last - first):.2f}%"
        parts.append(f'<text x="{place}" y="100%" dy="17" text-anchor="middle">{brief(tick)}</text>')
    parts.append(f'<text class="at" x="50%" y="100%" dy="35" text-anchor="middle">{escape(shown.x_label)}</text>')
    broken = np.flatnonzero(np.array(shown.broken).any(axis=0))
    if len(broken):
        share = (shown.columns[broken[0]] - first) / (last - first)
        side = "" if share < 0.6 else ' text-anchor="end"'
        parts.append(f'<text class="broken-at" x="{100 * share:.2f}%" y="-6"{side}>not finite</text>')
    return "".join(parts)


def _legend(shown: HeatMap, codes: Codes) -> str:
    """The shades with their values, the band of ordinary ones, and signs for what is no value."""
    low, high = _ends(shown)
    bar = ramp(
        (
            ((math.log10(tick) if shown.log else tick) - low) / (high - low),
            brief(tick) if shown.log else f"{brief(100 * tick)} %",
        )
        for tick in _ticks(shown)
    )
    keys = ""
    if shown.band is not None:
        left, right = (100 * (math.log10(end) - low) / (high - low) for end in shown.band)
        bar += f'<line class="band" x1="{left:.1f}%" x2="{right:.1f}%" y1="4" y2="4"/>'
        keys += '<span class="key"><i class="band"></i>ordinary</span>'
    for code, sign, words in ((_BROKEN, "broken", "not finite"), (_MISSING, "gap", "not measured")):
        if (codes == code).any():
            keys += f'<span class="key"><i class="cell {sign}"></i>{words}</span>'
    return f'<p class="scale"><svg class="ramp" aria-hidden="true">{bar}</svg>{keys}</p>'


def _ticks(shown: HeatMap) -> list[float]:
    """At most four values for the legend: powers of ten where the scale has two."""
    if not shown.log:
        return [0.0, 0.5, 1.0]
    found = log_ticks(*shown.span)
    powers = [tick for tick in found if math.log10(tick).is_integer()]
    found = powers if len(powers) > 1 else found
    return found[:: math.ceil(len(found) / 4)]


def _data(shown: HeatMap, codes: Codes) -> str:
    """What the script needs to say the value under the pointer: a letter a cell."""
    low, high = _ends(shown)
    zero, least, most = (_said(shown, value) for value in (0.0, *shown.span))
    data = {
        "label": shown.x_label,
        "log": shown.log,
        "low": float(f"{low:.5g}"),
        "high": float(f"{high:.5g}"),
        "levels": _LEVELS,
        "codes": _LETTERS,
        "words": [zero, f"below {least}", f"above {most}" if shown.log else most, "not measured", "not finite"],
        "pooled": shown.pooled,
        "columns": [float(f"{edge:.6g}") for edge in shown.columns],
        "rows": shown.rows,
        "cells": ["".join(_LETTERS[code] for code in row) for row in codes.tolist()],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _range(shown: HeatMap) -> str:
    """All values in a few words."""
    values = np.array(shown.values)
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "not finite"
    low, high = _said(shown, float(finite.min())), _said(shown, float(finite.max()))
    return low if low == high else f"{low} to {high}"


def _words(shown: HeatMap) -> str:
    """The picture for who cannot see it: its range, and where it ends at the first and at the last layer."""
    ends = [f"{shown.rows[row]} {_said(shown, shown.values[row][-1])}" for row in (0, -1)]
    broken = ", with values that are not finite" if np.array(shown.broken).any() else ""
    where = f"at the output {ends[0]}, at the input {ends[1]}"
    return f"{shown.title} by layer and {shown.x_label}: {_range(shown)}{broken}; at the end, {where}"


def _said(shown: HeatMap, value: float) -> str:
    if math.isnan(value):
        return "none"
    return number(float(f"{value:.2g}")) if shown.log else f"{100 * value:.0f} %"
