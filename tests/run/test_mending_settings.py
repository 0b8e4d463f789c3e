"""Mending beside what a training is usually given: a race, patience, schedules, a time budget, best weights."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mending_cases import Data, Stops, made_data, network
from torch import Tensor, nn

import thalweg
from thalweg.loop import memory
from thalweg.loop.judging import Judging
from thalweg.loop.setup import Limits, Standing
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.settings import Settings
from thalweg.records.step import StepRecord
from thalweg.repairs import trial
from thalweg.repairs.change import Body
from thalweg.repairs.prescriptions import CHANGES, Prescription, candidates
from thalweg.run import course, mending
from thalweg.run.arms import Arms, _drawn, parts_of
from thalweg.run.choices import Chosen, choose
from thalweg.run.mending import Mending
from thalweg.run.resume import _overruled
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve


@pytest.fixture(scope="module")
def data() -> Data:
    return made_data()


def fitted(data: Any, folder: Path, model: nn.Module | None = None, **words: Any) -> thalweg.Run:
    words = {"optimizer": "momentum", "learning_rate": 3.0, "epochs": 8, "batch_size": 32, "repair": "safe", **words}
    return thalweg.fit(
        model or network(), data, "cross_entropy", run_dir=folder / "run", verbose=False, plan="eager", **words
    )


def same(one: thalweg.Run, other: thalweg.Run) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def made(data: Any, **words: Any) -> tuple[Body, Chosen]:
    """A body as it is when a training begins, and the parts that were chosen for it."""
    settings, _ = Settings.of({"optimizer": "momentum", "learning_rate": 0.1, "epochs": 10, "batch_size": 4, **words})
    forward, loss = Forward(network()), resolve("cross_entropy")
    chosen = choose(forward, loss, data, settings, torch.device("cpu"))
    return mending.body_of(forward, loss, chosen, settings), chosen


def setup_of(chosen: Chosen) -> Any:
    return SimpleNamespace(optimizer=chosen.optimizer, schedule=chosen.schedule)


# ── a race ──


def test_a_raced_training_is_mended_with_the_rule_and_rate_that_it_trains_with(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[Body] = []

    class Seen(Mending):
        def __init__(self, *of: Any) -> None:
            super().__init__(*of)
            bodies.append(self.body)

    monkeypatch.setattr(course, "Mending", Seen)
    run = fitted(data, tmp_path, optimizer="auto", learning_rate="auto", epochs=40)
    decided = run.record.decided
    assert decided["search"] is not None
    (body,) = bodies
    assert (body.settings.optimizer, body.settings.learning_rate) == (decided["optimizer"], decided["learning_rate"])
    assert body.rate == pytest.approx(decided["learning_rate"])


# ── patience and verdicts ──


def judged(mended_at: int, patience: int = 2) -> str | None:
    history = History()
    for i, loss in enumerate([1.0, 2.0, 2.0, 2.0, 1.9]):
        history.evaluate(StepRecord(10 * (i + 1), i + 1.0, 0.1, {"validation_loss": loss}))
    setup: Any = SimpleNamespace(history=history, validation=object())
    at = Standing(step=50, mended=int(mended_at > 0), mended_at=mended_at)
    return Judging(setup, Limits(patience=patience)).reason_to_stop(at)


def test_patience_counts_from_a_repair_on() -> None:
    assert judged(mended_at=0) == "patience"
    assert judged(mended_at=30) is None
    assert judged(mended_at=50) is None  # nothing was evaluated since


def test_a_loss_of_other_units_is_no_divergence() -> None:
    history = History()
    values = [0.09] * 4 + [1.8 - 0.02 * i for i in range(12)]  # a mean square, then a cross-entropy
    for i, loss in enumerate(values):
        history.append(StepRecord(20 * (i + 1), i + 1.0, 0.1, {"loss": loss, "learning_rate": 0.1}))
        history.evaluate(StepRecord(20 * (i + 1), i + 1.0, 0.1, {"validation_loss": loss, "epoch_loss": loss}))
    setup: Any = SimpleNamespace(
        history=history, validation=object(), anneals=False, looks=False, batches=SimpleNamespace(per_epoch=20)
    )
    verdicts = [
        Judging(setup, Limits(epochs=40)).verdict(Standing(step=320, epoch=16, mended=mended, mended_at=80 * mended))
        for mended in (0, 1)
    ]
    assert [verdict.state for verdict in verdicts] == ["diverged", "improving"]


def test_a_training_that_is_mended_at_its_last_patience_goes_on(data: Data, tmp_path: Path) -> None:
    off = fitted(data, tmp_path / "off", repair="off", validation_split=0.25, patience=2, epochs=12)
    run = fitted(data, tmp_path / "safe", validation_split=0.25, patience=2, epochs=12)
    kept = [action for action in run.actions if action.kept]
    assert kept and run.steps > kept[-1].step + 2 * 29
    assert run.metrics["validation_loss"] < off.metrics["validation_loss"]


# ── the best weights ──


@pytest.mark.parametrize("code", ["add_dropout", "swap_activation"])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_the_best_weights_are_handed_over_though_a_repair_came_later(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, is_resumed: bool
) -> None:
    asked = [Prescription("asked", ((code, None), ("set_learning_rate", {"learning_rate": 6.0})))]  # what ruins it
    monkeypatch.setattr(
        mending, "prescribe", lambda *of, **words: list(asked) if of[1].step >= 40 and not of[1].undos else []
    )
    monkeypatch.setattr(mending.trial, "best", lambda *of: 0)
    training, held_out = ((data[0][:900], data[1][:900]), (data[0][900:], data[1][900:]))
    words = {"validation_data": held_out, "callbacks": [Stops(80)] if is_resumed else []}
    run = fitted(training, tmp_path, learning_rate=1.5, repair="full", patience=None, **words)
    if is_resumed:
        assert run.stopped_because == "interrupted"
        words |= {"callbacks": []}
        run = thalweg.resume(run.directory, model=network(), data=training, loss="cross_entropy", **words)
    (kept,) = [action for action in run.actions if action.kept]
    steps, losses = run.history.series("validation_loss")
    assert run.record.best_step == steps[losses.argmin()] <= kept.step
    found = thalweg.evaluate(run.model, held_out, "cross_entropy")["loss"]
    assert found == pytest.approx(float(losses.min()), rel=1e-4)
    best = thalweg.load(run, "best", network())
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), run.model.parameters(), strict=True))


# ── trials that cannot be made ──


def test_what_cannot_be_tried_ends_no_training(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = fitted(data, tmp_path / "off", repair="off", epochs=2)

    def full(self: Arms) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Arms, "control", full)
    run = fitted(data, tmp_path / "safe", epochs=2)
    assert run.steps == off.steps
    assert any("cannot be tried on this training: CUDA out of memory" in note for note in run.record.notes)
    assert same(off, run)


def test_rows_that_are_no_examples_are_not_cut() -> None:
    time_major = (torch.randn(7, 4, 3), torch.arange(4))
    assert _drawn([time_major], 0) == []
    assert _drawn([(torch.tensor(3.0), torch.arange(4))], 0) == []
    assert _drawn([], 0) == []
    assert len(_drawn([(torch.randn(32, 3), torch.arange(32))], 0)) == 16


def test_a_change_that_cannot_look_at_a_network_is_none(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Any, body: Body) -> None:
        raise IndexError("no such dimension")

    body, _ = made(data, repair="full")
    body.sample = data
    finding = Finding("dead_units", "critical", 10, "Units are dead.")
    assert any("initialise" in dict(p.changes) for p in candidates([finding], body, "full"))
    monkeypatch.setattr(type(CHANGES["initialise"]), "words", breaks)
    assert not any("initialise" in dict(p.changes) for p in candidates([finding], body, "full"))


def test_a_trial_counts_what_it_costs() -> None:
    assert trial.is_affordable(0, 3, 10_000, 1000)
    assert trial.cost(3, 1000) == 3 * 1250 + 250
    assert not trial.is_affordable(6500 - trial.cost(3, 1000) + 1, 3, 10_000, 1000)
    assert trial.is_affordable(6500 - trial.cost(3, 1000), 3, 10_000, 1000)


# ── time ──


def test_trials_are_part_of_a_time_budget(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Arms._measured

    def slowly(self: Arms) -> Any:
        time.sleep(0.4)
        return measured(self)

    monkeypatch.setattr(Arms, "_measured", slowly)
    began = time.perf_counter()
    run = fitted(data, tmp_path, epochs=None, time_budget=1.0)
    assert run.actions or run.stopped_because == "time"
    assert time.perf_counter() - began < 8.0
    assert run.record.seconds >= 0.4  # a trial lasted at least so long


# ── how batches are cut ──


def test_larger_batches_end_with_the_epochs(data: Data) -> None:
    body, chosen = made((data[0][:1000], data[1][:1000]))
    assert chosen.planned == 2500
    body.step = 500  # two epochs
    CHANGES["change_batch"].apply(body, {"batch_size": 32.0})
    CHANGES["restart_schedule"].apply(body, {"schedule": "cosine", "from": 500.0})
    parts = parts_of(body, chosen, setup_of(chosen))
    assert parts.batches.per_epoch == 32
    assert parts.planned == 500 + 8 * 32
    parts.schedule.apply(parts.optimizer, 500 + 4 * 32)
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_stream_keeps_its_batches(data: Data) -> None:
    body, _ = made([(data[0][:32], data[1][:32])] * 4)
    assert CHANGES["change_batch"].words(body) is None


def test_a_norm_that_came_in_meets_no_single_row(data: Data) -> None:
    body, chosen = made((data[0][:97], data[1][:97]), batch_size=32)
    assert chosen.batches.per_epoch == 4
    body.model.append(nn.BatchNorm1d(3))
    parts = parts_of(body, chosen, setup_of(chosen))
    assert parts.batches.per_epoch == 3
    assert [len(y) for _, y in parts.batches.epoch(0)][-1] == 33


# ── schedules ──


@pytest.mark.parametrize("begin", [0, 500])
def test_a_restart_is_full_at_once_and_ends_low(data: Data, begin: int) -> None:
    body, chosen = made((data[0][:1000], data[1][:1000]))
    body.step = begin
    CHANGES["restart_schedule"].apply(body, CHANGES["restart_schedule"].words(body))
    parts = parts_of(body, chosen, setup_of(chosen))
    rates = []
    for step in range(begin, parts.planned):
        parts.schedule.apply(parts.optimizer, step)
        rates.append(parts.optimizer.param_groups[0]["lr"])
    stable = rates.count(0.1)
    assert rates[:stable] == [0.1] * stable and stable == pytest.approx(0.8 * len(rates), rel=0.02)
    assert all(later < rate for rate, later in zip(rates[stable:], rates[stable + 1 :], strict=False))
    assert rates[-1] < 0.001


def test_a_plateau_goes_on_in_a_trial(data: Data) -> None:
    body, chosen = made(data, schedule="plateau")
    for _ in range(12):
        chosen.schedule.validated(1.0)
    (group,) = chosen.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.01)
    parts = parts_of(body, chosen, setup_of(chosen))
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert parts.schedule.state_dict() == chosen.schedule.state_dict()


def test_a_scheduler_of_the_users_own_is_left_where_it_stood(data: Data) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    settings, _ = Settings.of({"optimizer": optimizer, "schedule": scheduler, "epochs": 2, "batch_size": 32})
    forward, loss = Forward(model), resolve("cross_entropy")
    chosen = choose(forward, loss, data, settings, torch.device("cpu"))
    chosen.schedule.apply(optimizer, 25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    body = mending.body_of(forward, loss, chosen, settings)
    parts = parts_of(body, chosen, setup_of(chosen))
    parts.schedule.apply(parts.optimizer, 26)
    assert scheduler.last_epoch == 26 and optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_scheduler_that_is_made_anew_decays_once(data: Data) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    words = {"optimizer": optimizer, "schedule": lambda o: torch.optim.lr_scheduler.StepLR(o, 10), "epochs": 2}
    settings, _ = Settings.of({**words, "batch_size": 32})
    forward, loss = Forward(model), resolve("cross_entropy")
    chosen = choose(forward, loss, data, settings, torch.device("cpu"))
    chosen.schedule.apply(optimizer, 25)
    body = mending.body_of(forward, loss, chosen, settings)
    CHANGES["set_learning_rate"].apply(body, {"learning_rate": 0.05})
    parts = parts_of(body, chosen, setup_of(chosen))
    parts.schedule.apply(parts.optimizer, 25)
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(0.0005)


# ── batches that are left out ──


def test_what_is_left_out_leaves_no_statistics_and_is_told(data: Data, tmp_path: Path) -> None:
    from thalweg.step.update import IN_A_ROW, Clip, Update
    from thalweg.step.whole import Step

    model = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    update = Update(torch.optim.SGD(model.parameters(), 0.1), Clip(skips=True))
    step = Step(Forward(model), resolve("cross_entropy"), update)
    step((data[0][:32], data[1][:32]))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for _ in range(IN_A_ROW):
        step((torch.full((32, 20), torch.nan), data[1][:32]))
    assert update.num_skipped == IN_A_ROW
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    step((torch.full((32, 20), torch.nan), data[1][:32]))  # a training of which nothing is finite is told so
    assert not torch.isfinite(model[0].weight).all()


# ── what a run has saved ──


def test_a_run_mended_in_its_settings_loads_without_being_run(data: Data, tmp_path: Path) -> None:
    run = fitted(data, tmp_path)
    assert any(action.kept for action in run.actions)

    class Picky(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            raise TypeError("not of zeros")

    loaded = thalweg.load(run, "last", Picky(*network()))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), run.model.parameters(), strict=True))


# ── streams ──


class Counted:
    """A stream of batches that counts what is read of it."""

    def __init__(self, data: Data) -> None:
        self.parts = list(zip(data[0].split(32), data[1].split(32), strict=True))
        self.read = 0

    def __iter__(self) -> Any:
        for i in range(1000):
            self.read += 1
            yield self.parts[i % len(self.parts)]


def test_a_stream_is_not_read_again_for_each_arm(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mending.trial, "best", lambda *of: None)
    monkeypatch.setattr(mending.trial, "harmless", lambda *of: [])
    words = {"epochs": None, "steps": 300, "learning_rate": 1.5, "schedule": "constant"}
    off = fitted(Counted(data), tmp_path / "off", repair="off", **words)
    read = {}
    for limit in (memory.AHEAD_BYTES, 0):
        monkeypatch.setattr(memory, "AHEAD_BYTES", limit)
        stream = Counted(data)
        run = fitted(stream, tmp_path / str(limit), **words)
        assert run.actions and same(off, run)
        read[limit] = stream.read
    held, again = read.values()
    measured = 64 * (1 + 2 * len(run.actions))  # examples of each trial, and of the longer one after it
    assert held < 300 + measured + 100 < again


def test_another_rule_that_is_asked_for_goes_before_decay_that_was_found() -> None:
    repairs = [{"name": "decay", "step": 10, "changes": [["decay_weights", {"weight_decay": 0.1}]]}]
    assert _overruled(repairs, {"optimizer": "sgd"}) == [{"name": "decay", "step": 10, "changes": []}]
    assert _overruled(repairs, {"epochs": 9}) == repairs


class Drawn:
    """A stream that draws its batches from a generator of its own."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.seen: list[tuple[int, ...]] = []

    def __iter__(self) -> Any:
        for _ in range(300):
            rows = torch.randint(len(self.data[0]), (32,))
            self.seen.append(tuple(rows.tolist()))
            yield self.data[0][rows], self.data[1][rows]


def test_a_stream_that_draws_does_not_give_the_same_batches_again(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending.trial, "best", lambda *of: None)
    monkeypatch.setattr(mending.trial, "harmless", lambda *of: [])
    stream = Drawn(data)
    run = fitted(stream, tmp_path, epochs=None, steps=200, learning_rate=1.5, schedule="constant")
    assert run.actions
    assert len(stream.seen) > 200 and len(set(stream.seen)) >= len(stream.seen) - 2  # the first is looked at before


def test_a_rate_that_is_mended_stays_so_under_a_scheduler_of_base_rates(data: Data) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    words = {"optimizer": optimizer, "schedule": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1.0)}
    settings, _ = Settings.of({**words, "epochs": 2, "batch_size": 32})
    forward, loss = Forward(model), resolve("cross_entropy")
    chosen = choose(forward, loss, data, settings, torch.device("cpu"))
    body = mending.body_of(forward, loss, chosen, settings)
    CHANGES["set_learning_rate"].apply(body, {"learning_rate": 0.05})
    parts = parts_of(body, chosen, setup_of(chosen))
    parts.schedule.apply(parts.optimizer, 5)
    assert parts.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_norm_that_came_in_leaves_batches_that_have_no_single_row(data: Data) -> None:
    body, chosen = made((data[0][:96], data[1][:96]), batch_size=32)
    body.model.append(nn.BatchNorm1d(3))
    assert parts_of(body, chosen, setup_of(chosen)).batches is chosen.batches
