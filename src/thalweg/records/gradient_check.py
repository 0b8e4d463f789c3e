"""Whether the gradient that backpropagation gives is the slope of the loss: a row for each parameter tensor."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.records.backprop import aligned

#: In float64 a right gradient agrees with extrapolated central differences to about 1e-9, a wrong one to no digit.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class ParameterCheck:
    """One parameter tensor: the entry, or direction, where gradient and slope differ most."""

    name: str
    shape: tuple[int, ...]
    error: float
    """The largest relative difference; differences that rounding alone explains stay below the tolerance."""
    place: tuple[int, ...] | None
    """The index of that entry; None where nothing could be compared."""
    gradient: float
    """What backpropagation says there."""
    slope: float
    """What the loss does there."""
    checked: int
    """Entries and directions that were compared."""
    kinks: int
    """How many were left out, because the loss has a kink there and no one slope."""

    @property
    def ok(self) -> bool:
        """Whether the gradient is right everywhere it was compared."""
        return self.error <= TOLERANCE


@dataclass(frozen=True, slots=True)
class GradientCheck:
    """All parameters that are trained, in the model's order."""

    rows: tuple[ParameterCheck, ...]
    loss: float

    @property
    def ok(self) -> bool:
        """Whether every gradient is right, and there is at least one."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def sentence(self) -> str:
        """What it comes to, for a person."""
        wrong = [row for row in self.rows if not row.ok]
        if not wrong:
            skipped = sum(row.kinks for row in self.rows)
            kinks = f"; {skipped} lie on a kink and were left out" if skipped else ""
            return f"The gradient is right at all {sum(row.checked for row in self.rows)} places{kinks}."
        worst = max(wrong, key=lambda row: row.error)
        where = f"{worst.name}{list(worst.place or ())}"
        return (
            f"The gradient is wrong in {len(wrong)} of {len(self.rows)} parameters, most at {where}: backpropagation "
            f"says {worst.gradient:.6g}, the loss changes by {worst.slope:.6g}."
        )

    def table(self) -> str:
        """The rows as aligned text."""
        heading = ["parameter", "shape", "", "error", "at", "checked", "kinks"]
        lines = [
            [
                row.name,
                "×".join(map(str, row.shape)) or "–",
                "ok" if row.ok else "wrong",
                f"{row.error:.1e}",
                "–" if row.place is None else str(list(row.place)),
                str(row.checked),
                str(row.kinks),
            ]
            for row in self.rows
        ]
        return f"{aligned([heading, *lines], words=3)}\n\n{self.sentence}"
