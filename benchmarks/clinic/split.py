"""What thresholds may be tuned on, and what they are scored on.

Tuning: the MLPs of classes and the plain CNN, under momentum and Adam, at the severe grade; and of their healthy and
hard-healthy configurations under these rules every second one, in the order of their names, and their references.
Everything else is for scoring: the other families, every mild grade, and RMSprop.
"""

from __future__ import annotations

from configurations import Configuration

FAMILIES = ("blob_mlp", "circle_mlp", "fashion_mlp", "plain_cnn")
RULES = ("momentum", "adam")
PARTS = ("tuning", "scoring")


def parts(configurations: tuple[Configuration, ...]) -> dict[str, str]:
    """Name -> `tuning` or `scoring`, of every configuration."""
    found = dict.fromkeys((c.name for c in configurations), "scoring")
    seen = sorted(
        (c for c in configurations if c.family in FAMILIES and c.rule in RULES and c.grade != "mild"),
        key=lambda c: c.name,
    )
    well = [c for c in seen if c.kind in ("healthy", "hard_healthy")]
    tuned = [c for c in seen if c.kind == "sick"] + [c for c in seen if c.kind == "reference"] + well[::2]
    return found | dict.fromkeys((c.name for c in tuned), "tuning")
