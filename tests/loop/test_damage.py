"""Damaged and forged run directories: what is whole is found, what is not is named, nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import thalweg
from thalweg.loop.checkpoint import Checkpoints

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def _seeds(fast: int, all_of_them: int) -> list[Any]:
    return [pytest.param(i, marks=[pytest.mark.slow] if i >= fast else []) for i in range(all_of_them)]


def _given(**changes: Any) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=drawn)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    return {"model": model, "data": (x, x.sum(1, keepdim=True)), "loss": "mse", "verbose": False} | changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps with checkpoints of steps 28 and 30, and a best one."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thalweg.loop.saver.COPY_BYTES", 0)
        given = _given(validation_data=_given()["data"], batch_size=8, steps=30, schedule="plateau", metrics=["mae"])
        thalweg.fit(**given, checkpoint_every=7, run_dir=directory, repair="off")
    return directory


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to damage, where nothing may be unpickled."""

    def refuse(*what: Any, **named: Any) -> Any:
        raise AssertionError("something was unpickled")

    for module, word in ((torch, "load"), (pickle, "loads"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, word, refuse)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing loses power here
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def _read(run_dir: Path) -> tuple[Any, list[str]]:
    said: list[str] = []
    return Checkpoints(run_dir, said.append).latest(), said


def _newest(run_dir: Path) -> Path:
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def _steps(run_dir: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted((run_dir / "checkpoints").iterdir())]


def _weights(run_dir: Path, which: Any) -> dict[str, torch.Tensor]:
    return thalweg.load(run_dir, which, _given()["model"]).state_dict()


def _saved(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def _passed_over(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest is damaged: every reader says so and takes the one before."""
    steps = _steps(run_dir)
    whole = steps[-2]
    checkpoint, said = _read(run_dir)
    assert checkpoint.step == whole
    assert len(said) == 1
    assert f"step-{steps[-1]:08d} is damaged" in said[0]
    assert "\n" not in said[0]
    expected = _saved(run_dir, whole)
    found = _weights(run_dir, "last")
    assert "is damaged" in capsys.readouterr().err
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    with pytest.raises(ValueError, match="is damaged"):
        _weights(run_dir, steps[-1])
    run = thalweg.resume(run_dir, **_given(validation_data=_given()["data"]))
    assert run.steps == 30
    assert any("is damaged" in note for note in run.record.notes)
    assert _read(run_dir)[1] == []


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(name, run_dir, capsys):
    path = _newest(run_dir) / name
    os.truncate(path, path.stat().st_size // 2)
    _passed_over(run_dir, capsys)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(name, run_dir, capsys):
    (_newest(run_dir) / name).unlink()
    _passed_over(run_dir, capsys)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file(name, run_dir, capsys):
    (_newest(run_dir) / name).write_bytes(b"")
    _passed_over(run_dir, capsys)


def _flip(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("seed", _seeds(5, 60))
@pytest.mark.parametrize("name", FILES[:3])
def test_a_flipped_bit(name, seed, run_dir):
    newest = _newest(run_dir)
    _flip(newest / name, seed)
    checkpoint, said = _read(run_dir)
    assert checkpoint.step == _steps(run_dir)[-2]
    assert said == [
        f"The checkpoint {newest.name} is damaged ({name} is not what was written); the one before it is taken."
    ]


@pytest.mark.parametrize("seed", _seeds(12, 200))
def test_a_flipped_bit_in_a_manifest(seed, run_dir):
    """It is noticed, or it changes nothing that is read: white space, say."""
    newest = _newest(run_dir)
    before, _ = _read(run_dir)
    _flip(newest / "MANIFEST.json", seed)
    checkpoint, said = _read(run_dir)
    if said:
        assert checkpoint.step == _steps(run_dir)[-2]
    else:
        assert checkpoint.step == before.step
        assert all(torch.equal(checkpoint.model[name], value) for name, value in before.model.items())


def test_a_whole_run_goes_on_exactly_from_the_one_before(finished, run_dir):
    assert _steps(run_dir) == [25, 28, 30]  # the last one is the best of all; at step 28 that of step 25 was
    _flip(_newest(run_dir) / "model.safetensors", 0)
    given = _given(validation_data=_given()["data"])
    resumed = thalweg.resume(run_dir, **given)
    assert not any("lost" in note for note in resumed.record.notes)  # what was the best at step 28 had been kept
    assert resumed.history.to_dict() == thalweg.History.open(finished / "history.sqlite").to_dict()
    for step in (_steps(finished)[-1], json.loads((finished / "run.json").read_text())["best_step"]):
        assert all(torch.equal(_saved(run_dir, step)[name], value) for name, value in _saved(finished, step).items())


def test_all_of_them_damaged(run_dir):
    for path in (run_dir / "checkpoints").iterdir():
        _flip(path / "state.json", 1)
    checkpoint, said = _read(run_dir)
    assert checkpoint is None
    assert len(said) == len(_steps(run_dir))
    with pytest.raises(FileNotFoundError, match=r"holds no whole checkpoint.*is damaged"):
        _weights(run_dir, "best")


def test_what_an_interrupted_write_left_is_no_checkpoint_and_goes_away(run_dir):
    left = run_dir / "checkpoints" / "step-00000099.tmp"
    shutil.copytree(_newest(run_dir), left)
    checkpoint, said = _read(run_dir)
    assert (checkpoint.step, said) == (30, [])
    thalweg.resume(run_dir, **_given(validation_data=_given()["data"]), steps=35)
    assert not left.exists()
    assert _steps(run_dir)[-1] == 35


def test_one_that_was_about_to_be_replaced_still_counts(run_dir):
    newest = _newest(run_dir)
    newest.rename(newest.with_suffix(".old"))
    checkpoint, said = _read(run_dir)
    assert (checkpoint.step, said) == (30, [])
    thalweg.load(run_dir, 30, _given()["model"])


POINTED = [
    "",
    "nothing",
    "step-00000099",
    "..",
    "../..",
    "/etc",
    "step-00000030/../../..",
    "\x00",
    "step-0000003\u0660",
]


@pytest.mark.parametrize("content", POINTED)
def test_a_pointer_to_nothing_or_elsewhere(content, run_dir, capsys):
    for pointer in ("LATEST", "BEST"):
        (run_dir / pointer).write_text(content, encoding="utf-8")
    _taken_instead(run_dir, capsys)


def test_a_pointer_of_garbage(run_dir, capsys):
    for pointer in ("LATEST", "BEST"):
        (run_dir / pointer).write_bytes(bytes(range(128, 256)))
    _taken_instead(run_dir, capsys)


def _taken_instead(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    assert Checkpoints(run_dir, said.append).best() is None
    assert len(said) == 1
    assert "BEST names no checkpoint" in said[0]
    found = _weights(run_dir, "best")
    assert "BEST names no checkpoint" in capsys.readouterr().err
    assert all(torch.equal(found[name], value) for name, value in _saved(run_dir, 30).items())
    run = thalweg.resume(run_dir, **_given(validation_data=_given()["data"]))
    best = run.record.best_step
    assert (run_dir / "BEST").read_text().strip() == f"step-{best:08d}"
    assert (run_dir / "LATEST").read_text().strip() == "step-00000030"


def test_links_are_not_followed(run_dir, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(_newest(run_dir), outside)
    (run_dir / "checkpoints" / "step-00000030").symlink_to(outside)
    checkpoint, _ = _read(run_dir)
    assert checkpoint.step == 28
    (run_dir / "checkpoints" / "step-00000030").unlink()
    shutil.copytree(outside, run_dir / "checkpoints" / "step-00000030")
    (run_dir / "checkpoints" / "step-00000030" / "state.json").unlink()
    (run_dir / "checkpoints" / "step-00000030" / "state.json").symlink_to(outside / "state.json")
    checkpoint, said = _read(run_dir)
    assert checkpoint.step == 28
    assert "is a link" in said[0]


def test_a_step_that_is_not_there_is_answered_with_those_that_are(run_dir):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 12345 .*28, 30"):
        _weights(run_dir, 12345)


def test_a_checkpoint_of_nine_digits_is_one():
    checkpoints = Checkpoints(Path("nowhere"), print)
    assert checkpoints._path(1_234_567_890).name == "step-1234567890"


# ── forged: a manifest that holds, and content that no training has written ──────────────────────────────────────


def _forge(checkpoint: Path, **files: bytes) -> None:
    """Replace files of a checkpoint, and let its manifest say so."""
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    for name, content in files.items():
        file = f"{name}.json" if name == "state" else f"{name}.safetensors"
        (checkpoint / file).write_bytes(content)
        manifest["files"][file] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest))


def _with(state: dict[str, Any], path: str, value: Any) -> bytes:
    changed = json.loads(json.dumps(state))
    *parents, last = path.split(".")
    place = changed
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return json.dumps(changed).encode()


#: Unreadable as a checkpoint at all: the one before is taken.
DAMAGES = [
    ("step", 10**30),
    ("step", -1),
    ("step", "thirty"),
    ("step", None),
    ("format", 99),
    ("state.random.torch", {"__tensor__": "no such tensor"}),
    ("state.random.torch", {"__tensor__": ["a", "list"]}),
    ("state.random.torch", {"__items__": [1, 2]}),
    ("state.random.torch", {"__items__": [[[], 2]]}),
    ("state.random.torch", {"__tuple__": 5}),
]
#: Readable, but not what this training saves: one sentence.
FORGERIES = [
    ("state", []),
    ("state", "nothing"),
    ("state.standing", {}),
    ("state.standing", {"__import__": "os"}),
    ("state.standing.step", 10**30),
    ("state.standing.step", "12"),
    ("state.standing.epoch", -1),
    ("state.standing.epoch", 10**400),
    ("state.standing.epoch", 1.5),
    ("state.standing.position", 10**9),
    ("state.standing.position", None),
    ("state.standing.window", 5),
    ("state.standing.window", ["a"]),
    ("state.standing.window", [None]),
    ("state.standing.epoch_sum", "a"),
    ("state.standing.best_step", "a"),
    ("state.standing.seconds", [1]),
    ("state.optimizer", None),
    ("state.optimizer.param_groups", []),
    ("state.optimizer.param_groups.0.lr", "fast"),
    ("state.optimizer.param_groups.0.betas", 0.9),
    ("state.optimizer.param_groups.0.params", [0]),
    ("state.optimizer.state", {"__items__": [[99, {"exp_avg": 1.0}]]}),
    ("state.optimizer.state", {"__items__": [["a", {"exp_avg": {"__tensor__": "random.torch"}}]]}),
    ("state.random", {}),
    ("state.random.torch", 5),
    ("state.random.torch", {"__tensor__": "random.numpy.state.key"}),
    ("state.random.python.version", 99),
    ("state.random.python.internal", {"__tensor__": "random.torch"}),
    ("state.random.numpy", {"bit_generator": "os.system"}),
    ("state.epoch_random", "a"),
    ("state.metrics", 5),
    ("state.metrics.mae", {}),
    ("state.metrics.mae", {"total": "a", "terms": 1}),
    ("state.schedule", 7),
]


def _resume_forged(run_dir: Path, path: str, value: Any) -> Any:
    newest = _newest(run_dir)
    state = json.loads((newest / "state.json").read_text())
    _forge(newest, state=_with(state, path, value))
    return thalweg.resume(run_dir, **_given(validation_data=_given()["data"]), steps=40)


@pytest.mark.parametrize(("path", "value"), DAMAGES)
def test_a_state_that_cannot_be_read_is_passed_over(path, value, run_dir):
    run = _resume_forged(run_dir, path, value)
    assert run.steps == 40
    assert any("step-00000030 is damaged" in note for note in run.record.notes)


@pytest.mark.parametrize(("path", "value"), FORGERIES, ids=[f"{p}={str(v)[:30]}" for p, v in FORGERIES])
def test_a_state_that_no_training_saved_is_one_sentence(path, value, run_dir):
    with pytest.raises(ValueError, match=r"the checkpoint of step 30 does not fit this training: ") as error:
        _resume_forged(run_dir, path, value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
