"""Loss against learning rate as SVG, by itself or on a page: what `thalweg find-lr --picture FILE` writes."""

from __future__ import annotations

import math
import os
from html import escape
from itertools import pairwise
from pathlib import Path

from thalweg.records.learning_rate import LearningRate, Trial
from thalweg.reports import style
from thalweg.reports.rates import Curve, Rates, Span, words
from thalweg.reports.svg import log_ticks, ticks
from thalweg.reports.words import brief, rounded

#: Of the picture, and of the field inside it: left, top, width, height [px].
_SIZE = (720, 360)
_FIELD = (64, 34, 636, 270)

#: What differs from the charts of a run; a file of its own has no page to take colours from.
LOOKS = """
.picture { overflow-x: auto }
svg.rates { width: 100%; min-width: 540px; max-width: 720px; color-scheme: light dark }
svg.rates { font: 12px system-ui, sans-serif }
.rates text { fill: var(--soft, #5f666e) } .rates .grid { stroke: var(--line, #ebebe8) }
.rates .axis { stroke: var(--axis, #b4b9be) } .rates path { fill: none; stroke: var(--c0, #0b62a8); stroke-width: 2 }
.rates circle { fill: var(--c0, #0b62a8) } .rates .other { fill: none; stroke: var(--c0, #0b62a8) }
.rates .second path { stroke: var(--c1, #c94f00) } .rates .second circle { fill: var(--c1, #c94f00) }
.rates .second text { fill: var(--c1, #c94f00) } .rates .first text { fill: var(--c0, #0b62a8) }
.rates .faint { opacity: .5 }
.rates .band { fill: var(--c2, #00795a); opacity: .14 }
.rates .chosen { stroke: var(--c2, #00795a); stroke-width: 2 }
.rates .rate { fill: var(--c2, #00795a); font-weight: 600 }
.rates .lost { fill: var(--bad, #b3261e); font-weight: 700 }
"""


def write(found: LearningRate, path: Path) -> Path:
    """Write the picture as a page or as SVG, by the ending of the name, in place of an older one as a whole.

    Raises:
        ValueError: another ending, or a file that cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in (".html", ".svg"):
        raise ValueError(f"a picture is written as .html or .svg, got {path.name!r}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page(found) if ending == ".html" else drawn(found, alone=True), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"the picture cannot be written to {path} ({error.strerror}): give another file") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def page(found: LearningRate) -> str:
    """The picture with its sentence and the table of trials, in a file that needs nothing else."""
    rows = "".join(f"<li>{escape(words(trial))}</li>" for trial in found.trials)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>learning rate {rounded(found.value, 3)}</title><style>{style.PAGE}{LOOKS}</style></head>\n"
        f'<body><main><header><p class="name"><b>Learning rate</b> by {escape(found.method)}</p>'
        f'<h1>{escape(found.sentence)}</h1></header><div class="card picture">{drawn(found)}</div>'
        f'<h2>Trials</h2><ul class="notes">{rows}</ul></main></body></html>\n'
    )


def drawn(found: LearningRate | Rates, alone: bool = False) -> str:
    """The `<svg>`; with `alone` it brings its looks along."""
    shown = Rates.of(found) if isinstance(found, LearningRate) else found
    looks = f"<style>{LOOKS}</style>" if alone else ""
    return (
        f'<svg class="rates" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE[0]} {_SIZE[1]}" role="img" '
        f'aria-label="{escape(shown.sentence)}">{looks}{_band(shown)}{_axes(shown)}'
        f"{''.join(_curve(curve, shown) for curve in shown.curves)}"
        f"{''.join(_other(trial, shown) for trial in shown.others)}{_lost(shown)}{_chosen(shown)}</svg>"
    )


def _across(rate: float, x: Span) -> float:
    low, high = math.log10(x[0]), math.log10(x[1])
    return round(_FIELD[0] + _FIELD[2] * (math.log10(rate) - low) / (high - low), 1)


def _down(loss: float, shown: Rates) -> float:
    low, high = shown.y
    if shown.log_y:
        loss, low, high = math.log10(loss), math.log10(low), math.log10(high)
    return round(_FIELD[1] + _FIELD[3] * (1 - (loss - low) / (high - low)), 1)


def _axes(shown: Rates) -> str:
    left, top, width, height = _FIELD
    bottom, right = top + height, left + width
    parts = []
    for tick in (log_ticks if shown.log_y else ticks)(*shown.y):
        y = _down(tick, shown)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 8}" y="{y}" dy=".32em" text-anchor="end">{brief(tick)}</text>')
    for tick in log_ticks(*shown.x):
        x = _across(tick, shown.x)
        parts.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{brief(tick)}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    scale = ", log scale" if shown.log_y else ""
    parts.append(f'<text x="{left + width / 2}" y="{bottom + 38}" text-anchor="middle">learning rate, log scale</text>')
    return "".join(parts) + f'<text x="{left - 8}" y="14">loss{scale}</text>'


def _curve(curve: Curve, shown: Rates) -> str:
    """Points and what joins them, with a name: of the longest trainings at the right end, of others at the left."""
    if not curve.points:
        return ""
    places = [(_across(rate, shown.x), _down(loss, shown)) for rate, loss in curve.points]
    lines = "".join(f"M{a[0]} {a[1]}L{b[0]} {b[1]}" for a, b in pairwise(places))
    of = f"{curve.name}, " if curve.name else ""
    parts = [f'<path d="{lines}"/>'] if lines else []
    parts += [
        f'<circle cx="{x}" cy="{y}" r="3.5"><title>{escape(of)}rate {rounded(rate, 3)}: loss {rounded(loss, 4)}</title>'
        "</circle>"
        for (x, y), (rate, loss) in zip(places, curve.points, strict=True)
    ]
    if curve.name and not (curve.is_faint and len(places) == 1):
        x, y = places[0 if curve.is_faint else -1]
        anchor = ' text-anchor="end"' if x > _FIELD[0] + _FIELD[2] / 2 else ""
        parts.append(f'<text x="{x}" y="{y - 8}"{anchor}>{escape(curve.name)}</text>')
    look = ("first", "second")[curve.colour % 2] + (" faint" if curve.is_faint else "")
    return f'<g class="{look}">{"".join(parts)}</g>'


def _other(trial: Trial, shown: Rates) -> str:
    x, y = _across(trial.learning_rate, shown.x), _down(trial.loss, shown)
    return f'<circle class="other" cx="{x}" cy="{y}" r="3.5"><title>{escape(words(trial))}</title></circle>'


def _lost(shown: Rates) -> str:
    """Crosses at the top: these trials have no height."""
    return "".join(
        f'<text class="lost" x="{_across(trial.learning_rate, shown.x)}" y="{_FIELD[1] + 4}" text-anchor="middle">✕'
        f"<title>{escape(words(trial))}</title></text>"
        for trial in shown.diverged
    )


def _band(shown: Rates) -> str:
    if shown.interval is None:
        return ""
    low, high = (_across(rate, shown.x) for rate in shown.interval)
    return f'<rect class="band" x="{low}" y="{_FIELD[1]}" width="{round(high - low, 1)}" height="{_FIELD[3]}"/>'


def _chosen(shown: Rates) -> str:
    x, bottom = _across(shown.value, shown.x), _FIELD[1] + _FIELD[3]
    return (
        f'<line class="chosen" x1="{x}" x2="{x}" y1="{_FIELD[1]}" y2="{bottom}"/>'
        f'<text class="rate" x="{x}" y="{_FIELD[1] - 8}" text-anchor="middle">{rounded(shown.value, 3)}</text>'
    )
