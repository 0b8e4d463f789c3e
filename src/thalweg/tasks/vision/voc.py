"""Pascal VOC: images, a file of boxes for each, lists of which are for what (Everingham et al. 2010)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from thalweg.tasks.task import BadData
from thalweg.tasks.vision import images
from thalweg.tasks.vision.tree import Tree

LAYOUT = "a folder with Annotations/*.xml, JPEGImages/ and, where they are parted, ImageSets/Main/train.txt …"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(slots=True)
class Object:
    """One box, in pixels of its image: left, top, right, bottom."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    line: int
    """Where it begins in its file."""


@dataclass(slots=True)
class Annotated:
    """One image with what there is to see on it; its pixels are read when they are asked for."""

    name: str
    place: str
    """Its annotation file, as the user knows it."""
    read: Callable[[], bytes]
    size: tuple[int, int]
    """Width and height [pixels]."""
    objects: list[Object]


@dataclass(slots=True)
class Annotations:
    """The parts of a data set by name (training, and perhaps validation and test), and what to say of them."""

    parts: dict[str, list[Annotated]]
    notes: list[str] = field(default_factory=list)


def read(data: Path, bad: BadData) -> Annotations:
    """Read a folder in the layout of Pascal VOC, or a tar archive of one.

    Boxes without area are left out, and boxes that reach over the border are cut off there; both are told. An
    annotation that cannot be read, a box wholly outside of its image, an image that is missing or damaged: bad data.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has another layout, or something is bad and that is to be refused.
    """
    tree = _top(Tree.of(data))
    listed = _listed(tree, bad)
    said = _Said()
    parts = {}
    for part, names in listed.items():
        parts[part] = [one for name in names if (one := _annotated(tree, name, bad, said)) is not None]
    return Annotations({part: ones for part, ones in parts.items() if ones}, said.notes())


class _Said:
    """Boxes that were mended or left out, by what was done and their places."""

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def add(self, what: str, place: str) -> None:
        self.places.setdefault(what, []).append(place)

    def notes(self) -> list[str]:
        return [
            f"{what}: {len(places):,} ({', '.join(places[:3])}{' …' if len(places) > 3 else ''})."
            for what, places in self.places.items()
        ]


def _top(tree: Tree) -> Tree:
    """The folder that holds Annotations, which archives have below one or two others."""
    for folder in sorted(tree.folders, key=lambda path: (path.count("/"), path)):
        above, _, name = folder.rpartition("/")
        if name == "Annotations":
            return tree.below(above) if above else tree
    raise ValueError(f"{tree.root} holds no folder Annotations: {LAYOUT} was expected")


def _listed(tree: Tree, bad: BadData) -> dict[str, list[str]]:
    """Part → names of its images. Without lists all that is annotated is for training."""
    known = {path[len("Annotations/") : -len(".xml")] for path in tree.files if _is_annotation(path)}
    if not known:
        raise ValueError(f"{tree.place('Annotations')} holds no .xml file: {LAYOUT} was expected")
    lists = {
        name: _names(tree, name, known, bad)
        for name in ("train", "val", "trainval", "test")
        if f"ImageSets/Main/{name}.txt" in tree.files
    }
    if "train" not in lists and "trainval" not in lists:
        return {"training": sorted(known - set(lists.get("test", ())))} | _test(lists)
    if "train" not in lists or "val" not in lists:
        return {"training": lists.get("train") or lists["trainval"]} | _test(lists)
    return {"training": lists["train"], "validation": lists["val"]} | _test(lists)


def _test(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"test": lists["test"]} if "test" in lists else {}


def _names(tree: Tree, name: str, known: set[str], bad: BadData) -> list[str]:
    """The names in a list of images, of those that have an annotation."""
    path = f"ImageSets/Main/{name}.txt"
    found: dict[str, None] = {}
    for number, line in enumerate(tree.files[path]().decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if words[0] not in known:
            bad.add(f"{tree.place(path)}, line {number}", f"no annotation {words[0]}.xml")
        else:
            found[words[0]] = None
    return list(found)


def _annotated(tree: Tree, name: str, bad: BadData, said: _Said) -> Annotated | None:
    """One image with its boxes, if both can be read."""
    path = f"Annotations/{name}.xml"
    place = tree.place(path)
    try:
        page = _Page(tree.files[path]())
    except (expat.ExpatError, ValueError) as error:
        bad.add(place, f"an annotation that cannot be read ({error})")
        return None
    found = _image(tree, name, page.filename)
    if found is None:
        bad.add(place, f"no image {page.filename or name} in {tree.place('JPEGImages')}")
        return None
    try:
        size = images.opened(tree.files[found]()).size
    except images.Broken as error:
        bad.add(tree.place(found), str(error))
        return None
    if page.size is not None and page.size != size:
        told = "says {} × {} pixels, but its image has {} × {}".format(*page.size, *size)
        bad.add(place, told)
        return None
    objects = [o for o in page.objects if _is_sound(o, size, place, bad, said)]
    for number, fault in page.faults:
        bad.add(f"{place}, line {number}", fault)
    return Annotated(name, place, tree.files[found], size, objects)


def _is_annotation(path: str) -> bool:
    return path.startswith("Annotations/") and path.endswith(".xml")


def _image(tree: Tree, name: str, filename: str) -> str | None:
    """The image of an annotation: by the file name it gives, else by its own name with any ending."""
    names = [filename, *(name + suffix for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".bmp"))]
    paths = [f"JPEGImages/{Path(one).name}" for one in names if one]
    return next((path for path in paths if path in tree.files), None)


def _is_sound(thing: Object, size: tuple[int, int], place: str, bad: BadData, said: _Said) -> bool:
    """Whether a box can be used; it is cut off at the border of its image."""
    left, top, right, bottom = thing.box
    where = f"{place}, line {thing.line}"
    if right <= left or bottom <= top:
        said.add("Boxes without area were left out", where)
        return False
    cut = (max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1])))
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        bad.add(where, "a box outside of its image")
        return False
    if cut != thing.box:
        said.add("Boxes that reached over the border of their image were cut off there", where)
        thing.box = cut
    return True


class _Page:
    """An annotation file, with the line of each object.

    Raises:
        ExpatError: it is no XML, or is cut short; the message gives the line.
    """

    def __init__(self, content: bytes) -> None:
        self.filename = ""
        self.size: tuple[int, int] | None = None
        self.objects: list[Object] = []
        self.faults: list[tuple[int, str]] = []
        self._path: list[str] = []
        self._words: dict[str, str] = {}
        self._numbers: dict[str, str] = {}
        self._text = ""
        self._line = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._begin
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._read
        self._parser.Parse(content, True)

    def _begin(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        self._text = ""
        if self._path[1:] == ["object"]:
            self._words, self._line = {}, self._parser.CurrentLineNumber

    def _read(self, text: str) -> None:
        self._text += text

    def _end(self, tag: str) -> None:
        path, text = "/".join(self._path[1:]), self._text.strip()
        self._path.pop()
        self._text = ""
        if path == "filename":
            self.filename = text
        elif path.startswith("size/"):
            self._numbers[tag] = text
        elif path == "size":
            width, height = (self._numbers.get(word, "0") for word in ("width", "height"))
            if width.isdecimal() and height.isdecimal() and int(width) and int(height):
                self.size = (int(width), int(height))
        elif path in ("object/name", "object/difficult") or path.startswith("object/bndbox/"):
            self._words[tag] = text
        elif path == "object":
            self._add()

    def _add(self) -> None:
        """The object that has just ended."""
        try:
            left, top, right, bottom = (float(self._words[corner]) for corner in CORNERS)
        except (KeyError, ValueError):
            self.faults.append((self._line, f"a box that lacks a number for one of {', '.join(CORNERS)}"))
            return
        if not all(map(math.isfinite, (left, top, right, bottom))):
            self.faults.append((self._line, "a box with a corner that is no finite number"))
        elif not self._words.get("name"):
            self.faults.append((self._line, "an object without a name"))
        else:
            difficult = self._words.get("difficult") == "1"
            self.objects.append(Object(self._words["name"], (left, top, right, bottom), difficult, self._line))
