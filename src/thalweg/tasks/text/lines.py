"""Text in files: UTF-8, gzipped or not; whatever cannot be read is named by its file and line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thalweg.tasks.task import BadData

GZIP = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

NOT_UTF_8 = "the text is not UTF-8"

#: Half of a character that UTF-16 writes as two: JSON can hold one alone, and no text can.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_bytes(path: Path | str) -> bytes:
    """What a file holds, unpacked where it is gzip (its first bytes say so, not its name).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or a damaged gzip file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: a text file, gzipped or not, was expected")
    content = path.read_bytes()
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or cut-off gzip file: fetch it again") from error
    content = content.removeprefix(BYTE_ORDER_MARK)
    if not content.strip():
        raise ValueError(f"{path} is empty: text was expected")
    return content


def read_lines(path: Path | str, bad: BadData) -> list[str | None]:
    """The lines of a file without their ends; None stands for one that is left out, so that numbers stay right.

    Lines end with a line feed and nothing else: Unicode's other separators do occur within a sentence.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is empty or damaged, or bad data is refused.
    """
    raw = read_bytes(path).split(b"\n")
    if not raw[-1]:
        raw.pop()
    lines: list[str | None] = []
    for number, line in enumerate(raw, start=1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            # The byte's place within the line is no part of the fault's name: the same fault is counted together.
            bad.add(f"{path}, line {number}, byte {error.start + 1}", NOT_UTF_8)
            lines.append(None)
    return lines


def read_text(path: Path | str, bad: BadData) -> str:
    """A whole file as one text; lines that cannot be read are left out.

    Raises:
        FileNotFoundError: there is no such file; ValueError: as `read_lines`, or nothing is left.
    """
    try:
        text = read_bytes(path).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        text = "".join(f"{line}\n" for line in read_lines(path, bad) if line is not None)
    if not text.strip():
        raise ValueError(f"{path} holds no text that can be read")
    return text


def read_json_lines(path: Path | str, bad: BadData) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line that holds a JSON object, with its number; empty lines are passed over.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is empty or damaged, or bad data is refused.
    """
    for number, line in enumerate(read_lines(path, bad), start=1):
        if line is None or not line.strip():
            continue
        entry, fault, detail = json_object(line)
        if entry is None:
            bad.add(f"{path}, line {number}{detail}", fault)
        else:
            yield number, entry


def json_object(line: str) -> tuple[dict[str, Any] | None, str, str]:
    """The JSON object of a line; where it has none: None, what is wrong, and in brackets what the parser says to it.

    >>> json_object("[1]")
    (None, 'the line holds no JSON object', '')
    """
    try:
        entry = json.loads(line)
        if SURROGATE.search(line):
            json.dumps(entry, ensure_ascii=False).encode()  # most such halves have their other one
    except RecursionError:
        return None, "the line's JSON is nested too deeply", ""
    except UnicodeEncodeError:
        return None, "the line holds half a character (a lone surrogate)", ""
    except ValueError as error:
        return None, "the line is not JSON", f" ({error})"
    return (entry, "", "") if isinstance(entry, dict) else (None, "the line holds no JSON object", "")


def find(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these files that a folder has, gzipped or not."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None
