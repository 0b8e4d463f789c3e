"""Files under a folder, or in a tar archive as if it were one."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

#: What file managers and archivers leave behind; beside these, whatever begins with a dot is passed over.
LITTER = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(slots=True)
class Tree:
    """Files by their path below `root` ("a/b.png"), each with what reads it; and all folders, empty ones too.

    Paths are plain text: of the tens of thousands of a data set, objects would take longer than the images.
    """

    root: Path
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, data: Path | str) -> Tree:
        """A folder, or a `.tar`, `.tar.gz`, `.tar.xz`, whose contents are then held in memory. In order of their names.

        Raises:
            FileNotFoundError: there is nothing of that name.
            ValueError: a file that is no tar archive, or a damaged one.
        """
        data = Path(data)
        if data.is_dir():
            return _folder(data)
        if not data.is_file():
            raise FileNotFoundError(f"there is no folder or archive {data}: give --data a folder, or a .tar.gz of one")
        return _archive(data)

    def below(self, folder: str) -> Tree:
        """What lies in one of its folders, with paths from there on."""
        top = f"{folder}/"
        return Tree(
            self.root / folder,
            {path.removeprefix(top): read for path, read in self.files.items() if path.startswith(top)},
            {path.removeprefix(top) for path in self.folders if path.startswith(top)},
        )

    def tops(self) -> list[str]:
        """The names of the folders that lie directly in it, sorted."""
        return sorted({path.partition("/")[0] for path in self.folders})

    def place(self, path: str) -> str:
        """How a file or folder is called towards the user."""
        return f"{self.root}/{path}"


def _folder(data: Path) -> Tree:
    tree = Tree(data)
    for path in sorted(data.rglob("*")):
        below = path.relative_to(data).as_posix()
        if _is_litter(below):
            continue
        if path.is_dir():
            tree.folders.add(below)
        elif path.is_file():
            tree.files[below] = path.read_bytes
    return tree


def _archive(data: Path) -> Tree:
    tree, found = Tree(data), {}
    try:
        with tarfile.open(data) as archive:
            for member in archive:
                path = member.name.removeprefix("./").strip("/")
                if _is_litter(path):
                    continue
                if member.isdir():
                    tree.folders.add(path)
                elif member.isfile():
                    opened = archive.extractfile(member)
                    assert opened is not None
                    found[path] = opened.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{data} cannot be read as a tar archive ({error}): give a folder, or a .tar.gz") from error
    for path in sorted(found):
        tree.files[path] = _content(found[path])
        parts = path.split("/")
        tree.folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
    return tree


def _content(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _is_litter(path: str) -> bool:
    return any(part.startswith(".") or part in LITTER for part in path.split("/"))
