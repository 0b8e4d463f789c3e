"""Where a training stands: a statement about its loss and the noise in it, from the numbers alone.

The newest third of the evaluations (at least `WINDOW`) is fitted by a straight line. Its slope with standard error says
what as many epochs again would gain: converged is a gain below 1 % of the level, or one that the noise would hide. A
validation loss that has risen off its best by more than its own noise while the training loss falls is overfitting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thalweg.records.history import History
from thalweg.records.verdict import Verdict

#: Fewer evaluations than this do not show a trend against noise.
WINDOW = 8
#: Nor do fewer updates: a rule warms up over the first ones, and in full-batch descent each is an evaluation.
UPDATES = 200
#: What further training must still be able to gain, as a share of the loss's level.
WORTHWHILE = 0.01
#: A rise counts as overfitting from this many standard errors on, and this share of the level.
SURE = 3.0
RISE = 0.02
#: A loss this many times what it was at the start has diverged.
EXPLODED = 10.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through the newest values: `slope` a value, its standard error, `noise` about the line."""

    level: float
    slope: float
    slope_error: float
    noise: float
    count: int

    @property
    def gain(self) -> float:
        """By how much as many values again would lower the level, if the line went on."""
        return -self.slope * self.count

    def is_flat(self, so_far: int) -> bool:
        """Whether going on is not worth it, after `so_far` evaluations.

        A fall that is sure is held against the whole training: as many evaluations again must gain next to nothing. One
        that may be chance is flat where it would gain a small share of the level, or less than the noise.
        """
        if self.slope < -SURE * self.slope_error:
            return -self.slope * so_far < WORTHWHILE * abs(self.level)
        return self.gain < max(WORTHWHILE * abs(self.level), self.noise)


def trend(values: Floats) -> Trend:
    """Fit the newest values `[evaluations]` by least squares."""
    count = len(values)
    time = np.arange(count) - (count - 1) / 2
    slope = float(time @ values / (time @ time))
    residuals = values - values.mean() - slope * time
    noise = math.sqrt(float(residuals @ residuals) / max(1, count - 2))
    level = float(values.mean() + slope * time[-1])
    return Trend(level, slope, noise / math.sqrt(float(time @ time)), noise, count)


def judge(history: History, epochs: float, watched: str | None = None, annealing: bool = False) -> Verdict:
    """Say where a training stands.

    `epochs` [passes] have been trained, `watched` is the series judged (the validation loss where there is one, else
    the training loss by epochs), `annealing` says that the learning rate has yet to come down, which ends
    most plateaus.
    """
    watched = watched or ("validation_loss" if "validation_loss" in history.names else "epoch_loss")
    what = "training loss" if watched == "epoch_loss" else watched.replace("_", " ")
    if not all(math.isfinite(history.last(name) or 0.0) for name in ("loss", watched)):
        return Verdict("diverged", f"Diverged at epoch {_shown(epochs)}: the loss is no longer a finite number.")
    if watched not in history.names:
        return Verdict("improving", f"Stopped at epoch {_shown(epochs)}, before {what} was measured once.")
    values = history.series(watched)[1]
    if (times := _growth(values, history)) > EXPLODED:
        return Verdict("diverged", f"Diverged: the loss is {times:.3g} times what it was at the start.")
    if len(values) < WINDOW or history.series(watched)[0][-1] < UPDATES:
        return Verdict("improving", f"Stopped at epoch {_shown(epochs)}, too early to say where {what} is heading.")
    now = trend(values[-max(WINDOW, len(values) // 3) :])
    evidence = {"level": now.level, "slope": now.slope, "noise": now.noise, "gain": now.gain}
    if watched == "validation_loss" and _overfits(values, history):
        best = int(values.argmin()) + 1
        return Verdict(
            "overfitting",
            f"Overfitting since epoch {best}: validation loss rises from its best there while training loss falls.",
            evidence=evidence,
        )
    if now.is_flat(len(values)) and not annealing:
        return _flat(values, now, what, epochs, evidence)
    gained = f"{now.count} more epochs would lower {what} by about {max(0.0, now.gain):.2g}"
    return Verdict("improving", f"Still improving at epoch {_shown(epochs)}: {gained}.", evidence=evidence)


def _flat(values: Floats, now: Trend, what: str, epochs: float, evidence: dict[str, float]) -> Verdict:
    """Flat: where it should be, or where it began."""
    learned = values[0] - now.level
    if learned < SURE * now.noise or learned < WORTHWHILE * abs(values[0]):
        sentence = f"Stuck: after {_shown(epochs)} epochs {what} is where it was after the first."
        return Verdict("stuck", sentence, cause="plateau", evidence=evidence)
    return Verdict(
        "converged",
        f"Converged at epoch {_shown(epochs)}: {what} has been flat within its noise for {now.count} epochs.",
        evidence=evidence,
    )


def _overfits(values: Floats, history: History) -> bool:
    """A rise since the best that its noise does not explain, while the training loss still falls."""
    best = int(values.argmin())
    after = values[best:]
    if len(after) < WINDOW:
        return False
    rise = trend(after)
    if rise.slope < SURE * rise.slope_error or rise.level - values[best] < max(RISE * values[best], SURE * rise.noise):
        return False
    training = history.series("epoch_loss")[1]
    return len(training) < 2 or training[-1] <= training[len(training) // 2] * (1 + RISE)


def _growth(values: Floats, history: History) -> float:
    """How many times its start the loss is: of the watched one, or of training's (a few reports, against luck)."""
    series = [values]
    if "loss" in history.names and len(training := history.series("loss")[1]) >= 6:
        series.append(np.array([training[:3].max(), training[-3:].min()]))
    return max(float(s[-1] / s[0]) if s[0] > 0 else 0.0 for s in series)


def _shown(epochs: float) -> str:
    return f"{epochs:.0f}" if abs(epochs - round(epochs)) < 1e-9 else f"{epochs:.2g}"
