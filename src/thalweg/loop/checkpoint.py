"""Checkpoints: written whole or not at all, verified when read, never unpickled.

    checkpoints/step-00000500/{model.safetensors, optimizer.safetensors, state.json, MANIFEST.json}
    LATEST  BEST        the names of two of them

A checkpoint is written to `step-N.tmp`, its files and folder are forced to the disk, the manifest (sizes and sha256)
comes last, then the folder is renamed. A reader takes the newest one whose manifest holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from thalweg.loop.tree import pack, unpack

FOLDER = "checkpoints"
#: The newest ones that are kept beside the best.
KEPT = 2
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on: weights by name, and the rest as a tree of tensors and values."""

    step: int
    model: Mapping[str, Tensor]
    state: Mapping[str, Any]


class Damaged(ValueError):
    """A checkpoint that does not hold what its manifest says."""


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, directory: Path, warn: Callable[[str], None]) -> None:
        self.directory = directory
        self.folder = directory / FOLDER
        self.warn = warn
        self._refused = False

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, checkpoint: Checkpoint, best: bool) -> bool:
        """Save a checkpoint; False if the disk did not take it, in which case training goes on without it.

        A full disk first costs the older checkpoints that are not the best; if that does not make room the user is
        told, once for each time it happens.
        """
        for attempt in ("as it is", "with room made"):
            try:
                self._write(checkpoint, best)
                self._refused = False
                return True
            except (OSError, SafetensorError) as error:
                shutil.rmtree(self._path(checkpoint.step, ".tmp"), ignore_errors=True)
                if attempt == "as it is":
                    self._prune(kept=1)
                elif not self._refused:
                    self._refused = True
                    self.warn(
                        f"The checkpoint of step {checkpoint.step} could not be saved ({error}); training goes on, "
                        f"the last one saved is kept. Make room in {self.directory}."
                    )
        return False

    def _write(self, checkpoint: Checkpoint, best: bool) -> None:
        temporary, final = self._path(checkpoint.step, ".tmp"), self._path(checkpoint.step)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        plain, tensors = pack(checkpoint.state)
        _save(checkpoint.model, temporary / "model.safetensors")
        _save(tensors, temporary / "optimizer.safetensors")
        _durable(temporary / "state.json", json.dumps({"format": FORMAT, "step": checkpoint.step, "state": plain}))
        files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
        _durable(temporary / "MANIFEST.json", json.dumps({"step": checkpoint.step, "files": files}, indent=1))
        _sync(temporary)
        if final.exists():  # of a run that went further before it was set back
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync(self.folder)
        point(self.directory / "LATEST", final.name)
        if best:
            point(self.directory / "BEST", final.name)
        self._prune(KEPT)

    def _prune(self, kept: int) -> None:
        """Remove all but the newest ones and the best."""
        best = self.named("BEST")
        for path in sorted(self._all(), reverse=True)[kept:]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; says so when a newer one had to be passed over."""
        for path in sorted(self._all(), reverse=True):
            try:
                return self.read(path)
            except Damaged as error:
                self.warn(f"{error}; the one before it is taken.")
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint that `BEST` points to, if it is whole."""
        path = self.named("BEST")
        if path is None:
            return None
        try:
            return self.read(path)
        except Damaged as error:
            self.warn(f"{error}; the best weights are lost.")
            return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step.

        Raises:
            FileNotFoundError: there is none; the message names those there are.
            ValueError: it is damaged.
        """
        if not self._path(step).is_dir():
            steps = [int(path.name.split("-")[1]) for path in sorted(self._all())]
            raise FileNotFoundError(f"no checkpoint of step {step} in {self.directory}; there are {steps or 'none'}")
        return self.read(self._path(step))

    def read(self, path: Path) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            Damaged: a file is missing, cut short or changed.
        """
        try:
            manifest = json.loads((path / "MANIFEST.json").read_text(encoding="utf-8"))
            for name, expected in manifest["files"].items():
                if Path(name).name != name or _fingerprint(path / name) != expected:
                    raise Damaged(f"The checkpoint {path.name} is damaged ({name} is not what was written)")
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(path / "optimizer.safetensors")
            model = load_file(path / "model.safetensors")
            return Checkpoint(state["step"], model, unpack(state["state"], tensors))
        except (OSError, SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise Damaged(f"The checkpoint {path.name} is damaged ({type(error).__name__}: {error})") from error

    def named(self, pointer: str) -> Path | None:
        """The folder that a text pointer (`LATEST`, `BEST`) names, if it exists."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            name = (self.directory / pointer).read_text(encoding="utf-8").strip()
            path = self.folder / name
            if Path(name).name == name and path.is_dir():
                return path
        return None

    def forget_after(self, step: int) -> None:
        """Remove checkpoints newer than a step: a resumed run makes them again."""
        for path in list(self._all()):
            if int(path.name.split("-")[1]) > step:
                shutil.rmtree(path, ignore_errors=True)

    def _all(self) -> Iterator[Path]:
        return (path for path in self.folder.glob("step-????????") if path.is_dir())

    def _path(self, step: int, suffix: str = "") -> Path:
        return self.folder / f"step-{step:08d}{suffix}"


def point(pointer: Path, name: str) -> None:
    """Let a text pointer name something else, at once and as a whole."""
    temporary = pointer.with_name(pointer.name + ".tmp")
    _durable(temporary, name + "\n")
    os.replace(temporary, pointer)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    seen: set[int] = set()
    plain = {}
    for name, t in tensors.items():
        value = t.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        plain[name] = value.clone() if storage in seen else value  # tied tensors are each saved
        seen.add(storage)
    save_file(plain, path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _durable(path: Path, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
