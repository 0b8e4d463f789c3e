"""What was asked of a run, what was decided, where it ran, and how it ended: the content of `run.json`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "run.json"


@dataclass(slots=True)
class RunRecord:
    """One run in words and numbers that JSON holds.

    Fields known at the start: `name`, `asked` (the keywords that were given; objects by their `repr`), `decided`
    (`optimizer`, `learning_rate`, `schedule`, `batch_size`, `device`, `plan`, `num_parameters`, `num_examples`, …),
    `source` (the task or script that made the model and data, or None), `versions`, `machine`, `started` (ISO 8601,
    UTC), `notes` (sentences the user should read). Known at the end: `stopped_because`, `verdict` (the fields of a
    `Verdict`), `metrics` (final numbers by name), `steps` [updates], `epochs` [passes], `seconds` [s, resumed parts
    added up], `best_step`.
    """

    name: str
    asked: dict[str, Any] = field(default_factory=dict)
    decided: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    notes: list[str] = field(default_factory=list)
    stopped_because: str | None = None
    verdict: dict[str, Any] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    best_step: int | None = None

    @classmethod
    def read(cls, directory: Path | str) -> RunRecord:
        """Read the record of a run directory.

        Raises:
            FileNotFoundError: the directory holds no run.
            ValueError: its `run.json` cannot be read.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{directory} holds no run (there is no {FILE} in it)")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read as the record of a run: {error}") from error

    def write(self, directory: Path | str) -> None:
        """Replace the record of a run directory as a whole: a reader sees the old one or the new one."""
        path = Path(directory) / FILE
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
