"""A disk without room, a real one: the training goes on, and nothing that was saved is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import thalweg

SIZE = 2 << 20
STEPS, FULL_FROM, ROOM_FROM = 80, 28, 60  # the latter two after an epoch, where something is told


@pytest.fixture(autouse=True)
def saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint is written when it is due, in the training's own thread."""
    monkeypatch.setattr("thalweg.loop.saver.COPY_BYTES", 0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no `mount` here to make a small file system with")
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be made here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class At:
    """Calls functions before the next step: `{step: function}`; after the last of them, that one at every step."""

    def __init__(self, events: dict[int, Callable[[], None]], repeat: range = range(0)) -> None:
        self.events = events
        self.repeat = repeat

    def on_step(self, run: Any, record: Any) -> None:
        due = max((step for step in self.events if step <= record.step), default=None)
        if due is not None and (due == record.step or record.step in self.repeat):
            self.events[due]()

    on_validate = on_step


def _fill(folder: Path) -> None:
    """Leave not one page."""
    with contextlib.suppress(OSError), open(folder / "ballast", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def _given(width: int = 128, **changes: Any) -> dict[str, Any]:
    """A checkpoint takes about 3 × 4 × width × (width + 3) bytes: weights and Adam's two moments."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(64, width, generator=drawn)
    return {
        "model": model, "data": (x, x[:, :1]), "loss": "mse", "batch_size": 16, "steps": STEPS, "learning_rate": 0.003,
        "checkpoint_every": 5, "schedule": "constant", "patience": None, "verbose": False,
        "validation_data": (x, x[:, :1]),
    } | changes  # fmt: skip


def _checkpoints(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*"))


def _warnings(run: thalweg.Run, words: str) -> list[str]:
    return [note for note in run.record.notes if words in note]


def _undisturbed(tmp_path: Path, **changes: Any) -> thalweg.Run:
    return thalweg.fit(**_given(**changes), run_dir=tmp_path / "undisturbed")


def _went_on(run: thalweg.Run, tmp_path: Path, **changes: Any) -> None:
    """The training itself has noticed nothing."""
    expected = _undisturbed(tmp_path, **changes)
    assert (run.steps, run.stopped_because) == (STEPS, "steps")
    assert run.history.to_dict() == expected.history.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), expected.model.parameters(), strict=True))


def test_a_disk_that_fills_up_for_a_while(disk, tmp_path):
    run_dir = disk / "run"
    seen: dict[str, Any] = {}

    def room() -> None:
        seen["waiting"] = thalweg.History.open(run_dir / "history.sqlite").series("loss")[0][-1]
        seen["kept"] = _checkpoints(run_dir)
        seen["loaded"] = thalweg.load(run_dir, seen["kept"][-1], _given()["model"])
        (disk / "ballast").unlink()

    filled = range(FULL_FROM, ROOM_FROM)
    events = {FULL_FROM: lambda: _fill(disk), ROOM_FROM: room}
    run = thalweg.fit(**_given(callbacks=[_Once(At(events, filled), ROOM_FROM)]), run_dir=run_dir)
    _went_on(run, tmp_path)
    assert len(_warnings(run, "could not be saved")) == 1
    assert len(_warnings(run, "history cannot be written")) == 1
    assert seen["waiting"] < FULL_FROM + 5
    assert 0 < seen["kept"][-1] < FULL_FROM + 5
    assert thalweg.History.open(run_dir / "history.sqlite").to_dict() == run.history.to_dict()
    assert _checkpoints(run_dir)[-1] == STEPS
    assert thalweg.load(run_dir, "last", _given()["model"]) is not None


class _Once:
    """Forwards to another callback; the event of its last step comes once."""

    def __init__(self, callback: At, last: int) -> None:
        self.callback, self.last, self.is_over = callback, last, False

    def on_step(self, run: Any, record: Any) -> None:
        if not self.is_over:
            self.callback.on_step(run, record)
        self.is_over |= record.step >= self.last

    on_validate = on_step


def test_a_disk_that_stays_full(disk, tmp_path):
    run_dir = disk / "run"
    events = {FULL_FROM: lambda: _fill(disk)}
    run = thalweg.fit(**_given(callbacks=[At(events, range(FULL_FROM, STEPS + 1))]), run_dir=run_dir)
    _went_on(run, tmp_path)
    assert len(_warnings(run, "could not be saved")) == 1
    kept = _checkpoints(run_dir)
    assert kept
    for step in kept:
        thalweg.load(run_dir, step, _given()["model"])
    assert not list((run_dir / "checkpoints").glob("*.tmp"))
    (disk / "ballast").unlink()
    resumed = thalweg.resume(run_dir, **{word: _given()[word] for word in ("model", "data", "loss", "validation_data")})
    assert resumed.steps == STEPS
    assert thalweg.load(run_dir, "last", _given()["model"]) is not None


def test_room_is_made_from_older_ones_but_never_from_the_best(disk, tmp_path):
    """Of the best, the two newest and the one that is being written only three fit."""
    run_dir, room = disk / "run", int(1.85 * (1 << 20))
    (disk / "others").write_bytes(bytes(SIZE - room))
    x, y = _given(200)["data"]
    worse = {
        "width": 200,
        "validation_data": (x, -y),
        "repair": "advise",
    }  # what is learned is wrong there, so the first is the best
    seen: list[tuple[str, bool]] = []

    class Best:
        def on_step(self, run: Any, record: Any) -> None:
            if (run_dir / "BEST").exists():
                name = (run_dir / "BEST").read_text().strip()
                seen.append((name, (run_dir / "checkpoints" / name / "MANIFEST.json").exists()))

    run = thalweg.fit(**_given(callbacks=[Best()], **worse), run_dir=run_dir)
    _went_on(run, tmp_path, **worse)
    assert set(seen) == {("step-00000004", True)}
    assert _checkpoints(run_dir) == [4, STEPS - 5, STEPS]
    assert 4 * sum(file.stat().st_size for file in (run_dir / "checkpoints" / "step-00000080").iterdir()) > room
    assert _warnings(run, "could not be saved") == []


@pytest.mark.parametrize("limit", [0, 20_000])
def test_a_limit_on_the_size_of_files(limit, tmp_path):
    """Where no file system can be made, the system's own limit refuses to write."""
    run_dir = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    try:
        run = thalweg.fit(**_given(callbacks=[At({FULL_FROM: lower, ROOM_FROM: lift})]), run_dir=run_dir)
    finally:
        lift()
    _went_on(run, tmp_path)
    assert len(_warnings(run, "could not be saved")) == 1
    assert thalweg.History.open(run_dir / "history.sqlite").to_dict() == run.history.to_dict()
    assert _checkpoints(run_dir)[-1] == STEPS
    for step in _checkpoints(run_dir):
        thalweg.load(run_dir, step, _given()["model"])


def test_the_thread_that_writes_brings_the_best_first_when_there_is_room_again(tmp_path, monkeypatch):
    """A state must not be on the disk before the best that it remembers, or the best would be lost with the process."""
    from thalweg.loop.checkpoint import Checkpoint, Checkpoints
    from thalweg.loop.saver import Saver

    monkeypatch.setattr("thalweg.loop.saver.COPY_BYTES", 1 << 20)
    monkeypatch.setattr("thalweg.loop.saver.PACE_SECONDS", 0.0)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, said.append)
    saver = Saver(checkpoints, before=lambda: True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    weights = {"weight": torch.arange(4.0)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        saver.save(Checkpoint(10, weights, {}, 10), best=True)
        while not said:
            os.sched_yield()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saver.save(Checkpoint(20, weights, {}, 10))
    saver.finish()
    best = checkpoints.best()
    assert best is not None
    assert best.step == 10
    assert _checkpoints(tmp_path) == [10, 20]
