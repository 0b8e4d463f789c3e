"""The verdict on hand-written series, with noise drawn many times: it must hold for nearly all draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from thalweg.diagnosis.convergence import WINDOW, judge
from thalweg.records.history import History
from thalweg.records.step import StepRecord

Curve = Callable[[np.ndarray], np.ndarray]


def history(validation: np.ndarray, training: np.ndarray | None = None) -> History:
    made = History()
    training = validation if training is None else training
    for epoch, (v, t) in enumerate(zip(validation, training, strict=True), 1):
        made.append(StepRecord(50 * epoch, epoch, 0.0, {"loss": float(t), "learning_rate": 0.1}))
        made.evaluate(StepRecord(50 * epoch, epoch, 0.0, {"epoch_loss": float(t), "validation_loss": float(v)}))
    return made


def verdicts(curve: Curve, noise: float, epochs: int, training: Curve | None = None) -> list[str]:
    states = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        time = np.arange(1, epochs + 1)
        v = curve(time) + noise * rng.standard_normal(epochs)
        t = (training or curve)(time) + noise * rng.standard_normal(epochs)
        states.append(judge(history(v, t), epochs).state)
    return states


def share(states: list[str], state: str) -> float:
    return states.count(state) / len(states)


def test_flat_after_a_fall_is_converged() -> None:
    assert share(verdicts(lambda t: 0.3 + 2 * np.exp(-t / 3), 0.001, 60), "converged") >= 0.95
    assert share(verdicts(lambda t: 0.3 + 2 * np.exp(-t / 3), 0.01, 60), "converged") >= 0.7


def test_a_steady_fall_is_improving() -> None:
    assert share(verdicts(lambda t: 2 / np.sqrt(t), 0.01, 30), "improving") >= 0.95


def test_noise_does_not_pass_for_convergence_while_it_hides_a_fall() -> None:
    assert share(verdicts(lambda t: 2.0 - 0.02 * t, 0.05, 30), "converged") <= 0.05


def test_a_rise_off_the_best_while_training_falls_is_overfitting() -> None:
    states = verdicts(
        lambda t: 0.5 + np.exp(-t / 4) + 0.01 * np.maximum(0, t - 15),
        0.01,
        50,
        training=lambda t: 1.5 * np.exp(-t / 10),
    )
    assert share(states, "overfitting") >= 0.95


def test_a_flat_noisy_validation_is_not_overfitting() -> None:
    assert share(verdicts(lambda t: 0.5 + np.exp(-t / 4), 0.02, 60), "overfitting") <= 0.05


def test_never_learned_is_stuck_on_a_plateau() -> None:
    states = verdicts(lambda t: np.full(t.shape, 2.3), 0.001, 30)
    assert share(states, "stuck") >= 0.95
    verdict = judge(history(np.full(30, 2.3)), 30)
    assert verdict.cause == "plateau"


@pytest.mark.parametrize("last", [float("nan"), float("inf"), 1e6])
def test_a_loss_that_runs_away_is_diverged(last: float) -> None:
    values = np.array([2.0, 1.5, 1.2, last])
    verdict = judge(history(values), 4)
    assert verdict.state == "diverged"
    assert verdict.sentence.startswith("Diverged")


def test_a_loss_that_had_run_away_before_the_first_evaluation() -> None:
    made = history(np.full(12, 5e4))
    early = History()
    for step, value in enumerate([2.3, 2.2, 1e3, 2e4, 5e4, 4e4, 5e4]):
        early.append(StepRecord(step + 1, 0.1, 0.0, {"loss": value}))
    for step, value in zip(*made.series("validation_loss"), strict=True):
        early.evaluate(StepRecord(int(step) + 10, 1.0, 0.0, {"validation_loss": float(value), "epoch_loss": 5e4}))
    assert judge(early, 12).state == "diverged"


def test_a_sure_fall_is_no_plateau_however_slow_each_step_of_it() -> None:
    """Full-batch descent: an update an epoch, each lowering the loss by a tenth of a percent, without noise."""
    falling = history(5 * 0.999 ** np.arange(300))
    assert judge(falling, 300).state == "improving"


def test_a_few_updates_say_nothing_however_many_epochs_they_make() -> None:
    made = History()
    for step in range(1, 60):
        made.append(StepRecord(step, step, 0.0, {"loss": 5.0}))
        made.evaluate(StepRecord(step, step, 0.0, {"epoch_loss": 5.0}))
    assert judge(made, 59, "epoch_loss").state == "improving"


def test_too_few_evaluations_say_nothing() -> None:
    verdict = judge(history(np.full(WINDOW - 1, 1.0)), WINDOW - 1)
    assert verdict.state == "improving"
    assert "too early" in verdict.sentence
    assert "before" in judge(History(), 0).sentence


def test_flat_while_the_rate_has_yet_to_come_down_is_not_the_end() -> None:
    flat = history(0.3 + 2 * np.exp(-np.arange(60) / 3))
    assert judge(flat, 60).state == "converged"
    assert judge(flat, 60, annealing=True).state == "improving"


def test_one_evaluation_that_slipped_does_not_end_a_training() -> None:
    """A detector with batch norm: its sixth evaluation was six times the others, and hid from then on that it fell."""
    values = np.array(
        [1.063, 0.866, 0.783, 0.879, 4.374, 0.747, 0.722, 0.743, 0.683, 0.683, 0.692, 0.648, 0.646, 0.690, 0.643]
    )
    calm = np.where(values > 2, 0.81, values)
    for series in (values, calm):
        made = history(series)
        made.append(StepRecord(751, 15, 0.0, {"loss": 0.6, "learning_rate": 0.09}))  # past its peak
        assert judge(made, 15, "validation_loss", annealing=True, remaining=2250).state == "improving"


def test_the_sentence_names_epoch_and_span() -> None:
    sentence = judge(history(0.3 + 2 * np.exp(-np.arange(60) / 3)), 60).sentence
    assert sentence == "Converged at epoch 60: validation loss has been flat within its noise for 40 epochs."
