"""Labelled images from class folders, or from the IDX files of MNIST: training, validation and test part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.tasks.hub import column, is_hub, splits
from thalweg.tasks.hub import part as table_of
from thalweg.tasks.mnist import idx_part
from thalweg.tasks.task import BadData
from thalweg.tasks.vision import images
from thalweg.tasks.vision.tree import Tree

if TYPE_CHECKING:
    from PIL.Image import Image

#: Names of the folders of each part.
PARTS = {
    "training": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
#: Sides of images of different sizes end here where no size was asked for: what two cores can train on in minutes.
LARGEST = 64

#: Pixels, class numbers and places of the images of a part.
Read = tuple[list[images.Bytes], list[int], list[str]]

NO_IMAGE = f"no image file by its name, which should end in {', '.join(sorted(images.SUFFIXES))}"
LAYOUT = "give class folders of images, train/ and test/ folders of such, or IDX files"


@dataclass(slots=True)
class Part:
    """Images `[examples, channels, rows, columns]` as bytes, class numbers `[examples]`, where each came from."""

    images: Tensor
    labels: Tensor
    places: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, chosen: Tensor) -> Part:
        """The examples of these numbers."""
        return Part(self.images[chosen], self.labels[chosen], [self.places[i] for i in chosen.tolist()])


@dataclass(slots=True)
class Labelled:
    """What a folder holds: parts by name (validation and test may be missing), class names, what is to be said."""

    parts: dict[str, Part]
    classes: list[str]
    notes: list[str] = field(default_factory=list)


def read(data: Path | str, size: int | None, bad: BadData) -> Labelled:
    """Read a folder (or a tar archive of one) of labelled images.

    Args:
        data: class folders; or `train`, and perhaps `val` and `test`, of class folders; or IDX files; or `hub:NAME`.
        size: the side in pixels that images are scaled to; None takes them as they are where they agree and are small.
        bad: told of all that cannot be used.

    Raises:
        FileNotFoundError: no such folder, or a file is missing from it.
        ValueError: it holds no images in one of these layouts, or something is bad and that is to be refused.
    """
    if is_hub(data):
        return _of_classes(_of_hub(data), size, bad)
    folder = Path(data)
    if folder.is_dir() and any(folder.glob("*idx3*")):
        return _of_idx(folder, size, bad)
    tree = _unwrapped(Tree.of(folder))
    parts = {part: name for part, names in PARTS.items() for name in tree.tops() if name.lower() in names}
    if "training" not in parts:
        parts = {"training": ""}
    return _of_classes({part: tree.below(name) if name else tree for part, name in parts.items()}, size, bad)


def hold_out(part: Part, share: float, num_classes: int, seed: int) -> tuple[Part, Part]:
    """A training part → the rest and a validation part, of each class the same share, at random by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(part), dtype=torch.bool)
    for number in range(num_classes):
        members = (part.labels == number).nonzero().flatten()
        drawn = members[torch.randperm(len(members), generator=generator)]
        held[drawn[: round(share * len(members))]] = True
    return part.of((~held).nonzero().flatten()), part.of(held.nonzero().flatten())


# ── IDX ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_idx(folder: Path, size: int | None, bad: BadData) -> Labelled:
    """The class numbers that occur in training are the classes; they are their own names."""
    if size is not None:
        raise ValueError(f"the images in {folder} are of one size, as IDX files are: leave --size out")
    read = {"training": idx_part(folder, "training"), "test": idx_part(folder, "test")}
    known = torch.unique(read["training"][1])
    parts = {}
    for name, (pixels, labels) in read.items():
        if pixels.dtype is not torch.uint8:
            raise ValueError(
                f"the {name} images in {folder} hold {pixels.dtype}, but grey levels in bytes were expected"
            )
        strange = ~torch.isin(labels, known)
        for row in strange.nonzero().flatten().tolist():
            bad.add(f"{folder}, {name} label {row}", f"class {labels[row]}, which the training part lacks")
        kept = (~strange).nonzero().flatten()
        places = [f"{name} image {row}" for row in kept.tolist()]
        parts[name] = Part(pixels[kept, None], torch.searchsorted(known, labels[kept]), places)
    return Labelled(parts, [str(number) for number in known.tolist()])


# ── the hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_hub(data: Path | str) -> dict[str, Tree]:
    """The parts of a data set of the hub as trees of class folders: `CLASS/NUMBER.png`, whatever the format is."""
    import datasets

    tables = splits(data)
    trees = {}
    for part, name in (("training", "train"), ("validation", "validation"), ("test", "test")):
        table = table_of(tables, name)
        if table is None or (part == "validation" and table is table_of(tables, "test")):
            continue
        image, label = column(table, "Image"), column(table, "ClassLabel")
        if image is None or label is None:
            raise ValueError(f"{data} has the columns {', '.join(table.features)}: an image and a class were expected")
        stored = table.cast_column(image, datasets.Image(decode=False))
        tree = trees[part] = Tree(Path(f"{data}/{name}"), folders=set(table.features[label].names))
        for number, kind in enumerate(table[label]):
            tree.files[f"{table.features[label].names[kind]}/{number:06}.png"] = partial(_stored, stored, number, image)
    return trees


def _stored(table: Any, number: int, column: str) -> bytes:
    """The bytes of an image file that a table holds or names."""
    image = table[number][column]
    return bytes(image["bytes"]) if image["bytes"] is not None else Path(image["path"]).read_bytes()


# ── class folders ────────────────────────────────────────────────────────────────────────────────────────────────────


def _unwrapped(tree: Tree) -> Tree:
    """Below a lone folder of folders, as archives have it: `cifar10/train/…` → `train/…`."""
    names = [name for names in PARTS.values() for name in names]
    while len(tops := tree.tops()) == 1 and tops[0].lower() not in names and tree.below(tops[0]).tops():
        tree = tree.below(tops[0])
    return tree


def _of_classes(trees: dict[str, Tree], size: int | None, bad: BadData) -> Labelled:
    """Parts of class folders. The classes are those of the training part, in the order of their names."""
    listed = {part: _listed(tree, bad) for part, tree in trees.items()}
    classes = sorted(listed["training"], key=_natural)
    if len(classes) < 2:
        found = f"{len(classes)} class folders with images in {trees['training'].root}"
        raise ValueError(f"found {found}, but at least 2 were expected: {LAYOUT}")
    for part, tree in trees.items():
        for name in sorted(set(listed[part]) - set(classes)):
            for path in listed[part].pop(name):
                bad.add(tree.place(path), f"class {name}, which the training part lacks")
    found_sizes = _sizes([(trees[part], path) for part in trees for paths in listed[part].values() for path in paths])
    fitted, said = _fitted(found_sizes, size)
    remarks = images.Remarks()
    read = {part: _part(trees[part], listed[part], classes, fitted, remarks, bad) for part in trees}
    if not read["training"][0]:
        raise ValueError(f"no image in {trees['training'].root} can be read: at least one of each class was expected")
    return _finished({part: pixels for part, pixels in read.items() if pixels[0]}, classes, [*said, *remarks.notes()])


def _finished(read: dict[str, Read], classes: list[str], notes: list[str]) -> Labelled:
    """Parts as tensors of as many channels as any image has."""
    pairs = [pair for pixels, _, places in read.values() for pair in zip(pixels, places, strict=True)]
    coloured = any(image.shape[2] == 3 for image, _ in pairs)
    grey = [place for image, place in pairs if image.shape[2] == 1]
    if coloured and grey:
        mixed = images.Remarks({"was grey among coloured ones and was read as colour": grey})
        notes = [*notes, *mixed.notes()]
    parts = {}
    for part, (pixels, labels, places) in read.items():
        stacked = torch.from_numpy(images.stacked(pixels, 3 if coloured else 1))
        parts[part] = Part(stacked, torch.tensor(labels), places)
    return Labelled(parts, classes, notes)


def _listed(tree: Tree, bad: BadData) -> dict[str, list[str]]:
    """Class name → its image files, those in folders below it included."""
    found: dict[str, list[str]] = {name: [] for name in tree.tops()}
    for path in tree.files:
        top, slash, _ = path.partition("/")
        if not slash:
            continue  # a licence, a list of names: no class
        if images.is_image(path):
            found[top].append(path)
        else:
            bad.add(tree.place(path), NO_IMAGE)
    for name, paths in found.items():
        if not paths:
            bad.add(tree.place(name), "a class folder without images")
    return {name: paths for name, paths in found.items() if paths}


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers by their value and before words."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _sizes(files: list[tuple[Tree, str]]) -> list[tuple[int, int]]:
    """Width and height of each image that can be opened."""
    found = []
    for tree, path in files:
        try:
            found.append(images.opened(tree.files[path]()).size)
        except images.Broken:
            continue  # it is named when its pixels are read
    return found


def _fitted(sizes: list[tuple[int, int]], size: int | None) -> tuple[tuple[int, int], list[str]]:
    """Width and height that all images are brought to, and what is to be said about it."""
    if size is None and len(set(sizes)) == 1 and max(sizes[0]) <= LARGEST:
        return sizes[0], []
    if not sizes:
        return (LARGEST, LARGEST), []
    side = size or min(LARGEST, round(median(min(one) for one in sizes)))
    if set(sizes) == {(side, side)}:
        return (side, side), []
    smallest, largest = min(sizes), max(sizes)
    were = f"{smallest[0]} × {smallest[1]}" + (f" to {largest[0]} × {largest[1]}" if smallest != largest else "")
    return (side, side), [f"Images of {were} pixels were cut to squares and scaled to {side} × {side} (--size)."]


def to_size(image: Image, width: int, height: int) -> Image:
    """The middle of an image, in these proportions, scaled."""
    from PIL import Image, ImageOps

    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def _part(
    tree: Tree,
    listed: dict[str, list[str]],
    classes: list[str],
    fitted: tuple[int, int],
    remarks: images.Remarks,
    bad: BadData,
) -> Read:
    """Pixels, class numbers and places of all images of a part that can be read."""
    pixels, labels, places = [], [], []
    scaled = partial(to_size, width=fitted[0], height=fitted[1])
    for name, paths in listed.items():
        for path in paths:
            place = tree.place(path)
            remark: Callable[[str], None] = partial(remarks.add, place=place)
            try:
                pixels.append(images.pixels(tree.files[path](), scaled, remark))
            except images.Broken as error:
                bad.add(place, str(error))
                continue
            labels.append(classes.index(name))
            places.append(place)
    return pixels, labels, places
