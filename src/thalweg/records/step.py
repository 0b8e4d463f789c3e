"""What one step reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: The unit of every series that a run may record; metrics and layers add their own names.
UNITS: dict[str, str] = {
    "loss": "mean over the batches since the last report, in the loss's own unit",
    "learning_rate": "of the first parameter group",
    "gradient_norm": "Euclidean, all trainable parameters, before clipping",
    "noise_scale": "examples: the batch at which noise and gradient weigh the same",
    "loss_spread": "standard deviation of the losses since the last report, in the loss's own unit",
    "descent_ratio": "fall of the batch's loss by the update, as a share of what its gradient promised",
    "update_cosine": "between an update and the one before, from -1 to 1",
    "output_spread": "standard deviation over the examples of a batch, mean over outputs, of the output",
    "output_low": "smallest output of the batch",
    "output_high": "largest output of the batch",
    "prediction_share": "of the class that is predicted most, among the examples of the batch",
    "clip_factor": "norm of the gradient after clipping over that before, 0 to 1",
    "stale_gradient": "1 where the gradient of the last update was still there when the next one came",
    "trained_in_eval": "1 where the model learned in evaluation mode though it has layers that differ by it",
    "epoch_loss": "mean over the updates of one epoch, in the loss's own unit",
    "validation_loss": "mean over the validation set, in the loss's own unit",
}

#: Series of reported steps, with those by layer ("gradient_norm/0"); all others come from evaluations.
REPORTED = tuple(name for name in UNITS if name not in ("epoch_loss", "validation_loss"))


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One reported step, or one evaluation made after a step.

    `step` counts updates made so far, `epoch` passes over the training data (fractional inside one), `seconds` is
    wall-clock time in training (the one field that two identical runs do not share), `values` maps a series name
    (see `UNITS`) to its number.
    """

    step: int
    epoch: float
    seconds: float
    values: Mapping[str, float]
