"""What the picture of a search for the learning rate shows, before anyone draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thalweg.records.learning_rate import LearningRate, Trial
from thalweg.reports.chart import LOG_DECADES
from thalweg.reports.words import counted, listed, rounded

Span = tuple[float, float]
#: Share of the range that is left free at each end of an axis.
_AIR = 0.05


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses over rates that can be compared: of one rule, after as many updates."""

    points: tuple[tuple[float, float], ...]
    """(rate, loss) in the order of rates."""
    name: str = ""
    """What tells it from the others."""
    colour: int = 0
    """Of its rule."""
    is_faint: bool = False
    """Shorter trainings than others of its rule."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The curves, the trials off them, those without a loss, the spans of both axes, the rates' being logarithmic; and
    what was chosen.
    """

    value: float
    interval: Span | None
    sentence: str
    curves: tuple[Curve, ...]
    others: tuple[Trial, ...]
    """With a finite loss and not on a curve: dropped, or with other options."""
    diverged: tuple[Trial, ...]
    x: Span
    y: Span
    log_y: bool

    @classmethod
    def of(cls, found: LearningRate) -> Rates:
        """The picture of a search."""
        chosen = found.options.get("optimizer")
        rules = [rule for trial in found.trials if (rule := trial.options.get("optimizer", chosen)) != chosen]
        curves = [Curve(found.curve, str(chosen) if rules else "")]
        for colour, rule in enumerate(dict.fromkeys(rules), start=1):
            own = [trial for trial in found.trials if trial.options.get("optimizer") == rule]
            points = [(t.learning_rate, t.loss) for t in own if t.steps == max(each.steps for each in own)]
            curves.append(_curve(points, str(rule), colour))
        return cls._around(found.value, found.interval, found.sentence, tuple(curves), found.trials)

    @classmethod
    def of_race(cls, search: Mapping[str, Any], sentence: str) -> Rates:
        """The picture of a race as `run.json` tells it: a curve for each rule and rung."""
        tried = search["tried"]
        won = search["optimizer"]
        rules = list(dict.fromkeys([won, *(each.get("optimizer", won) for each in tried)]))
        curves, lost = [], []
        for colour, rule in enumerate(rules):
            own = [each for each in tried if each.get("optimizer", rule) == rule]
            rungs = sorted({int(step) for each in own for step in each["losses"]})
            for step in rungs:
                found = [(each["learning_rate"], each["losses"].get(str(step), math.inf)) for each in own]
                points = [(rate, loss) for rate, loss in found if loss is not None]
                name = f"{rule} after {counted(step, 'step')}"
                curves.append(_curve(points, name, colour, is_faint=step < rungs[-1]))
            options = {"optimizer": rule} if len(rules) > 1 else {}
            lost += [
                Trial(number, each["learning_rate"], math.inf, int(max(each["losses"], key=int)), "diverged", options)
                for number, each in enumerate(own)
                if None in each["losses"].values()
            ]
        return cls._around(search["learning_rate"], None, sentence, tuple(curves), tuple(lost))

    @classmethod
    def _around(
        cls, value: float, interval: Span | None, sentence: str, curves: tuple[Curve, ...], trials: tuple[Trial, ...]
    ) -> Rates:
        """With the trials sorted, and the spans about all that is shown."""
        finite = [trial for trial in trials if trial.state != "diverged" and math.isfinite(trial.loss)]
        points = [point for curve in curves for point in curve.points]
        others = tuple(trial for trial in finite if (trial.learning_rate, trial.loss) not in points)
        diverged = tuple(trial for trial in trials if trial.state == "diverged" or not math.isfinite(trial.loss))
        rates = [value, *(interval or ()), *(rate for rate, _ in points), *(trial.learning_rate for trial in trials)]
        losses = [loss for _, loss in points] + [trial.loss for trial in others]
        log_y = bool(losses) and min(losses) > 0 and math.log10(max(losses) / min(losses)) > LOG_DECADES
        spans = _span(rates, log=True), _span(losses, log=log_y)
        return cls(value, interval, sentence, curves, others, diverged, *spans, log_y)


def _curve(points: list[tuple[float, float]], name: str, colour: int, is_faint: bool = False) -> Curve:
    return Curve(tuple(sorted(point for point in points if math.isfinite(point[1]))), name, colour, is_faint)


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
