"""Made-up images: shapes in colour on noise, as class folders and as boxes in the format of Pascal VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[4] / "shared" / "data"
SIDE = 16


def pattern(kind: str, generator: np.random.Generator) -> np.ndarray:
    """An image `[SIDE, SIDE, 3]` of rows, columns or dots, at a place of its own."""
    i, j = np.mgrid[:SIDE, :SIDE] + generator.integers(0, 8)
    on = {"rows": i % 4 < 2, "columns": j % 4 < 2, "dots": (i % 4 < 2) & (j % 4 < 2)}[kind]
    colour = generator.integers(120, 200, 3)
    return (on[..., None] * colour + generator.integers(0, 56, (SIDE, SIDE, 3))).astype(np.uint8)


def write_classes(folder: Path, count: int, seed: int, kinds: tuple[str, ...] = ("rows", "columns", "dots")) -> None:
    generator = np.random.default_rng(seed)
    for kind in kinds:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(pattern(kind, generator)).save(folder / kind / f"{number:03}.png")


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """train/ and test/ with three classes of images each."""
    write_classes(tmp_path / "made-up" / "train", 60, seed=0)
    write_classes(tmp_path / "made-up" / "test", 20, seed=1)
    return tmp_path / "made-up"


def disc_or_square(pixels: np.ndarray, kind: str, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    i, j = np.mgrid[top:bottom, left:right]
    within = np.ones(i.shape, bool)
    if kind == "disc":
        y, x = (i - (top + bottom - 1) / 2) / (bottom - top), (j - (left + right - 1) / 2) / (right - left)
        within = x**2 + y**2 <= 0.25
    pixels[top:bottom, left:right][within] = (200, 60, 60) if kind == "disc" else (60, 60, 200)


def annotation(name: str, size: tuple[int, int], objects: list[tuple[str, tuple[int, int, int, int]]]) -> str:
    lines = ["<annotation>", f"<filename>{name}.png</filename>"]
    lines += [f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"]
    for kind, box in objects:
        corners = "".join(f"<{c}>{n}</{c}>" for c, n in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        lines += ["<object>", f"<name>{kind}</name>", f"<bndbox>{corners}</bndbox>", "</object>"]
    return "\n".join([*lines, "</annotation>"])


def write_voc(folder: Path, counts: dict[str, int], seed: int = 0, size: tuple[int, int] = (128, 96)) -> None:
    """Discs and squares at places of their own on noise; one list of images for each part."""
    generator = np.random.default_rng(seed)
    for below in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / below).mkdir(parents=True)
    for part, count in counts.items():
        names = [f"{part}{number:02}" for number in range(count)]
        for name in names:
            pixels = generator.integers(90, 150, (size[1], size[0], 3)).astype(np.uint8)
            objects = []
            for left, top in ((4, 4), (68, 4), (4, 50), (68, 50)):  # a quarter each, so that none hides another
                kind, side = str(generator.choice(["disc", "square"])), int(generator.integers(18, 36))
                x, y = left + int(generator.integers(0, 20)), top + int(generator.integers(0, 8))
                objects.append((kind, (x, y, x + side, y + side)))
                disc_or_square(pixels, *objects[-1])
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.png")
            (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, size, objects))
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")


@pytest.fixture
def voc_folder(tmp_path: Path) -> Path:
    """48 images to learn from, 8 to validate and 12 to test with."""
    write_voc(tmp_path / "shapes", {"train": 48, "val": 8, "test": 12})
    return tmp_path / "shapes"
