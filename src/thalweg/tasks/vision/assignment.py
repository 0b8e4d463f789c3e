"""Which place is to find which box, and the loss of what it says."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.tasks.vision.boxes import generalised_overlap, overlap
from thalweg.tasks.vision.detector import STRIDES, grid

#: Places this many strides around the middle of a box are to find it (FCOS, version of 2020, arXiv:2006.09214).
RADIUS = 1.5
#: The finest level is for boxes whose farthest border is up to this many strides away, each further one for twice that.
REACH = 8
#: A box of which less than this share is left in a moved image is not asked for.
LEAST_LEFT = 0.3
#: Weight of the boxes' loss beside that of the classes (Li et al. 2020, arXiv:2006.04388).
BOX_WEIGHT = 2.0


class DetectionLoss:
    """Quality focal loss of the classes and GIoU loss of the boxes, per place that has a box to find.

    A place's score for its class is to be the overlap q of its box with the true one, for all else 0:
    Σ |q − σ(z)|² · BCE(z, q) (Li et al. 2020, arXiv:2006.04388, equation 4), and 1 − GIoU weighted by q
    (Rezatofighi et al. 2019, arXiv:1902.09630).
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        self.__name__ = "detection"

    def __call__(self, output: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        """The loss of what the network returns for `target` `[batch, boxes, 5]`.

        A box is left, top, right, bottom and class, −1 where there is none.
        """
        if isinstance(output, tuple):
            output, moves = output
            target = moved(target, moves, self.rows, self.columns)
        boxes, scores = output[..., :4], output[..., 4:]
        wanted, classes = assigned(target, self.rows, self.columns)
        found = classes >= 0
        quality = overlap(boxes.detach(), wanted).clamp(0, 1) * found
        aims = F.one_hot(classes.clamp_min(0), scores.shape[-1]) * quality[..., None]
        focus = (aims - scores.detach().sigmoid()).square()
        of_classes = (focus * F.binary_cross_entropy_with_logits(scores, aims, reduction="none")).sum()
        weight = quality.clamp_min(0.1) * found
        of_boxes = ((1 - generalised_overlap(boxes, wanted)) * weight).sum() / weight.sum().clamp_min(1)
        return of_classes / found.sum().clamp_min(1) + BOX_WEIGHT * of_boxes


def moved(target: Tensor, moves: Tensor, rows: int, columns: int) -> Tensor:
    """Boxes `[batch, boxes, 5]` moved as their images were, cut off at the border; class −1 where little is left."""
    a, t = moves[:, None, :2], moves[:, None, 2:]
    ends = torch.stack([a * target[..., :2] + t, a * target[..., 2:4] + t])
    low, high = ends.amin(0), ends.amax(0)
    border = low.new_tensor([columns, rows])
    cut_low, cut_high = low.clamp_min(0).minimum(border), high.clamp_min(0).minimum(border)
    left = (cut_high - cut_low).prod(-1) / (high - low).prod(-1).clamp_min(1e-6)
    classes = target[..., 4].where(left >= LEAST_LEFT, -1.0)
    return torch.cat([cut_low, cut_high, classes[..., None]], -1)


def assigned(target: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """For each place the box it is to find `[batch, places, 4]`, and its class `[batch, places]`, −1 for none.

    It must lie in the box and near its middle, and the box must be of the size that its level is for. Of several the
    smallest is taken.
    """
    places, strides = grid(rows, columns, target.device, target.dtype)
    low, high = target[:, None, :, :2], target[:, None, :, 2:4]
    point = places[None, :, None]
    near = (point - low).minimum(high - point).amin(-1)  # [batch, places, boxes], to the nearest border
    far = (point - low).maximum(high - point).amax(-1)
    from_middle = (point - (low + high) / 2).abs().amax(-1)
    stride = strides[None, :, None]
    least = torch.where(stride == STRIDES[0], 0.0, REACH * stride / 2)
    most = torch.where(stride == STRIDES[-1], torch.inf, REACH * stride)
    fits = (near > 0) & (from_middle < RADIUS * stride) & (far >= least) & (far < most) & (target[:, None, :, 4] >= 0)
    area = (high - low).prod(-1).expand_as(fits).masked_fill(~fits, torch.inf)
    smallest, number = area.min(-1)
    chosen = target.gather(1, number[..., None].expand(-1, -1, 5))
    return chosen[..., :4], chosen[..., 4].where(smallest < torch.inf, -1.0).long()
