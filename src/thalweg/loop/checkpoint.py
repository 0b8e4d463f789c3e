"""Checkpoints: written whole or not at all, verified when read, never unpickled.

    checkpoints/step-00000500/{model.safetensors, optimizer.safetensors, state.json, MANIFEST.json}
    LATEST  BEST        the names of two of them

A checkpoint is written to `step-N.tmp`, its files and folder are forced to the disk, the manifest (sizes and sha256)
comes last, then the folder is renamed. One of the same step that it replaces waits as `step-N.old` until then. A reader
takes the newest one whose manifest holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
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
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
MANIFEST = "MANIFEST.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that the next step depends on: weights by name, and the rest as a tree of tensors and values.

    `best_step` is the step of the best weights so far, which lie in a checkpoint of their own.
    """

    step: int
    model: Mapping[str, Tensor]
    state: Mapping[str, Any]
    best_step: int | None = None


class Damaged(ValueError):
    """A checkpoint that does not hold what its manifest says."""


_NAME = re.compile(r"step-(\d{8,15})(\.old)?")


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
        manifest = {
            "step": checkpoint.step,
            "best_step": checkpoint.best_step,
            "files": {name: _fingerprint(temporary / name) for name in FILES},
        }
        _durable(temporary / MANIFEST, json.dumps(manifest, indent=1))
        _sync(temporary)
        if final.exists():  # at the same step again, say after its evaluation
            shutil.rmtree(self._path(checkpoint.step, ".old"), ignore_errors=True)
            os.rename(final, self._path(checkpoint.step, ".old"))
        os.rename(temporary, final)
        _sync(self.folder)
        point(self.directory / "LATEST", final.name)
        if best:
            point(self.directory / "BEST", final.name)
        self._prune(KEPT)

    def _prune(self, kept: int) -> None:
        """Remove all but the newest ones, the best, and what was the best when one of these was taken."""
        paths = self._all()
        pointed = self.named("BEST")
        best = {_step(pointed) if pointed is not None else None, *map(_best_step, paths[:kept])}
        for path in paths[kept:]:
            if _step(path) not in best:
                shutil.rmtree(path, ignore_errors=True)
        for path in [*self.folder.glob("step-*.tmp"), *self.folder.glob("step-*.old")]:  # of writes that were cut off
            if path.suffix == ".tmp" or path.with_suffix("").exists():
                shutil.rmtree(path, ignore_errors=True)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; says so when a newer one had to be passed over."""
        for path in self._all():
            try:
                return self.read(path)
            except Damaged as error:
                self.warn(f"{error}; the one before it is taken.")
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint that `BEST` points to, if it is whole."""
        path = self.named("BEST")
        if path is None:
            if (self.directory / "BEST").exists():
                self.warn(f"{self.directory / 'BEST'} names no checkpoint; the best weights are lost.")
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
        paths = {_step(path): path for path in reversed(self._all())}
        if step not in paths:
            raise FileNotFoundError(
                f"no checkpoint of step {step} in {self.directory}; there are {list(paths) or 'none'}"
            )
        return self.read(paths[step])

    def read(self, path: Path) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            Damaged: a file is missing, cut short or changed.
        """
        try:
            manifest = _json(path / MANIFEST)
            for name in FILES:
                if _fingerprint(path / name) != manifest["files"][name]:
                    raise Damaged(f"The checkpoint {path.name} is damaged ({name} is not what was written)")
            saved = _json(path / "state.json")
            if saved["format"] != FORMAT or saved["step"] != _step(path):
                raise Damaged(f"The checkpoint {path.name} is damaged (state.json is of another step or format)")
            state = unpack(saved["state"], load_file(path / "optimizer.safetensors"))
            return Checkpoint(saved["step"], load_file(path / "model.safetensors"), state, manifest.get("best_step"))
        except Damaged:
            raise
        except (OSError, SafetensorError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise Damaged(f"The checkpoint {path.name} is damaged ({_what(error)})") from error

    def named(self, pointer: str) -> Path | None:
        """The folder that a text pointer (`LATEST`, `BEST`) names, if it exists."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            name = (self.directory / pointer).read_text(encoding="utf-8").strip()
            return next((path for path in self._all() if path.with_suffix("").name == name), None)
        return None

    def go_back_to(self, step: int, best_step: int | None) -> None:
        """Remove checkpoints newer than a step, which a resumed run makes again, and let the pointers follow."""
        for path in self._all():
            if _step(path) > step:
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # a full disk: they are only for people and `load`
            point(self.directory / "LATEST", self._path(step).name)
            if best_step is not None and self.named("BEST") != self._path(best_step):
                point(self.directory / "BEST", self._path(best_step).name)

    def _all(self) -> list[Path]:
        """The folders of checkpoints, the newest first; nothing that leads out of the run directory."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name) and not path.is_symlink()]
        names = {path.name for path in found if path.is_dir()}
        return sorted(
            (path for path in found if path.name in names and not (path.suffix and path.stem in names)),
            key=_step,
            reverse=True,
        )

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


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, "paths come from _all and _path"
    return int(match[1])


def _best_step(path: Path) -> int | None:
    """What a checkpoint's manifest says of the best one then, where it can be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        step = _json(path / MANIFEST).get("best_step")
        return step if isinstance(step, int) else None
    return None


def _json(path: Path) -> Any:
    return json.loads(_inside(path).read_text(encoding="utf-8"))


def _inside(path: Path) -> Path:
    """A file of a checkpoint itself: a link may lead anywhere."""
    if path.is_symlink():
        raise Damaged(f"The checkpoint {path.parent.name} is damaged ({path.name} is a link)")
    return path


def _what(error: BaseException) -> str:
    """An exception in a few words, whatever it holds."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(_inside(path), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
