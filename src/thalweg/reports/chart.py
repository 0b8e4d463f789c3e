"""What the pictures of a run show, before anyone draws them: lines, marks and axes.

`svg.py` draws a chart for the page, `figures.py` for a notebook. A chart holds at most some `LIMIT` points a line
however long the run was, and keeps every spike: that is done here, once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import REPORTED
from thalweg.reports.words import VALIDATION, of_layer, share, spoken

#: Points of a line: more than a phone has pixels across.
LIMIT = 500
#: Points of a smoothed line, which has nothing narrow to show.
SMOOTH_LIMIT = 200
#: Fewer values than this are drawn as they are: a window over them would invent more than it shows.
SMOOTH_FROM = 60
#: Measurements up to which each one is shown as a point.
DOTTED = 60
#: Decades above which a linear axis would press the small values flat.
LOG_DECADES = 1.5
#: Beyond it a value counts as not finite: no fp32 training reaches it, and differences of such numbers overflow.
LARGEST = 1e150
#: Marks of one kind in a chart; a run that repairs itself a hundred times is told in the list below the charts.
MARKS = 6

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: `x` and `y` of equal length, NaN in `y` where the curve has a gap.

    `colour` is an index into the drawer's palette; a `faint` line lies behind the smoothed one of the same colour;
    a `dotted` one shows its points, as measurements far apart; a `scattered` one is nothing but points.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    colour: int = 0
    faint: bool = False
    dotted: bool = False
    scattered: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line with words at `x`; a `problem` stands out."""

    x: float
    words: str
    problem: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture. `percent`: the values are shares of one and are written in percent."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    y_label: str = ""
    log_y: bool = False
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """The horizontal axis of a run: its label and how a step [updates] is placed on it."""

    label: str
    place: Callable[[Values], Values]

    def at(self, step: float) -> float:
        """Where a step lies."""
        return float(self.place(np.array(float(step))))


def charts(history: History, record: RunRecord | None = None) -> list[Chart]:
    """The pictures of a run: loss, each metric, learning rate, gradient norm and noise scale.

    Those without numbers are left out. With a record the horizontal axis counts epochs where their length is known and
    there are at least two, and the best step is marked.
    """
    axis = axis_of(history, record)
    best = _marks(axis, [(record.best_step, "best")] if record and record.best_step is not None else [])
    changes = _marks(axis, [(action.step, spoken(action.code)) for action in history.actions])
    problems = _marks(axis, [(f.step, spoken(f.code)) for f in history.findings if f.severity != "note"], problem=True)
    drawn = [_twins(history, axis, "loss", best + changes + problems)]
    drawn += [_twins(history, axis, name, best) for name in _metrics(history, record)]
    drawn += [_single(history, axis, "learning_rate", changes), _single(history, axis, "gradient_norm", problems)]
    drawn.append(_single(history, axis, "noise_scale", ()))
    return [chart for chart in drawn if chart.lines]


def chart_of(history: History, axis: Axis, name: str, marks: tuple[Mark, ...] = ()) -> Chart:
    """The picture of one series, with its validation twin where it has one."""
    return _twins(history, axis, name, marks)


def thin(x: Values, y: Values, limit: int = LIMIT) -> tuple[Values, Values]:
    """At most `limit` of the points `[points]`, the smallest and the largest of every stretch among them.

    A stretch that holds a value that is not finite keeps one, so that its gap stays visible.
    """
    if len(x) <= limit:
        return x, y
    finite = np.isfinite(y)
    stretches = (limit - 2) // (2 if finite.all() else 3)
    kept = {0, len(x) - 1}
    for start, stop in pairwise(np.linspace(0, len(x), stretches + 1).astype(int).tolist()):
        part, good = y[start:stop], finite[start:stop]
        if good.any():
            kept.add(start + int(np.argmin(np.where(good, part, np.inf))))
            kept.add(start + int(np.argmax(np.where(good, part, -np.inf))))
        if not good.all():
            kept.add(start + int(np.argmin(good)))
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def smooth(x: Values, y: Values) -> tuple[Values, Values]:
    """The course of a noisy line `[points]`: interquartile means over a window of a thirtieth of it.

    The mean of the middle half of a window does not follow a lone spike, as a plain mean would. The window is
    symmetric where the line begins, since a loss falls steeply there; at the end it looks back only.
    """
    last = len(y) - 1
    half = max(2, len(y) // 60)
    places = np.unique(np.linspace(0, last, min(len(y), SMOOTH_LIMIT)).astype(int))
    smoothed = np.full(len(places), np.nan)
    for row, place in enumerate(places.tolist()):
        reach = min(half, max(place, 2))
        window = y[max(0, place - reach) : min(last, place + reach) + 1]
        window = np.sort(window[np.isfinite(window)])
        if np.isfinite(y[place]):
            quarter = len(window) // 4
            smoothed[row] = window[quarter : len(window) - quarter].mean()
    return x[places], smoothed


def needs_log(lines: tuple[Line, ...]) -> bool:
    """Whether the values are all positive and span more than `LOG_DECADES` decades."""
    values = np.array([value for line in lines for value in line.y])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and np.log10(values.max()) - np.log10(values.min()) > LOG_DECADES)


def _metrics(history: History, record: RunRecord | None) -> list[str]:
    """What has a training curve or a validation twin and is a metric, not a signal."""
    recorded = set(history.names)
    known = {name.removeprefix(VALIDATION) for name in record.metrics} if record else set()
    names = list(dict.fromkeys(name.removeprefix(VALIDATION) for name in history.names))
    names = [name for name in names if name not in REPORTED and not of_layer(name)]
    return [name for name in names if not known or name in known or VALIDATION + name in recorded]


def _twins(history: History, axis: Axis, name: str, marks: tuple[Mark, ...]) -> Chart:
    """A series and its validation twin in one picture."""
    training, broken = _lines(history, axis, name, "training", 0)
    validation, also_broken = _lines(history, axis, VALIDATION + name, "validation", 1)
    return _chart(name, axis, training + validation, marks + broken + also_broken)


def _single(history: History, axis: Axis, name: str, marks: tuple[Mark, ...]) -> Chart:
    lines, broken = _lines(history, axis, name, spoken(name), 0)
    return _chart(name, axis, lines, marks + broken)


def _chart(name: str, axis: Axis, lines: tuple[Line, ...], marks: tuple[Mark, ...]) -> Chart:
    title = spoken(name)
    return Chart(
        title=title[:1].upper() + title[1:],
        x_label=axis.label,
        lines=lines,
        marks=tuple(sorted(marks, key=lambda mark: mark.x)),
        y_label=title,
        log_y=needs_log(lines),
        percent=share(name),
    )


def _lines(
    history: History, axis: Axis, name: str, label: str, colour: int
) -> tuple[tuple[Line, ...], tuple[Mark, ...]]:
    """The curves of one series, and a mark wherever it stops being finite."""
    if name not in history.names:
        return (), ()
    steps, values = history.series(name)
    order = np.argsort(steps, kind="stable")
    x, y = axis.place(steps[order].astype(np.float64)), np.where(np.abs(values) < LARGEST, values, np.nan)[order]
    broken = np.isnan(y)
    starts = np.flatnonzero(broken & ~np.concatenate([[False], broken[:-1]]))
    marks = tuple(Mark(float(x[row]), f"{spoken(name)} not finite", problem=True) for row in starts[:MARKS])
    if name.startswith(VALIDATION) or len(y) < SMOOTH_FROM or name == "learning_rate":
        dotted = name.startswith(VALIDATION) and len(y) <= DOTTED
        return (_line(label, *thin(x, y), colour, dotted=dotted),), marks
    return (_line(label, *thin(x, y), colour, faint=True), _line(label, *smooth(x, y), colour)), marks


def _line(name: str, x: Values, y: Values, colour: int, *, faint: bool = False, dotted: bool = False) -> Line:
    return Line(name, tuple(x.tolist()), tuple(y.tolist()), colour, faint, dotted)


def axis_of(history: History, record: RunRecord | None) -> Axis:
    """The axis of a run: epochs where their length is known and there are at least two, else steps."""
    length = record.decided.get("steps_per_epoch") if record else None
    last = max((int(history.series(name)[0].max()) for name in history.names), default=0)
    if isinstance(length, int) and length > 0 and last >= 2 * length:
        return Axis("epoch", lambda steps: steps / length)
    return Axis("step", lambda steps: steps)


def _marks(axis: Axis, seen: list[tuple[int, str]], *, problem: bool = False) -> tuple[Mark, ...]:
    return tuple(Mark(axis.at(step), words, problem) for step, words in seen[:MARKS])
