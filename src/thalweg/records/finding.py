"""A problem that was seen: what, where, since when, how sure, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: From harmless to fatal; a healthy training carries nothing above a note.
SEVERITIES = ("note", "warning", "critical")
#: What the loss and the outputs show: outcomes, which name no cause by themselves.
SYMPTOMS = frozenset(
    {
        "non_finite",
        "diverging_loss",
        "oscillating_loss",
        "slow_convergence",
        "plateau",
        "saddle_point",
        "local_minimum",
        "noise_floor",
        "underfitting",
        "collapsed_output",
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem: `code` names it, `evidence` holds the numbers that say so, `confidence` lies in [0, 1].

    `step` is the step since which it holds; `place` a layer, feature or batch, or "" for the whole training.
    """

    code: str
    severity: str
    step: int
    sentence: str
    advice: str = ""
    place: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    confidence: float = 1.0

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES, self.severity

    @property
    def weight(self) -> tuple[int, float]:
        """How grave, and how sure."""
        return SEVERITIES.index(self.severity), self.confidence


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """Causes before the symptoms that follow from them, each in order of weight; notes last. The order of equals stays.

    >>> made = [
    ...     Finding(code, severity, 1, "")
    ...     for code, severity in [
    ...         ("dead_units", "note"),
    ...         ("diverging_loss", "critical"),
    ...         ("unscaled_inputs", "warning"),
    ...     ]
    ... ]
    >>> [finding.code for finding in ranked(made)]
    ['unscaled_inputs', 'diverging_loss', 'dead_units']
    """

    def key(finding: Finding) -> tuple[bool, bool, int, float]:
        grade, sure = finding.weight
        return grade == 0, finding.code in SYMPTOMS, -grade, -sure

    return sorted(findings, key=key)
