"""The loss over a plane through a point, as contours and as a surface. Loaded only by `.plot()`: plotly is slow."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thalweg.records.landscape import Landscape
from thalweg.reports.figures import PALETTE

#: Even steps of lightness, told apart in grey and by every kind of colour blindness.
_SCALE = "Cividis"
_HOVER = "loss %{customdata:.4g}<br>at %{x:.3g}, %{y:.3g}<extra></extra>"


def figure(landscape: Landscape) -> go.Figure:
    """Contours on the left, the surface on the right, the point in both.

    Raises:
        ValueError: the landscape holds no plane.
    """
    plane = landscape.plane
    if plane is None:
        raise ValueError("no picture was taken of this point: ask for landscape(..., picture=True)")
    losses = np.array(plane.loss, dtype=np.float64)
    losses[~np.isfinite(losses)] = np.nan
    is_log = _needs_log(losses)
    shared = {
        "x": plane.x,
        "y": plane.y,
        "z": np.log10(losses) if is_log else losses,
        "customdata": losses,
        "colorscale": _SCALE,
        "hovertemplate": _HOVER,
    }
    height = math.log10(landscape.loss) if is_log else landscape.loss
    unit = "log₁₀ loss" if is_log else "loss"
    point = {"x": [0], "y": [0], "mode": "markers", "hovertext": "the model", "hoverinfo": "text"}
    result = make_subplots(rows=1, cols=2, specs=[[{"type": "xy"}, {"type": "scene"}]], horizontal_spacing=0.14)
    result.add_trace(go.Contour(**shared, ncontours=24, colorbar={"title": unit, "x": 0.44, "thickness": 12}), 1, 1)
    result.add_trace(go.Scatter(**point, marker=_mark(12)), 1, 1)
    result.add_trace(go.Surface(**shared, showscale=False), 1, 2)
    result.add_trace(go.Scatter3d(**point, z=[height], marker=_mark(7, "circle")), 1, 2)
    result.update_xaxes(title_text=plane.x_label, row=1, col=1)
    result.update_yaxes(title_text=plane.y_label, row=1, col=1)
    short = [label.partition(",")[0] for label in (plane.x_label, plane.y_label)]  # slanted text has little room
    result.update_scenes(xaxis_title=short[0], yaxis_title=short[1], zaxis_title=unit)
    result.update_layout(
        title={"text": _wrapped(landscape.sentence), "font": {"size": 14}},
        template="plotly_white",
        height=560,
        margin={"t": 90, "r": 20, "b": 60, "l": 70},
        showlegend=False,
    )
    return result


def _needs_log(losses: npt.NDArray[np.float64]) -> bool:
    """Whether the losses span more than two decades."""
    if np.isnan(losses).all():
        return False
    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    return low > 0 and high > 100 * low


def _mark(size: int, symbol: str = "x") -> dict[str, object]:
    return {"size": size, "color": PALETTE[1], "symbol": symbol, "line": {"width": 1, "color": "white"}}


def _wrapped(sentence: str, width: int = 110) -> str:
    """A long sentence over several lines; plotly does not break titles."""
    lines = [""]
    for word in sentence.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} "
    return "<br>".join(line.strip() for line in lines)
