"""Charts as plotly figures, for notebooks. Loaded only by `.plot()`, since plotly takes a while to import."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.reports.chart import Chart, Line

#: Okabe and Ito's blue and vermilion, told apart by every kind of colour blindness; then their green and purple.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
#: Height of one chart among several [px].
HEIGHT = 260


def figure(charts: Chart | Sequence[Chart], title: str = "") -> go.Figure:
    """One figure with the charts below each other.

    plotly reads a small HTML in every text, so the names that users chose are escaped.
    """
    drawn = [charts] if isinstance(charts, Chart) else list(charts)
    if not drawn:
        return go.Figure(layout={"title": escape(title or "Nothing was recorded")})
    result = make_subplots(
        rows=len(drawn),
        cols=1,
        subplot_titles=[escape(chart.title) for chart in drawn],
        vertical_spacing=0.3 / len(drawn),
    )
    for row, chart in enumerate(drawn, start=1):
        for line in chart.lines:
            result.add_trace(_trace(line), row=row, col=1)
        for mark in chart.marks:
            result.add_vline(
                x=mark.x,
                row=row,
                col=1,
                line={"width": 1, "dash": "dot", "color": PALETTE[1] if mark.problem else "#888888"},
                annotation={"text": escape(mark.words), "font": {"size": 10}},
            )
        result.update_xaxes(title_text=escape(chart.x_label), row=row, col=1)
        scale = {"type": "log"} if chart.log_y else {"tickformat": ".0%"} if chart.percent else {}
        result.update_yaxes(**scale, row=row, col=1)
    result.update_layout(
        title=escape(title),
        template="plotly_white",
        height=HEIGHT * len(drawn) + 80,
        hovermode="x unified",
        showlegend=False,
    )
    return result


def _trace(line: Line) -> go.Scatter:
    return go.Scatter(
        x=line.x,
        y=[None if value != value else value for value in line.y],
        name=escape(line.name),
        mode="lines+markers" if line.dotted or len(line.x) == 1 else "lines",
        marker={"size": 4},
        line={"color": PALETTE[line.colour % len(PALETTE)], "width": 1 if line.faint else 2},
        opacity=0.3 if line.faint else 1,
        hoverinfo="skip" if line.faint else None,
        connectgaps=False,
    )
