"""The race: against a made-up field whose best rate is known, and as the beginning of real trainings."""

from __future__ import annotations

import copy
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import thalweg
from thalweg.search import halving
from thalweg.search.candidate import Choice, NothingFinite, cool_down
from thalweg.search.race import CAP, HORIZON, STEP, Lane, Race
from thalweg.search.range import WIDTH, range_test

# ── a field whose losses are a formula ───────────────────────────────────────────────────────────────────────────────


class Runner:
    """What a candidate is to a race; at depth d of T the best rate is `best` · (d/T)^−0.32, as the law has it."""

    def __init__(
        self,
        choice: Choice,
        best: float,
        total: int,
        diverges: float = math.inf,
        law: float = HORIZON,
        worth: Callable[[float], float] = lambda share: 1.0,
        stalls: Callable[[float], bool] = lambda rate: False,
    ) -> None:
        self.choice = choice
        self.best = best
        self.total = total
        self.diverges = diverges
        self.law = law
        self.worth = worth
        self.stalls = stalls
        """Whether a rate is one at which patience runs out at the first update."""
        """Share of the training → the loss of its rule at its best rate."""
        self.step = self.spent = 0
        self.scores: dict[int, float] = {}
        self.ended: str | None = None

    def advance(self, to: int) -> None:
        """One whose rate is more than it can bear falls apart at its first update."""
        assert self.ended in (None, "diverged", "patience")
        assert to not in self.scores and all(depth < to for depth in self.scores), "judged at one depth after the other"
        if self.choice.learning_rate >= self.diverges:
            self.ended = "diverged"
            to = 1
        elif self.stalls(self.choice.learning_rate):
            self.ended = "patience"
            to = 1
        self.spent += max(0, to - self.step)
        self.step = max(to, self.step)

    def judge(self, depth: int, measure: Any) -> float:
        now = self.best * (self.step / self.total) ** -self.law
        loss = self.worth(depth / self.total) * (1 + math.log(self.choice.learning_rate / now) ** 2)
        self.spent += 0 if self.ended == "diverged" else cool_down(depth)
        self.scores[depth] = math.inf if self.ended == "diverged" else loss
        return self.scores[depth]

    def drop(self) -> None:
        self.ended = "dropped"


ADAMW, MOMENTUM = Lane(Choice(1e-3, "adamw"), 1e-5, 3e-2), Lane(Choice(1e-2, "momentum"), 1e-4, 3.0)


def race(best: float, total: int = 2000, diverges: float = math.inf) -> tuple[Any, Race]:
    run = Race(lambda choice: Runner(choice, best, total, diverges), lambda: 0.0, total)  # type: ignore[arg-type, return-value]
    return run.run(ADAMW), run


@pytest.mark.parametrize("best", [2e-5, 1e-4, 3.3e-4, 1e-3, 2e-3, 5e-3, 1e-2])
def test_a_race_finds_the_best_rate_of_the_whole_training(best: float) -> None:
    won, _ = race(best)
    assert abs(math.log(won.rate / best)) < 0.6 * math.log(STEP)
    assert won.interval[0] < won.rate < won.interval[1]


@pytest.mark.parametrize("total", [300, 1000, 10_000, 1_000_000, 10**9])
@pytest.mark.parametrize("best", [2e-5, 1e-3, 1e-2])
def test_a_race_stays_within_its_cap_and_spends_little_of_a_long_training(best: float, total: int) -> None:
    won, run = race(best, total)
    assert won.cost <= CAP
    assert run.spent <= max(6 * 5000, CAP * total + won.candidate.step)


def test_rates_that_diverge_do_not_win() -> None:
    won, _ = race(1e-2, diverges=5e-3)
    assert won.candidate.choice.learning_rate < 5e-3
    assert won.rate < 5e-3


def test_where_no_rate_is_finite_it_is_said() -> None:
    with pytest.raises(NothingFinite, match="no learning rate gave a finite loss: .* from .* to .* were tried"):
        race(1e-3, diverges=0.0)


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_a_candidate_whose_patience_runs_out_has_not_won(best: float) -> None:
    def make(choice: Choice) -> Any:
        return Runner(choice, best, 2000, stalls=lambda rate: rate > 10 * best)

    won = Race(make, lambda: 0.0, 2000).run(ADAMW)
    assert abs(math.log(won.rate / best)) < 0.6 * math.log(STEP)


def test_the_winner_is_the_candidate_nearest_to_the_rate_it_goes_on_with() -> None:
    won, run = race(1e-3)
    deepest = max(won.candidate.scores)
    standing = [c for c in run.field.values() if deepest in c.scores]
    nearest = min(standing, key=lambda c: abs(math.log(c.choice.learning_rate / won.rate)))
    assert won.candidate is nearest


def race_of_rules(
    worth: Callable[[float], float], total: int = 2000, price: float = 0.0, diverges: tuple[str, ...] = ()
) -> tuple[Any, Race]:
    """`worth` is that of momentum; the best rates are 2e-3 and 2e-2."""

    def make(choice: Choice) -> Any:
        first = choice.optimizer == "adamw"
        limit = 0.0 if choice.optimizer in diverges else math.inf
        return Runner(choice, 2e-3 if first else 2e-2, total, limit, worth=(lambda share: 1.0) if first else worth)

    run = Race(make, lambda: 0.0, total, price)
    return run.run(ADAMW, MOMENTUM), run


RULES: dict[str, tuple[Callable[[float], float], str, float]] = {
    "far ahead": (lambda share: 0.4, "momentum", 2e-2),
    "ahead, but not for long": (lambda share: 0.4 if share < 0.05 else 1.0, "adamw", 2e-3),
    "ahead by less than a half at first": (lambda share: 0.6, "adamw", 2e-3),
    "ahead by less than a tenth later": (lambda share: 0.4 if share < 0.02 else 0.95, "adamw", 2e-3),
    "as good": (lambda share: 1.0, "adamw", 2e-3),
    "behind at first, where it is dropped": (lambda share: 2.0 if share < 0.02 else 0.1, "adamw", 2e-3),
}


@pytest.mark.parametrize(("worth", "rule", "best"), RULES.values(), ids=RULES)
def test_another_rule_wins_where_it_is_surely_ahead(worth: Callable[[float], float], rule: str, best: float) -> None:
    won, run = race_of_rules(worth)
    assert won.candidate.choice.optimizer == rule
    assert abs(math.log(won.rate / best)) < math.log(STEP)
    assert won.cost <= CAP
    losers = [c for c in run.field.values() if c.choice.optimizer != rule]
    assert losers and all(c.ended == "dropped" for c in losers)


@pytest.mark.parametrize("price", [0.0, 5.0, 50.0])
@pytest.mark.parametrize("total", [300, 1000, 100_000])
@pytest.mark.parametrize("lead", [0.2, 0.5, 1.0])
def test_a_race_of_rules_costs_no_more_than_one_of_rates(total: int, price: float, lead: float) -> None:
    def alone() -> float:
        run = Race(lambda choice: Runner(choice, 2e-3, total), lambda: 0.0, total, price)  # type: ignore[arg-type, return-value]
        return float(run.run(ADAMW).cost)

    won, _ = race_of_rules(lambda share: lead, total, price)
    assert won.cost <= max(CAP, alone())


def test_where_all_rates_of_a_rule_diverge_another_one_wins() -> None:
    won, _ = race_of_rules(lambda share: 3.0, diverges=("adamw",))
    assert won.candidate.choice.optimizer == "momentum"
    with pytest.raises(NothingFinite):
        race_of_rules(lambda share: 1.0, diverges=("adamw", "momentum"))


# ── halving and the range test on formulas ───────────────────────────────────────────────────────────────────────────


def halved(
    best: float, total: int = 1200, law: float = HORIZON, diverges: float = math.inf, **words: Any
) -> halving.Halved:
    choices = [Choice(1e-5 * 10 ** (i * 0.5)) for i in range(9)]

    def make(choice: Choice) -> Any:
        return Runner(choice, best, total, diverges, law)

    return halving.halve(make, lambda: 0.0, choices, total, **words)


@pytest.mark.parametrize("best", [1e-4, 1e-3, 3e-3])
def test_halving_finds_the_best_rate_and_costs_less_than_three_trainings(best: float) -> None:
    found = halved(best)
    assert abs(math.log(found.rate / best)) < 0.6 * math.log(10**0.5)
    assert found.interval[0] <= found.rate <= found.interval[1]
    assert found.cost <= 3


def test_survivors_of_halving_go_on_and_never_restart() -> None:
    found = halved(1e-3)
    for candidate in found.candidates:
        assert candidate.spent == candidate.step + sum(cool_down(depth) for depth in candidate.scores)


def test_halving_stops_growing_once_the_ranking_stands() -> None:
    found = halved(1.2e-3, law=0.0)
    assert max(c.step for c in found.candidates) == 300


@pytest.mark.parametrize("diverges", [5e-5, 5e-3])
def test_halving_goes_on_where_rates_diverge(diverges: float) -> None:
    found = halved(1e-3, diverges=diverges)
    assert found.best.choice.learning_rate < diverges
    assert found.rate < diverges


def test_halving_says_where_no_rate_is_finite() -> None:
    with pytest.raises(NothingFinite, match="9 from 1e-05 to 0.1 were tried"):
        halved(1e-3, diverges=0.0)


def test_halving_keeps_to_its_budget() -> None:
    assert halved(1e-3, budget=1.0).cost <= 1.0


def test_the_bracket_of_a_range_test_ends_where_the_loss_leaves() -> None:
    def sweep(seed: int, rates: Any) -> list[float]:
        losses = []
        for i, rate in enumerate(rates):
            losses.append(2.0 - 0.01 * i if rate < 0.3 else math.nan)
            if math.isnan(losses[-1]):
                break
        return losses

    found = range_test(sweep, 1e-6, 100.0)
    assert 0.1 < found.high < 0.3
    assert found.high / found.low == pytest.approx(WIDTH)
    assert found.steps < 300  # NaN ends a sweep at once


# ── the beginning of a training ──────────────────────────────────────────────────────────────────────────────────────


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))


def problem(**words: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=generator)
    given = {
        "model": network(), "data": (x, x.sum(1, keepdim=True)), "loss": "mse", "batch_size": 8, "epochs": 60,
        "patience": None, "plan": "eager", "verbose": False,
    }  # fmt: skip
    return given | words


def far_off(**words: Any) -> dict[str, Any]:
    """Targets in the hundreds: steps of AdamW, each at most its rate in every weight, take long to get there."""
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(256, 1, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    return problem(
        model=nn.Linear(4, 1), data=(x, 100 * x.sum(1, keepdim=True) + noise), batch_size=16, epochs=80
    ) | words  # fmt: skip


def losses(run: thalweg.Run, to: int) -> list[float]:
    steps, values = run.history.series("loss")
    return [float(value) for step, value in zip(steps, values, strict=True) if step <= to]


@pytest.mark.parametrize("loads", [False, True], ids=["arrays", "a loader that shuffles"])
def test_up_to_its_end_a_race_is_the_training_with_the_winners_rate(tmp_path: Path, loads: bool) -> None:
    def data() -> Any:
        x, y = problem()["data"]
        own = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=own) if loads else (x, y)

    run = thalweg.fit(**problem(data=data(), run_dir=tmp_path / "raced"))
    search = run.record.decided["search"]
    assert run.learning_rate == search["learning_rate"]
    assert 0 < search["cost"] <= CAP
    won = {"optimizer": search["optimizer"], "learning_rate": search["began_with"]}
    fixed = thalweg.fit(**problem(data=data(), run_dir=tmp_path / "fixed", **won))
    found = losses(run, search["steps"])
    assert len(found) > 10
    assert found == losses(fixed, search["steps"])
    assert losses(run, run.steps) != losses(fixed, run.steps)


def test_rules_are_raced_where_the_rule_is_left_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = thalweg.fit(**far_off(run_dir=tmp_path / "raced", verbose=True))
    search = run.record.decided["search"]
    assert run.record.decided["optimizer"] == search["optimizer"] == "momentum"
    assert isinstance(run.optimizer, torch.optim.SGD)
    assert {each["optimizer"] for each in search["tried"]} == {"adamw", "momentum"}
    assert search["cost"] <= CAP
    assert f"out of a race of {len(search['tried'])} of adamw and momentum" in capsys.readouterr().err
    page = run.report().read_text()
    assert "Choosing the learning rate" in page
    for rule in ("adamw", "momentum"):
        assert f"{rule} after 13 steps" in page
    fixed = thalweg.fit(
        **far_off(run_dir=tmp_path / "fixed", optimizer="momentum", learning_rate=search["began_with"])
    )  # fmt: skip
    assert losses(run, search["steps"]) == losses(fixed, search["steps"])
    alone = thalweg.fit(**far_off(run_dir=tmp_path / "alone", optimizer="adamw"))
    assert run.metrics["loss"] < 0.1 * alone.metrics["loss"]


@pytest.mark.parametrize("words", [{"optimizer": "adamw"}, {"optimizer_options": {"betas": (0.9, 0.99)}}])
def test_a_rule_that_was_given_or_described_is_the_only_one(tmp_path: Path, words: dict[str, Any]) -> None:
    run = thalweg.fit(**far_off(run_dir=tmp_path / "run", **words))
    assert {each["optimizer"] for each in run.record.decided["search"]["tried"]} == {"adamw"}


def test_find_lr_races_rules_as_fit_does_and_its_result_brings_the_rule(tmp_path: Path) -> None:
    raced = thalweg.fit(**far_off(run_dir=tmp_path / "raced"))
    given = far_off()
    words = {"epochs": given["epochs"], "batch_size": given["batch_size"], "verbose": False}
    before = copy.deepcopy(given["model"].state_dict())
    random = torch.get_rng_state()
    found = thalweg.find_lr(given["model"], given["data"], "mse", optimizer="auto", **words)
    assert (found.value, found.options["optimizer"]) == (raced.learning_rate, "momentum")
    assert "with momentum came out of a race of" in found.sentence and "of adamw; expect" in found.sentence
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in given["model"].state_dict().items())
    run = thalweg.fit(**far_off(run_dir=tmp_path / "run", learning_rate=found))
    assert run.record.decided["optimizer"] == "momentum"
    bracketed = thalweg.find_lr(given["model"], given["data"], "mse", optimizer="auto", high=1e-2, **words)
    assert bracketed.options["optimizer"] == "adamw"  # a bracket is of one rule


def test_a_race_repeats(tmp_path: Path) -> None:
    first, second = (thalweg.fit(**problem(run_dir=tmp_path / name)) for name in "ab")
    assert first.record.decided["search"] == second.record.decided["search"]
    assert losses(first, first.steps) == losses(second, second.steps)


class Signals:
    """Sends itself a signal at a reported step, or when a race tells how it stands."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step(self, run: thalweg.Run, record: thalweg.StepRecord) -> None:
        if record.step == self.step:
            signal.raise_signal(signal.SIGINT)

    def on_search(self, run: thalweg.Run, words: str) -> None:
        if self.step is None and "4 tried" in words:
            self.step = -1  # once: a second one ends it at once
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("step", "task"), [(12, problem), (100, problem), (100, far_off)])
def test_a_raced_run_is_gone_on_with_to_the_last_bit(tmp_path: Path, step: int, task: Any) -> None:
    whole = thalweg.fit(**task(run_dir=tmp_path / "whole"))
    part = thalweg.fit(**task(run_dir=tmp_path / "part", callbacks=[Signals(step)]))
    assert part.stopped_because == "interrupted" and part.steps < whole.steps
    given = task()
    run = thalweg.resume(
        tmp_path / "part", model=given["model"], data=given["data"], loss="mse", callbacks=(), verbose=False
    )
    assert run.record.decided["search"] == whole.record.decided["search"]
    assert run.learning_rate == whole.learning_rate
    assert run.metrics == whole.metrics
    assert losses(run, run.steps) == losses(whole, whole.steps)


def test_interrupted_while_it_races_nothing_has_happened_and_it_races_anew(tmp_path: Path) -> None:
    whole = thalweg.fit(**problem(run_dir=tmp_path / "whole"))
    given = problem(run_dir=tmp_path / "part", callbacks=[Signals(None)])
    before = {name: value.clone() for name, value in given["model"].state_dict().items()}
    part = thalweg.fit(**given)
    assert (part.stopped_because, part.steps) == ("interrupted", 0)
    assert math.isnan(part.learning_rate) and part.plan.compiled_after is None
    for name, value in given["model"].state_dict().items():
        assert torch.equal(value, before[name])
    run = thalweg.fit(**problem(run_dir=tmp_path / "part", resume=True))
    assert losses(run, run.steps) == losses(whole, whole.steps)


def test_the_best_weights_may_be_those_of_the_race(tmp_path: Path) -> None:
    """Held-out labels that are noise: nothing later is better than the first weights."""
    x, y = problem()["data"]
    noise = torch.randn(64, 1, generator=torch.Generator().manual_seed(2)) * 1e-3
    run = thalweg.fit(**problem(data=(x, 100 * y), validation_data=(x, noise), run_dir=tmp_path / "run"))
    search = run.record.decided["search"]
    assert run.record.best_step is not None and run.record.best_step <= search["steps"]
    measured = thalweg.evaluate(run.model, (x, noise), "mse")["loss"]
    assert measured == pytest.approx(run.metrics["validation_loss"], rel=1e-5)
    loaded = thalweg.load(tmp_path / "run", model=network())
    assert thalweg.evaluate(loaded, (x, noise), "mse")["loss"] == pytest.approx(measured, rel=1e-5)


def test_a_model_without_a_finite_loss_is_trained_with_the_rules_own_rate_and_says_so(tmp_path: Path) -> None:
    def broken(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output * math.nan).mean()

    run = thalweg.fit(**problem(loss=broken, run_dir=tmp_path / "run"))
    assert run.stopped_because == "diverged"
    assert any("No learning rate gave a finite loss" in note for note in run.record.notes)
    assert run.learning_rate == run.record.decided["learning_rate"] == 1e-3


NOT_RACED: dict[str, dict[str, Any]] = {
    "a rate that was given": {"learning_rate": 0.01},
    "a training that is too short": {"epochs": 3},
    "a training of few small batches, dear to measure": {"batch_size": 2, "epochs": None, "steps": 300},
    "a training of unknown length": {"epochs": None, "time_budget": 0.2},
    "a schedule that does not end low": {"schedule": "constant"},
}


@pytest.mark.parametrize("words", NOT_RACED.values(), ids=NOT_RACED)
def test_what_is_not_raced(tmp_path: Path, words: dict[str, Any]) -> None:
    run = thalweg.fit(**problem(run_dir=tmp_path / "run", **words))
    assert run.record.decided.get("search") is None


def test_data_that_can_be_gone_through_only_once_are_not_raced_and_it_is_said(tmp_path: Path) -> None:
    x, y = problem()["data"]
    stream = ((x[i % 8 :: 8], y[i % 8 :: 8]) for i in range(400))
    run = thalweg.fit(**problem(data=stream, epochs=None, steps=350, run_dir=tmp_path / "run"))
    assert run.steps == 350
    assert any("gone through only once" in note for note in run.record.notes)


def test_a_target_reached_in_the_race_ends_the_training(tmp_path: Path) -> None:
    run = thalweg.fit(**problem(target={"loss": 1e9}, run_dir=tmp_path / "run"))
    assert run.stopped_because == "target"
    assert run.steps < 30


def test_a_time_budget_is_kept_by_a_race_too(tmp_path: Path) -> None:
    run = thalweg.fit(**problem(epochs=10**7, time_budget=1.0, run_dir=tmp_path / "run"))
    assert run.stopped_because == "time"
    assert run.record.decided["search"]["total_steps"] < 10**6


def test_what_was_raced_is_in_run_json_and_in_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = thalweg.fit(**problem(run_dir=tmp_path / "run", verbose=True))
    search = json.loads((tmp_path / "run" / "run.json").read_text())["decided"]["search"]
    assert search == run.record.decided["search"]
    assert {"learning_rate", "began_with", "steps", "cost", "tried"} <= set(search)
    assert f"out of a race of {len(search['tried'])}" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["halving", "range"])
def test_find_lr_by_halving_and_range_leaves_model_and_random_state_alone(tmp_path: Path, method: str) -> None:
    given = problem()
    before = {name: value.clone() for name, value in given["model"].state_dict().items()}
    random = torch.get_rng_state()
    found = thalweg.find_lr(given["model"], given["data"], "mse", method=method, epochs=60, batch_size=8, verbose=False)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.method == method and 0 < found.cost < 3
    assert torch.equal(random, torch.get_rng_state())
    for name, value in given["model"].state_dict().items():
        assert torch.equal(value, before[name])
