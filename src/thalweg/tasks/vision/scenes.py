"""Annotated images → tensors of one shape: scaled to fit a canvas, boxes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from thalweg.tasks.task import BadData
from thalweg.tasks.vision import images
from thalweg.tasks.vision.detector import STRIDES
from thalweg.tasks.vision.voc import Annotated

if TYPE_CHECKING:
    from PIL.Image import Image

#: The grey level of the canvas where no image lies.
EMPTY = 114


@dataclass(frozen=True, slots=True)
class Canvas:
    """The shape that all images are brought to [pixels]; its sides are multiples of the coarsest stride."""

    rows: int
    columns: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], longest: int) -> Canvas:
        """What images of these sizes (width, height) need when the longer side of each is scaled to `longest`.

        >>> Canvas.of([(640, 480)], 320)
        Canvas(rows=256, columns=320)
        """

        def side(axis: int) -> int:
            needed = max(size[axis] * longest / max(size) for size in sizes)
            return math.ceil(round(needed) / STRIDES[-1]) * STRIDES[-1]

        return cls(side(1), side(0))

    def scale(self, size: tuple[int, int]) -> float:
        """Pixels of the canvas for one of an image of this size (width, height)."""
        return min(self.columns / size[0], self.rows / size[1])

    def fitted(self, image: Image) -> Image:
        """An image on the canvas, from its upper left corner on."""
        import PIL.Image

        scale = self.scale(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        whole = PIL.Image.new("RGB", (self.columns, self.rows), (EMPTY,) * 3)
        whole.paste(image.convert("RGB").resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=2.0))
        return whole

    def pixels(self, content: bytes, remark: Callable[[str], None]) -> Tensor:
        """An image file → `[3, rows, columns]` in bytes.

        Raises:
            Broken: it cannot be read.
        """
        return torch.from_numpy(images.stacked([images.pixels(content, self.fitted, remark, upright=False)], 3)[0])


@dataclass(slots=True)
class Scenes:
    """A part of a data set.

    `images` `[examples, 3, rows, columns]` in bytes; `targets` `[examples, boxes, 5]`: left, top, right, bottom in
    pixels of the canvas, and the class, −1 where an image has fewer boxes; `annotated`, what they were made of.
    """

    images: Tensor
    targets: Tensor
    annotated: list[Annotated]

    def of(self, chosen: Sequence[int]) -> Scenes:
        """The examples of these numbers."""
        rows = torch.tensor(chosen, dtype=torch.int64)
        return Scenes(self.images[rows], self.targets[rows], [self.annotated[i] for i in chosen])


def scenes(
    part: Sequence[Annotated], classes: Sequence[str], canvas: Canvas, remarks: images.Remarks, bad: BadData
) -> Scenes:
    """Read the images of a part; those that cannot be read are bad data, as are objects of unknown classes."""
    pixels: list[Tensor] = []
    readable = []
    for one in part:
        remark: Callable[[str], None] = partial(remarks.add, place=one.place)
        try:
            pixels.append(canvas.pixels(one.read(), remark))
        except images.Broken as error:
            bad.add(one.place, f"an image that is {error}")
            continue
        strange = [thing for thing in one.objects if thing.name not in classes]
        for thing in strange:
            bad.add(f"{one.place}, line {thing.line}", f"class {thing.name}, which the training part lacks")
        one.objects = [thing for thing in one.objects if thing not in strange]
        readable.append(one)
    if not readable:
        raise ValueError("no image of a part can be read: at least one was expected")
    return Scenes(torch.stack(pixels), _targets(readable, classes, canvas), readable)


def _targets(part: Sequence[Annotated], classes: Sequence[str], canvas: Canvas) -> Tensor:
    targets = torch.zeros(len(part), max(1, *(len(one.objects) for one in part), 0), 5)
    targets[..., 4] = -1
    for row, one in zip(targets, part, strict=True):
        scale = canvas.scale(one.size)
        for place, thing in zip(row, one.objects, strict=False):
            place[:4] = torch.tensor(thing.box) * scale
            place[4] = classes.index(thing.name)
    return targets
