"""Where a training stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STATES = ("converged", "improving", "overfitting", "stuck", "diverged")
CAUSES = ("saddle_point", "local_minimum", "plateau", "noise_floor", "slow_convergence")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`state` in one word, `sentence` for a person, `evidence` the numbers behind it; `cause` only when stuck."""

    state: str
    sentence: str
    cause: str | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.state in STATES, self.state
        assert self.cause is None or self.cause in CAUSES, self.cause
