"""The plane that a training moved in: the two principal directions of its path, and the loss over them.

Of the weights w_1 … w_n along a training, less their mean, the singular value decomposition U S Vᵀ gives orthonormal
directions v_k that hold the shares s_k²/Σs² of the path's variance (Li, Xu, Taylor, Studer, Goldstein 2018, section
7.2; arXiv 1712.09913). The plane of the first two is laid through the end of the path, as there: the loss at its end is
that of the model itself; all else is seen from straight above the plane, and the more of the variance it holds the
less that hides. A large share alone says little: a random walk in many dimensions puts 0.61 and 0.15 of its variance
into its first two (Antognini, Sohl-Dickstein 2018; arXiv 1806.08805).

Only what is trained gives the directions. The running statistics of a norm, which move by their own scale, go along by
the same combination of the w_i, Σ_i u_ik w_i/s_k; far outside the path that can make a variance negative and the loss
not finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.ground import Ground, floating_dtype, sample, standing
from thalweg.gradients.products import LossLike
from thalweg.records.landscape import Plane
from thalweg.step.forward import Forward
from thalweg.tensors import seeds
from thalweg.tensors.named import assign
from thalweg.tensors.vector import Layout, flat

#: Examples that the loss is taken on, at most, as in `landscape`.
EXAMPLES = 2048
#: Points along each side of the picture.
GRID = 25
#: Of the path's extent, what is shown beyond it on each side; and the least extent, as a share of the other one.
MARGIN, LEAST = 0.25, 0.05


@dataclass(frozen=True, slots=True)
class Path:
    """A model's weights at some steps of its training."""

    layout: Layout
    """Of all that a prediction depends on; a tied tensor once."""
    trained: frozenset[str]
    """The names of those that training changes by gradients."""
    steps: tuple[int, ...]
    points: Tensor
    """[len(steps), layout.size], float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class _Principal:
    """Two directions through the end of a path, and the path in their coordinates."""

    origin: Tensor
    """[size]"""
    directions: Tensor
    """[2, size], of length 1 in what is trained"""
    places: Tensor
    """[steps, 2]"""
    explained: tuple[float, float]


def weights(forward: Forward) -> dict[str, Tensor]:
    """What a prediction depends on, by name; a tied tensor under its first one only."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, t in forward.weights().items():
        first.setdefault(id(t), (name, t))
    return dict(first.values())


def path_plane(
    model: nn.Module, data: Any, loss: LossLike = None, *, path: Path, examples: int = EXAMPLES, seed: int = 0
) -> Plane:
    """The loss over the plane of a path, on a grid around it and at its points: 625 losses and one for each point.

    Args:
        model: of the network that was trained; taken in evaluation mode, and left as it is, weights and all.
        data: `(x, y)` or any form that `fit` takes.
        loss: a name, a function (output, target), or None where the model returns its loss.
        path: what was kept of the training; from the first weights that are not finite on, it is left out.
        examples: at most so many are taken, by `seed`.
        seed: what the choice of examples follows from.

    Raises:
        ValueError: the path has fewer than three points or does not move, or is of another model.
    """
    steps, points = _finite(path)
    principal = _principal(points, _is_trained(path))
    xs, ys = (_axis(principal.places[:, k], principal.places) for k in (0, 1))
    with seeds.untouched():
        taken = sample(data, floating_dtype(model), examples, seed)
        with standing(model, taken, loss) as ground:
            walk = _Walk(ground, path.layout, principal)
            losses = tuple(tuple(walk.loss_at(x, y) for x in xs) for y in ys)
            along = tuple(walk.loss_at(x, y) for x, y in principal.places.tolist())
    labels = [
        f"{word} principal direction, {share:.1%} of the variance"
        for word, share in zip(("first", "second"), principal.explained, strict=True)
    ]
    return Plane(
        x=tuple(xs),
        y=tuple(ys),
        loss=losses,
        x_label=labels[0],
        y_label=labels[1],
        sentence=_sentence(steps, principal.explained, along),
        steps=steps,
        path=tuple((x, y) for x, y in principal.places.tolist()),
        path_loss=along,
        explained=principal.explained,
        num_examples=taken.count,
    )


class _Walk:
    """A model moved about in the plane, with its running statistics."""

    def __init__(self, ground: Ground, layout: Layout, principal: _Principal) -> None:
        self.ground, self.layout = ground, layout
        self.targets = weights(ground.forward)
        where, precision = ground.curvature.device, torch.promote_types(ground.curvature.dtype, torch.float32)
        self.origin = principal.origin.to(where, precision)
        self.directions = principal.directions.to(where, precision)

    def loss_at(self, x: float, y: float) -> float:
        """The loss at origin + x v_1 + y v_2."""
        point = self.origin + x * self.directions[0] + y * self.directions[1]
        assign(self.targets, self.layout.unflatten(point))
        return self.ground.loss_here()


def _finite(path: Path) -> tuple[tuple[int, ...], Tensor]:
    """Steps and points `[n, size]` before the first point that is not finite."""
    finite = torch.isfinite(path.points).all(1).tolist()
    count = finite.index(False) if False in finite else len(finite)
    if count < 3:
        raise ValueError(f"a plane needs a path of at least 3 points, this one has {count} with finite weights")
    return path.steps[:count], path.points[:count]


def _is_trained(path: Path) -> Tensor:
    """[size]"""
    parts = [
        torch.full((shape.numel(),), name in path.trained)
        for name, shape in zip(path.layout.names, path.layout.shapes, strict=True)
    ]
    return flat(parts)


def _principal(points: Tensor, trained: Tensor) -> _Principal:
    if int(trained.sum()) < 2:
        raise ValueError("a plane needs at least 2 trained parameters, the model has fewer")
    points = points.double()
    centred = points - points.mean(0)
    U, S, Vh = torch.linalg.svd(centred[:, trained], full_matrices=False)
    # In float32 a weight that stands still may seem to move by its last digit.
    if float(S[0]) <= 1e-7 * float(torch.linalg.vector_norm(points[-1, trained])) or S[0] == 0:
        raise ValueError("the weights have not moved: there is no plane of their path")
    directions = torch.zeros(2, points.shape[1], dtype=points.dtype)
    directions[:, trained] = Vh[:2]
    moves = S[:2] > 1e-7 * S[0]
    combined = (U[:, :2] / S[:2].where(moves, torch.inf)).T
    directions[:, ~trained] = combined @ centred[:, ~trained]
    places = (points - points[-1])[:, trained] @ directions[:, trained].T
    # The signs of singular vectors are arbitrary: the path goes from the left, and mostly above its end.
    signs = torch.where(torch.stack([-places[0, 0], places[:, 1].sum()]) < 0, -1.0, 1.0).to(points)
    shares = (S**2 / (S**2).sum()).tolist()
    return _Principal(points[-1], directions * signs[:, None], places * signs, (shares[0], shares[1]))


def _axis(places: Tensor, both: Tensor) -> list[float]:
    """Where along a direction the loss is taken: all of the path with a margin."""
    low, high = float(places.min()), float(places.max())
    widest = float((both.max(0).values - both.min(0).values).max())
    reach = max((high - low) / 2, LEAST * widest / 2) * (1 + 2 * MARGIN)
    return [(low + high) / 2 + reach * (2 * i / (GRID - 1) - 1) for i in range(GRID)]


def _sentence(steps: tuple[int, ...], explained: tuple[float, float], along: tuple[float, ...]) -> str:
    ends = f"from {along[0]:.4g} to {along[-1]:.4g}" if math.isfinite(along[0]) else f"to {along[-1]:.4g}"
    return (
        f"Path of {len(steps)} points from step {steps[0]} to {steps[-1]}: its plane holds {sum(explained):.1%} of the "
        f"variance ({explained[0]:.1%} and {explained[1]:.1%}), and in it the loss goes {ends}."
    )
