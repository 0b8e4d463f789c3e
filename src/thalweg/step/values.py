"""What a model or a rule keeps in Python: in containers of its own, and noted so that a change of it is seen."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

from torch import Tensor


def apart(value: Any) -> Any:
    """The same values in containers of their own: what is written into one, the other does not see."""
    if not isinstance(value, (dict, list, set, deque)):
        return value
    made: Any = copy.copy(value)
    made.clear()  # first: a Counter adds
    if isinstance(value, dict):
        made.update({key: apart(v) for key, v in value.items()})
        return made
    (made.update if isinstance(value, set) else made.extend)(apart(v) for v in value)
    return made


def noted(value: Any) -> Any:
    """What tells whether a value has changed, by assignment or, of numbers in containers, where it lies.

    Of a tensor only which one it is: a program changes what it holds.
    """
    if isinstance(value, dict):
        return [(key if isinstance(key, str) else id(key), noted(v)) for key, v in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [noted(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return {id(v) if isinstance(v, Tensor) else v for v in value}
    return value if isinstance(value, (bool, int, float, str, bytes, type(None))) else id(value)


def decided(rule: Any) -> Any:
    """What the host knows of a rule: where it changes from step to step, a program would freeze it."""
    of_all = {n: noted(v) for n, v in vars(rule).items() if n not in ("state", "param_groups")}
    groups = [{n: noted(v) for n, v in group.items() if n not in ("params", "lr")} for group in rule.param_groups]
    return of_all, groups, {p: noted(values) for p, values in rule.state.items()}
