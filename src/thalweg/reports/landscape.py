"""The loss over a plane, as contours and as a surface. Loaded only by `.plot()`: plotly is slow."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.records.landscape import Plane
from thalweg.reports.contours import Heights
from thalweg.reports.figures import PALETTE

#: Even steps of lightness, told apart in grey and by every kind of colour blindness.
_SCALE = "Cividis"
_HOVER = "loss %{customdata:.4g}<br>at %{x:.3g}, %{y:.3g}<extra></extra>"
#: From where the surface is seen: far enough for the words of its axes.
_EYE = {"x": 1.45, "y": 1.45, "z": 1.1}
#: How far a path is lifted off the surface, which would else swallow parts of it: a share of all heights.
_LIFT = 0.01


def figure(plane: Plane, sentence: str = "", loss: float | None = None) -> go.Figure:
    """Contours on the left, the surface on the right, in both the path, or the point if its loss is given."""
    along = plane.path_loss or (() if loss is None else (loss,))
    heights = Heights.of(plane, along)
    shared = {
        "x": plane.x,
        "y": plane.y,
        "z": heights.field,
        "customdata": plane.loss,
        "colorscale": _SCALE,
        "hovertemplate": _HOVER,
    }
    unit = "log₁₀ loss" if heights.log else "loss"
    result = make_subplots(rows=1, cols=2, specs=[[{"type": "xy"}, {"type": "scene"}]], horizontal_spacing=0.14)
    result.add_trace(go.Contour(**shared, ncontours=24, colorbar={"title": unit, "x": 0.44, "thickness": 12}), 1, 1)
    for trace in _flat(plane):
        result.add_trace(trace, 1, 1)
    if plane.path:
        _name_ends(result, plane)
    result.add_trace(go.Surface(**shared, showscale=False), 1, 2)
    for trace in _raised(plane, heights, along):
        result.add_trace(trace, 1, 2)
    result.update_xaxes(title_text=plane.x_label, row=1, col=1)
    result.update_yaxes(title_text=plane.y_label, row=1, col=1)
    # Slanted text has little room.
    short = [label.partition(",")[0].replace(" principal", "") for label in (plane.x_label, plane.y_label)]
    result.update_scenes(xaxis_title=short[0], yaxis_title=short[1], zaxis_title=unit, camera_eye=_EYE)
    result.update_layout(
        title={"text": _wrapped(sentence or plane.sentence), "font": {"size": 14}},
        template="plotly_white",
        height=560,
        margin={"t": 90, "r": 20, "b": 60, "l": 70},
        showlegend=False,
    )
    return result


def _flat(plane: Plane) -> list[go.Scatter]:
    """The path from start to end, or the point, on the contours."""
    if not plane.path:
        return [go.Scatter(**_point(), marker=_mark(12))]
    x, y = zip(*plane.path, strict=True)
    words = [f"step {step:,}, loss {loss:.4g}" for step, loss in zip(plane.steps, plane.path_loss, strict=True)]
    looks = {"marker": {"size": 3, "color": "white"}, "line": {"color": PALETTE[1], "width": 3}}
    ends = {"x": x[:: len(x) - 1], "y": y[:: len(y) - 1]}
    return [
        go.Scatter(x=x, y=y, mode="lines+markers", hovertext=words, hoverinfo="text", **looks),
        go.Scatter(**ends, mode="markers", hoverinfo="skip", marker=_ends(12)),
    ]


def _name_ends(result: go.Figure, plane: Plane) -> None:
    """Words on a ground of their own: no colour is read on all heights."""
    looks = {"showarrow": False, "yshift": 18, "bgcolor": "rgba(255,255,255,.8)", "row": 1, "col": 1}
    for words, (x, y) in zip(("start", "end"), plane.path[:: len(plane.path) - 1], strict=True):
        result.add_annotation(x=x, y=y, text=words, **looks)


def _raised(plane: Plane, heights: Heights, along: tuple[float, ...]) -> list[go.Scatter3d]:
    """The same on the surface."""
    z = [heights.height(loss) + _LIFT * (heights.high - heights.low) for loss in along]
    if not plane.path:
        return [go.Scatter3d(**_point(), z=[heights.height(loss) for loss in along], marker=_mark(7, "circle"))]
    x, y = zip(*plane.path, strict=True)
    every = len(x) - 1
    line = {"color": PALETTE[1], "width": 5}
    shared = {"mode": "markers", "hovertext": ["start", "end"], "hoverinfo": "text"}
    return [
        go.Scatter3d(x=x, y=y, z=z, mode="lines", line=line, hoverinfo="skip"),
        go.Scatter3d(x=x[::every], y=y[::every], z=z[::every], marker=_ends(6), **shared),
    ]


def _point() -> dict[str, Any]:
    return {"x": [0], "y": [0], "mode": "markers", "hovertext": "the model", "hoverinfo": "text"}


def _mark(size: int, symbol: str = "x") -> dict[str, object]:
    return {"size": size, "color": PALETTE[1], "symbol": symbol, "line": {"width": 1, "color": "white"}}


def _ends(size: int) -> dict[str, object]:
    """The start hollow, the end full."""
    return {"size": size, "color": ["white", PALETTE[1]], "line": {"width": 2, "color": PALETTE[1]}}


def _wrapped(sentence: str, width: int = 110) -> str:
    """A long sentence over several lines; plotly does not break titles."""
    lines = [""]
    for word in sentence.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "<br>".join(line.strip() for line in lines)
