"""What facts alone say: each code by facts written by hand, beside sound ones that say nothing above a note."""

from __future__ import annotations

from typing import Any

import pytest

from thalweg.diagnosis import before
from thalweg.records.finding import Finding
from thalweg.records.history import History

LAYERS = [
    {"name": name, "kind": "Linear", "parameters": 100, "trainable": True, "bias": True} for name in ("0", "2", "4")
]
SOUND: dict[str, Any] = {
    "loss": "cross_entropy", "task": "classification", "layers": LAYERS, "output_function": "none", "output_units": 3,
    "output_low": -0.4, "output_high": 0.5, "output_row_sum_error": 1.1, "initial_loss": 1.2,
    "expected_initial_loss": 1.0986, "input_is_integer": False, "input_mean": 0.1, "input_std": 1.0, "num_features": 4,
    "largest_feature_std": 1.2, "median_feature_std": 1.0, "smallest_feature_std": 0.01, "largest_offset": 0.5,
    "num_classes": 3, "largest_class_share": 0.4, "smallest_class_share": 0.3, "shared_with_validation": 0.01,
    "repeated_examples": 0.0, "symmetric_layers": [], "unreached_parameters": [], "frozen_parameters": [],
    "modules_in_eval": [],
}  # fmt: skip
REGRESSION: dict[str, Any] = {
    "loss": "mse", "task": "regression", "output_units": 1, "target_mean": 0.1, "target_std": 1.0, "target_low": -3.0,
    "target_max_abs": 3.5, "initial_loss": 1.1, "expected_initial_loss": 1.0,
}  # fmt: skip


def found(**facts: Any) -> list[Finding]:
    history = History()
    history.note(SOUND | facts)
    return before.findings(history)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        REGRESSION,
        {"output_function": "log_softmax"},
        {"loss": "categorical_cross_entropy", "output_function": "softmax", "output_low": 0.1, "output_high": 0.8},
        {"loss": "nll", "output_function": "log_softmax"},
        {"loss": "bce", "output_function": "sigmoid", "output_low": 0.1, "output_high": 0.8},
        REGRESSION | {"output_function": "sigmoid", "target_mean": 0.5, "target_std": 0.2, "target_low": 0.0,
                      "target_max_abs": 1.0},
        REGRESSION | {"output_function": "relu", "target_mean": 2.0, "target_low": 0.0, "target_max_abs": 6.0},
        {"symmetric_layers": ["4"]},
        {"input_mean": 120.0, "input_std": 60.0, "layers": [LAYERS[0] | {"kind": "BatchNorm1d"}, *LAYERS[1:]]},
        {"input_is_integer": True, "input_mean": 500.0},
        {"shared_with_validation": 0.5, "repeated_examples": 0.45},
        {"output_function": None, "output_low": None},
    ],
)  # fmt: skip
def test_what_is_sound_is_told_nothing(facts: dict[str, Any]) -> None:
    assert found(**facts) == []


@pytest.mark.parametrize(
    ("facts", "code", "severity"),
    [
        ({"output_function": "softmax"}, "loss_output_mismatch", "warning"),
        ({"output_function": "sigmoid"}, "loss_output_mismatch", "warning"),
        ({"output_function": "tanh"}, "loss_output_mismatch", "warning"),
        ({"output_function": "relu"}, "loss_output_mismatch", "note"),  # it may do no harm
        ({"loss": "binary_cross_entropy", "output_function": "relu"}, "loss_output_mismatch", "warning"),
        ({"output_function": "softmax", "output_units": 1}, "loss_output_mismatch", "warning"),
        ({"loss": "binary_cross_entropy", "output_function": "sigmoid"}, "loss_output_mismatch", "warning"),
        ({"output_low": 0.0, "output_row_sum_error": 1e-7}, "loss_output_mismatch", "warning"),
        ({"loss": "categorical_cross_entropy"}, "loss_output_mismatch", "warning"),
        ({"loss": "nll"}, "loss_output_mismatch", "warning"),
        (REGRESSION | {"output_function": "relu"}, "loss_output_mismatch", "warning"),
        (REGRESSION | {"output_function": "tanh"}, "loss_output_mismatch", "warning"),
        ({"input_mean": 100.0, "input_std": 60.0}, "unscaled_inputs", "note"),
        ({"input_mean": 0.0, "input_std": 1e-4}, "unscaled_inputs", "note"),
        ({"input_mean": 0.0, "input_std": 0.05}, "unscaled_inputs", "note"),
        ({"largest_feature_std": 1000.0, "largest_feature": 2}, "unscaled_inputs", "note"),
        ({"largest_offset": 50.0}, "unscaled_inputs", "note"),
        (REGRESSION | {"target_std": 1e4}, "unscaled_targets", "note"),
        (REGRESSION | {"target_std": 20.0}, "unscaled_targets", "note"),
        (REGRESSION | {"target_mean": 2000.0}, "unscaled_targets", "note"),
        ({"num_classes": 2, "largest_class_share": 0.95, "smallest_class_share": 0.05}, "class_imbalance", "note"),
        ({"shared_with_validation": 0.4}, "data_leak", "warning"),
        ({"symmetric_layers": ["0", "4"]}, "bad_initialization", "warning"),
        ({"initial_loss": 40.0}, "bad_initialization", "note"),
        ({"unreached_parameters": ["2.weight", "2.bias"]}, "frozen_parameters", "warning"),
        ({"frozen_parameters": ["0.weight"]}, "frozen_parameters", "note"),
        ({"modules_in_eval": ["1"]}, "wrong_mode", "note"),
    ],
)
def test_each_fault_is_named_once_and_alone(facts: dict[str, Any], code: str, severity: str) -> None:
    told = found(**facts)
    assert [(finding.code, finding.severity) for finding in told] == [(code, severity)]
    assert told[0].sentence.endswith(".")
    assert told[0].advice.endswith(".")


def test_letters_of_a_text_may_be_rare_but_not_one_of_them_nearly_all() -> None:
    letters = {"num_classes": 66, "largest_class_share": 0.15, "smallest_class_share": 4e-5}
    assert [finding.code for finding in found(**letters)] == ["class_imbalance"]
    assert found(**letters, labels_in_sequence=128) == []
    background = {**letters, "largest_class_share": 0.9, "labels_in_sequence": 128}
    assert [finding.code for finding in found(**background)] == ["class_imbalance"]


def test_a_history_without_facts_is_told_nothing() -> None:
    assert before.findings(History()) == []
