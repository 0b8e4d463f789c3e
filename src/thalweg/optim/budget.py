"""What SOAP gives to each shape of matrix: both sides, one, or none, from the time that its parts take here.

A shape's price is the time of its projections, of its statistics divided by k_s and of its new bases divided by f, each
timed on matrices of that shape. From nothing, the upgrade that costs least for each parameter is taken as long as all
of them together stay within the budget: a share of the least time between two steps, which is forward, backward and
data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from thalweg.optim.averages import wide
from thalweg.optim.rotation import damped, direction, learn, projected, refresh, refreshed, settled, sides
from thalweg.optim.stacks import Stack, gradient, size, words
from thalweg.tensors.timing import bfloat16_may_pay, seconds

FEWEST = 3
"""Steps after which there is a time between two of them that is not the first."""
HARMLESS = 0.1
"""Of the normalised gradient, what rounding to bfloat16 may change (relative, root mean square)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a shape gets."""

    sides: tuple[str, ...]
    """"left" and "right", as they have a basis."""
    bfloat16: bool = False
    """Whether projections are multiplied in it."""
    seconds: float = 0.0
    """Of a step, predicted, for one matrix."""

    @property
    def words(self) -> str:
        """As "both bfloat16", "left" or "none"."""
        return {0: "none", 2: "both"}.get(len(self.sides), "".join(self.sides)) + " bfloat16" * self.bfloat16

    @classmethod
    def of(cls, words: str) -> Choice:
        """The inverse of `words`.

        Raises:
            ValueError: it is no choice.
        """
        which, _, arithmetic = words.partition(" ")
        known = {"none": (), "left": ("left",), "right": ("right",), "both": ("left", "right")}
        if which not in known or arithmetic not in ("", "bfloat16"):
            raise ValueError(f'a choice is "both", "left", "right" or "none", and " bfloat16" if so, got {words!r}')
        return cls(known[which], arithmetic == "bfloat16")


Matrices = list[tuple[dict[str, Any], nn.Parameter]]
Shape = tuple[str, int | None]
"""A size in words, and how many leading directions its group has."""


def decided(
    matrices: Matrices, kept: list[dict[str, Any]], limit: float | None, given: Mapping[str, Choice]
) -> list[Choice]:
    """What each matrix gets.

    Args:
        matrices: each with its group.
        kept: what `state` holds of each.
        limit: seconds that a step of all may cost; None: no clock decides, each shape gets what it can have.
        given: choices that are made already, by shape.
    """
    shapes: dict[Shape, list[int]] = {}
    for i, matrix in enumerate(matrices):
        shapes.setdefault(_shape(matrix), []).append(i)
    found = {shape: given[shape[0]] for shape in shapes if shape[0] in given}
    for shape, choice in found.items():
        allowed = _sides(matrices[shapes[shape][0]])
        if not set(choice.sides) <= set(allowed):
            raise ValueError(
                f"{shape[0]} cannot have {choice.words!r}: its sides are {' and '.join(allowed) or 'too long'}"
            )
    left = {shape: members for shape, members in shapes.items() if shape not in found}
    if limit is None:
        found |= {shape: Choice(_sides(matrices[members[0]])) for shape, members in left.items()}
    else:
        parts = {shape: ([matrices[i] for i in members], [kept[i] for i in members]) for shape, members in left.items()}
        found |= _within(limit, {shape: _Shape(*part) for shape, part in parts.items()})
    return [found[_shape(matrix)] for matrix in matrices]


def _shape(matrix: tuple[dict[str, Any], nn.Parameter]) -> Shape:
    group, p = matrix
    return words(p), group["rank"]


def _sides(matrix: tuple[dict[str, Any], nn.Parameter]) -> tuple[str, ...]:
    group, p = matrix
    return sides(p, group["rank"])


def _within(limit: float, shapes: Mapping[Any, _Shape]) -> dict[Any, Choice]:
    """The choices that a limit allows; bfloat16 is given up for a shape that it harms, and all is weighed again."""
    while True:
        levels, spent = dict.fromkeys(shapes, 0), 0.0
        while True:
            upgrades = []
            for name, shape in shapes.items():
                now, *better = shape.offers()[levels[name] :]
                if better:
                    more = (better[0].seconds - now.seconds) * len(shape.kept)
                    upgrades.append((more / shape.num_parameters, more, name))
            affordable = [upgrade for upgrade in upgrades if spent + upgrade[1] <= limit]
            if not affordable:
                break
            _, more, name = min(affordable, key=lambda upgrade: upgrade[:2])
            levels[name], spent = levels[name] + 1, spent + more
        found = {name: shape.offers()[levels[name]] for name, shape in shapes.items()}
        harmed = [name for name, choice in found.items() if choice.bfloat16 and not shapes[name].is_harmless(choice)]
        if not harmed:
            return found
        for name in harmed:
            shapes[name].arithmetics = (False,)


class _Shape:
    """Matrices of one shape, and what each choice costs them."""

    def __init__(self, matrices: Matrices, kept: list[dict[str, Any]]) -> None:
        self.group = matrices[0][0]
        self.parameters = [p for _, p in matrices]
        self.kept = kept
        self.num_parameters = sum(p.numel() for p in self.parameters)
        may_be_low = self._dtype == torch.float32 and bfloat16_may_pay(self.parameters[0].device)
        self.arithmetics: tuple[bool, ...] = (False, True) if may_be_low else (False,)
        self._priced: dict[tuple[tuple[str, ...], bool], Choice] = {}
        self._upkeep: dict[tuple[str, ...], float] = {}

    @property
    def _dtype(self) -> torch.dtype:
        return wide(self.parameters[0].dtype)

    def offers(self) -> list[Choice]:
        """From nothing to all sides, each in the faster arithmetic."""
        allowed, (m, n) = sides(self.parameters[0], self.group["rank"]), size(self.parameters[0])
        short = ("left",) if m <= n else ("right",)
        steps = [chosen for chosen in (short, ("left", "right")) if set(chosen) <= set(allowed)]
        offered = [[self._price(chosen, arithmetic) for arithmetic in self.arithmetics] for chosen in steps]
        return [Choice(()), *(min(some, key=lambda choice: choice.seconds) for some in offered)]

    def _price(self, chosen: tuple[str, ...], bfloat16: bool) -> Choice:
        if (chosen, bfloat16) not in self._priced:
            choice = Choice(chosen, bfloat16)
            self._priced[chosen, bfloat16] = replace(choice, seconds=self._seconds(choice) / len(self.kept))
        return self._priced[chosen, bfloat16]

    def _seconds(self, choice: Choice) -> float:
        """Of a step of all, timed on copies: what is in them does not matter. A rate of 0 moves nothing."""
        stack, device = self._copy(choice), self.parameters[0].device

        def move() -> None:
            stack.apply(*direction(stack, stack.gradients()))

        if choice.sides not in self._upkeep:  # whichever the arithmetic, which is told apart by projections alone
            time = seconds(partial(learn, stack, stack.gradients()), device) / self.group["statistics_period"]
            for side in refreshed(stack):
                one = seconds(partial(refresh, stack, {side: slice(0, 1)}), device)
                time += one * len(self.kept) / self.group["period"]
            self._upkeep[choice.sides] = time
        return self._upkeep[choice.sides] + min(seconds(move, device), seconds(move, device))

    def _copy(self, choice: Choice) -> Stack:
        group = {**self.group, "tolerance": 0.0, "lr": 0.0}
        kept = []
        for state, p in zip(self.kept, self.parameters, strict=True):
            factors = {side: state[side] for side in choice.sides}
            bases = {side: state.get(f"{side}_basis", torch.eye(len(F)).to(F)) for side, F in factors.items()}
            G = gradient(p).flatten(1).to(self._dtype).unsqueeze(0)
            (G,) = projected(G, {side: Q.unsqueeze(0) for side, Q in bases.items()})
            factors |= {f"{side}_basis": Q for side, Q in bases.items()}
            kept.append({"step": 1, "choice": choice.words, "momentum": G, "variance": G.square(), **factors})
        return Stack.of(group, self.parameters, kept, [name for name in kept[0] if name not in ("step", "choice")])

    def is_harmless(self, choice: Choice) -> bool:
        """Whether the first matrix's normalised gradient is nearly the same with projections in bfloat16."""
        state, _ = settled(self.kept[0], choice.sides)
        bases = {side: state[f"{side}_basis"].unsqueeze(0) for side in choice.sides}
        G = gradient(self.parameters[0]).flatten(1).to(self._dtype).unsqueeze(0)
        rounded = projected(G.bfloat16(), {side: Q.bfloat16() for side, Q in bases.items()}).to(G.dtype)
        V = state["variance"].unsqueeze(0)
        exact, scale = projected(G, bases), damped(V, V.mean((-2, -1), keepdim=True), self.group["eps"])
        away = torch.linalg.vector_norm((rounded - exact) / scale)
        return bool(away <= HARMLESS * torch.linalg.vector_norm(exact / scale))
