"""Repairs of the gradient: a bound on its norm from its own history; batches whose gradient is no number left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from thalweg.repairs.change import Body, Undo, Words


@dataclass(frozen=True, slots=True)
class ClipGradients:
    """g ← g · min(1, c/‖g‖), with c from the gradients' own history where a finding gives it (Seetharaman et al. 2020,
    AutoClip).
    """

    code: str = "clip_gradients"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """A norm of one where no history says better."""
        return {"clip_norm": 1.0} if body.settings.clip_norm is None and body.settings.clip_value is None else None

    def apply(self, body: Body, words: Words) -> Undo:
        """Set the bound."""
        before = body.settings
        body.settings = replace(before, clip_norm=float(words["clip_norm"]), clip_value=None)

        def undo() -> None:
            body.settings = before

        return undo

    def lines(self, words: Words) -> list[str]:
        """As an argument of `fit`."""
        return [f"fit(…, clip_norm={float(words['clip_norm']):.3g})"]


@dataclass(frozen=True, slots=True)
class SkipBatches:
    """An update whose gradient is not finite is not made."""

    code: str = "skip_batches"
    level: str = "safe"

    def words(self, body: Body) -> Words | None:
        """Once."""
        return None if body.skips else {"skipped": "not finite"}

    def apply(self, body: Body, words: Words) -> Undo:
        """Have them left out from now on."""
        before, body.skips = body.skips, True

        def undo() -> None:
            body.skips = before

        return undo

    def lines(self, words: Words) -> list[str]:
        """In a loop of the user's own."""
        return ["if torch.isfinite(loss): optimizer.step()"]


CHANGES: dict[str, Any] = {change.code: change for change in (ClipGradients(), SkipBatches())}
"""By code."""
