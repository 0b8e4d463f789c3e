"""What the rules for matrices share: which parameters are theirs, AdamW for all others, and loading.

What is kept of a parameter is float32 at least, beside the number of its steps and what was decided for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.optim import exact
from thalweg.optim.averages import wide
from thalweg.optim.stacks import Fused, Stack, is_matrix, size


def embeddings(model: nn.Module) -> set[nn.Parameter]:
    """The weights of a model's embeddings, whose gradients have a row a token, most of them zero."""
    found = (p for m in model.modules() if "Embedding" in type(m).__name__ for p in m.parameters(recurse=False))
    return set(found)


def output_layer(model: nn.Module) -> set[nn.Parameter]:
    """The last weight of a model, in the order in which its layers were put in, also where it has one row; a tied one
    may be an embedding's.
    """
    weights = [p for m in model.modules() for p in m.parameters(recurse=False) if p.ndim > 1 and p.numel()]
    return set(weights[-1:])


class MatrixRule(Optimizer):
    """A rule for matrices with AdamW inside for all others: vectors, scalars, and groups that say `adamw=True`.

    A rule says what it keeps of a matrix (`_names`, None for one that AdamW moves) and how a stack is moved (`_move`).
    """

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        _check(defaults)
        self._active: list[int] | None = None
        self._stacks: list[Stack] = []
        self._fused: list[Fused] = []
        super().__init__(self._groups(params) if isinstance(params, nn.Module) else params, defaults)

    @classmethod
    def apart(cls, model: nn.Module) -> set[nn.Parameter]:
        """The matrices of a model that are not for this rule."""
        return embeddings(model)

    def _groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Matrices; those that AdamW moves; and what does not decay, as biases and norms: with their names."""
        apart = self.apart(model)
        groups: tuple[dict[str, Any], ...] = ({}, {"adamw": True}, {"adamw": True, "weight_decay": 0.0})
        members: list[list[tuple[str, nn.Parameter]]] = [[], [], []]
        for name, p in model.named_parameters():
            if p.requires_grad:
                members[2 if p.ndim < 2 else int(p in apart or not is_matrix(p))].append((name, p))
        if not any(members):
            raise ValueError("nothing to train: no parameter of the model requires a gradient")
        return [{"params": ps, **options} for ps, options in zip(members, groups, strict=True) if ps]

    def add_param_group(self, param_group: dict[str, Any]) -> None:  # noqa: D102
        super().add_param_group(param_group)
        self._active = None
        for p in self.param_groups[-1]["params"]:
            if not p.is_floating_point():
                raise ValueError(f"a {type(self).__name__} parameter is of real numbers, got {p.dtype}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._active, self._stacks, self._fused = None, [], []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch does it, but state comes back as it was saved: float32 beside bfloat16 weights, words as words."""
        exact.load(self, state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient; returns what `closure` returns, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = [p for group in self.param_groups for p in group["params"] if p.grad is not None and p.numel()]
        if not self._is_arranged(active):
            self._arrange(active)
        for p in active:
            self.state[p]["step"] += 1
        for one in self._fused:
            one.update()
        for number, stack in enumerate(self._stacks):
            self._move(stack, number)
        return loss

    def _is_arranged(self, active: list[nn.Parameter]) -> bool:
        """Whether stacks are of these parameters and what is kept of them still lies there."""
        everything: list[Stack | Fused] = [*self._stacks, *self._fused]
        return self._active == list(map(id, active)) and all(one.is_live(self.state) for one in everything)

    def _arrange(self, active: list[nn.Parameter]) -> None:
        """Put together what moves together."""
        wanted = set(active)
        pairs = [(group, p) for group in self.param_groups for p in group["params"] if p in wanted]
        matrices = [(group, p) for group, p in pairs if not group["adamw"] and is_matrix(p)]
        for _, p in pairs:
            self.state[p].setdefault("step", 0)
        self._decide(matrices)
        names = {p: found for _, p in matrices if (found := self._names(p)) is not None}
        stacks: dict[Hashable, tuple[dict[str, Any], list[nn.Parameter]]] = {}
        fused: dict[Hashable, tuple[dict[str, Any], list[nn.Parameter]]] = {}
        for group, p in pairs:
            key: tuple[Hashable, ...] = (id(group), p.dtype, p.device)
            if p in names:
                key = (*key, size(p), self.state[p]["step"], self._shared(p))
                stacks.setdefault(key, (group, []))[1].append(p)
            else:
                self._begin(p, {"exp_avg": p, "exp_avg_sq": p})
                fused.setdefault((*key, self._share(p)), (group, []))[1].append(p)
        self._stacks = [Stack.of(g, ps, [self.state[p] for p in ps], names[ps[0]]) for g, ps in stacks.values()]
        self._fused = [Fused(g, ps, [self.state[p] for p in ps], self._share(ps[0])) for g, ps in fused.values()]
        self._active = list(map(id, active))

    def _begin(self, p: nn.Parameter, like: dict[str, Any]) -> None:
        """Zeros for what is not kept of p yet: as a tensor, or of a shape."""
        kept = self.state[p]
        for name, what in like.items():
            if name not in kept:
                if isinstance(what, Tensor):
                    kept[name] = torch.zeros_like(what, dtype=wide(p.dtype))
                else:
                    kept[name] = torch.zeros(what, dtype=wide(p.dtype), device=p.device)

    def _decide(self, matrices: list[tuple[dict[str, Any], nn.Parameter]]) -> None:
        """What is to be decided of matrices, each with its group, before they are stacked; written into `state`."""
        raise NotImplementedError

    def _names(self, p: nn.Parameter) -> list[str] | None:
        """What is kept of a matrix, in `state[p]` from now on; None where AdamW moves it."""
        raise NotImplementedError

    def _share(self, p: nn.Parameter) -> float:
        """Of the rate, what AdamW moves a parameter at."""
        return 1.0

    def _shared(self, p: nn.Parameter) -> Hashable:
        """What matrices of a stack have in common beside their shape."""
        raise NotImplementedError

    def _move(self, stack: Stack, number: int) -> None:
        """One step of matrices of one shape, the number of their stack among all of them given."""
        raise NotImplementedError


def _check(defaults: dict[str, Any]) -> None:
    """Raises ValueError: an option out of its range."""
    for name in ("lr", "weight_decay", "eps"):
        if isinstance(defaults[name], Tensor) or not 0 <= defaults[name] < math.inf:
            raise ValueError(f"{name} is a number of 0 or more, got {defaults[name]!r}")
    for name in ("betas", "momentum"):
        values = defaults.get(name, 0.0)
        if not all(0 <= value < 1 for value in (values if isinstance(values, tuple | list) else [values])):
            raise ValueError(f"{name} lies in 0 to below 1, got {values!r}")
