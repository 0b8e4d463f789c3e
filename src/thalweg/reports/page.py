"""The report: one HTML file that needs nothing else, in a browser on a desk or on a phone, for years.

The pictures are SVG written here rather than plotly's: plotly.js inside the page would weigh 4.8 MB a run against
some tens of kilobytes, and shows nothing where scripts are off. A curve with its ticks and the values under the
pointer takes a page of code. Nothing is loaded from anywhere: the Content-Security-Policy forbids it and lets in only
the style and the script whose hashes it names. So extra sections bring no scripts and no `style=` of their own.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from thalweg.records.action import Action
from thalweg.records.finding import Finding, ranked
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.reports import heat_svg, learning_rate_svg, style, svg
from thalweg.reports.chart import charts
from thalweg.reports.evidence import chart_behind
from thalweg.reports.heat import heat_maps
from thalweg.reports.rates import Rates
from thalweg.reports.summary import rate_words
from thalweg.reports.words import (
    STOPPED,
    VALIDATION,
    changed,
    counted,
    duration,
    listed,
    measured,
    number,
    pairs,
    plain,
    rounded,
    spoken,
)

#: Findings and actions that are told one by one; the rest are counted.
_TOLD = 50
#: Findings that have their curve beside them.
_DRAWN = 4
#: Letters of one setting: a large model's repr is longer than the rest of the page.
_LETTERS = 2000

#: Layers from which on a map of them has the width of the page.
_TALL = 24

#: State → the sign beside its word, so that colour is never the only difference.
_SIGNS = {"converged": "✓", "improving": "↗", "overfitting": "⤴", "stuck": "◼", "diverged": "✕"}


def write(record: RunRecord, history: History, path: Path, sections: Sequence[tuple[str, str]] = ()) -> Path:
    """Write the report of a run to `path`, replacing an older one as a whole, and return the path.

    `sections` are (title, HTML) of other rooms, shown after the charts; the HTML is trusted, the title is not.
    """
    text = page(record, history, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may report the same run
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def page(record: RunRecord, history: History, sections: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page as text."""
    looks = style.PAGE + style.CHART + style.HEAT + style.PLANE + style.SECTIONS + learning_rate_svg.LOOKS
    shown = "".join(_section(title, body) for title, body in sections)
    images = "img-src data:; " if "<img" in shown else ""  # written into the page, never fetched
    policy = (
        f"default-src 'none'; {images}style-src '{_hash(looks)}'; script-src '{_hash(style.SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(record.name)} · {_state(record)}</title><style>{looks}</style></head>\n<body><main>"
        f"{_headline(record)}{_numbers(record, history)}{_pictures(record, history)}"
        f"{shown}{_race(record)}{_flow(record, history)}"
        f"{_findings(record, history)}{_actions(history)}{_notes(record)}{_settings(record)}"
        f"<footer>Written by Thalweg{escape(' ' + record.versions.get('thalweg', '')).rstrip()}. "
        "This file needs nothing else.</footer>"
        f"</main><script>{style.SCRIPT}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _state(record: RunRecord) -> str:
    if record.verdict is not None:
        return escape(str(record.verdict.get("state", "")))
    return "training" if record.stopped_because is None else "unjudged"


def _headline(record: RunRecord) -> str:
    state = _state(record)
    if record.verdict is not None:
        sentence = str(record.verdict.get("sentence", ""))
    elif record.stopped_because is None:
        sentence = f"Still training when this was written, after {counted(record.steps, 'step')}."
    else:
        sentence = "There was too little to judge by."
    cause = record.verdict.get("cause") if record.verdict else None
    words = state + (f": {escape(spoken(str(cause)))}" if cause else "")
    started = record.started[:16].replace("T", " ")
    when = f" · {escape(started)} UTC" if started else ""
    return (
        f'<header><p class="name"><b>{escape(record.name)}</b>{when}</p>'
        f'<span class="badge {state}">{_SIGNS.get(state, "…")} {words}</span>'
        f"<h1>{escape(sentence)}</h1></header>"
    )


def _numbers(record: RunRecord, history: History) -> str:
    """The numbers a person looks for first, and why the training stopped."""
    metrics = record.metrics or {
        name: history.last(name) or 0.0 for name in ("loss", "validation_loss") if name in history.names
    }
    cards = []
    for name in pairs(metrics):
        twin = VALIDATION + name
        if twin in metrics:
            beside = f"training {measured(name, metrics[name])}" if name in metrics else ""
            cards.append((spoken(twin), measured(twin, metrics[twin]), beside))
        else:
            cards.append((spoken(name), measured(name, metrics[name]), ""))
    if record.epochs:
        cards.append(("epochs", number(round(record.epochs, 2)), counted(record.steps, "step")))
    else:
        cards.append(("steps", number(record.steps), ""))
    speed = f"{rounded(record.steps / record.seconds, 3)} steps/s" if record.seconds > 0 else ""
    cards.append(("time", duration(record.seconds), speed))
    rate = record.decided.get("learning_rate")
    if rate is not None:
        rule = f"{plain(record.decided.get('optimizer', ''))}, {plain(record.decided.get('schedule', ''))}".strip(", ")
        cards.append(("learning rate", plain(rate), rule))
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(beside)}</small></dd></div>"
        for name, value, beside in cards
    )
    reason = record.stopped_because
    stopped = f'<p class="stopped">Stopped because {escape(STOPPED.get(reason, reason))}.</p>' if reason else ""
    return f'<dl class="card numbers">{shown}</dl>{stopped}'


def _pictures(record: RunRecord, history: History) -> str:
    drawn = charts(history, record)
    if not drawn:
        return _section("Curves", '<p class="card soft">Nothing was recorded yet.</p>')
    figures = "".join(f'<div class="card">{svg.figure(chart)}</div>' for chart in drawn)
    return _section("Curves", f'<div class="charts">{figures}</div>')


def _race(record: RunRecord) -> str:
    """How the rate was chosen; nothing where it was given."""
    search = record.decided.get("search")
    if not search:
        return ""
    sentence = f"{rounded(search['learning_rate'], 3)} with {search['optimizer']} came {rate_words(record.decided)}."
    words = (
        "Each point is a short training, judged after its rate has fallen to zero. The rate that is best for the whole "
        "training, the line, lies below the one that is best for a short one."
    )
    picture = learning_rate_svg.drawn(Rates.of_race(search, sentence))
    body = f'<p class="soft flow">{escape(sentence)} {words}</p><div class="card picture">{picture}</div>'
    return _section("Choosing the learning rate", body)


def _flow(record: RunRecord, history: History) -> str:
    """What passed through the layers; nothing where no layer reported."""
    drawn = [(len(shown.rows) > _TALL, heat_svg.figure(shown)) for shown in heat_maps(history, record)]
    if not drawn:
        return ""
    figures = "".join(f'<div class="card{" wide" if wide else ""}">{picture}</div>' for wide, picture in drawn)
    words = (
        "Every row is a layer, the output on top and the input at the bottom: training sends the gradient from the "
        "top row down, and a row that it does not reach does not learn."
    )
    return _section("Gradient flow by layer", f'<p class="soft flow">{words}</p><div class="charts">{figures}</div>')


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _findings(record: RunRecord, history: History) -> str:
    """Findings in order of weight, the weightiest with the curves that they were seen in, each curve once."""
    told, drawn = [], set[str]()
    for finding in ranked(history.findings):
        shown = chart_behind(finding, history, record) if finding.severity != "note" and len(drawn) < _DRAWN else None
        if shown is not None and shown.title in drawn:
            shown = None
        if shown is not None:
            drawn.add(shown.title)
        told.append(_finding(finding, svg.figure(shown) if shown is not None else ""))
    return _told("Findings", told)


def _actions(history: History) -> str:
    return _told("What was changed", [_action(action) for action in history.actions])


def _told(title: str, items: list[str]) -> str:
    if not items:
        return ""
    left = len(items) - _TOLD
    more = f'<li class="soft">and {left} more, kept in history.sqlite</li>' if left > 0 else ""
    return _section(title, f'<ul class="told">{"".join(items[:_TOLD])}{more}</ul>')


def _finding(finding: Finding, picture: str = "") -> str:
    place = f"{finding.place}, " if finding.place else ""
    where = f"{spoken(finding.code)} · {place}since step {number(finding.step)}"
    evidence = listed(finding.evidence)
    sure = f"{100 * finding.confidence:.0f} % sure" if finding.confidence < 1 else ""
    behind = " · ".join(words for words in (evidence, sure) if words)
    return (
        f'<li class="card"><span class="badge {escape(finding.severity)}">{escape(finding.severity)}</span>'
        f'<span class="where">{escape(where)}</span><p>{escape(finding.sentence)}</p>'
        + (f"<p>{escape(finding.advice)}</p>" if finding.advice else "")
        + (f'<p class="soft">{escape(behind)}</p>' if behind else "")
        + f"{picture}</li>"
    )


def _action(action: Action) -> str:
    state = "kept" if action.kept else "undone"
    change = changed(action.before, action.after)
    return (
        f'<li class="card"><span class="badge {state}">{state}</span>'
        f'<span class="where">{escape(spoken(action.code))} · at step {number(action.step)}</span>'
        f'<p>{escape(action.reason)}</p><p class="soft">{escape(change)}</p>'
        + (f"<pre>{escape(chr(10).join(action.lines))}</pre>" if action.lines else "")
        + "</li>"
    )


def _notes(record: RunRecord) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in record.notes)
    return _section("Notes", f'<ul class="notes">{notes}</ul>') if notes else ""


def _settings(record: RunRecord) -> str:
    tables = (
        ("What was asked", record.asked),
        ("What was decided", record.decided),
        ("Where it came from", record.source or {}),
        ("Versions", record.versions),
        ("Machine", record.machine),
    )
    body = "".join(f"<h3>{title}</h3>{_table(rows.items())}" for title, rows in tables if rows)
    if not body:
        return ""
    title = "What was asked and decided, versions and machine"
    return _section("Settings", f'<details class="card"><summary>{title}</summary>{body}</details>')


def _table(rows: Iterable[tuple[str, object]]) -> str:
    cells = "".join(
        f"<tr><th>{escape(spoken(str(name)))}</th><td>{escape(_cut(plain(value)))}</td></tr>" for name, value in rows
    )
    return f"<table>{cells}</table>"


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else text[:_LETTERS] + " …"
