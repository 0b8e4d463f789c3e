from __future__ import annotations

import made_up
import numpy as np
import pytest

from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord
from thalweg.reports.chart import LIMIT, Line, charts, needs_log, smooth, thin


def told(name: str, values: list[float]) -> History:
    history = History()
    for step, value in enumerate(values, start=1):
        history.append(StepRecord(step, step / 10, 0.1 * step, {name: value}))
    return history


def test_a_run_has_its_charts_in_order() -> None:
    drawn = charts(made_up.history(), made_up.record())
    assert [chart.title for chart in drawn] == ["Loss", "Accuracy", "Learning rate", "Gradient norm"]
    assert [line.name for line in drawn[0].lines] == ["training", "training", "validation"]
    assert [chart.percent for chart in drawn] == [False, True, False, False]
    assert [chart.log_y for chart in drawn] == [True, False, False, True]


def test_thinning_keeps_spikes_both_ways_and_the_ends() -> None:
    x = np.arange(100_000.0)
    y = np.ones_like(x)
    y[31_337], y[77_777] = 50.0, -50.0
    thinned_x, thinned_y = thin(x, y)
    assert len(thinned_x) <= LIMIT
    assert thinned_y[thinned_x == 31_337].tolist() == [50.0]
    assert thinned_y[thinned_x == 77_777].tolist() == [-50.0]
    assert (thinned_x[0], thinned_x[-1]) == (0.0, 99_999.0)
    assert (np.diff(thinned_x) > 0).all()


def test_thinning_keeps_a_lone_gap() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x)
    y[5_000] = np.nan
    thinned_x, thinned_y = thin(x, y)
    assert len(thinned_x) <= LIMIT
    assert thinned_x[np.isnan(thinned_y)].tolist() == [5_000.0]


def test_a_short_series_is_left_as_it_is() -> None:
    x = np.arange(LIMIT, dtype=np.float64)
    assert thin(x, x)[0] is x


def test_smoothing_follows_the_course_and_not_a_spike() -> None:
    x = np.arange(600.0)
    course = 1 / (1 + x / 100)
    noisy = course * np.exp(0.2 * np.random.default_rng(0).standard_normal(600))
    noisy[300] = 1e20
    places, smoothed = smooth(x, noisy)
    assert np.abs(smoothed / course[places.astype(int)] - 1).max() < 0.35
    assert np.abs(np.diff(smoothed)).mean() < 0.5 * np.abs(np.diff(noisy[noisy < 10])).mean()


def test_smoothing_leaves_gaps_open() -> None:
    y = np.ones(100)
    y[40:60] = np.nan
    _, smoothed = smooth(np.arange(100.0), y)
    assert np.isnan(smoothed[40:60]).all()
    assert np.isfinite(smoothed[:40]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0.1, 1.0), False),
        ((0.03, 1.0), True),
        ((0.0, 1.0), False),
        ((-0.001, 1.0), False),
        ((float("nan"), 0.001, 1.0), True),
        ((float("nan"),), False),
        ((), False),
    ],
)
def test_log_scale_where_positive_values_span_decades(values: tuple[float, ...], expected: bool) -> None:
    assert needs_log((Line("a", tuple(range(len(values))), values),)) is expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_what_is_not_finite_is_a_gap_with_a_mark(bad: float) -> None:
    (chart,) = charts(told("loss", [3.0, 2.0, bad, bad, 1.5, bad]))
    assert [value for value in chart.lines[0].y if value == value] == [3.0, 2.0, 1.5]
    assert len(chart.lines[0].y) == 6
    assert [(mark.x, mark.words, mark.problem) for mark in chart.marks] == [
        (3.0, "loss not finite", True),
        (6.0, "loss not finite", True),
    ]


def test_nothing_recorded_is_no_chart() -> None:
    assert charts(History()) == []
    assert charts(History(), RunRecord("empty")) == []


def test_one_point_is_a_chart() -> None:
    (chart,) = charts(told("loss", [2.0]))
    assert chart.lines[0].y == (2.0,)
    assert not chart.log_y


def test_the_axis_counts_epochs_where_there_are_two() -> None:
    record = RunRecord("a", decided={"steps_per_epoch": 10})
    (long,) = charts(told("loss", [1.0] * 20), record)
    (short,) = charts(told("loss", [1.0] * 19), record)
    assert (long.x_label, long.lines[0].x[-1]) == ("epoch", 2.0)
    assert (short.x_label, short.lines[0].x[-1]) == ("step", 19.0)


def test_marks_name_the_best_step_and_what_went_wrong() -> None:
    loss = charts(made_up.history(), made_up.record())[0]
    assert [(round(mark.x, 2), mark.words) for mark in loss.marks] == [
        (13.44, "oscillating loss"),
        (13.78, "clip gradient"),
        (38.0, "best"),
    ]


def test_a_note_is_no_mark() -> None:
    history = told("loss", [1.0, 2.0])
    history.found(Finding("plateau", "note", 1, "Flat."), 1)
    assert charts(history)[0].marks == ()


def test_signals_of_layers_are_no_metrics() -> None:
    history = told("loss", [1.0])
    history.append(StepRecord(2, 0.2, 0.2, {"dead_units/layer1": 0.5}))
    history.evaluate(StepRecord(2, 0.2, 0.2, {"accuracy": 0.5, "validation_mae": 0.1}))
    history.append(StepRecord(3, 0.3, 0.3, {"validation_gradient_norm/0": 0.5}))
    assert [chart.title for chart in charts(history)] == ["Loss", "Accuracy", "Mae"]
    record = RunRecord("a", metrics={"accuracy": 0.5, "dead_units/layer1": 0.5})
    assert [chart.title for chart in charts(history, record)] == ["Loss", "Accuracy", "Mae"]


def test_steps_out_of_order_are_drawn_in_order() -> None:
    history = History()
    for step in (2, 1):
        history.append(StepRecord(step, 0.0, 0.0, {"loss": float(step)}))
    assert charts(history)[0].lines[0].x == (1.0, 2.0)
