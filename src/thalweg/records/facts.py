"""What a task's model is built from, beside the record of its run: `facts.json`, names with plain values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "facts.json"


def write(directory: Path | str, facts: dict[str, Any]) -> None:
    """Keep what a task's model is built from; the file is replaced as a whole.

    Raises:
        ValueError: it cannot be written.
    """
    path = Path(directory) / FILE
    temporary = path.with_name(f".{FILE}.tmp")
    try:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}") from error


def read(directory: Path | str) -> dict[str, Any] | None:
    """The facts of a run, None where it keeps none.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} holds a {type(facts).__name__}, where names with values were expected")
    return facts
