"""A text to learn, and one to be held out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg.tasks import hub
from thalweg.tasks.task import BadData
from thalweg.tasks.text.lines import read_text

#: Share of a text that is trained on: its beginning. The rest is held out.
TRAINED = 0.9

#: Names of the part that is held out.
VALIDATION = ("validation", "valid", "val", "dev")


def read_parts(data: Path, bad: BadData) -> tuple[str, str]:
    """What is trained on and what is held out: of a file its end, of a data set of the hub its validation part.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or damaged, has no column of text, or bad data is refused.
    """
    if not hub.is_hub(data):
        return _cut(read_text(data, bad))
    found = hub.splits(data)
    train = _text(data, found, "train", bad)
    if not train.strip():
        raise ValueError(f"{data} has no training part with a column of text")
    held_out = next((_text(data, found, name, bad) for name in VALIDATION if name in found), "")
    return (train, held_out) if held_out.strip() else _cut(train)


def _text(data: Path, found: Mapping[str, Any], which: str, bad: BadData) -> str:
    """The first column of text of a part, an entry a line; nothing where there is none."""
    name = hub.column(found[which], "string", "large_string") if which in found else None
    entries = list(found[which][name]) if name else []
    for number, entry in enumerate(entries, start=1):
        if entry is None:
            bad.add(f"{data}, {which}, line {number}", "the entry holds no text")
    return "\n".join(entry for entry in entries if entry is not None)


def _cut(text: str) -> tuple[str, str]:
    cut = int(len(text) * TRAINED)
    return text[:cut], text[cut:]
