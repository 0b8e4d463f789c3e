"""A text to learn, and one to be held out."""

from __future__ import annotations

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
    train = _text(found.get("train"))
    if not train.strip():
        raise ValueError(f"{data} has no training part with a column of text")
    held_out = next((_text(found[name]) for name in VALIDATION if name in found), "")
    return (train, held_out) if held_out.strip() else _cut(train)


def _text(table: Any) -> str:
    """The first column of text, an entry a line; nothing where there is none."""
    name = hub.column(table, "string", "large_string") if table is not None else None
    return "\n".join(table[name]) if name else ""


def _cut(text: str) -> tuple[str, str]:
    cut = int(len(text) * TRAINED)
    return text[:cut], text[cut:]
