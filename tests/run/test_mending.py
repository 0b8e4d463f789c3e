"""A training that goes wrong is treated where it stands: what helps is kept, and nothing else leaves a trace."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mending_cases import Data, Stops, made_data, network
from torch import Tensor, nn

import thalweg
from thalweg.loop.checkpoint import Checkpoint
from thalweg.records.history import History
from thalweg.records.run import RunRecord
from thalweg.records.settings import Settings
from thalweg.repairs import trial
from thalweg.repairs.prescriptions import Prescription
from thalweg.run import arms, mending
from thalweg.run.choices import Chosen
from thalweg.step.forward import Forward


@pytest.fixture(scope="module")
def data() -> Data:
    return made_data()


def fitted(data: Data, folder: Path, **words: Any) -> thalweg.Run:
    words = {"optimizer": "momentum", "learning_rate": 0.05, "epochs": 8, "batch_size": 32, "patience": None, **words}
    return thalweg.fit(
        network(), data, "cross_entropy", validation_split=0.25, run_dir=folder / "run", verbose=False, plan="eager",
        metrics=["accuracy"], **words,
    )  # fmt: skip


def weights(run: thalweg.Run) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in run.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("level", ["safe", "full"])
def test_a_healthy_training_is_the_same_to_the_last_bit(data: Data, tmp_path: Path, level: str) -> None:
    left_alone = fitted(data, tmp_path / "off", repair="off")
    watched = fitted(data, tmp_path / level, repair=level)
    assert same(weights(left_alone), weights(watched))
    assert not watched.actions
    assert left_alone.history.series("loss")[1].tolist() == watched.history.series("loss")[1].tolist()


def test_a_rate_far_too_high_is_brought_down_while_it_trains(data: Data, tmp_path: Path) -> None:
    wrecked = fitted(data, tmp_path / "off", learning_rate=3.0, repair="off")
    mended = fitted(data, tmp_path / "safe", learning_rate=3.0, repair="safe")
    assert wrecked.metrics["validation_accuracy"] < 0.7
    assert mended.metrics["validation_accuracy"] > 0.85
    kept = [action for action in mended.actions if action.kept]
    assert kept and float(kept[0].after["learning_rate"]) < 0.5 and kept[0].before["learning_rate"] == 3.0
    assert kept[0].step < 60
    assert mended.learning_rate == kept[-1].after["learning_rate"]


def test_what_goes_back_is_given_back_the_updates_it_loses(data: Data, tmp_path: Path) -> None:
    run = fitted(data, tmp_path, learning_rate=3.0, repair="safe")
    repairs = run.record.decided["repairs"]
    (back,) = [repair for repair in repairs if repair["given_back"]]
    planned, per_epoch = 8 * 29, 29
    assert back["given_back"]["steps"] == back["step"]  # to the weights that it began with
    assert run.steps == planned + per_epoch * round(back["step"] / per_epoch)


@pytest.mark.parametrize(("level", "wanted"), [("safe", "back"), ("full", "anew")])
def test_an_arm_is_as_long_as_the_training_would_be(
    level: str, wanted: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    treated, parts_of = arms.Arms.treated, arms.parts_of

    def told(self: arms.Arms, prescription: Prescription) -> trial.Measured:
        monkeypatch.setattr(arms, "parts_of", lambda *of: planned(prescription, parts_of(*of)))
        before = self._body.settings, self._body.restarted_at
        measured = treated(self, prescription)
        assert (self._body.settings, self._body.restarted_at) == before
        return measured

    def planned(prescription: Prescription, parts: Chosen) -> Chosen:
        kind = "anew" if prescription.begins_anew else "back" if prescription.is_from_the_start else "here"
        seen.append((kind, parts.decided["total_steps"]))
        return parts

    monkeypatch.setattr(arms.Arms, "treated", told)
    run = fitted(data, tmp_path, learning_rate=3.0, repair=level)
    first, per_epoch = 8 * 29, 29
    assert run.actions[0].step == 20  # in its first epoch, of which it has lost most
    assert wanted in [kind for kind, _ in seen[:4]]
    assert all(total == first + per_epoch * (kind != "here") for kind, total in seen[:4])


@pytest.mark.parametrize(
    ("loss", "known"),
    [("cross_entropy", True), (nn.CrossEntropyLoss(), True), (nn.CrossEntropyLoss(label_smoothing=0.1), False)],
)
def test_the_loss_of_one_answer_for_all_is_known_to_trials(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Any, known: bool
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(mending.trial, "best", lambda own, others, before, trivial, control: seen.append(trivial))
    thalweg.fit(
        network(), data, loss, optimizer="momentum", learning_rate=3.0, epochs=4, validation_split=0.25, patience=None,
        run_dir=tmp_path / "run", verbose=False, plan="eager", repair="safe",
    )  # fmt: skip
    assert seen and all((1.0 < trivial < 1.2) if known else trivial == float("inf") for trivial in seen)


def test_a_rate_far_too_low_is_raised(data: Data, tmp_path: Path) -> None:
    wrecked = fitted(data, tmp_path / "off", optimizer="adamw", learning_rate=1e-6, repair="off", epochs=20)
    mended = fitted(data, tmp_path / "safe", optimizer="adamw", learning_rate=1e-6, repair="safe", epochs=20)
    assert wrecked.metrics["validation_loss"] > 1.0
    assert mended.metrics["validation_loss"] < 0.8 * wrecked.metrics["validation_loss"]


def test_what_is_asked_for_on_going_on_goes_before_what_was_mended(data: Data, tmp_path: Path) -> None:
    mended = fitted(data, tmp_path, learning_rate=3.0, repair="safe")
    assert mended.learning_rate < 0.5
    words = {"model": network(), "data": data, "loss": "cross_entropy", "verbose": False}
    again = thalweg.resume(mended.directory, epochs=10, learning_rate=0.7, repair="off", **words)
    assert again.learning_rate == 0.7 and again.steps > mended.steps
    once_more = thalweg.resume(mended.directory, epochs=11, **words)
    assert once_more.learning_rate == 0.7


def test_advice_changes_nothing(data: Data, tmp_path: Path) -> None:
    off = fitted(data, tmp_path / "off", learning_rate=3.0, repair="off")
    advised = fitted(data, tmp_path / "advise", learning_rate=3.0, repair="advise")
    assert same(weights(off), weights(advised)) and not advised.actions


def test_a_trial_in_which_nothing_helps_leaves_no_trace(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = fitted(data, tmp_path / "off", learning_rate=3.0, repair="off", epochs=2)
    monkeypatch.setattr(mending.trial, "best", lambda *of: None)
    monkeypatch.setattr(mending.trial, "harmless", lambda *of: [])
    tried = fitted(data, tmp_path / "safe", learning_rate=3.0, repair="safe", epochs=2)
    assert tried.actions and not any(action.kept for action in tried.actions)
    assert same(weights(off), weights(tried))
    assert off.history.series("loss")[1].tolist() == tried.history.series("loss")[1].tolist()


def test_an_arm_that_breaks_off_leaves_no_trace(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = fitted(data, tmp_path / "off", learning_rate=3.0, repair="off", epochs=2)
    train, broken = arms.Arms._train, []

    def breaks(self: arms.Arms, parts: Any, updates: int) -> None:
        train(self, parts, updates)
        if self._end is not None:  # the control has been trained
            broken.append(parts)
            raise RuntimeError("out of memory")

    monkeypatch.setattr(arms.Arms, "_train", breaks)
    tried = fitted(data, tmp_path / "safe", learning_rate=3.0, repair="safe", epochs=2)
    assert broken and not any(action.kept for action in tried.actions)
    assert same(weights(off), weights(tried))


def test_a_mended_run_repeats(data: Data, tmp_path: Path) -> None:
    runs = [fitted(data, tmp_path / str(i), learning_rate=3.0, repair="safe") for i in range(2)]
    assert same(weights(runs[0]), weights(runs[1]))
    assert [(a.code, a.step, dict(a.after)) for a in runs[0].actions] == [
        (a.code, a.step, dict(a.after)) for a in runs[1].actions
    ]


@pytest.mark.parametrize("at", [10, 20, 40, 90])
def test_a_mended_run_resumes_exactly(data: Data, tmp_path: Path, at: int) -> None:
    """Before the repair, at its step, and after it."""
    whole = fitted(data, tmp_path / "whole", learning_rate=3.0, repair="safe")
    assert any(action.kept for action in whole.actions)
    cut = fitted(data, tmp_path / "cut", learning_rate=3.0, repair="safe", callbacks=[Stops(at)])
    assert cut.stopped_because == "interrupted" and cut.steps < whole.steps
    torch.manual_seed(99)
    again = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))
    resumed = thalweg.resume(tmp_path / "cut" / "run", model=again, data=data, loss="cross_entropy", callbacks=[])
    assert resumed.steps == whole.steps
    assert same(weights(whole), weights(resumed))
    assert [(a.code, a.step, a.kept) for a in whole.actions] == [(a.code, a.step, a.kept) for a in resumed.actions]
    assert whole.history.series("loss")[1].tolist() == resumed.history.series("loss")[1].tolist()


@pytest.mark.parametrize("state", [[], "nothing", {"standing": 3}, {"standing": {"mended": "two"}}])
def test_a_forged_state_of_a_mended_run_is_one_sentence(state: Any) -> None:
    record = RunRecord("run", {}, {"loss": "mse", "plan": None, "repairs": [{"plan": None}]}, None, {}, {}, "")
    checkpoint = Checkpoint(30, {}, state, None)
    chosen = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=[{"initial_lr": 0.1}]), batches=SimpleNamespace(data=None)
    )
    with pytest.raises(ValueError, match="the checkpoint of step 30 does not fit this training: "):
        mending.mended_before(Forward(network()), None, chosen, Settings(), record, checkpoint)  # type: ignore[arg-type]


def test_what_a_repair_says_can_be_told(data: Data, tmp_path: Path) -> None:
    run = fitted(data, tmp_path, learning_rate=3.0, repair="safe")
    kept = next(action for action in run.actions if action.kept)
    rate = f"fit(…, learning_rate={kept.after['learning_rate']:.3g})"
    assert rate in kept.lines
    assert f"    {rate}" in str(kept).splitlines()
    page = run.report().read_text(encoding="utf-8")
    assert "What was changed" in page
    assert rate in page
    again = History.open(run.directory / "history.sqlite").actions
    assert [str(action) for action in again] == [str(action) for action in run.actions]


def test_momentum_is_carried_over_for_all_tensors_or_begins_at_zero() -> None:
    from thalweg.run.arms import _carry

    model = network()
    old, new = (torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True) for _ in range(2))
    for rule in (old,):
        model(torch.randn(4, 20)).sum().backward()
        rule.step()
    first, *others = model.parameters()
    old.state[first]["momentum_buffer"].fill_(torch.nan)  # which is not to be gone on with
    _carry(old, new, forgets=False)
    assert not new.state[first]["momentum_buffer"].any()
    assert all(torch.equal(new.state[p]["momentum_buffer"], old.state[p]["momentum_buffer"]) for p in others)
    new.step()


def test_a_training_ends_however_often_it_would_begin_anew(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending.trial, "best", lambda *of: 0)
    monkeypatch.setattr(mending.trial, "is_affordable", lambda *of: True)
    hopeless = (data[0], data[1][torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(1))])
    run = fitted(hopeless, tmp_path, optimizer="adamw", learning_rate=1e-7, repair="full", epochs=4)
    assert run.stopped_because == "epochs"
    assert sum(action.kept for action in run.actions) <= mending.trial.MOST_KEPT
