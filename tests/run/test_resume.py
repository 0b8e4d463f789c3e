"""A run that was killed ends, when it is gone on with, as if it had never been: to the last bit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import CASES, INSTANTS, KILLED, Nursery, kill_at_random
from torch import nn

import thalweg

Outcome = dict[str, Any]

#: Instants that need not come more than once in a training.
RARE = ("between two of one step", "after the last step")


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What a case ends with when nothing happens to it."""
    known: dict[str, Outcome] = {}

    def of(case: str) -> Outcome:
        if case not in known:
            known[case] = nursery.run(case, tmp_path_factory.mktemp("undisturbed") / "run")
        return known[case]

    return of


def _needs(case: str) -> None:
    pytest.importorskip("torchmetrics")
    if case == "keras" and importlib.util.find_spec("keras") is None:  # importing it here would choose a backend
        pytest.skip("keras is not installed")


def _same(found: Outcome, expected: Outcome) -> None:
    different = [name for name in expected if found.get(name) != expected[name]]
    assert not different, {name: (found.get(name), expected[name]) for name in different}
    assert found.keys() == expected.keys()


def _killed_again_and_again(
    nursery: Nursery, case: str, folder: Path, seed: int, kills: int, **options: Any
) -> Outcome:
    run_dir, out = folder / "run", folder / "out.json"
    how = "fit"
    for i in range(kills):
        child = nursery.start(case, run_dir, out, how, pace=0.004, **options)
        kill_at_random(child, run_dir, seed * 100 + i, at_most=0.4)
        if child.wait() == 0:
            break
        how = "resume" if (run_dir / "run.json").exists() else "again"
    return nursery.run(case, run_dir, how if how != "fit" else "resume", **options)


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_instants(case, nursery, undisturbed, tmp_path):
    _needs(case)
    _same(_killed_again_and_again(nursery, case, tmp_path, seed=1, kills=1), undisturbed(case))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 14))
@pytest.mark.parametrize("case", CASES)
def test_killed_at_many_random_instants(case, seed, nursery, undisturbed, tmp_path):
    _needs(case)
    found = _killed_again_and_again(nursery, case, tmp_path, seed, kills=3, in_place=seed % 3 == 0)
    _same(found, undisturbed(case))


def _killed_inside(nursery: Nursery, case: str, folder: Path, instant: str, at: int, **options: Any) -> Outcome:
    run_dir = folder / "run"
    code = nursery.start(case, run_dir, folder / "out.json", die=instant, at=at, **options).wait()
    assert code == KILLED, "the instant did not come"
    return nursery.run(case, run_dir, "resume", **options)


@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_inside_a_save(instant, nursery, undisturbed, tmp_path):
    pytest.importorskip("torchmetrics")
    at = 1 if instant in RARE else 3
    case = "steps" if instant == "after the last step" else "arrays"  # one that stops in the midst of what it does
    _same(_killed_inside(nursery, case, tmp_path, instant, at, in_place=True), undisturbed(case))


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("case", ["arrays", "swa", "patience", "steps", "target", "shuffling loader"])
@pytest.mark.parametrize("instant", INSTANTS)
def test_killed_inside_each_save(instant, case, in_place, nursery, undisturbed, tmp_path):
    pytest.importorskip("torchmetrics")
    for at in (1, 2, 4, 7, 12, 20):
        run_dir, out = tmp_path / str(at), tmp_path / f"{at}.out"
        code = nursery.start(case, run_dir, out, die=instant, at=at, in_place=in_place).wait()
        if code == 0:  # it came fewer times
            assert at > 1 or instant in RARE
            break
        assert code == KILLED
        how = "resume" if (run_dir / "run.json").exists() else "again"
        _same(nursery.run(case, run_dir, how, in_place=in_place), undisturbed(case))


def test_a_second_death_at_the_same_instant(nursery, undisturbed, tmp_path):
    pytest.importorskip("torchmetrics")
    run_dir, out = tmp_path / "run", tmp_path / "out.json"
    for how in ("fit", "resume", "again"):
        code = nursery.start("arrays", run_dir, out, how, die="before the rename", at=3, in_place=True).wait()
        assert code == KILLED
    _same(nursery.run("arrays", run_dir, "resume"), undisturbed("arrays"))


def test_fit_with_resume_begins_in_an_empty_directory_and_goes_on_in_a_used_one(nursery, undisturbed, tmp_path):
    pytest.importorskip("torchmetrics")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    child = nursery.start("arrays", run_dir, tmp_path / "out.json", "again", die="after LATEST", at=4, in_place=True)
    assert child.wait() == KILLED
    found = nursery.run("arrays", run_dir, "again")
    _same(found, undisturbed("arrays"))
    assert len(found["history"]["epoch_loss"]["steps"]) == 7


@pytest.mark.parametrize("case", ["arrays", "patience", "steps", "target"])
def test_a_finished_run_returns_at_once_and_says_the_same(case, nursery, undisturbed, tmp_path):
    pytest.importorskip("torchmetrics")
    run_dir = tmp_path / "run"
    _same(nursery.run(case, run_dir), undisturbed(case))
    for how in ("resume", "again"):
        _same(nursery.run(case, run_dir, how), undisturbed(case))


def test_killed_and_then_given_more_epochs(nursery, undisturbed, tmp_path):
    pytest.importorskip("torchmetrics")
    run_dir, out = tmp_path / "run", tmp_path / "out.json"
    changes = {"schedule": "constant"}
    assert nursery.start("arrays", run_dir, out, die="after LATEST", at=4, in_place=True, changes=changes).wait() < 0
    found = nursery.run("arrays", run_dir, "resume", changes={**changes, "epochs": 9})
    longer = nursery.run("arrays", tmp_path / "longer", changes={**changes, "epochs": 9})
    _same(found, longer)
    assert found["steps"] == 81


# ── in this process ──────────────────────────────────────────────────────────────────────────────────────────────


def _line(**changes: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 24)[:, None]
    return {"model": nn.Linear(1, 1), "data": (x, 2 * x + 1), "loss": "mse", "verbose": False} | changes


def test_a_change_is_remembered_by_the_next_resume(tmp_path):
    thalweg.fit(**_line(epochs=2, run_dir=tmp_path))
    thalweg.resume(tmp_path, **_line(), epochs=4)
    run = thalweg.resume(tmp_path, **_line())
    assert (run.stopped_because, run.record.epochs) == ("epochs", 4.0)
    assert json.loads((tmp_path / "run.json").read_text())["asked"]["epochs"] == 4


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
def test_a_new_learning_rate_counts(schedule, tmp_path):
    held_out = _line()["data"]
    given = {"schedule": schedule, "validation_data": held_out, "patience": None}
    thalweg.fit(**_line(epochs=2, learning_rate=0.01, run_dir=tmp_path), **given)
    run = thalweg.resume(tmp_path, **_line(), validation_data=held_out, learning_rate=0.002, epochs=4)
    steps, rates = run.history.series("learning_rate")
    factor = (1 + torch.cos(torch.tensor(torch.pi * (steps[-1] - 1) / steps[-1])).item()) / 2
    assert rates[-1] == pytest.approx(0.002 * (factor if schedule == "cosine" else 1.0), rel=1e-4)
    assert run.learning_rate == 0.002


def test_resume_without_a_model_says_what_to_give(tmp_path):
    thalweg.fit(**_line(epochs=1, run_dir=tmp_path))
    with pytest.raises(ValueError, match="give model= "):
        thalweg.resume(tmp_path)


def test_another_model_is_refused_in_one_sentence(tmp_path):
    thalweg.fit(**_line(epochs=1, run_dir=tmp_path))
    with pytest.raises(ValueError, match=r"does not fit this training: .*another model"):
        thalweg.resume(tmp_path, **_line(model=nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1))))


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        thalweg.resume(tmp_path, **_line())


SCRIPT = """
import torch
from torch import nn
def make(rows: int = 24):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, rows)[:, None]
    return {"model": nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.2), nn.Linear(4, 1)), "data": (x, 2 * x + 1),
            "loss": "mse", "batch_size": 4, "epochs": 3, "verbose": False}
"""


class _Stop:
    """Presses Ctrl-C, as it were, at a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, run: Any, record: Any) -> None:
        import signal

        if record.step == self.at:
            signal.raise_signal(signal.SIGINT)


def _interrupted_script(folder: Path, at: Path) -> Path:
    script = at / "line.py"
    script.write_text(SCRIPT)
    run = thalweg.recipe(f"{script}:make", rows=32).fit(run_dir=folder, callbacks=[_Stop(9)])
    assert (run.stopped_because, run.steps) == ("interrupted", 9)
    return script


def test_a_script_is_made_again(tmp_path, capsys):
    script = _interrupted_script(tmp_path / "run", tmp_path)
    resumed = thalweg.resume(tmp_path / "run", callbacks=())
    assert str(script) in capsys.readouterr().err
    whole = thalweg.recipe(f"{script}:make", rows=32).fit(run_dir=tmp_path / "whole")
    assert resumed.history.to_dict() == whole.history.to_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


def test_a_changed_script_is_refused(tmp_path):
    script = _interrupted_script(tmp_path / "run", tmp_path)
    script.write_text(SCRIPT + "# changed\n")
    with pytest.raises(ValueError, match="has changed since"):
        thalweg.resume(tmp_path / "run")


def test_a_script_inside_the_run_directory_is_refused(tmp_path):
    _interrupted_script(tmp_path / "run", tmp_path)
    evil = tmp_path / "run" / "evil.py"
    evil.write_text(f"from pathlib import Path\nPath({str(tmp_path)!r}, 'ran').touch()\n" + SCRIPT)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["source"] |= {"script": str(evil), "sha256": hashlib.sha256(evil.read_bytes()).hexdigest()}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="lies in the run directory"):
        thalweg.resume(tmp_path / "run")
    with pytest.raises(ValueError, match="lies in the run directory"):
        thalweg.load(tmp_path / "run")
    assert not (tmp_path / "ran").exists()
