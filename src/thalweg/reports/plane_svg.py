"""The loss over a plane for the page: filled contours as inline SVG, with the model or its path, and the numbers.

As in `svg.py`, words stand at percentages of an outer `<svg>`, and the field lies in an inner one that is stretched to
fit. Each shade fills all that is above its level, and the next one is painted over it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from itertools import pairwise

import numpy as np

from thalweg.records.landscape import Landscape, Plane
from thalweg.reports.contours import Heights, Loop, loops
from thalweg.reports.heat_svg import ramp
from thalweg.reports.style import NUM_SHADES
from thalweg.reports.svg import log_ticks, ticks
from thalweg.reports.words import brief, number, rounded

#: The inner coordinate system; whole numbers in it are finer than a pixel.
_SIDE = 1000

Span = tuple[float, float]
Rows = list[tuple[str, str]]


def sections(shown: Landscape | Plane | Iterable[Landscape | Plane]) -> list[tuple[str, str]]:
    """(title, HTML) of each, for the page.

    Raises:
        TypeError: something is neither a landscape nor a plane.
    """
    each = [shown] if isinstance(shown, Landscape | Plane) else list(shown)
    for one in each:
        if not isinstance(one, Landscape | Plane):
            raise TypeError(f"the report shows a Landscape or a Plane, got {type(one).__name__}")
    return [_of_point(one) if isinstance(one, Landscape) else _of_plane(one) for one in each]


def _of_point(point: Landscape) -> tuple[str, str]:
    picture = figure(point.plane, point.loss) if point.plane is not None else ""
    return f"Landscape: {point.kind}", _cards(picture, point.sentence, _point_numbers(point))


def _of_plane(plane: Plane) -> tuple[str, str]:
    title = "Landscape along the training" if plane.path else "Landscape"
    return title, _cards(figure(plane), plane.sentence, _plane_numbers(plane))


def _cards(picture: str, sentence: str, rows: Rows) -> str:
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    told = f'<p class="ground-told">{escape(sentence)}</p>' if sentence else ""
    drawn = f'<div class="card">{picture}</div>' if picture else ""
    return (
        f'<div class="charts">{drawn}<div class="card">{told}<table class="ground-numbers">{table}</table></div></div>'
    )


def _point_numbers(point: Landscape) -> Rows:
    rate = point.max_stable_learning_rate
    return [
        ("kind of point", point.kind),
        ("loss", number(point.loss)),
        ("gradient norm", _with_error(point.gradient_norm, point.gradient_error)),
        ("largest eigenvalue", _with_error(point.largest_eigenvalue, point.largest_eigenvalue_error)),
        ("smallest eigenvalue", _with_error(point.smallest_eigenvalue, point.smallest_eigenvalue_error)),
        ("trace of the Hessian", _with_error(point.trace, point.trace_error)),
        ("largest stable rate", number(rate) if math.isfinite(rate) else "any: the loss curves up nowhere"),
        ("noise scale", f"{rounded(point.noise_scale, 3)} examples" if math.isfinite(point.noise_scale) else "unknown"),
        ("measured on", f"{number(point.num_examples)} examples"),
        ("weights", number(point.num_parameters)),
    ]


def _plane_numbers(plane: Plane) -> Rows:
    rows: Rows = []
    if plane.path:
        rows += [("points", number(len(plane.steps))), ("steps", f"{plane.steps[0]:,} to {plane.steps[-1]:,}")]
        rows += [("loss in the plane at the start", number(plane.path_loss[0]))]
        rows += [("loss at the end", number(plane.path_loss[-1]))]
    if plane.explained is not None:
        first, second = plane.explained
        rows += [("variance along the first direction", f"{100 * first:.1f} %")]
        rows += [("variance along the second", f"{100 * second:.1f} %")]
    finite = [value for row in plane.loss for value in row if math.isfinite(value)]
    if finite:
        rows += [("lowest loss of the picture", number(min(finite))), ("highest", number(max(finite)))]
    if plane.num_examples is not None:
        rows += [("measured on", f"{number(plane.num_examples)} examples")]
    return rows


def _with_error(value: float, error: float) -> str:
    return f"{number(value)} ± {rounded(error, 1)}" if math.isfinite(error) else number(value)


def figure(plane: Plane, loss: float | None = None) -> str:
    """One `<figure>` with the field, the path or the point in it (whose loss may be given), and the legend."""
    along = plane.path_loss or (() if loss is None else (loss,))
    heights = Heights.of(plane, along)
    x, y = (plane.x[0], plane.x[-1]), (plane.y[0], plane.y[-1])
    inner = f'viewBox="0 0 {_SIDE} {_SIDE}" width="100%" height="100%" preserveAspectRatio="none"'
    scale = "Loss, log scale" if heights.log else "Loss"
    return (
        f'<figure class="chart heat"><figcaption><h3>{scale}</h3></figcaption>'
        f'<svg class="plot plane" role="img" aria-label="{escape(_words(plane, along))}">'
        f'<rect class="ground" width="100%" height="100%"/>'
        f"<svg {inner}>{_levels(plane, heights, x, y)}</svg>"
        f"{_axes(plane, x, y)}<svg {inner}>{_way(plane, x, y)}</svg>{_ends(plane, x, y)}</svg>"
        f"{_legend(heights)}</figure>"
    )


def _levels(plane: Plane, heights: Heights, x: Span, y: Span) -> str:
    """A path for each shade, from low to high; one shade where all is level."""
    apart = (heights.high - heights.low) / NUM_SHADES
    xs, ys = np.array(plane.x), np.array(plane.y)
    parts = []
    for shade in range(NUM_SHADES if apart else 1):
        found = loops(xs, ys, heights.field, heights.low + shade * apart)
        d = "".join(_drawn(loop, x, y) for loop in found)
        if d:
            parts.append(f'<path class="level h{shade}" fill-rule="evenodd" d="{d}"/>')
    return "".join(parts)


def _drawn(points: Loop, x: Span, y: Span, *, closed: bool = True) -> str:
    """Points joined by straight lines, in whole units; those that fall on the one before are left out."""
    places = [(round(_SIDE * _share(px, x)), round(_SIDE * (1 - _share(py, y)))) for px, py in points]
    moves = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(places)]
    lines = "".join(f"l{across} {down}" for across, down in moves if across or down)
    return f"M{places[0][0]} {places[0][1]}{lines}{'z' if closed else ''}" if lines or not closed else ""


def _way(plane: Plane, x: Span, y: Span) -> str:
    if not plane.path:
        return ""
    d = _drawn(list(plane.path), x, y, closed=False)
    return f'<path class="rim" d="{d}"/><path class="way" d="{d}"/>'


def _ends(plane: Plane, x: Span, y: Span) -> str:
    """The point, or both ends of the path, with words beside them that keep away from each other."""
    if not plane.path:
        return _spot((0.0, 0.0), "the model", x, y)
    first, last = plane.path[0], plane.path[-1]
    start = _spot(first, f"start, step {number(plane.steps[0])}", x, y, kind="start", above=first[1] >= last[1])
    return start + _spot(last, f"end, step {number(plane.steps[-1])}", x, y, above=first[1] < last[1])


def _spot(place: tuple[float, float], words: str, x: Span, y: Span, kind: str = "end", above: bool = True) -> str:
    across, up = _share(place[0], x), _share(place[1], y)
    where = f'{100 * across:.2f}%" {{}}y="{100 - 100 * up:.2f}%"'
    side = 'text-anchor="end" dx="6"' if across > 0.5 else 'dx="-6"'
    return (
        f'<circle class="{kind}" cx="{where.format("c")} r="5"/>'
        f'<text class="name" x="{where.format("")} {side} dy="{-11 if above else 20}">{escape(words)}</text>'
    )


def _axes(plane: Plane, x: Span, y: Span) -> str:
    parts = [
        f'<text x="{100 * _share(tick, x):.2f}%" y="100%" dy="17" text-anchor="middle">{brief(tick)}</text>'
        for tick in ticks(*x, 4)
    ]
    parts += [
        f'<text dx="-8" dy=".32em" y="{100 - 100 * _share(tick, y):.2f}%" text-anchor="end">{brief(tick)}</text>'
        for tick in ticks(*y)
    ]
    parts.append(f'<text x="50%" y="100%" dy="35" text-anchor="middle">{escape(plane.x_label)}</text>')
    return "".join(parts) + f'<text dx="-44" dy="-10">↑ {escape(plane.y_label)}</text>'


def _legend(heights: Heights) -> str:
    """The shades with their losses, and the sign for where there is none."""
    span = heights.high - heights.low
    keys = ""
    if np.isnan(heights.field).any():
        keys = '<span class="key"><i class="cell gap"></i>not finite</span>'
    if not span:
        return f'<p class="scale"><span class="key">everywhere {number(heights.low)}</span>{keys}</p>'
    found = log_ticks(10**heights.low, 10**heights.high) if heights.log else ticks(heights.low, heights.high, 4)
    found = found[:: math.ceil(len(found) / 5)]
    bar = ramp(((heights.height(tick) - heights.low) / span, brief(tick)) for tick in found)
    return f'<p class="scale"><svg class="ramp" aria-hidden="true">{bar}</svg>{keys}</p>'


def _words(plane: Plane, along: tuple[float, ...]) -> str:
    """The picture for who cannot see it."""
    finite = [value for row in plane.loss for value in row if math.isfinite(value)]
    seen = f"from {number(min(finite))} to {number(max(finite))}" if finite else "not finite"
    what = f"The loss over {plane.x_label} and {plane.y_label}: {seen}"
    if plane.path:
        return f"{what}; along the path from {number(along[0])} to {number(along[-1])}"
    return f"{what}; at the model {number(along[0])}" if along else what


def _share(value: float, span: Span) -> float:
    return (value - span[0]) / (span[1] - span[0])
