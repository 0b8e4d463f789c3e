"""Image files → bytes of one size: what a broken one is, and what becomes of grey, of alpha, of other sizes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import splitext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of image files that are read.
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"])
#: Modes of pillow that hold one number a pixel (1: black and white, L: 8 bits, I and F: more).
GREY = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "LA", "La")
#: Modes of more than 8 bits a pixel, and what their numbers end at in files.
DEEP = {"I": 65535.0, "I;16": 65535.0, "I;16B": 65535.0, "I;16L": 65535.0}

Bytes = npt.NDArray[np.uint8]


class Broken(ValueError):
    """A file that is no image, or a damaged one."""


@dataclass(slots=True)
class Remarks:
    """What was done to images as they were read, by the name of what it was; the notes of a run say it."""

    done: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, place: str) -> None:
        """One more image, by its place."""
        self.done.setdefault(what, []).append(place)

    def notes(self) -> list[str]:
        """A sentence for each thing that was done.

        >>> remarks = Remarks()
        >>> remarks.add("had an alpha channel and was laid over white", "cats/3.png")
        >>> remarks.notes()
        ['1 image had an alpha channel and was laid over white: cats/3.png.']
        """
        sentences = []
        for what, places in self.done.items():
            count = f"{len(places):,} images" if len(places) > 1 else "1 image"
            plural = what.replace("was ", "were ") if len(places) > 1 else what
            first = f"the first is {places[0]}" if len(places) > 1 else places[0]
            sentences.append(f"{count} {plural}: {first}.")
        return sentences


def is_image(path: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return splitext(path)[1].lower() in SUFFIXES


def opened(content: bytes) -> Image:
    """An image with its pixels not yet read: its size is known, and an orientation that it gives not yet followed.

    Raises:
        Broken: it is no image that pillow knows.
    """
    from PIL import Image

    with _said():
        return Image.open(io.BytesIO(content))


def shown(content: bytes) -> Image:
    """An image as it is stored, in colour, to be looked at.

    Raises:
        Broken: it cannot be read, or only in part.
    """
    image = opened(content)
    with _said():
        return _plain(image, lambda remark: None).convert("RGB")


def pixels(
    content: bytes, fitted: Callable[[Image], Image], remark: Callable[[str], None], upright: bool = True
) -> Bytes:
    """Read an image: `[rows, columns, channels]`, one channel if it is grey, else red, green and blue.

    Args:
        content: the file's bytes.
        fitted: brings the image to the size that is wanted.
        remark: told what was done to it, if anything.
        upright: whether it is turned as its EXIF orientation says; boxes are drawn on images as they are stored.

    Raises:
        Broken: it cannot be read, or only in part.
    """
    from PIL import ImageOps

    image = opened(content)
    with _said():
        image = fitted(_plain(ImageOps.exif_transpose(image) if upright else image, remark))
        array = np.asarray(image, dtype=np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def stacked(images: list[Bytes], channels: int) -> Bytes:
    """Images of one size as one array `[images, channels, rows, columns]`; a grey one fills all three channels."""
    rows, columns = images[0].shape[:2]
    array = np.empty((len(images), channels, rows, columns), np.uint8)
    for place, image in zip(array, images, strict=True):
        place[:] = image.transpose(2, 0, 1)
    return array


def _plain(image: Image, remark: Callable[[str], None]) -> Image:
    """An image in mode L or RGB."""
    import PIL.Image

    if image.mode in DEEP:
        remark("had 16 bits a pixel and was read with 8")
        return PIL.Image.fromarray(np.clip(np.asarray(image) * (255 / DEEP[image.mode]), 0, 255).astype(np.uint8))
    grey = image.mode in GREY
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        coloured = image.convert("RGBA")
        below = PIL.Image.new("RGBA", coloured.size, "white")
        if coloured.getchannel("A").getextrema() != (255, 255):
            remark("had an alpha channel and was laid over white")
        image = PIL.Image.alpha_composite(below, coloured)
    elif image.mode == "CMYK":
        remark("was in CMYK and was read as RGB")
    return image.convert("L" if grey else "RGB")


@contextmanager
def _said() -> Iterator[None]:
    """Whatever pillow raises about a file, its warning of a bomb included, is `Broken` outside."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnidentifiedImageError as error:
            raise Broken("an image was expected, but the content is in no format that is known here") from error
        except Exception as error:  # a damaged file can fail in any way
            reason = (
                str(error).partition("(")[0].strip() or type(error).__name__
            )  # in brackets: numbers of this one file
            raise Broken(f"damaged ({reason})") from error
