"""What an application shows of its model in the report: sections of tables, pictures, curves, matrices and prose.

Kept in the run's folder as `sections.json`, so that a report can be written again without the model. Nothing of it is
markup: whoever draws a section escapes its words.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

FILE = "sections.json"

#: The first bytes of every PNG (RFC 2083, 3.1).
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words and numbers under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the bytes of a PNG file; `caption` also says it to those who cannot see it; `width` in CSS pixels."""

    png: bytes
    caption: str
    width: int | None = None

    def __post_init__(self) -> None:
        if not self.png.startswith(PNG):
            raise ValueError("a Picture takes the bytes of a PNG file: save the image with format='PNG'")


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines by name, each `(x, y)` of equal length; as `points`, each pair stands by itself."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    points: bool = False

    def __post_init__(self) -> None:
        for name, (x, y) in self.lines.items():
            if len(x) != len(y):
                raise ValueError(f"the line {name!r} of {self.title!r} has {len(x)} values of x and {len(y)} of y")


@dataclass(frozen=True, slots=True)
class Matrix:
    """Numbers `[rows][columns]`, each in the colour of its size: confusions, attention."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    caption: str = ""

    def __post_init__(self) -> None:
        shape = {len(row) for row in self.values} or {len(self.columns)}
        if len(self.values) != len(self.rows) or shape != {len(self.columns)}:
            found = f"{len(self.rows)} names of rows and {len(self.columns)} of columns"
            raise ValueError(f"the values of {self.title!r} do not fit its names: {found}")


@dataclass(frozen=True, slots=True)
class Prose:
    """A text, line by line as it is; `monospace` where letters are to stand below each other."""

    text: str
    monospace: bool = False


Part = Table | Picture | Curves | Matrix | Prose
_KINDS: dict[str, type[Part]] = {kind.__name__.lower(): kind for kind in (Table, Picture, Curves, Matrix, Prose)}


@dataclass(frozen=True, slots=True)
class Section:
    """A title, what there is to see in a sentence or two, and the parts one below the other."""

    title: str
    words: str
    parts: Sequence[Part]


def write(directory: Path | str, sections: Iterable[Section]) -> None:
    """Replace the sections of a run directory as a whole."""
    path = Path(directory) / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps([_packed(section) for section in sections]), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(directory: Path | str) -> list[Section]:
    """The sections of a run directory; none where it has none.

    Raises:
        ValueError: the file cannot be read as such.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return []
    try:
        return [_unpacked(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as sections of a report: {error}") from error


def _packed(section: Section) -> dict[str, Any]:
    return {"title": section.title, "words": section.words, "parts": [_packed_part(part) for part in section.parts]}


def _packed_part(part: Part) -> dict[str, Any]:
    words = {field.name: getattr(part, field.name) for field in fields(part)}
    if isinstance(part, Picture):
        words["png"] = base64.b64encode(part.png).decode()
    return {"kind": type(part).__name__.lower(), **_plain(words)}


def _unpacked(entry: Mapping[str, Any]) -> Section:
    return Section(str(entry["title"]), str(entry["words"]), [_unpacked_part(part) for part in entry["parts"]])


def _unpacked_part(entry: Mapping[str, Any]) -> Part:
    words = dict(entry)
    kind = _KINDS[words.pop("kind")]
    if kind is Picture:
        try:
            words["png"] = base64.b64decode(words["png"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"a picture is damaged ({error})") from error
    return kind(**words)


def _plain(value: Any) -> Any:
    """Numbers of numpy and of tensors as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, str | bool | int | float) or value is None:
        return value
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    raise TypeError(f"a section holds words and numbers, not a {type(value).__name__}")
