"""A problem that was seen: what, where, since when, how sure, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: From harmless to fatal; a healthy training carries nothing above a note.
SEVERITIES = ("note", "warning", "critical")


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
