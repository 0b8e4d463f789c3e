"""Pictures for the report, drawn with pillow: small images side by side, each with a line of words; boxes in colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

#: Colours of boxes, one a class and then over again: Okabe & Ito 2008, told apart by the colour-blind as well.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
#: Height of a line of words [pixels].
LINE = 14


def image_of(pixels: Tensor) -> Image:
    """`[channels, rows, columns]` in bytes → an image."""
    from PIL import Image

    array = pixels.cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)))


def sheet(images: Sequence[Image], words: Sequence[str], columns: int, side: int = 96) -> bytes:
    """Images in rows, each scaled to fit `side` and with its words (lines apart by a newline) below: a PNG file."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    font = ImageFont.load_default(11)
    lines = max((text.count("\n") + 1 for text in words), default=1)
    width, height, gap = side, side + lines * LINE, 8
    rows = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    pen = ImageDraw.Draw(whole)
    for number, (image, text) in enumerate(zip(images, words, strict=True)):
        left, top = gap + number % columns * (width + gap), gap + number // columns * (height + gap)
        scaled = ImageOps.contain(image.convert("RGB"), (side, side), Image.Resampling.NEAREST)
        whole.paste(scaled, (left + (side - scaled.width) // 2, top + (side - scaled.height) // 2))
        for i, line in enumerate(text.split("\n")):
            pen.text((left, top + side + i * LINE), _cut(line, font, width), fill="black", font=font)
    return png(whole)


def _cut(line: str, font: Any, width: int) -> str:
    """As much of a line as fits."""
    if font.getlength(line) <= width:
        return line
    length = len(line)
    while length and font.getlength(line[:length] + "…") > width:
        length -= 1
    return line[:length] + "…"


def boxed(
    image: Image,
    boxes: Sequence[Sequence[float]],
    kinds: Sequence[int],
    labels: Sequence[str],
    true: Sequence[Sequence[float]] = (),
) -> Image:
    """An image with boxes (left, top, right, bottom), each in the colour of its kind and with its words.

    `true` are boxes that are there by the annotation: thin and white, below the others.
    """
    from PIL import ImageDraw, ImageFont

    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(11, drawn.width // 50))
    for box in true:
        pen.rectangle(tuple(box), outline="white", width=max(1, drawn.width // 320))
    for box, kind, label in zip(boxes, kinds, labels, strict=True):
        colour = COLOURS[kind % len(COLOURS)]
        pen.rectangle(tuple(box), outline=colour, width=max(2, drawn.width // 300))
        around = pen.textbbox((box[0] + 3, box[1] + 2), label, font=font)
        pen.rectangle((around[0] - 2, around[1] - 1, around[2] + 2, around[3] + 1), fill=colour)
        pen.text((box[0] + 3, box[1] + 2), label, fill="black" if kind % len(COLOURS) < 4 else "white", font=font)
    return drawn


def png(image: Image) -> bytes:
    """An image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
