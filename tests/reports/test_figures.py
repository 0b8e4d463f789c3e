from __future__ import annotations

import made_up

from thalweg.reports.chart import Chart, Line, Mark, charts
from thalweg.reports.figures import figure


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
