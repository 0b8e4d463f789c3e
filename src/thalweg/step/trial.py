"""A way of running the step is tried before it is taken: from a copy of the state, on real batches.

What is compared after one step from the same state: the loss; the gradients, each in norm; running statistics; and the
update, against the rule itself fed with the way's own gradients, for Adam turns the rounding of a gradient that is zero
but for it into a full step. "The same" is to half of the digits of the dtype: rounding stays far below it, a wrong
program far above.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.snapshot import Snapshot
from thalweg.step.update import Update
from thalweg.tensors.devices import wait
from thalweg.tensors.named import copied, mapped

#: Share of the norm of all tensors below which one is looked at beside all, not by itself: rounding has no size.
FLOOR = 1e-3
#: Roundings by which weights are moved to see how much of a gradient is rounding, how often, and how many times as far
#: another way may lie. At a kink (ReLU, max pooling) rounding decides which side counts: of a million activations of a
#: residual network some always sit there, and its gradients differ by a hundredth from one layout to another.
SHAKE, SHAKES, MARGIN = 8.0, 2, 10.0
#: How far from the exact gradient another way may lie: so many times as far as the plain step, and never beyond this
#: share of the gradient.
BESIDE, ASTRAY = 2.0, 0.1
#: Roundings of θ that θ′ − θ may be off by, of each entry, where both ways add the same to it.
ROUNDINGS = 4.0


CPU = torch.device("cpu")


def tolerance(dtype: torch.dtype) -> float:
    """Half of the digits."""
    return float(torch.finfo(dtype).eps) ** 0.5


def difference(
    found: Mapping[Any, Tensor],
    expected: Mapping[Any, Tensor],
    floor: float = 0.0,
    allowed: Mapping[Any, float] | None = None,
) -> float:
    """The largest ‖a − b‖ / max(‖b‖, floor · ‖all b‖) over tensors of one name; infinite for NaN or a missing one.

    Of each ‖a − b‖, what is `allowed` under its name does not count.
    """
    if found.keys() != expected.keys():
        return float("inf")
    norms = {name: float(t.double().norm()) for name, t in expected.items()}
    least = max(floor * sum(n * n for n in norms.values()) ** 0.5, torch.finfo(torch.float32).tiny)
    worst = 0.0
    for name, b in expected.items():
        away = float((found[name].double() - b.double()).norm()) - (allowed[name] if allowed is not None else 0.0)
        away = max(away, 0.0) / max(norms[name], least) if away == away else away
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

    def tensors(floating: bool) -> dict[str, Tensor]:
        """As they are now: a way may put other ones in their place."""
        return {name: t.detach() for name, t in forward.state().items() if t.is_floating_point() is floating}

    floating = tensors(True)
    parameters = {name for name, p in forward.parameters().items() if p.requires_grad}
    trained = {id(p) for p in forward.parameters().values()}  # a tied one has a second name
    moving = {name for name, t in forward.state().items() if name in floating and id(t) not in trained}
    limit = tolerance(arithmetic or next(iter(floating.values())).dtype)
    try:
        for batch in batches:
            snapshot.restore()
            loss, gradients = way(batch)
            after, kept, counted, drawn = copied(tensors(True)), _kept(optimizer), copied(tensors(False)), _drawn()
            gradients = {p: g.detach().clone() for p, g in gradients.items()}
            snapshot.restore()
            expected_loss, expected = plain(batch)
            expected = {p: g.detach().clone() for p, g in expected.items()}
            if not torch.equal(_drawn(), drawn):
                return "it draws other random numbers"
            if any(not torch.equal(t, counted[name]) for name, t in tensors(False).items()):
                return "a count differs"
            statistics_after = {n: t.clone() for n, t in tensors(True).items() if n in moving}
            noise = _shaken(plain, batch, expected, snapshot, forward)
            away = difference(gradients, expected, FLOOR, noise)
            if away > limit and arithmetic is None:
                exact = _exact(plain, batch, expected_loss, snapshot, forward)
                away = _beside(gradients, expected, exact, noise) if exact is not None else away
            snapshot.restore()
            before = copied(tensors(True))
            for p, g in gradients.items():
                p.grad = g.clone()  # which clipping changes
            rule.apply()
            moved, moved_by = ({n: t[n] - before[n] for n in parameters} for t in (after, tensors(True)))
            rounding = {n: ROUNDINGS * torch.finfo(t.dtype).eps * float(t.norm()) for n, t in before.items()}
            found = {
                "the loss": difference({0: loss}, {0: expected_loss}),
                "a gradient": away,
                "a statistic": difference({n: after[n] for n in statistics_after}, statistics_after, FLOOR),
                "the update": difference(moved, moved_by, FLOOR, rounding),
                "the rule's state": difference(kept, _kept(optimizer), FLOOR),
            }
            for what, far in found.items():
                if not far <= limit:
                    return f"{what} differs by {far:.1e} of its size"
        return None
    finally:
        snapshot.restore()


def _drawn() -> Tensor:
    """How far torch's generators are."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    return torch.cat(states)


def _shaken(
    plain: Way, batch: Batch, expected: Gradients, snapshot: Snapshot, forward: Forward
) -> dict[nn.Parameter, float]:
    """How far each gradient may lie from the plain one and be the same: several times what shaking the weights does."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = dict.fromkeys(expected, 0.0)
    for _ in range(SHAKES):
        snapshot.restore()
        with torch.no_grad():
            for p in forward.parameters().values():
                shake = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p)
                p.mul_(1 + SHAKE * torch.finfo(p.dtype).eps * shake)
        _, gradients = plain(batch)
        for p, g in gradients.items():
            if p in noise:
                noise[p] = max(noise[p], MARGIN * float((g.detach().double() - expected[p].double()).norm()))
    return noise


def _exact(plain: Way, batch: Batch, expected_loss: Tensor, snapshot: Snapshot, forward: Forward) -> Gradients | None:
    """The plain step's gradients in double precision, from the same weights and the same random numbers.

    None where there are none: the step is in double precision already, the model insists on another, or the loss is
    not the same, as where the masks of dropout are drawn otherwise.
    """
    tensors = [t for t in forward.state().values() if t.is_floating_point()]
    if all(t.dtype == torch.float64 for t in tensors):
        return None
    snapshot.restore()
    before = [t.data for t in tensors]
    try:
        for t in tensors:
            t.data = t.data.double()
        loss, gradients = plain(mapped(lambda t: t.double() if t.is_floating_point() else t, batch))
        found = {p: g.detach().clone() for p, g in gradients.items()}
    except (RuntimeError, TypeError, ValueError):
        return None
    finally:
        for t, data in zip(tensors, before, strict=True):
            t.grad = None
            t.data = data
    return found if difference({0: loss}, {0: expected_loss}) <= tolerance(expected_loss.dtype) else None


def _beside(gradients: Gradients, expected: Gradients, exact: Gradients, noise: Mapping[nn.Parameter, float]) -> float:
    """How far gradients are from the exact ones, beyond what the plain step's are.

    Sums over many examples lose digits in either: what differs from the eager gradient may be the better one.
    """
    allowed = {}
    for p, g in exact.items():
        astray = float((expected[p].double() - g).norm()) if p in expected else 0.0
        allowed[p] = max(noise.get(p, 0.0), min(BESIDE * astray, ASTRAY * float(g.norm())))
    return difference(gradients, exact, FLOOR, allowed)


def _kept(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    return {
        (i, name): value.detach().clone()
        for i, (_, values) in enumerate(optimizer.state.items())
        for name, value in (values.items() if isinstance(values, dict) else ())
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def timed(
    ways: Mapping[str, Callable[[], Any]],
    blocks: int,
    seconds: float = 0.0,
    device: torch.device = CPU,
) -> dict[str, list[float]]:
    """Seconds of a call of each, block by block in turn; each is called often enough to last `seconds`, once before.

    On a GPU calls are made one after the other without waiting, as in a training, and a block ends when all are done.
    """
    calls = {}
    wait(device)
    for name, way in ways.items():
        started = time.perf_counter()
        way()
        wait(device)
        calls[name] = max(1, int(seconds / max(1e-9, time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(blocks):
        for name, way in ways.items():
            started = time.perf_counter()
            for _ in range(calls[name]):
                way()
            wait(device)
            times[name].append((time.perf_counter() - started) / calls[name])
    return times


def ratio(times: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """The median over blocks of one way's time to another's."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))
