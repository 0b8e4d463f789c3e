"""Boxes (left, top, right, bottom): how far they overlap, and which of many that lie on the same thing is kept."""

from __future__ import annotations

import torch
from torch import Tensor

#: A box that covers more than this of a surer one of its class is taken for the same thing.
SAME = 0.5
#: Scores below this are no answer; boxes an image has at most (as in COCO's evaluation).
LEAST_SCORE, MOST = 0.02, 100
#: Candidates of an image that are compared with each other.
CANDIDATES = 400


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes `[…, 4]` with boxes of the same shape (or one that is broadcast): `[…]`."""
    both = _area((a[..., 2:].minimum(b[..., 2:]) - a[..., :2].maximum(b[..., :2])).clamp_min(0))
    return both / (_area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - both).clamp_min(1e-6)


def generalised_overlap(a: Tensor, b: Tensor) -> Tensor:
    """GIoU: the overlap less the share of the smallest box around both that neither covers, from −1 to 1."""
    both = _area((a[..., 2:].minimum(b[..., 2:]) - a[..., :2].maximum(b[..., :2])).clamp_min(0))
    either = _area(a[..., 2:] - a[..., :2]) + _area(b[..., 2:] - b[..., :2]) - both
    around = _area(a[..., 2:].maximum(b[..., 2:]) - a[..., :2].minimum(b[..., :2]))
    return both / either.clamp_min(1e-6) - (around - either) / around.clamp_min(1e-6)


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def kept(found: Tensor, least: float = LEAST_SCORE) -> tuple[Tensor, Tensor, Tensor]:
    """What a detector says of one image → boxes `[boxes, 4]`, scores `[boxes]`, classes `[boxes]`, surest first.

    Args:
        found: `[places, 4 + classes]`, boxes and scores before the sigmoid.
        least: the score from which on a box counts.
    """
    scores = found[:, 4:].sigmoid()
    sure, which = scores.flatten().topk(min(CANDIDATES, scores.numel()))
    which = which[sure >= least]
    places, classes = which // scores.shape[1], which % scores.shape[1]
    boxes, sure = found[places, :4], scores.flatten()[which]
    # Boxes of different classes are moved apart, so that one comparison serves all classes.
    apart = boxes + (classes * (boxes.abs().max() * 2 + 1 if len(boxes) else 1))[:, None]
    covers = overlap(apart[:, None], apart[None]) > SAME
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if alive[i]:
            alive[i + 1 :] &= ~covers[i, i + 1 :]
    chosen = alive.nonzero().flatten()[:MOST]
    return boxes[chosen], sure[chosen], classes[chosen]
