"""A run's folder: made, locked while it trains, described."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from thalweg.records.run import FILE

ROOT = Path("runs")


def make(run_dir: str | os.PathLike[str] | None, name: str) -> Path:
    """The folder of a new run, made if it is not there: the one asked for, or the first free `runs/NAME-N`.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        if run_dir is not None:
            directory = Path(run_dir)
            directory.mkdir(parents=True, exist_ok=True)
            return directory
        ROOT.mkdir(exist_ok=True)
        taken = [re.fullmatch(re.escape(name) + r"-(\d+)", path.name) for path in ROOT.iterdir()]
        number = max((int(match[1]) for match in taken if match), default=0) + 1
        while True:
            directory = ROOT / f"{name}-{number}"
            with contextlib.suppress(FileExistsError):  # another process was faster
                directory.mkdir()
                return directory
            number += 1
    except OSError as error:
        raise ValueError(f"the run directory cannot be made ({error}); give another run_dir") from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a run directory; the system lets go of it when the process ends, however it ends.

    Raises:
        ValueError: another process trains in it.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(
                f"the run directory {directory} is in use by another training; wait for it, or give another run_dir"
            ) from error
        yield
    finally:
        os.close(descriptor)


def holds_run(directory: Path) -> bool:
    """Whether there is a run in the folder."""
    return (directory / FILE).exists()


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for package in ("thalweg", "torch", "numpy", "safetensors", "keras"):
        if package == "keras" and "keras" not in sys.modules:
            continue
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> dict[str, Any]:
    """The machine in a few words; nothing that names it or its user."""
    return {
        "system": platform.system(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def now() -> str:
    """The time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
