"""Who is sick, from what became of the runs, never from a detector.

A configuration is sick where its final scores, over its seeds, are worse than those of its reference (the family under
its rule): lower mean, p < 0.05 (Welch's t or Mann-Whitney's U), Cohen's d of at least 0.5 (the rules of DeepCrime's and
DeepFD's mutation tests), and by a margin that matters: less than 0.9 of what the reference gains over chance, or more
than twice its updates to the level at nine tenths of that gain. A fault that does not pass is a mutant without harm and
counts among the hard-healthy.

A run is sick where its configuration is and it lies itself below the reference's mean by two deviations. What is
neither plainly sick nor plainly well by its own score is not scored.

    final score   mean over the last tenth of the evaluations; chance where it is no number, or less than chance
"""

from __future__ import annotations

import math
import statistics
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from configurations import Configuration
from recording import Outcome

EFFECT = 0.5
SURE = 0.05
GAIN = 0.9
SLOWER = 2.0
DEVIATIONS = 2.0
STUCK = ("saddle", "minimum", "plateau", "slow", "converged")


def final(outcome: Outcome, chance: float) -> float:
    """The score that a training ended with."""
    scores = outcome["scores"]
    if not scores or outcome["stopped_because"] == "diverged":
        return chance
    value = statistics.fmean(scores[-max(1, len(scores) // 10) :])
    return max(value, chance) if math.isfinite(value) else chance


def steps_to(outcome: Outcome, level: float) -> float:
    """Updates until an evaluation reaches a level; infinite where none does."""
    return next((s for s, v in zip(outcome["steps"], outcome["scores"], strict=True) if v >= level), math.inf)


@dataclass(frozen=True)
class Truth:
    """What became of a configuration."""

    kind: str
    """reference, healthy, hard_healthy, sick, or `excluded`: meant to be well, and not."""
    gain: float
    """Mean share of the reference's gain over chance."""
    slower: float
    """Median updates to the level, beside the reference's; infinite where most runs do not reach it."""
    p: float
    effect: float
    """Cohen's d."""
    num_seeds: int
    runs: dict[int, str]
    """Seed -> sick, well, or unclear."""
    gains: dict[int, float]
    """Seed -> share of the reference's gain over chance."""


def compared(here: list[float], there: list[float]) -> tuple[float, float]:
    """P that `here` is not lower than `there`, and Cohen's d of the difference."""
    difference = statistics.fmean(there) - statistics.fmean(here)
    spread = math.sqrt((np.var(here, ddof=1) + np.var(there, ddof=1)) / 2)
    if spread == 0:
        return (0.0, math.inf) if difference > 0 else (1.0, 0.0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scores that are all but alike
        welch, ranks = _p_values(here, there)
    return float(min(welch, ranks)), difference / spread


def _p_values(here: list[float], there: list[float]) -> tuple[float, float]:
    from scipy import stats

    welch = stats.ttest_ind(here, there, equal_var=False, alternative="less").pvalue
    ranks = stats.mannwhitneyu(here, there, alternative="less").pvalue
    return welch, ranks


def judge(c: Configuration, outcomes: dict[int, Outcome], reference: dict[int, Outcome]) -> Truth:
    """The truth about a configuration, from the outcomes of its runs and of its reference's by seed, three or more."""
    chance = next(iter(outcomes.values()))["chance"]
    of = {seed: final(outcome, chance) for seed, outcome in outcomes.items()}
    if c.reach is None:
        known = [final(outcome, chance) for outcome in reference.values()]
        goal, spread = statistics.fmean(known), statistics.stdev(known)
    else:
        known, goal, spread = [c.reach] * len(of), c.reach, 0.0
    level = chance + GAIN * (goal - chance)
    gains = {seed: (value - chance) / (goal - chance) for seed, value in of.items()}
    gain = statistics.fmean(gains.values())
    slower = _slower(outcomes, reference, level) if c.reach is None and c.in_time else 1.0
    p, effect = compared(list(of.values()), known)
    is_worse = p < SURE and effect >= EFFECT and (gain < GAIN or slower > SLOWER)
    bar = min(goal - DEVIATIONS * spread, goal) if c.reach is None else level
    if c.kind == "sick":
        kind = "sick" if is_worse else "hard_healthy"
    else:
        kind = "excluded" if is_worse else c.kind
    runs = {}
    for seed, value in of.items():
        if kind == "sick":
            runs[seed] = "sick" if value < bar else "unclear"
        else:
            runs[seed] = "well" if gains[seed] >= GAIN or value >= bar else "unclear"
    return Truth(kind, gain, slower, p, effect, len(of), runs, gains)


def _slower(outcomes: dict[int, Outcome], reference: dict[int, Outcome], level: float) -> float:
    there = statistics.median(steps_to(o, level) for o in reference.values())
    here = statistics.median(steps_to(o, level) for o in outcomes.values())
    return here / there if math.isfinite(there) else 1.0


def stuck(outcome: Outcome, gain: float) -> str | None:
    """What a training whose end was measured came to: one of `STUCK`, None where nothing was measured.

    What has the reference's score has converged; of what has not, the certificate says which kind of point it is. A
    slope is a training that is slow, a minimum that descents from beside it leave is a saddle.
    """
    found: dict[str, Any] = outcome.get("certificate") or {}
    if "kind" not in found:
        return None
    if gain >= GAIN:
        return "converged"
    if found["kind"] == "minimum" and found.get("left"):
        return "saddle"
    return "slow" if found["kind"] == "slope" else found["kind"]
