"""What the picture of a search for the learning rate shows, before anyone draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from thalweg.records.learning_rate import LearningRate, Trial
from thalweg.reports.chart import LOG_DECADES
from thalweg.reports.words import listed, rounded

Span = tuple[float, float]
#: Share of the range that is left free at each end of an axis.
_AIR = 0.05


@dataclass(frozen=True, slots=True)
class Rates:
    """The curve, the trials off it, those without a loss, and the spans of both axes; the rates' is logarithmic."""

    curve: tuple[tuple[float, float], ...]
    others: tuple[Trial, ...]
    """With a finite loss and not on the curve: dropped, or with other options."""
    diverged: tuple[Trial, ...]
    x: Span
    y: Span
    log_y: bool

    @classmethod
    def of(cls, found: LearningRate) -> Rates:
        """The picture of a search."""
        finite = [trial for trial in found.trials if trial.state != "diverged" and math.isfinite(trial.loss)]
        on_curve = set(found.curve)
        others = tuple(trial for trial in finite if (trial.learning_rate, trial.loss) not in on_curve)
        diverged = tuple(trial for trial in found.trials if trial.state == "diverged" or not math.isfinite(trial.loss))
        rates = [found.value, *found.interval, *(rate for rate, _ in found.curve)]
        rates += [trial.learning_rate for trial in found.trials]
        losses = [loss for _, loss in found.curve] + [trial.loss for trial in others]
        log_y = bool(losses) and min(losses) > 0 and math.log10(max(losses) / min(losses)) > LOG_DECADES
        return cls(found.curve, others, diverged, _span(rates, log=True), _span(losses, log=log_y), log_y)


def words(trial: Trial) -> str:
    """One trial in a line, for who points at it."""
    options = f", {listed(trial.options)}" if trial.options else ""
    loss = f"loss {rounded(trial.loss, 4)}" if math.isfinite(trial.loss) else "no finite loss"
    reason = f": {trial.reason}" if trial.reason else ""
    return f"trial {trial.number}, rate {rounded(trial.learning_rate, 3)}{options}: {loss}, {trial.state}{reason}"


def _span(values: list[float], *, log: bool) -> Span:
    low, high = min(values, default=1.0), max(values, default=1.0)
    if log:
        factor = (high / low) ** _AIR if high > low else 2.0
        return low / factor, high * factor
    air = _AIR * (high - low) or abs(low) / 2 or 1.0
    return low - air, high + air
