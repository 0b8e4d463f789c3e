"""What a look at the curvature says beside the curve of the training loss: every cause with its healthy look-alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thalweg.diagnosis import curvature, engine
from thalweg.diagnosis.convergence import judge
from thalweg.records.history import History
from thalweg.records.step import StepRecord
from thalweg.records.verdict import Verdict

FLAT, FALLING = np.full(30, 0.7), np.linspace(0.72, 0.7, 30)
#: A minimum at a loss of 0.7, where the best constant answer gives 1.1 and neighbours 0.6.
MINIMUM: dict[str, Any] = {
    "landscape_kind": "minimum",
    "landscape_step": 1500,
    "landscape_examples": 300,
    "landscape_loss": 0.7,
    "landscape_scale": 2.0,
    "landscape_gradient": 0.01,
    "landscape_gradient_error": 0.05,
    "landscape_symmetric": [],
    "landscape_layers": 2,
    "largest_curvature": 1.0,
    "smallest_curvature": -1e-4,
    "descent": 2e-4,
    "escape": 0.0,
    "flatness": 3.0,
    "neighbour_loss": 0.6,
    "expected_initial_loss": 1.1,
}
SLOPE = MINIMUM | {"landscape_kind": "slope", "landscape_gradient": 0.5, "descent": 0.1}
CASES = {
    "minimum as good as neighbours": (FLAT, MINIMUM, None),
    "minimum of one layer": (FLAT, MINIMUM | {"neighbour_loss": 0.05, "landscape_layers": 1}, None),
    "poor minimum": (FLAT, MINIMUM | {"neighbour_loss": 0.05}, "local_minimum"),
    "poor, of an unknown bound": (FLAT, {k: v for k, v in MINIMUM.items() if k != "neighbour_loss"}, None),
    "lowest curvature leads down": (FLAT, MINIMUM | {"landscape_kind": "saddle", "escape": 0.1}, "saddle_point"),
    "it leads down by next to nothing": (FLAT, MINIMUM | {"landscape_kind": "saddle", "escape": 1e-3}, None),
    "nothing learned, on a saddle": (
        FLAT,
        MINIMUM | {"landscape_kind": "saddle", "escape": 1e-3, "expected_initial_loss": 0.7},
        "saddle_point",
    ),
    "nothing learned, downhill": (
        FLAT,
        MINIMUM | {"landscape_kind": "slope", "descent": 5e-3, "expected_initial_loss": 0.7},
        "slow_convergence",
    ),
    "nothing learned, a layer cut off": (FLAT, MINIMUM | {"expected_initial_loss": 0.7, "cut": True}, "local_minimum"),
    "falling slowly with little left": (FALLING, SLOPE | {"expected_initial_loss": 3.5}, None),
    "nothing learned, no way down": (FLAT, MINIMUM | {"expected_initial_loss": 0.7}, "plateau"),
    "units all alike": (FLAT, MINIMUM | {"landscape_symmetric": ["0"]}, "saddle_point"),
    "no curvature at all": (FLAT, MINIMUM | {"landscape_kind": "plateau", "flatness": 1e-3}, "plateau"),
    "no curvature, and nothing left": (FLAT * 1e-3, MINIMUM | {"flatness": 1e-3, "landscape_loss": 7e-4}, None),
    "downhill, and falling slowly": (FALLING, SLOPE, "slow_convergence"),
    "downhill, and not falling": (FLAT, SLOPE, "noise_floor"),
    "downhill, and falling fast": (np.linspace(2.0, 0.7, 30), SLOPE, None),
    "downhill on short steps, hidden by noise": (FLAT, SLOPE | {"short": True}, "slow_convergence"),
    "downhill by the choice of examples": (FLAT, SLOPE | {"landscape_gradient_error": 0.5}, None),
    "far above neighbours, and hardly downhill on short steps": (
        FLAT,
        SLOPE | {"descent": 7e-3, "neighbour_loss": 0.05, "short": True},
        "slow_convergence",
    ),
    "far above neighbours, and hardly downhill on long steps": (
        FLAT,
        SLOPE | {"descent": 7e-3, "neighbour_loss": 0.05},
        "local_minimum",
    ),
    "hardly downhill": (FLAT, SLOPE | {"descent": 0.01}, None),
}


def history(losses: np.ndarray, facts: dict[str, Any], noise: float = 0.0, seed: int = 0) -> History:
    made, rng = History(), np.random.default_rng(seed)
    made.note(facts)
    for epoch, loss in enumerate(losses + noise * rng.standard_normal(len(losses)), 1):
        values = {"loss": float(loss), "learning_rate": 0.1, "gradient_norm/0": 1.0}
        values["gradient_norm/1"] = 0.0 if "cut" in facts else 1.0
        values["update_ratio/0"] = 1e-6 if "short" in facts else 1e-2
        made.append(StepRecord(50 * epoch, epoch, 0.0, values))
        made.evaluate(StepRecord(50 * epoch, epoch, 0.0, {"epoch_loss": float(loss), "validation_loss": float(loss)}))
    return made


@pytest.mark.parametrize("name", CASES)
def test_the_cause(name: str) -> None:
    losses, facts, cause = CASES[name]
    for seed in range(5):
        found = curvature.look(history(losses, facts, 1e-4 * losses[-1], seed), 1500)
        assert found is not None
        assert found.cause == cause, f"{name}, drawn with seed {seed}"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_it_is_the_verdict_and_a_finding(name: str) -> None:
    losses, facts, cause = CASES[name]
    made = history(losses, facts)
    verdict = judge(made, 30)
    assert (verdict.state, verdict.cause) == ("stuck", cause)
    assert f"{facts['landscape_loss']:.3g}" in verdict.sentence
    assert verdict.evidence["largest_curvature"] == facts["largest_curvature"]
    found = {finding.code: finding for finding in engine.findings(made)}
    assert cause in found
    assert found[cause].advice
    # A loss that could come down faster is a fault only where it has hardly come down.
    is_poor = "nothing learned" in name or "far above" in name
    could_be_faster = cause in ("slow_convergence", "noise_floor") and not is_poor
    assert found[cause].severity == ("note" if could_be_faster else "warning")


def test_a_training_that_has_ended_on_a_slope_far_above_neighbours_was_too_slow() -> None:
    losses, far = np.linspace(0.95, 0.7, 30), SLOPE | {"descent": 0.02, "neighbour_loss": 0.05}
    weak = {"neighbour_agreement": 0.95, "neighbour_chance": 0.3, "num_classes": 3}
    assert "slow_convergence" not in graded(history(losses, far))  # it may yet arrive
    assert graded(history(losses, far | {"ended_at": 1500}))["slow_convergence"] == "note"
    assert graded(history(losses, far | weak | {"ended_at": 1500}))["slow_convergence"] == "warning"
    near = far | {"neighbour_loss": 0.6}
    assert "slow_convergence" not in graded(history(losses, near | {"ended_at": 1500}))


def test_a_loss_that_stays_up_though_batches_show_the_way_down_is_a_rate_that_is_too_high() -> None:
    weak = {"neighbour_agreement": 0.95, "neighbour_chance": 0.3, "num_classes": 3, "ended_at": 1500}
    clear = SLOPE | weak | {"batch_size": 32, "learning_rate": 0.1}  # 32 / 300 (0.5 / 0.05)² = 11
    told = graded(history(FLAT, clear))
    assert told["learning_rate_too_high"] == "warning" and told["noise_floor"] == "warning"
    for hidden in ({"batch_size": 2}, {"landscape_gradient_error": 0.2}):
        assert "learning_rate_too_high" not in graded(history(FLAT, clear | hidden)), hidden


def test_units_that_are_copies_of_others_began_so() -> None:
    copies = MINIMUM | {"landscape_symmetric": ["0"], "expected_initial_loss": 0.7}
    assert graded(history(FLAT, copies))["bad_initialization"] == "warning"
    assert "bad_initialization" not in graded(history(FLAT, copies | {"landscape_step": 400}))  # too long ago
    assert "bad_initialization" not in graded(history(FLAT, copies | {"expected_initial_loss": 3.5}))  # it learns


def graded(made: History) -> dict[str, str]:
    return {finding.code: finding.severity for finding in engine.findings(made)}


def test_a_look_grows_old_and_one_of_an_undone_past_does_not_count() -> None:
    losses, facts, _ = CASES["poor minimum"]
    assert curvature.look(history(losses, facts | {"landscape_step": 800}), 1500) is not None
    assert curvature.look(history(losses, facts | {"landscape_step": 700}), 1500) is None
    assert curvature.look(history(losses, facts | {"landscape_step": 1550}), 1500) is None
    assert curvature.look(history(losses, {}), 1500) is None


def test_when_it_is_asked() -> None:
    stuck, improving = Verdict("stuck", ""), Verdict("improving", "")
    made = history(FLAT, {"expected_initial_loss": 1.1})
    assert curvature.asks(made, stuck, 1500)
    assert curvature.asks(made, improving, 1500)
    assert not curvature.asks(history(np.linspace(3.0, 0.7, 30), {}), improving, 1500)
    assert not curvature.asks(history(FLAT, {"expected_initial_loss": 70.0}), stuck, 1500)
    assert not curvature.asks(made, Verdict("diverged", ""), 1500)
    assert not curvature.asks(made, stuck, 50)
    assert not curvature.asks(history(FLAT[:5], {}), stuck, 250)
    assert not curvature.asks(history(FLAT, MINIMUM), stuck, 1500)
