"""From the numbers of a training to its findings, the likeliest cause first.

    symptoms      what the numbers show: loss, then what passes forward and back
    outcomes      those symptoms that are bad for whoever wants the network
    causes        what makes it so: facts of before the training, the updates, the rest
    explanation   a cause explains symptoms and other causes that follow from it; what is explained ranks below

Nothing but a structural certainty stands above a note without a bad outcome: dead units, a rate at the edge of
stability or inputs of an odd scale in a network that learns well are notes.
"""

from __future__ import annotations

from dataclasses import replace

from thalweg.diagnosis import backward, before, causes, curvature, forward, labels, loss, rate, rule, usage
from thalweg.diagnosis.case import Case
from thalweg.diagnosis.course import BEGUN
from thalweg.records.finding import SYMPTOMS, Finding, ranked
from thalweg.records.history import History

_FLOW = frozenset({"vanishing_gradient", "exploding_gradient", "dead_units", "saturated_units"})
#: Confidence of a rate that is too low where updates were small from the first on.
SURELY = 0.8
_SHUT = frozenset({"dead_units", "vanishing_gradient"})
_RATE = frozenset({"learning_rate_too_high", "learning_rate_too_low"})
#: Cause → what follows from it, beside the symptoms of the loss, which follow from every cause.
EXPLAINS: dict[str, frozenset[str]] = {
    "unscaled_inputs": _FLOW | _RATE | {"bad_initialization", "bad_labels"},
    "unscaled_targets": _RATE | {"exploding_gradient", "bad_initialization"},
    "bad_initialization": _FLOW | _RATE | {"frozen_parameters"},
    "loss_output_mismatch": _RATE | {"saturated_units", "dead_units"},
    "optimizer_misconfigured": _RATE | _FLOW | {"stale_gradients"},
    "stale_gradients": _RATE | {"exploding_gradient"},
    "dead_units": frozenset({"vanishing_gradient", "learning_rate_too_low", "frozen_parameters"}),
    "saturated_units": frozenset({"vanishing_gradient", "learning_rate_too_low", "frozen_parameters"}),
    "vanishing_gradient": frozenset({"learning_rate_too_low", "dead_units"}),
    "exploding_gradient": frozenset({"learning_rate_too_high", "saturated_units", "bad_initialization"}),
    "learning_rate_too_high": _FLOW | {"bad_labels", "learning_rate_too_low"},
    "frozen_parameters": frozenset({"vanishing_gradient", "learning_rate_too_low"}),
    "bad_labels": frozenset({"overfitting", "learning_rate_too_low", "dead_units", "saturated_units"}),
    "data_leak": frozenset(),
    "class_imbalance": frozenset(),
    "wrong_mode": _FLOW | _RATE | {"overfitting", "bad_initialization"},
    "batch_too_small": frozenset(),
}


def findings(history: History, begun: float = BEGUN) -> list[Finding]:
    """What is wrong with a training up to now: gravest and likeliest first, each problem once.

    Cheap (milliseconds) and pure: the same history gives the same findings. What was not learned is held against a
    training once a share of it, `begun`, is behind; asked for less, it says what may be wrong.
    """
    case = Case(history, begun)
    if not case.names:
        return ranked([finding for finding in before.findings(history) if finding.severity != "note"])
    symptoms = loss.findings(case)
    outcomes = {finding.code for finding in symptoms if finding.severity != "note"}
    is_weak = loss.is_weak(case, sure=False) is not None
    is_bad = bool(outcomes - {"overfitting"}) or is_weak
    looked = curvature.findings(history, case.step) if "diverging_loss" not in outcomes else []
    if looked:  # tells apart what the loss alone does not
        symptoms = [finding for finding in symptoms if finding.code not in curvature.TOLD_APART]
        symptoms += [f if is_bad or _is_place(f, case) else replace(f, severity="note") for f in looked]
        outcomes |= {finding.code for finding in symptoms if finding.severity != "note"}
        is_bad = is_bad or bool(outcomes - {"overfitting"})
    flow = [*forward.findings(case), *backward.findings(case)]
    suspects = [*before.findings(history), *usage.findings(case), *flow]
    one_answer = any(finding.code == "collapsed_output" for finding in flow)
    is_bad = is_bad or (case.trivial is None and any(forward.is_constant(f) for f in flow))
    if is_bad:
        # Unequal classes keep a network from learning only by making one answer for all a good one.
        suspects = [_raised(f) if f.code != "class_imbalance" or one_answer else f for f in suspects]
    # Somewhat worse than its neighbours is no finding by itself; a cause with evidence of its own is.
    asked = outcomes | ({"underfitting"} if is_weak else set())
    suspects += rate.findings(case, asked) + causes.findings(case, asked, is_bad)
    suspects += labels.findings(case, asked)
    suspects += rule.findings(case, is_bad)
    return ranked(_explained(_once([*suspects, *symptoms])))


def _is_place(finding: Finding, case: Case) -> bool:
    """Whether a look tells a place to be stuck at that is bad by itself: it was held against the neighbours' answers; a
    network that has learned half does not owe what is left to a saddle.
    """
    if finding.code == "local_minimum" or "neighbour_loss" in finding.evidence:
        return True
    return finding.code in ("saddle_point", "plateau") and not case.course.learned > 0.5


def _raised(finding: Finding) -> Finding:
    """A suspicion where the outcome is bad."""
    return replace(finding, severity="warning") if finding.severity == "note" else finding


def _once(found: list[Finding]) -> list[Finding]:
    """Each code once: the surest, and of equally sure ones the first."""
    kept: dict[str, Finding] = {}
    for finding in found:
        other = kept.get(finding.code)
        if other is None or finding.weight > other.weight:
            kept[finding.code] = finding
    return list(kept.values())


def _explained(found: list[Finding]) -> list[Finding]:
    """Causes that follow from one that stands become notes; symptoms of the loss stay what they are, and rank below."""
    accused = [finding for finding in found if finding.severity != "note" and finding.code not in SYMPTOMS]
    reasons = {f.code: {other.code for other in accused if _follows(f, other)} for f in accused}
    standing: set[str] = set()
    open_ = sorted(accused, key=lambda finding: finding.weight, reverse=True)
    while open_:
        left = {finding.code for finding in open_}
        # The next one whose reasons are all judged; in a circle the weightiest stands.
        now = next((finding for finding in open_ if not reasons[finding.code] & left), open_[0])
        if not reasons[now.code] & standing:
            standing.add(now.code)
        open_.remove(now)
    explained = {finding.code for finding in accused} - standing
    return [replace(finding, severity="note") if finding.code in explained else finding for finding in found]


def _follows(finding: Finding, other: Finding) -> bool:
    """Whether one finding is what the other makes; of two that make each other, the less sure one."""
    if finding.code == "class_imbalance" and other is not finding:
        return True  # one answer for all has a nearer reason
    if finding.code not in EXPLAINS.get(other.code, ()):
        return False
    earliest = 0 if finding.code == "dead_units" else 1  # of dead units a sample at the first step is one after it
    if other.code == "learning_rate_too_high" and finding.step <= earliest and finding.code in _FLOW:
        return False  # it was so before any step
    if finding.code == "learning_rate_too_high" and "usual" in finding.evidence and other.code != "stale_gradients":
        return False  # it would be too high for any network
    if other.code == "bad_initialization" and finding.code.startswith("learning_rate") and not _is_of_scale(other):
        return False
    if other.code in _SHUT and finding.code == "learning_rate_too_low" and finding.confidence > SURELY:
        return False  # the layer that moves most did not from the first on
    if other.code.startswith("unscaled") and finding.code == "bad_initialization":
        return "initial_loss" in finding.evidence  # what was seen of the weights themselves is no matter of the data
    if finding.code == "learning_rate_too_high" and other.code == "exploding_gradient" and other.step <= 1:
        return True  # it was there before the first step
    mutual = other.code in EXPLAINS.get(finding.code, ())
    return not mutual or other.weight > finding.weight


def _is_of_scale(finding: Finding) -> bool:
    """Whether weights began too large or too small, not alike: only that changes which rate is right."""
    return bool({"scale", "initial_loss"} & finding.evidence.keys())
