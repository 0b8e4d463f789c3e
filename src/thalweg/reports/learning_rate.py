"""Loss against learning rate as a plotly figure. Loaded only by `.plot()`: plotly is slow."""

from __future__ import annotations

import math
from html import escape

import plotly.graph_objects as go

from thalweg.records.learning_rate import LearningRate
from thalweg.reports.figures import PALETTE
from thalweg.reports.rates import Rates, words

_HEIGHT = 420  # [px]


def figure(found: LearningRate) -> go.Figure:
    """The curves over a logarithmic axis of rates, the interval shaded, what diverged at the top, the rate marked."""
    shown = Rates.of(found)
    result = go.Figure()
    for curve in shown.curves:
        of = f"{escape(curve.name)}<br>" if curve.name else ""
        hover = {"hovertemplate": f"{of}rate %{{x:.3g}}<br>loss %{{y:.4g}}<extra></extra>"}
        x, y = zip(*curve.points, strict=True) if curve.points else ((), ())
        line = {"color": PALETTE[curve.colour % 2]}
        result.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", name=curve.name or "loss", line=line, **hover))
    for trials, name, symbol, heights in (
        (shown.others, "other trials", "circle-open", [trial.loss for trial in shown.others]),
        (shown.diverged, "diverged", "x", [shown.y[1]] * len(shown.diverged)),
    ):
        if trials:
            rates = [trial.learning_rate for trial in trials]
            looks = {"symbol": symbol, "size": 9, "color": PALETTE[1] if symbol == "x" else PALETTE[0]}
            told = {"hovertext": [escape(words(trial)) for trial in trials], "hoverinfo": "text"}
            result.add_trace(go.Scatter(x=rates, y=heights, mode="markers", name=name, marker=looks, **told))
    result.add_vrect(*found.interval, fillcolor=PALETTE[2], opacity=0.15, line_width=0)
    result.add_vline(found.value, line={"color": PALETTE[2], "width": 2}, annotation={"text": f"{found.value:.3g}"})
    result.update_xaxes(title_text="learning rate", type="log", range=[math.log10(end) for end in shown.x])
    result.update_yaxes(title_text="loss", type="log" if shown.log_y else "linear")
    title = {"text": escape(found.sentence.partition(". ")[0]), "font": {"size": 14}}
    result.update_layout(title=title, template="plotly_white", height=_HEIGHT, showlegend=len(shown.curves) > 1)
    return result
