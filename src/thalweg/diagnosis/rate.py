"""Whether the length of the steps is the reason: rate too high, too low, batch too small.

Asked only where the outcome is bad: a network at the edge of stability overshoots at every step and learns well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thalweg.diagnosis.case import Case
from thalweg.diagnosis.course import UNLEARNED, WORTHWHILE
from thalweg.diagnosis.curvature import signal
from thalweg.diagnosis.noise import CHANCE, SURE, chance_of_median, scatter
from thalweg.diagnosis.update import FEW, STILL, STRAIGHT, USUAL, WILD, Steps, largest_ratio, sound, steps
from thalweg.records.finding import Finding

#: Times its value by which a rate is raised in one go, beyond any warm-up.
JUMP = 4.0
#: Share of the trivial loss above it that a training whose rate is low enough does not stay at.
ABOVE = 0.01
#: Share of the trivial loss that must be left for weights that stand still to be a pity.
LEFT = 0.25
#: Share of the gradient at the start above which a training has not arrived anywhere.
STEEP = 0.5
#: Scale below which weights begin at next to nothing, so that any first update is as large as they are.
NO_SIZE = 0.02
#: How far n updates, were they as large as the first and at random, are to move the weights, as a share of them: each
#: by so much / √n. Of the tuned references in the clinic's tuning part (benchmarks/clinic) the geometric mean is 0.24.
WALKED = 0.25
#: The largest usual rates: of Adam and its kin (1e-3 in their papers; Kingma and Ba 2015, section 6), and of plain
#: descent, where with a momentum m each gradient counts 1/(1 − m) times (0.1 at 0.9 is what images are trained with; He
#: et al. 2016). Ten times above, no weights and inputs of usual size bear it.
ADAPTIVE, PLAIN = 5e-3, 1.0
#: A batch of so few examples can be what makes a training noisy.
SMALL = 8
#: Batches of noise in one: below 1/10 of the noise scale most of a step is noise (McCandlish et al. 2018).
NOISY = 10.0


def findings(case: Case, outcomes: set[str]) -> list[Finding]:
    """The causes that lie in the update, for the outcomes (codes of symptoms of the loss) that were seen."""
    taken = steps(case)
    if not outcomes - {"overfitting"}:
        quiet = [_too_high(case, taken, outcomes), _too_low(case, taken, outcomes)]
        return [finding for finding in quiet if finding is not None]
    found = [_too_high(case, taken, outcomes), _too_low(case, taken, outcomes)]
    found.append(_batch_too_small(case, taken, outcomes))
    return [finding for finding in found if finding is not None]


def _too_high(case: Case, taken: Steps, outcomes: set[str]) -> Finding | None:
    course = case.course
    lost = course.is_lost
    thrown, raised = course.thrown, _raised(case)
    is_thrown = thrown is not None and (lost or not course.learned > 0.5)
    restless = course.is_stuck and course.trivial is not None and taken.ratio > USUAL and _is_restless(case)
    wild = (course.is_stuck or course.is_worse or not course.learned > 0.5) and _is_wild(case)
    about = "noise_floor" in outcomes and signal(case.facts) > 1
    if not (taken.overshoots or is_thrown or restless or wild or about or raised is not None):
        return None
    if _rate_fell(case) and not (lost or is_thrown or raised is not None or _beyond_usual(case, _newest_rate(case))):
        return None  # it has long been a tenth of what it was
    far = course.is_long and taken.overshoots and course.gain == 0 and course.learned < UNLEARNED
    costly = raised is not None and raised.stays and raised.rise > WORTHWHILE * course.top
    fled = is_thrown and "slow_convergence" in outcomes  # what was thrown far out may come back slowly
    if not (far or fled or costly) and not outcomes & {
        "diverging_loss",
        "plateau",
        "oscillating_loss",
        "underfitting",
        "non_finite",
        "noise_floor",
    }:
        return None
    rates = case.values("learning_rate")
    highest = float(rates.max()) if len(rates) else math.nan
    base = case.fact("learning_rate") or highest
    rate = raised.to if raised is not None else highest if highest > JUMP * base else base
    evidence = {"learning_rate": rate}
    if np.isfinite(taken.descent):
        evidence["descent_ratio"] = taken.descent
    if np.isfinite(taken.ratio):
        evidence["update_ratio"] = taken.ratio
    if (usual := _beyond_usual(case, rate)) is not None:
        evidence["usual"] = usual
    if raised is not None and raised.before < raised.to:
        evidence["suggested_learning_rate"] = _round(raised.before)
    elif np.isfinite(rate):
        evidence["suggested_learning_rate"] = _round(min(rate * _shorter(case, taken), _most(rate, base, usual)))
    instead = f"; try {evidence['suggested_learning_rate']:.2g}" if "suggested_learning_rate" in evidence else ""
    if raised is not None:
        since, seen = raised.step, f"since it was raised at step {raised.step} the loss is worse than before"
    elif taken.overshoots:
        since, seen = taken.since, "steps land beyond the bottom they head for"
    elif is_thrown:
        since, seen = int(thrown or 1), "the first steps threw the loss up"
    elif wild:
        since, seen = 1, "the first steps moved the weights by a tenth of themselves or more"
    elif about:
        since, seen = 1, "batches show the way down, and steps of this length do not follow it"
    else:
        since, seen = 1, "the loss keeps jumping above what the same answer for every example would give"
    is_sure = raised is not None or usual is not None or (taken.overshoots and (lost or taken.descent < 0))
    return Finding(
        "learning_rate_too_high",
        "critical" if lost else "warning",
        since,
        f"The learning rate is too high: {seen}.",
        f"Lower the learning rate{instead}.",
        evidence=evidence,
        confidence=0.9 if is_sure else 0.75,
    )


def _most(rate: float, base: float, usual: float | None) -> float:
    """The most that is suggested for a rate that is too high, whatever the updates say: weights that were thrown out
    are large, and updates beside them look small. What is usual; and what was asked for, where a schedule went beyond.
    """
    return min(usual or math.inf, base if rate > base else math.inf)


def _beyond_usual(case: Case, rate: float) -> float | None:
    """The largest rate that is usual for the rule, where this one is ten times above it; else None."""
    usual = _largest_usual(case)
    return usual if usual is not None and rate >= 10 * usual else None


def _largest_usual(case: Case) -> float | None:
    """The largest rate that is usual for the rule, where that is known."""
    rule, momentum = str(case.facts.get("optimizer")), case.fact("momentum") or 0.0
    if rule in ("adam", "adamw", "nadam", "radam", "rmsprop") and momentum == 0:
        return ADAPTIVE
    if rule in ("sgd", "momentum", "nesterov"):
        return PLAIN * (1 - min(momentum, 0.9))  # more of it is a fault of its own
    return None


@dataclass(frozen=True, slots=True)
class _Raise:
    """A rate raised in one go, after which the loss has been worse: the first step at it, the highest rate before and
    the one it was raised to, by how much the loss is worse, and whether the rate has stayed up.
    """

    step: int
    before: float
    to: float
    rise: float
    stays: bool


def _raised(case: Case) -> _Raise | None:
    """The first raise of the rate, several times over, from which on the loss has surely been worse; else None."""
    at, rates = case.series("learning_rate")
    if len(rates) < 4:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        jumps = np.flatnonzero(rates[1:] > JUMP * rates[:-1])
    steps_of, losses = case.series("loss")
    for jump in jumps:
        before = losses[(steps_of <= at[jump]) & (steps_of > at[jump] - 100)]
        after = losses[steps_of > at[jump]]
        if len(before) < 3 or not len(after):
            continue
        newest = after[-max(3, len(after) // 4) :]
        rise = float(np.median(newest)) - float(before[-5:].mean()) if np.isfinite(newest).all() else math.inf
        if rise > SURE * scatter(before):
            before, to = float(rates[: jump + 1].max()), float(rates[jump + 1])
            return _Raise(int(at[jump + 1]), before, to, rise, bool(rates[-1] > JUMP * rates[jump]))
    return None


def _is_wild(case: Case) -> bool:
    """Whether the early updates, the very first one aside (a rule that adapts has no size yet), tore a layer apart."""
    alike = set(case.facts.get("symmetric_layers") or [])
    alike |= {entry["name"] for entry in case.facts.get("layers") or [] if entry.get("scale", 1.0) < NO_SIZE}
    columns = [s for layer, s in case.by_layer("update_ratio").items() if layer in case.matrices and layer not in alike]
    return any((values[(at > 1) & (at <= 50)] > WILD).any() or (values[at == 1] > 0.5).any() for at, values in columns)


def _is_restless(case: Case) -> bool:
    """Whether a loss that is stuck lies above the trivial one, which any rate that is low enough comes down to."""
    course = case.course
    assert course.trivial is not None
    newer = course.losses[len(course.losses) // 2 :]
    return course.level > (1 + ABOVE) * course.trivial and chance_of_median(newer, course.trivial, below=False) < CHANCE


def _shorter(case: Case, taken: Steps) -> float:
    """The factor that brings steps to the bottom of their valley, and updates to a hundredth of the weights."""
    factors = []
    if taken.overshoots and np.isfinite(taken.descent):
        factors.append(taken.best_factor)
    first = largest_ratio(case, since=1)
    ratio = max(r for r in (taken.ratio, first, 0.0) if np.isfinite(r))
    if ratio > 10 * USUAL:
        factors.append(10 * USUAL / ratio)
    return float(min(0.5, math.exp(np.mean(np.log(factors))))) if factors else 0.1


def _too_low(case: Case, taken: Steps, outcomes: set[str]) -> Finding | None:
    """Steps that are straight and small, where there is far to go."""
    wanted = outcomes & {"slow_convergence", "plateau", "underfitting"}
    left = not wanted and case.course.is_long and case.course.level > LEFT * case.course.top and _still_steep(case)
    if not (wanted or left):
        return None
    if not case.values("gradient_norm").any():  # no rate moves what has no gradient
        return None
    still = taken.ratio < STILL and (_never_moved(case) or _rate_fell(case))
    falling = "slow_convergence" in outcomes and not case.course.is_short
    straight = taken.ratio < (USUAL if falling else USUAL / 2) and not taken.descent < STRAIGHT
    if not (still or (straight and not left)) or taken.overshoots or taken.bounces:
        return None
    rate, rates = case.fact("learning_rate"), case.values("learning_rate")
    evidence = {}
    if np.isfinite(taken.descent):
        evidence["descent_ratio"] = taken.descent
    if np.isfinite(taken.ratio):
        evidence["update_ratio"] = taken.ratio
    advice = "Raise the learning rate."
    highest = min(float(rates.max()), rate or math.inf) if len(rates) else math.nan
    if _rate_fell(case) and float(rates[-1]) < 0.5 * highest:
        evidence |= {"learning_rate": float(rates[-1]), "suggested_learning_rate": _round(highest)}
        advice = f"Let the learning rate fall later: it stood at {evidence['suggested_learning_rate']:.2g} before."
    elif rate is not None:
        longer = min(rate * _longer(case, taken), max(10 * (_largest_usual(case) or math.inf), 2 * rate))
        evidence |= {"learning_rate": rate, "suggested_learning_rate": _round(longer)}
        advice = f"Raise the learning rate; try {evidence['suggested_learning_rate']:.2g}."
    return Finding(
        "learning_rate_too_low",
        "warning",
        1,
        "The learning rate is too low: every step goes straight down and hardly moves the weights.",
        advice,
        evidence=evidence,
        confidence=0.9 if still else 0.65,
    )


def _never_moved(case: Case) -> bool:
    """Whether the updates were as small at the start, when nothing was dead or flat yet."""
    first = [
        values[at <= 20] for layer, (at, values) in case.by_layer("update_ratio").items() if layer in case.matrices
    ]
    return not any(np.median(values) > 2 * STILL for values in first if len(values))


def _newest_rate(case: Case) -> float:
    rates = case.values("learning_rate")
    return float(rates[-1]) if len(rates) else 0.0


def _rate_fell(case: Case) -> bool:
    """Whether the rate has come down to a tenth, and most of the training went by below that."""
    rates = case.values("learning_rate")
    return len(rates) > 4 and float(np.median(rates)) < 0.1 * float(rates.max())


def _still_steep(case: Case) -> bool:
    """Whether the gradient is about as large as at the start: it would be small where the training has arrived."""
    _, norms = sound(*case.series("gradient_norm"))
    if len(norms) < 10:
        return False
    return float(np.median(norms[-len(norms) // 3 :])) > STEEP * float(np.median(norms[:10]))


def _longer(case: Case, taken: Steps) -> float:
    """The factor that brings updates to a thousandth of the weights, unless the valley ends before; to more where few
    updates are to come, which would otherwise get nowhere.
    """
    usual = max(USUAL, WALKED / math.sqrt(case.fact("planned_steps") or case.step or 1))
    by_ratio = usual / taken.ratio if np.isfinite(taken.ratio) and taken.ratio > 0 else math.inf
    by_descent = taken.best_factor if np.isfinite(taken.best_factor) else math.inf
    return float(np.clip(min(by_ratio, by_descent), 2.0, 1e6)) if math.isfinite(min(by_ratio, by_descent)) else 10.0


def _batch_too_small(case: Case, taken: Steps, outcomes: set[str]) -> Finding | None:
    """Noise that rules: the batch is small, and neighbours of an update have little in common with it."""
    size = case.fact("batch_size")
    if size is None or size > SMALL:
        return None
    if not outcomes & {"oscillating_loss", "diverging_loss", "underfitting", "plateau", "noise_floor"}:
        return None
    scales = case.values("noise_scale")
    noisy = len(scales) > 0 and chance_of_median(scales, NOISY * size, below=False) <= 0.5
    cosines = case.values("update_cosine")
    wide = len(case.course.singles) and float(np.median(case.course.singles[-8:])) > 0.3 * case.course.top
    if not (noisy or wide) or (taken.bounces and chance_of_median(cosines, 0.0) <= FEW):
        return None
    evidence = {"batch_size": size}
    if len(scales):
        evidence["noise_scale"] = float(np.median(scales))
    return Finding(
        "batch_too_small",
        "warning",
        1,
        f"A batch of {size:.0f} says little about the data: an update mostly follows the examples it happened to see.",
        f"Use batches of {max(16, 4 * int(size))} or more, or lower the learning rate in proportion.",
        evidence=evidence,
        confidence=0.7,
    )


def _round(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.2g}")
