"""Where rules are kept, by the name of the torch function.

A rule computes its operation y = f(x, w, …) and returns y with a pull: given g = ∂J/∂y, the pull names each operand
and its share (∂y/∂x)ᵀ g of the gradient. A share is a function without arguments, so that what nobody needs (a mask, a
frozen weight) is not computed. It may come in a shape that the operand was broadcast to: the sweep sums it down.

A composed operation is written in terms of operations that have rules, and needs none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

#: An operand of an operation (anything; only tensors count) and how to get its share of the gradient.
Share = tuple[Any, Callable[[], Tensor]]
#: ∂J/∂y, one for each floating output (None where nothing depends on it) → the operands' shares.
Pull = Callable[..., Iterable[Share]]
Rule = Callable[..., tuple[Any, Pull]]

RULES: dict[str, Rule] = {}
COMPOSED: dict[str, Callable[..., Any]] = {}
#: Operations that only move numbers about: they have no row of their own in a table of layers.
MOVES: set[str] = set()


def rule(*names: str, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of the torch functions and methods with these names."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        if moves:
            MOVES.update(names)
        return function

    return register


def composed(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an operation that is written in terms of others."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            assert name not in COMPOSED, name
            COMPOSED[name] = function
        return function

    return register
