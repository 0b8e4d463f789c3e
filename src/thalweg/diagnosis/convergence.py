"""Where a training stands: a statement about its loss and the noise in it, from the numbers alone.

The loss is forecast to the end of what was planned (`diagnosis.forecast`), as many updates again where nothing was. Its
clock is the sum of the learning rates, since a rule that takes half the steps gets half as far; its noise is taken to
grow with the root of the rate. Further training is worth it while one of the coming values will probably be the best by
1 %: less probable than `UNLIKELY`, or nothing but the luck of the noise (`CHANCE`), and the loss is flat.

Nothing is called flat before a third again of the time has passed that it took to come within 1 % of the best: so long
it costs little to see. A validation loss that has risen off its best by more than its own noise while the training loss
falls is overfitting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from thalweg.diagnosis import curvature
from thalweg.diagnosis.forecast import Forecast, forecast
from thalweg.records.history import History
from thalweg.records.verdict import Verdict

#: Fewer evaluations than this do not show a trend against noise.
WINDOW = 8
#: Nor do fewer updates: a rule warms up over the first ones, and in full-batch descent each is an evaluation.
UPDATES = 100
#: What further training must still be able to gain, as a share of the best so far.
WORTHWHILE = 0.01
#: Probabilities below which a better value is not waited for; and a lower level, where only luck would give a better
#: value. Of the pairs tried on the runs for tuning (`benchmarks/convergence`) the one that stops most of them in time.
UNLIKELY = 0.3
CHANCE = 0.1
#: Time that is given after the best was reached, in units of the time until then.
WAIT = 1.3
#: A rise counts as overfitting from this many standard errors on, and this share of the level.
SURE = 3.0
RISE = 0.02
#: A loss this many times what it was at the start has diverged.
EXPLODED = 10.0
#: A judgement is passed whenever so large a part of the evaluations is new.
LOOKS = 20
#: Values that are looked at, at most, back and ahead; of more, some are left out at even distances.
BACK, AHEAD = 200, 60
#: Share of the peak at which a rate that is to come down has not begun to.
PEAK = 0.99

#: A loss above zero that is this many times both of its neighbours is a slip of one evaluation, no noise: where batch
#: norm's running statistics lag behind weights that move fast, a single epoch can be off by any factor.
SPIKE = 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through values: `slope` a value, its standard error, `noise` about the line."""

    level: float
    slope: float
    slope_error: float
    noise: float


def trend(values: Floats) -> Trend:
    """Fit values `[evaluations]` by least squares."""
    count = len(values)
    time = np.arange(count) - (count - 1) / 2
    slope = float(time @ values / (time @ time))
    residuals = values - values.mean() - slope * time
    noise = math.sqrt(float(residuals @ residuals) / max(1, count - 2))
    level = float(values.mean() + slope * time[-1])
    return Trend(level, slope, noise / math.sqrt(float(time @ time)), noise)


@dataclass(frozen=True, slots=True)
class Curve:
    """The loss that is judged: its evaluations, and what is said of those to come."""

    what: str
    """What it is called."""
    steps: npt.NDArray[np.int64]
    values: Floats
    ahead: int
    """Evaluations to come."""
    future: Forecast
    is_over: bool
    """Whether nothing more is planned."""

    @property
    def best(self) -> float:
        """The lowest so far."""
        return float(self.values.min())

    @property
    def reached(self) -> int:
        """The first evaluation, from 0, that came within 1 % of the best."""
        return int(np.argmax(self.values <= self.best + WORTHWHILE * abs(self.best)))

    @property
    def settled(self) -> int:
        """The first evaluation, from 0, that was as low as the level within its noise."""
        level = self.future.level
        return int(np.argmax(self.values <= level + max(WORTHWHILE * abs(level), 2 * self.future.noise)))

    @property
    def has_waited(self) -> bool:
        """Whether the next look would come later than a third again of the time to the best, or nothing is to come."""
        if self.is_over:
            return True
        count = len(self.values)
        following = self.steps[-1] + (self.steps[-1] - self.steps[count - 1 - max(1, count // LOOKS)])
        return bool(following > WAIT * self.steps[self.reached])

    @property
    def better(self) -> float:
        """The probability that one of the values to come is the best by 1 %."""
        return self.future.falls_below(self.best - WORTHWHILE * abs(self.best))

    @property
    def is_flat(self) -> bool:
        """Whether going on is not worth it."""
        future = self.future
        least = max(WORTHWHILE * abs(future.level), future.noise)
        return self.better < UNLIKELY or future.falls_by(least) < (0.5 if self.is_over else CHANCE)

    @property
    def evidence(self) -> dict[str, float]:
        """The numbers behind a verdict."""
        return {
            "best": self.best,
            "level": self.future.level,
            "noise": self.future.noise,
            "gain": self.future.gain,
            "chance_of_better": self.better,
        }


def is_due(count: int) -> bool:
    """Whether to judge after so many evaluations: each, from forty on every second one, and so on.

    >>> [count for count in range(50) if is_due(count)][-6:]
    [39, 40, 42, 44, 46, 48]
    """
    return count >= WINDOW and count % max(1, count // LOOKS) == 0


def judge(
    history: History,
    epochs: float,
    watched: str | None = None,
    annealing: bool = False,
    remaining: float | None = None,
    earlier: int = 0,
) -> Verdict:
    """Say where a training stands.

    `epochs` [passes] have been trained, `watched` is the series judged (the validation loss where there is one, else
    the training loss by epochs); the rate comes down to nothing over the updates to come where it is `annealing`, of
    which `remaining` are planned, by default as many as were made. While such a rate is at its peak, nothing is flat.
    Where `history` is the later part of one, so many evaluations were made `earlier`.
    """
    watched = watched or ("validation_loss" if "validation_loss" in history.names else "epoch_loss")
    what = "training loss" if watched == "epoch_loss" else watched.replace("_", " ")
    if not all(math.isfinite(history.last(name) or 0.0) for name in ("loss", watched)):
        return Verdict("diverged", f"Diverged at epoch {_shown(epochs)}: the loss is no longer a finite number.")
    if watched not in history.names and earlier:
        return Verdict("improving", f"Stopped at epoch {_shown(epochs)}, before {what} was measured after a repair.")
    if watched not in history.names:
        return Verdict("improving", f"Stopped at epoch {_shown(epochs)}, before {what} was measured once.")
    steps, values = history.series(watched)
    if (times := _growth(values, history)) > EXPLODED:
        return Verdict("diverged", f"Diverged: the loss is {times:.3g} times what it was at the start.")
    if len(values) < WINDOW or steps[-1] < UPDATES or not np.isfinite(values).all():
        return Verdict("improving", f"Stopped at epoch {_shown(epochs)}, too early to say where {what} is heading.")
    curve = _curve(history, watched, what, remaining, annealing)
    found = curvature.look(history, int(steps[-1]))
    if found is not None and found.cause is not None:
        told = curve.evidence | curvature.evidence(found)
        return Verdict("stuck", curvature.sentence(found), cause=found.cause, evidence=told)
    if watched == "validation_loss" and _overfits(curve, history):
        best = earlier + int(values.argmin()) + 1
        return Verdict(
            "overfitting",
            f"Overfitting since epoch {best}: validation loss rises from its best there while training loss falls.",
            evidence=curve.evidence,
        )
    if curve.is_flat and curve.has_waited and not (annealing and _at_peak(history)):
        return _flat(curve, history, epochs)
    return _improving(curve, epochs)


def _curve(history: History, watched: str, what: str, remaining: float | None, annealing: bool) -> Curve:
    """The loss and its forecast."""
    steps, values = history.series(watched)
    every = max(1, len(values) // BACK)
    chosen = np.arange(len(values) - 1, -1, -every)[::-1]
    rates = _rates(history, steps)
    clock = np.cumsum(rates * np.diff(steps, prepend=0))
    spacing = float(steps[-1] - steps[0]) / (len(steps) - 1)
    left = float(steps[-1]) if remaining is None else max(remaining, spacing)
    ahead = max(1, round(left / spacing))
    part = np.arange(1, (count := min(AHEAD, ahead)) + 1) / count
    falling = 1 - part if annealing else np.ones(count)
    passed = part - part**2 / 2 if annealing else part  # what the sum of the rates grows by
    noise = np.sqrt(np.maximum(0.01, np.concatenate([rates[chosen] / rates[-1], falling])))
    future = forecast(clock[chosen], _without_spikes(values)[chosen], clock[-1] + rates[-1] * left * passed, noise)
    return Curve(what, steps, values, ahead, future, remaining is None)


def _without_spikes(values: Floats) -> Floats:
    """Each spike lowered to the larger of its neighbours, so that it does not pass for noise.

    >>> _without_spikes(np.array([3.0, 2.0, 9.0, 1.5, 1.0])).tolist()
    [3.0, 2.0, 2.0, 1.5, 1.0]
    """
    lowered = values.copy()
    around = np.maximum(values[:-2], values[2:])
    lowered[1:-1] = np.where((around > 0) & (values[1:-1] > SPIKE * around), around, values[1:-1])
    return lowered


def _rates(history: History, steps: npt.NDArray[np.int64]) -> Floats:
    """The learning rate at each evaluation; 1 where none was told, and never nothing."""
    if "learning_rate" not in history.names:
        return np.ones(len(steps))
    told, rates = history.series("learning_rate")
    rates = np.interp(steps, told, rates)
    return np.maximum(rates, max(1e-3 * rates.max(), 1e-300))


def _at_peak(history: History) -> bool:
    """Whether a rate that is to come down has yet to begin."""
    if "learning_rate" not in history.names:
        return True
    rates = history.series("learning_rate")[1]
    return bool(rates[-1] >= PEAK * rates.max())


def _flat(curve: Curve, history: History, epochs: float) -> Verdict:
    """Flat: where it should be, or where it began."""
    began = max(float(curve.values[0]), _first(history, "loss"))
    learned = began - curve.future.level
    if learned < max(SURE * curve.future.noise, WORTHWHILE * abs(began)):
        sentence = f"Stuck: after {_shown(epochs)} epochs {curve.what} is where it began."
        return Verdict("stuck", sentence, cause="plateau", evidence=curve.evidence)
    flat = len(curve.values) - curve.settled
    return Verdict(
        "converged",
        f"Converged at epoch {_shown(epochs)}: {curve.what} has been flat within its noise for {_epochs(flat)}.",
        evidence=curve.evidence,
    )


def _improving(curve: Curve, epochs: float) -> Verdict:
    gained = f"{curve.what} by about {curve.future.gain:.2g}"
    more = f"{curve.ahead} more {'epoch' if curve.ahead == 1 else 'epochs'} would lower {gained}"
    return Verdict("improving", f"Still improving at epoch {_shown(epochs)}: {more}.", evidence=curve.evidence)


def _overfits(curve: Curve, history: History) -> bool:
    """A rise since the best that its noise does not explain, while the training loss still falls."""
    values = curve.values
    training = history.series("epoch_loss")[1] if "epoch_loss" in history.names else values[:0]
    if len(training) >= 2 and training[-1] > training[len(training) // 2] * (1 + RISE):
        return False
    after = values[int(values.argmin()) :]
    least = RISE * abs(curve.best)
    if len(after) >= WINDOW:
        rise = trend(after)
        if rise.slope >= SURE * rise.slope_error and rise.level - curve.best >= max(least, SURE * rise.noise):
            return True
    rising = curve.future.ends_above(curve.future.level + max(least, curve.future.noise))
    return rising > 1 - CHANCE and curve.is_flat and curve.has_waited


def _growth(values: Floats, history: History) -> float:
    """How many times its start the loss is: of the watched one, or of training's (a few reports, against luck)."""
    series = [values]
    if "loss" in history.names and len(training := history.series("loss")[1]) >= 6:
        series.append(np.array([training[:3].max(), training[-3:].min()]))
    return max(float(s[-1] / s[0]) if s[0] > 0 else 0.0 for s in series)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _shown(epochs: float) -> str:
    return f"{epochs:.0f}" if abs(epochs - round(epochs)) < 1e-9 else f"{epochs:.2g}"


def _first(history: History, name: str) -> float:
    """The first value of a series; below all others where there is none."""
    return float(history.series(name)[1][0]) if name in history.names else -math.inf
