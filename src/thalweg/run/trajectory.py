"""The path of a training through the space of its weights, for a picture of the ground it went over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.trajectory import EXAMPLES, Path, path_plane, weights
from thalweg.records.landscape import Plane
from thalweg.records.step import StepRecord
from thalweg.run.callback import Callback
from thalweg.run.run import Run
from thalweg.step.forward import Forward
from thalweg.tensors.vector import Layout

#: Bytes that the copies may take altogether.
MEMORY = 16_000_000
#: Copies beyond which a path only costs time: a picture shows no more.
MOST = 200


class Trajectory(Callback):
    """Keeps the weights along a training; `.plane(model, data, loss)` is the loss over the plane they moved in.

    Copies are made before the first update, at reported steps and at evaluations. When there is no more room, every
    second one is dropped and from then on every second one is taken; the first and the last are always there. Nothing
    of the training changes.

    Args:
        memory: bytes that the copies may take, at 4 for each weight; a model of which fewer than 3 fit has only its
            first weights kept and those of the last evaluation, and the run's notes say so.

    Attributes:
        steps: after which updates the weights were kept; 0 is before the first.

    >>> from thalweg.run.fit import fit
    >>> trajectory = Trajectory()
    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> settings = {"steps": 30, "callbacks": trajectory, "run_dir": tmp, "verbose": False}
    >>> _ = fit(nn.Linear(1, 1), (x, 2 * x + 1), "mse", **settings)
    >>> trajectory.steps[:3], trajectory.steps[-1]
    ((0, 1, 2), 30)
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self._forward: Forward | None = None
        self._layout = Layout((), ())
        self._trained: frozenset[str] = frozenset()
        self._kept: list[tuple[int, int, Tensor]] = []
        """(number of the copy, step, weights `[size]`)"""
        self._taken = 0
        self._every = 1

    @property
    def steps(self) -> tuple[int, ...]:
        """After which updates the weights were kept; 0 is before the first."""
        return tuple(step for _, step, _ in self._kept)

    @property
    def path(self) -> Path:
        """All that was kept."""
        if not self._kept:
            raise ValueError("nothing was kept yet: give the trajectory to a training, fit(..., callbacks=trajectory)")
        return Path(self._layout, self._trained, self.steps, torch.stack([point for _, _, point in self._kept]))

    @property
    def capacity(self) -> int:
        """How many copies are kept at most."""
        fit = self.memory // max(1, 4 * self._layout.size)
        return min(MOST, fit) if fit >= 3 else 2

    def plane(self, model: nn.Module, data: Any, loss: Any = None, *, examples: int = EXAMPLES, seed: int = 0) -> Plane:
        """The loss over the plane of the path's two principal directions, for `.plot()` and for `run.report`.

        Args:
            model: the network that was trained; its weights do not matter and are left as they are.
            data: `(x, y)` or any form that `fit` takes.
            loss: as `fit` takes it.
            examples: at most so many are taken, by `seed`.
            seed: what the choice of examples follows from.

        Raises:
            ValueError: fewer than three points were kept, or the path is of another model.
        """
        if len(self._kept) == 2 == self.capacity:
            raise ValueError(f"a plane needs a path of at least 3 points: {self._too_large()}")
        return path_plane(model, data, loss, path=self.path, examples=examples, seed=seed)

    def on_start(self, run: Run) -> None:
        """Begin anew, or go on where a run was left: what was kept after that step is forgotten."""
        self._forward = Forward(run.model)
        tensors = weights(self._forward)
        layout = Layout.of(tensors)
        reached = int(run.history.series("loss")[0][-1]) if "loss" in run.history.names else -1
        self._kept = [kept for kept in self._kept if layout == self._layout and kept[1] <= reached]
        if not self._kept:
            self._taken, self._every = 0, 1
        trained = {id(p) for p in self._forward.parameters().values()}
        self._layout, self._trained = layout, frozenset(name for name, t in tensors.items() if id(t) in trained)
        if self.capacity == 2:
            run.record.notes += [note for note in [self._too_large()] if note not in run.record.notes]
        if reached < 0:
            self._take(0)

    def on_step(self, run: Run, record: StepRecord) -> None:
        """A reported update; of a model too large for more than two copies there is no path to be kept."""
        if self.capacity > 2:
            self._take(record.step)

    def on_validate(self, run: Run, record: StepRecord) -> None:
        """The end of an epoch, whose last update may not have been reported."""
        if not self._kept or self._kept[-1][1] < record.step:
            self._take(record.step)

    def _take(self, step: int) -> None:
        """Keep the weights as they are; the last copy stays only until the next, unless it is one of every so many."""
        assert self._forward is not None
        if self._kept and self._kept[-1][0] % self._every:
            self._kept.pop()
        while len(self._kept) >= self.capacity:
            self._every *= 2
            self._kept = [kept for kept in self._kept if kept[0] % self._every == 0]
        self._kept.append((self._taken, step, _flat(self._forward)))
        self._taken += 1

    def _too_large(self) -> str:
        size = self._layout.size
        return (
            f"Of a model of {size:,} weights fewer than 3 copies fit into {self.memory / 1e6:.4g} MB: only the first "
            "and those of the last evaluation are kept, and there is no plane of its path; "
            f"Trajectory(memory={40 * size}) keeps ten."
        )


def _flat(forward: Forward) -> Tensor:
    """The weights now `[size]`, float32 on the CPU."""
    parts = list(weights(forward).values())
    whole = torch.empty(sum(t.numel() for t in parts))
    for place, t in zip(whole.split([t.numel() for t in parts]), parts, strict=True):
        place.view(t.shape).copy_(t.detach())
    return whole
