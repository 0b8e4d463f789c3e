"""What a results file says of where it was made, and how it is written."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # for what the benchmarks share
from machine import processor


def machine() -> dict[str, Any]:
    """Without versions: each contender has its own. The family tells processors of one name apart."""
    return {
        "processor": processor(), "family": _family(), "cores": os.cpu_count(),
        "system": platform.system(), "libc": platform.libc_ver()[1],
    }  # fmt: skip


def gpu() -> dict[str, Any]:
    """The machine with its GPU."""
    import torch

    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, **machine()}


def _family() -> str | None:
    if not Path("/proc/cpuinfo").exists():
        return None
    fields = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines())
    known = {name.strip(): value.strip() for name, _, value in fields}
    return f"{known.get('cpu family')}, {known.get('model')}"


def ours(part: str = "") -> str | None:
    """Which Thalweg is measured, or which folder of it: the version alone does not change from day to day."""
    found = find_spec("thalweg")
    if not found or not found.origin:
        return None
    digest = hashlib.sha256()
    for file in sorted((Path(found.origin).parent / part).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def save(path: Path, table: Any) -> None:
    """Written whole and put in place at once: a run that is cut off leaves the file as it was."""
    path.parent.mkdir(exist_ok=True)
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    written.replace(path)
