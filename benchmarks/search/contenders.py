"""Who takes part, and in which environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from workloads import RULES

PEERS = Path(os.environ.get("THALWEG_PEERS", Path(__file__).resolve().parents[3] / "thalweg-peers"))
"""Where environments.sh put the peers' environment: beside the checkout."""


@dataclass(frozen=True)
class Contender:
    """A way to a good training."""

    title: str
    searches: bool = False
    """Several trainings, or a test before the one that counts; else it needs no rate, or takes what there is."""
    package: str | None = None
    """Whose version a figure holds for."""
    rules: tuple[str, ...] = RULES
    ours: bool = False

    @property
    def module(self) -> str:
        return "ours" if self.ours else "peers"

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.ours else PEERS / "search" / "bin" / "python"


CONTENDERS = {
    "thalweg": Contender('thalweg.fit(learning_rate="auto")', ours=True),
    "grid": Contender("grid of 5", searches=True),
    "random": Contender("random search, 5 draws", searches=True),
    "lightning": Contender("Lightning lr_find", searches=True, package="lightning"),
    "torch-lr-finder": Contender("torch-lr-finder", searches=True, package="torch-lr-finder"),
    "tpe": Contender("Optuna TPE, 10 trials", searches=True, package="optuna"),
    "asha": Contender("Optuna ASHA, 10 trials", searches=True, package="optuna"),
    "prodigy": Contender("Prodigy", package="prodigyopt", rules=("adamw",)),
    "schedule-free": Contender("Schedule-Free AdamW", package="schedulefree", rules=("adamw",)),
    "default": Contender("the rule's default rate"),
    "thalweg-halving": Contender('thalweg.find_lr(method="halving")', ours=True),
    "thalweg-range": Contender('thalweg.find_lr(method="range")', ours=True),
}
