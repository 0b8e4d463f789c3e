from __future__ import annotations

import made_up
import numpy as np

from thalweg.reports.chart import Chart, Line, Mark, charts
from thalweg.reports.figures import figure
from thalweg.reports.heat import HeatMap, heat_maps


def test_every_chart_has_its_axes_and_curves() -> None:
    drawn = charts(made_up.history(), made_up.record())
    result = figure(drawn, "digits-3")
    assert len(result.data) == sum(len(chart.lines) for chart in drawn)
    assert [result.layout[name].type for name in ("yaxis", "yaxis2", "yaxis4")] == ["log", None, "log"]
    assert result.layout.yaxis2.tickformat == ".0%"
    assert {"Loss", "Accuracy", "best"} <= {note.text for note in result.layout.annotations}


def test_names_are_escaped() -> None:
    chart = Chart("<b>x</b>", "step", (Line("<i>", (0.0, 1.0), (1.0, float("nan"))),), (Mark(0.0, "<a>"),))
    result = figure(chart, "<u>")
    assert result.data[0].name == "&lt;i&gt;"
    assert result.layout.title.text == "&lt;u&gt;"
    assert [note.text for note in result.layout.annotations] == ["&lt;b&gt;x&lt;/b&gt;", "&lt;a&gt;"]
    assert result.data[0].y[1] is None


def test_no_charts_is_an_empty_figure() -> None:
    assert len(figure([]).data) == 0


def test_heat_maps_stand_below_the_charts() -> None:
    history = made_up.layers(made_up.history(), 0.1, ["0", "2"], range(10, 400, 10))
    drawn = [*charts(history, made_up.record())[:1], *heat_maps(history, made_up.record())]
    result = figure(drawn, "digits-3")
    gradient = result.data[3]
    assert (gradient.type, len(result.data)) == ("heatmap", 5)
    assert result.layout.yaxis2.ticktext == ("2", "0")
    assert result.layout.yaxis2.autorange == "reversed"
    assert gradient.z[0].mean() - gradient.z[1].mean() > 0.8
    assert gradient.zmin <= gradient.z.min() <= gradient.z.max() <= gradient.zmax
    assert result.layout.hovermode == "closest"


def test_what_is_not_finite_has_a_colour_of_its_own_in_a_figure() -> None:
    names, nan = ("<b>top</b>", "down"), float("nan")
    shown = HeatMap("Norm", "step", names, (0.0, 1.0, 2.0), ((nan, 0.0), (1.0, 10.0)), ((True, False), (False, False)))
    field, over = figure(shown).data
    assert np.isnan(field.z[0][0])
    assert over.z[0][0] == 1
    assert np.isnan(over.z).sum() == 3
    assert field.z[0][1] == field.zmin
    assert field.text[0][0] == "&lt;b&gt;top&lt;/b&gt;"
