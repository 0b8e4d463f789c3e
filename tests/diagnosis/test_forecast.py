"""The forecast on curves whose future is known: its band holds as often as it says, over many draws of the noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from thalweg.diagnosis.forecast import FEWEST, forecast

Curve = Callable[[np.ndarray], np.ndarray]
CURVES: dict[str, Curve] = {
    "power": lambda t: 0.3 + 2 * t**-0.7,
    "slow power": lambda t: 1.5 * t**-0.2,
    "exponential": lambda t: 0.3 + 2 * np.exp(-t / 8),
    "flat": lambda t: np.full(t.shape, 0.7),
    "falls and rises": lambda t: 0.3 + 2 * np.exp(-t / 5) + 0.01 * t,
    "not of the family": lambda t: 0.3 + 1 / (1 + (t / 10) ** 1.3) + 0.2 * np.exp(-t / 3),
}


def covered(curve: Curve, noise: float, seen: int = 40, draws: int = 60) -> float:
    """The share of values to come that lay in the 90 % band, half as far ahead as was seen."""
    inside = []
    times = np.arange(1.0, 1.5 * seen + 1)
    for seed in range(draws):
        values = curve(times) + noise * np.random.default_rng(seed).standard_normal(len(times))
        low, high = forecast(times[:seen], values[:seen], times[seen:]).band(0.9)
        inside.append(np.mean((low <= values[seen:]) & (values[seen:] <= high)))
    return float(np.mean(inside))


@pytest.mark.parametrize("noise", [0.01, 0.03])
@pytest.mark.parametrize("name", CURVES)
def test_the_band_holds_as_often_as_it_says(name: str, noise: float) -> None:
    assert covered(CURVES[name], noise) >= 0.85


def test_the_band_is_no_wider_than_noise_and_doubt() -> None:
    times = np.arange(1.0, 41)
    values = CURVES["power"](times) + 0.01 * np.random.default_rng(0).standard_normal(40)
    low, high = forecast(times, values, np.arange(41.0, 61)).band(0.9)
    assert (high - low).max() < 20 * 0.01


def test_a_fall_is_gone_on_with_and_a_floor_is_seen() -> None:
    times = np.arange(1.0, 41)
    slow = forecast(times, CURVES["slow power"](times), np.array([80.0]))
    assert slow.gain == pytest.approx(1.5 * 40**-0.2 - 1.5 * 80**-0.2, rel=0.2)
    floor = forecast(times, CURVES["exponential"](times), np.array([80.0]))
    assert floor.gain < 0.02


def test_a_rise_is_expected_to_go_on() -> None:
    times = np.arange(1.0, 41)
    found = forecast(times, CURVES["falls and rises"](times), np.array([60.0]))
    assert found.ends_above(found.level + 0.1) > 0.9
    assert found.gain < 0.02


def test_an_outlier_moves_it_little() -> None:
    times, rng = np.arange(1.0, 41), np.random.default_rng(0)
    values = CURVES["exponential"](times) + 0.01 * rng.standard_normal(40)
    sound = forecast(times, values, np.array([60.0])).level
    values[-3] += 1.0
    assert forecast(times, values, np.array([60.0])).level == pytest.approx(sound, abs=0.02)


def test_noise_that_shrinks_with_the_rate_is_told() -> None:
    times, rng = np.arange(1.0, 61), np.random.default_rng(0)
    spread = np.concatenate([np.linspace(1, 0.1, 40), np.full(20, 0.1)])
    values = 0.5 + 0.1 * spread * rng.standard_normal(60)
    low, high = forecast(times[:40], values[:40], times[40:], spread).band(0.9)
    assert np.mean((low <= values[40:]) & (values[40:] <= high)) > 0.7
    assert (high - low).max() < 0.15


def test_the_same_numbers_give_the_same_draws() -> None:
    times = np.arange(1.0, FEWEST + 1)
    values = np.array([3.0, 2.0, 1.6, 1.5, 1.4, 1.45])
    first, second = (forecast(times, values, np.array([9.0, 12.0])) for _ in range(2))
    assert np.array_equal(first.values, second.values)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30])
def test_any_scale_is_taken(value: float) -> None:
    times = np.arange(1.0, 21)
    found = forecast(times, np.full(20, value), np.array([30.0]))
    assert found.level == pytest.approx(value, rel=1e-6, abs=1e-100)
    assert np.isfinite(found.values).all()
