"""A way of running the step is tried before it is taken: from a copy of the state, on real batches.

What is compared after one step from the same state: the loss; the gradients, each in norm; running statistics; and the
update, against the rule itself fed with the way's own gradients, for Adam turns the rounding of a gradient that is zero
but for it into a full step. "The same" is to half of the digits of the dtype: rounding stays far below it, a wrong
program far above.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.update import Update
from thalweg.tensors import seeds
from thalweg.tensors.named import assign, copied

#: Share of a way's norm below which a gradient is looked at beside all others, not by itself: rounding has no size.
FLOOR = 1e-3
#: θ′ − θ keeps only those digits of θ that the step reaches: of a step of a hundredth of the weights, two fewer.
LOST = 100.0


class Snapshot:
    """A copy of all that a step changes; put back as often as wanted, into the same tensors."""

    def __init__(self, forward: Forward, optimizer: Optimizer) -> None:
        self._forward = forward
        self._optimizer = optimizer
        self._model = copied(forward.state())
        self._state = {p: {n: _copy(v) for n, v in values.items()} for p, values in optimizer.state.items()}
        self._random = seeds.capture()

    def restore(self) -> None:
        """Everything is as when the copy was made; what a rule has begun to keep since is forgotten."""
        assign(self._forward.state(), self._model)
        state = self._optimizer.state
        for p in list(state):
            if p not in self._state:
                del state[p]
        for p, values in self._state.items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    state[p][name].copy_(value)
                else:
                    state[p][name] = copy.deepcopy(value)
        self._optimizer.zero_grad()
        seeds.restore(self._random)


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def tolerance(dtype: torch.dtype) -> float:
    """Half of the digits."""
    return float(torch.finfo(dtype).eps) ** 0.5


def difference(found: Mapping[Any, Tensor], expected: Mapping[Any, Tensor], floor: float = 0.0) -> float:
    """The largest ‖a − b‖ / max(‖b‖, floor · ‖all b‖) over tensors of one name; infinite for NaN or a missing one."""
    if found.keys() != expected.keys():
        return float("inf")
    norms = {name: float(t.double().norm()) for name, t in expected.items()}
    least = max(floor * sum(n * n for n in norms.values()) ** 0.5, torch.finfo(torch.float32).tiny)
    worst = 0.0
    for name, b in expected.items():
        away = float((found[name].double() - b.double()).norm()) / max(norms[name], least)
        worst = max(worst, away if away == away else float("inf"))
    return worst


Gradients = dict[nn.Parameter, Tensor]
#: A batch → the loss and the gradients; with the update made.
Way = Callable[[Batch], tuple[Tensor, Gradients]]


def same(
    way: Way,
    plain: Way,
    rule: Update,
    batches: Sequence[Batch],
    forward: Forward,
    arithmetic: torch.dtype | None = None,
) -> str | None:
    """None where a way does what the plain step does on these batches; else what differs, and by how much.

    `way` makes the update, `plain` only the gradients, and `rule` the update from gradients. `arithmetic` is what both
    multiply in, if not in the parameters' dtype: their digits are then those of it.
    """
    optimizer = rule.optimizer
    snapshot = Snapshot(forward, optimizer)
    floating = {name: t.detach() for name, t in forward.state().items() if t.is_floating_point()}
    parameters = {name for name, p in forward.parameters().items() if p.requires_grad}
    limit = tolerance(arithmetic or next(iter(floating.values())).dtype)
    try:
        for batch in batches:
            snapshot.restore()
            loss, gradients = way(batch)
            after, kept = copied(floating), _kept(optimizer)
            gradients = {p: g.detach().clone() for p, g in gradients.items()}
            snapshot.restore()
            expected_loss, expected = plain(batch)
            expected = {p: g.detach().clone() for p, g in expected.items()}
            statistics_after = {n: t.clone() for n, t in floating.items() if n not in parameters}
            snapshot.restore()
            before = copied(floating)
            for p, g in gradients.items():
                p.grad = g
            rule.apply()
            moved, moved_by = ({n: t[n] - before[n] for n in parameters} for t in (after, floating))
            found = {
                "the loss": (difference({0: loss}, {0: expected_loss}), limit),
                "a gradient": (difference(gradients, expected, FLOOR), limit),
                "a statistic": (difference({n: after[n] for n in statistics_after}, statistics_after, FLOOR), limit),
                "the update": (difference(moved, moved_by, FLOOR), limit * LOST),
                "the rule's state": (difference(kept, _kept(optimizer), FLOOR), limit),
            }
            for what, (away, allowed) in found.items():
                if not away <= allowed:
                    return f"{what} differs by {away:.1e} of its size"
        return None
    finally:
        snapshot.restore()


def _kept(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    return {
        (i, name): value.detach().clone()
        for i, (_, values) in enumerate(optimizer.state.items())
        for name, value in values.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def timed(ways: Mapping[str, Callable[[], Any]], blocks: int, seconds: float = 0.0) -> dict[str, list[float]]:
    """Seconds of a call of each, block by block in turn; each is called often enough to last `seconds`, once before."""
    calls = {}
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        calls[name] = max(1, int(seconds / max(1e-9, time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(blocks):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                way()
            times[name].append((time.perf_counter() - started) / calls[name])
    return times


def ratio(times: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """The median over blocks of one way's time to another's."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))
