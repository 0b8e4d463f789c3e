"""Charts as plotly figures, for notebooks. Loaded only by `.plot()`, since plotly takes a while to import."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.reports.chart import Chart, Line
from thalweg.reports.heat import HeatMap
from thalweg.reports.style import NUM_SHADES, shades

#: Okabe and Ito's blue and vermilion, told apart by every kind of colour blindness; then their green and purple.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
#: Height of one chart among several [px].
HEIGHT = 260
#: Height of a layer in a heat map of many [px].
ROW_HEIGHT = 14


def figure(charts: Chart | HeatMap | Sequence[Chart | HeatMap], title: str = "") -> go.Figure:
    """One figure with the charts and heat maps below each other.

    plotly reads a small HTML in every text, so the names that users chose are escaped.
    """
    drawn = [charts] if isinstance(charts, Chart | HeatMap) else list(charts)
    if not drawn:
        return go.Figure(layout={"title": escape(title or "Nothing was recorded")})
    heights = [_height(each) for each in drawn]
    result = make_subplots(
        rows=len(drawn),
        cols=1,
        subplot_titles=[escape(each.title) for each in drawn],
        vertical_spacing=0.3 / len(drawn),
        row_heights=heights,
    )
    for row, each in enumerate(drawn, start=1):
        if isinstance(each, Chart):
            _add_chart(result, row, each)
        else:
            _add_heat_map(result, row, each)
        result.update_xaxes(title_text=escape(each.x_label), row=row, col=1)
    curves = all(isinstance(each, Chart) for each in drawn)
    result.update_layout(
        title=escape(title),
        template="plotly_white",
        height=sum(heights) + 80,
        hovermode="x unified" if curves else "closest",
        showlegend=False,
    )
    return result


def _height(drawn: Chart | HeatMap) -> int:
    return HEIGHT if isinstance(drawn, Chart) else max(HEIGHT, ROW_HEIGHT * len(drawn.rows))


def _add_chart(result: go.Figure, row: int, chart: Chart) -> None:
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
    scale = {"type": "log"} if chart.log_y else {"tickformat": ".0%"} if chart.percent else {}
    result.update_yaxes(**scale, row=row, col=1)


def _add_heat_map(result: go.Figure, row: int, shown: HeatMap) -> None:
    """The field, and above it in one colour the cells that are not finite."""
    values, broken = np.array(shown.values), np.array(shown.broken)
    low, high = np.log10(shown.span) if shown.log else shown.span
    with np.errstate(divide="ignore"):
        field = np.maximum(np.log10(values), low) if shown.log else values  # a zero is as low as the scale goes
    names = [escape(name) for name in shown.rows]
    # Layers may have the same words after they were cut, so rows are placed by number and only labelled by name.
    rows = list(range(len(names)))
    shared = {"x": shown.columns, "y": rows, "text": [[name] * values.shape[1] for name in names], "hoverongaps": False}
    trace = go.Heatmap(
        **shared,
        z=np.where(broken, np.nan, field),
        zmin=low,
        zmax=high,
        colorscale=shades(NUM_SHADES),
        customdata=values,
        hovertemplate="%{text}<br>%{customdata:.3g}, up to " + escape(shown.x_label) + " %{x}<extra></extra>",
        colorbar=_bar(result.get_subplot(row, 1).yaxis.domain, low, high, log=shown.log),
    )
    result.add_trace(trace, row=row, col=1)
    if broken.any():
        looks = {"colorscale": [PALETTE[1]] * 2, "showscale": False}
        only = np.where(broken, 1.0, np.nan)
        hover = "%{text}<br>not finite<extra></extra>"
        result.add_trace(go.Heatmap(**shared, **looks, z=only, hovertemplate=hover), row=row, col=1)
    result.update_yaxes(autorange="reversed", tickvals=rows, ticktext=names, row=row, col=1)


def _bar(domain: tuple[float, float], low: float, high: float, *, log: bool) -> dict[str, object]:
    """The legend of a heat map, beside it."""
    every = max(1, int(high - low) // 5)
    ticks = np.arange(np.ceil(low), np.floor(high) + 1, every) if log else np.linspace(0, 1, 5)
    words = [f"1e{tick:.0f}" if log else f"{tick:.0%}" for tick in ticks]
    return {"len": domain[1] - domain[0], "y": sum(domain) / 2, "tickvals": ticks, "ticktext": words}


def _trace(line: Line) -> go.Scatter:
    return go.Scatter(
        x=line.x,
        y=[None if value != value else value for value in line.y],
        name=escape(line.name),
        mode="markers" if line.scattered else "lines+markers" if line.dotted or len(line.x) == 1 else "lines",
        marker={"size": 4},
        line={"color": PALETTE[line.colour % len(PALETTE)], "width": 1 if line.faint else 2},
        opacity=0.3 if line.faint else 1,
        hoverinfo="skip" if line.faint else None,
        connectgaps=False,
    )
