"""All that a step changes, copied and put back: tensors, random numbers, and what model and rule keep in Python."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from thalweg.step.forward import Forward
from thalweg.step.refusals import attributes_kept
from thalweg.tensors import seeds


class Snapshot:
    """A copy of all that a step changes; put back as often as wanted, into the same tensors.

    Beside the model's tensors, the rule's state and the global generators these are: parameters of the rule that are
    not the model's, what a rule writes into its groups, and the plain attributes of both. Of a rule around another one
    the inner's too.
    """

    def __init__(self, forward: Forward, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        rules = _rules(optimizer)
        tensors = [*forward.state().values(), *(t for rule in rules for t in _tensors(rule))]
        self._tensors = [(t, t.detach().clone()) for t in {id(t): t for t in tensors}.values()]
        self._put_back_attributes = attributes_kept(forward.model, *rules)
        known = {id(one): one for one in (*forward.model.modules(), *tensors, *rules)}
        tables = {id(table): table for rule in rules for table in _tables(rule)}
        self._tables = [_Table(table, known) for table in tables.values()]
        self._random = seeds.capture()

    def restore(self) -> None:
        """Everything is as when the copy was made; what a rule has begun to keep since is forgotten."""
        self._put_back_attributes()
        for t, value in self._tensors:
            _write(t, value)
        for table in self._tables:
            table.put_back()
        self._optimizer.zero_grad()
        seeds.restore(self._random)


class _Table:
    """One parameter group of a rule, or its state of one parameter: what stands there under each name."""

    def __init__(self, table: dict[str, Any], known: Mapping[int, Any]) -> None:
        self._table = table
        self._known = known
        self._held = {name: (v, _copy(v, known)) for name, v in table.items() if name != "params"}

    def put_back(self) -> None:
        for name in [name for name in self._table if name not in self._held and name != "params"]:
            del self._table[name]
        for name, (held, value) in self._held.items():
            if isinstance(held, Tensor):
                now: Any = self._table.get(name)
                # What has come to lie otherwise (channels last) stays so: its parameter does.
                is_laid = isinstance(now, Tensor) and now.shape == value.shape and now.stride() != held.stride()
                self._table[name] = _write(now if is_laid else held, value)
            else:
                self._table[name] = _copy(value, self._known)


def _rules(optimizer: Optimizer) -> list[Optimizer]:
    """A rule, and those that it is made around."""
    found = [optimizer]
    for rule in found:
        found += [v for v in vars(rule).values() if isinstance(v, Optimizer) and v not in found]
    return found


def _tensors(rule: Optimizer) -> Iterator[Tensor]:
    """A rule's parameters, and the tensors among its attributes; not its state of single parameters."""
    for group in rule.param_groups:
        yield from group["params"]
    for value in vars(rule).values():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        yield from (part for part in parts if isinstance(part, Tensor))


def _tables(rule: Optimizer) -> list[dict[str, Any]]:
    return [*rule.param_groups, *(values for values in rule.state.values() if isinstance(values, dict))]


def _write(t: Tensor, value: Tensor) -> Tensor:
    with torch.no_grad():
        if t.shape == value.shape:
            t.copy_(value)
        else:  # it was resized where it lies
            t.data = value.clone()
    return t


def _copy(value: Any, known: Mapping[int, Any]) -> Any:
    """A copy that shares with the original nothing but what is `known`: parameters, modules, rules."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, bool | int | float | str | None):
        return value
    try:
        return copy.deepcopy(value, dict(known))
    except Exception:  # whatever somebody's rule keeps: what cannot be copied is not changed by numbers
        return value
