from __future__ import annotations

import math

import made_up
import numpy as np
import pytest

from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.step import StepRecord
from thalweg.reports.heat import CELLS, COLUMNS, ROWS, HeatMap, edges, heat_maps, middle

NAMES = ["embed", "encoder.0", "encoder.1", "head"]


def told(rows: dict[int, dict[str, float]]) -> History:
    history = History()
    for step, values in rows.items():
        history.append(StepRecord(step, step / 10, 0.1, values))
    return history


def only(history: History, record: RunRecord | None = None) -> HeatMap:
    (shown,) = heat_maps(history, record)
    return shown


def ends(shown: HeatMap) -> tuple[float, float]:
    """The typical value at the output and at the input."""
    return float(np.median(shown.values[0])), float(np.median(shown.values[-1]))


def test_the_output_layer_is_on_top_and_a_vanishing_gradient_fades_downwards() -> None:
    gradient, update = heat_maps(made_up.layers(History(), 0.01, NAMES, range(1, 1001)))
    assert gradient.rows == update.rows == ("head", "encoder.1", "encoder.0", "embed")
    at_output, at_input = ends(gradient)
    assert at_output == pytest.approx(1, rel=0.1)
    assert at_input == pytest.approx(1e-6, rel=0.1)
    assert gradient.span[0] < 1e-5 < 1 < gradient.span[1] < 10
    assert (gradient.band, update.band) == (None, (1e-4, 1e-2))


def test_an_exploding_gradient_grows_downwards() -> None:
    at_output, at_input = ends(heat_maps(made_up.layers(History(), 100, NAMES, range(1, 1001)))[0])
    assert at_input / at_output == pytest.approx(1e6, rel=0.2)


def test_kinds_come_in_order_and_empty_ones_not_at_all() -> None:
    history = told({5: {"saturated_share/0": 0.5, "dead_share/0": 0.1, "activation_mean/0": 3.0, "loss": 1.0}})
    assert [shown.title for shown in heat_maps(history)] == ["Dead units", "Saturated units"]
    assert [shown.span for shown in heat_maps(history)] == [(0.0, 1.0)] * 2
    assert heat_maps(told({1: {"loss": 1.0}})) == []


def test_a_deep_and_long_run_is_pooled() -> None:
    history = History()
    draw = np.random.default_rng(0)
    for step in range(1, 5001):
        norms = draw.lognormal(0, 0.3, 200) * np.logspace(-6, 0, 200)
        history.append(StepRecord(step, 0, 0, {f"gradient_norm/layers.{n}": norm for n, norm in enumerate(norms)}))
    shown = only(history)
    assert len(shown.rows) == 50 <= ROWS
    assert (shown.rows[0], shown.rows[-1]) == ("layers.199 … layers.196", "layers.3 … layers.0")
    assert len(shown.columns) - 1 == CELLS // 50 <= COLUMNS
    assert (shown.columns[0], shown.columns[-1], shown.pooled) == (0, 5000, True)
    assert "median of 4 neighbouring layers" in shown.caption
    assert np.array(shown.values)[-1] == pytest.approx(10 ** (-6 + 6 * 1.5 / 199), rel=0.2)


def test_pooling_takes_the_median_of_the_logarithm_and_keeps_what_is_not_finite() -> None:
    rows = {step: {"gradient_norm/0": 1e-4 if step % 2 else 1.0} for step in range(1, 2401)}
    rows[1201]["gradient_norm/0"] = math.inf
    shown = only(told(rows))
    assert len(shown.columns) == COLUMNS + 1
    assert shown.values[0][0] == pytest.approx(1e-2)
    assert np.flatnonzero(shown.broken[0]).tolist() == [60]
    assert shown.values[0][60] > 0


def test_neighbouring_layers_show_the_largest_share() -> None:
    shares = {f"dead_share/{layer}": 0.9 if layer == 7 else 0.0 for layer in range(128)}
    shown = only(told({1: shares}))
    assert sorted(row[0] for row in shown.values) == [0.0] * 63 + [0.9]
    assert "largest of 2 neighbouring" in shown.caption


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_what_is_not_finite_is_told_from_what_was_not_measured(bad: float) -> None:
    shown = only(told({1: {"gradient_norm/a": 1.0, "gradient_norm/b": bad}, 2: {"gradient_norm/a": 2.0}}))
    assert shown.values[1] == pytest.approx((1.0, 2.0))
    assert np.isnan(shown.values[0]).all()
    assert shown.broken == ((True, False), (False, False))
    assert shown.span[1] < 10


def test_a_zero_stays_a_zero() -> None:
    shown = only(told({1: {"gradient_norm/a": 0.0, "gradient_norm/b": 1.0}}))
    assert shown.values == ((1.0,), (0.0,))
    assert only(told({1: {"gradient_norm/a": 0.0}})).span == (0.1, 1.0)


def test_a_lone_spike_does_not_take_all_colours() -> None:
    rows = {step: {"gradient_norm/0": 1 + step / 100, "gradient_norm/1": 1.0} for step in range(1, 101)}
    rows[50]["gradient_norm/1"] = 1e30
    low, high = only(told(rows)).span
    assert 1 / 3 < low <= 1
    assert 2 <= high < 1e3


def test_steps_out_of_order_and_sampled_ones_leave_no_holes_between() -> None:
    rows = {step: {"gradient_norm/0": float(step)} for step in (40, 10, 20, 30)}
    shown = only(told(rows))
    assert shown.columns == (0, 10, 20, 30, 40)
    assert shown.values[0] == pytest.approx((10, 20, 30, 40))
    assert not shown.pooled


def test_a_densely_reported_start_has_no_more_room_than_its_steps() -> None:
    steps = [*range(1, 20), *range(20, 2001, 10)]
    shown = only(told({step: {"gradient_norm/0": 1.0} for step in steps}))
    widths = np.diff(shown.columns)
    assert len(widths) <= COLUMNS
    assert widths[1:-1].min() >= 10


def test_the_axis_is_that_of_the_charts() -> None:
    history = told({step: {"gradient_norm/0": 1.0} for step in range(1, 21)})
    shown = only(history, RunRecord("a", decided={"steps_per_epoch": 10}))
    assert (shown.x_label, shown.columns[0], shown.columns[-1]) == ("epoch", 0.0, 2.0)


@pytest.mark.parametrize("steps", [[0], [7], [0, 5]])
def test_columns_have_a_width(steps: list[int]) -> None:
    found = edges(np.array(steps, dtype=np.float64), np.arange(len(steps)))
    assert (np.diff(found) > 0).all()
    assert found[-1] == steps[-1]


def test_names_are_cut_and_the_root_has_one() -> None:
    shown = only(
        told({1: {"gradient_norm/": 1.0, "gradient_norm/" + 500 * "ab": 1.0, "gradient_norm/x\x1b[2J/y": 1.0}})
    )
    assert shown.rows[::2] == ("x [2J/y", "model")
    assert len(shown.rows[1]) == 80


def test_the_middle_leaves_out_what_is_missing() -> None:
    infinite = -math.inf
    values = np.array([[infinite, infinite, 1.0, math.nan], [4.0, 1.0, 2.0, 3.0], [infinite, 1.0, math.nan, math.nan]])
    assert middle(values).tolist() == [infinite, 2.5, infinite]
