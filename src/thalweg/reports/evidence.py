"""The picture behind a finding: the curve that shows what its sentence says."""

from __future__ import annotations

from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.reports.chart import Chart, Mark, axis_of, chart_of

#: Code → the series that shows it, the plainest first; "/" stands for that of the layer where it was found.
_SHOWN = {
    "vanishing_gradient": ("gradient_norm/",),
    "exploding_gradient": ("gradient_norm/", "gradient_norm"),
    "dead_units": ("dead_share/",),
    "saturated_units": ("saturated_share/",),
    "bad_initialization": ("weight_norm/", "output_spread", "loss"),
    "frozen_parameters": ("gradient_norm/",),
    "learning_rate_too_high": ("descent_ratio", "loss"),
    "learning_rate_too_low": ("descent_ratio", "loss"),
    "stale_gradients": ("update_cosine", "loss"),
    "optimizer_misconfigured": ("loss",),
    "batch_too_small": ("loss_spread", "loss"),
    "oscillating_loss": ("loss_spread", "loss"),
    "collapsed_output": ("prediction_share", "output_spread"),
    "overfitting": ("loss",),
    "bad_labels": ("loss",),
    "underfitting": ("loss",),
    "diverging_loss": ("loss",),
    "plateau": ("loss",),
    "slow_convergence": ("loss",),
    "non_finite": ("loss",),
}


def chart_behind(finding: Finding, history: History, record: RunRecord | None = None) -> Chart | None:
    """The curve that a finding was seen in, with a mark where it begins; None where it lies in no curve."""
    for name in _SHOWN.get(finding.code, ()):
        series = name + finding.place if name.endswith("/") else name
        if series in history.names:
            axis = axis_of(history, record)
            mark = Mark(axis.at(finding.step), "since here", problem=True)
            return chart_of(history, axis, series, (mark,) if finding.step > 0 else ())
    return None
