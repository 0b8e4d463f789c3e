"""Vector–Jacobian products, one for each operation, with their formulas: each file is a family."""

from thalweg.gradients.rules import (
    activation,
    arithmetic,
    attention,
    convolution,
    dense,
    losses,
    moving,
    normalisation,
    picking,
    pooling,
    recurrent,
    reduction,
)
from thalweg.gradients.rules.registry import COMPOSED, MOVES, RULES, Pull

__all__ = [
    "COMPOSED",
    "MOVES",
    "RULES",
    "Pull",
    "activation",
    "arithmetic",
    "attention",
    "convolution",
    "dense",
    "losses",
    "moving",
    "normalisation",
    "picking",
    "pooling",
    "recurrent",
    "reduction",
]
