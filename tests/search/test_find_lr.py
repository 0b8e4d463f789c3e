"""`find_lr` against a function whose best rate is known; what it leaves alone; what it refuses."""

from __future__ import annotations

import copy
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import thalweg
from thalweg.optim import schedules
from thalweg.records.learning_rate import LearningRate
from thalweg.run.find_lr import find_lr
from thalweg.tensors import seeds

STEPS = 12


def parabola() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """J(w) = w², from w = 1: a step of gradient descent multiplies w by 1 − 2α."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model, (torch.ones(4, 1), torch.zeros(4, 1))


def height(rate: float, momentum: float = 0.0) -> float:
    """The lowest J that gradient descent with this rate has seen on the parabola, in plain floating-point numbers."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = schedules.build("auto", optimizer, STEPS, 1)
    w, v, lowest = 1.0, 0.0, math.inf
    for step in range(STEPS):
        schedule.apply(optimizer, step)
        v = momentum * v + 2 * w
        w -= rate * float(optimizer.param_groups[0]["lr"]) * v
        lowest = min(lowest, w * w)
    return lowest


def search(method: str, **words: Any) -> LearningRate:
    model, data = parabola()
    given = {"optimizer": "sgd", "low": 0.01, "high": 3.0, "epochs": STEPS, "validation_data": data, **words}
    return find_lr(model, data, "mse", method=method, verbose=False, **given)


# ── the optimum ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_grid_finds_the_best_of_its_rates() -> None:
    found = search("grid", trials=15)
    for rate, loss in found.curve:
        assert loss == pytest.approx(height(rate), rel=1e-3, abs=1e-12)
    assert found.value == min((rate for rate, _ in found.curve), key=height)
    assert found.cost == 15
    assert (
        f"was best of 15 rates from 0.01 to 3: validation loss {min(loss for _, loss in found.curve):.4g}"
        in found.sentence
    )


@pytest.mark.parametrize("method", ["random", "tpe", "asha"])
def test_the_others_find_the_best_of_theirs_and_are_as_good_as_a_grid(method: str) -> None:
    found = search(method, trials=15)
    complete = [trial for trial in found.trials if trial.state == "complete"]
    for trial in complete:
        assert trial.loss == pytest.approx(height(trial.learning_rate), rel=1e-3, abs=1e-12)
    assert found.value == min((trial.learning_rate for trial in complete), key=height)
    # All but the lowest tenth of the parabola's logarithm is within reach of a few points.
    assert height(found.value) < 1e-3 * height(0.01)
    assert len(found.trials) == 15


def test_tpe_comes_closer_than_it_began() -> None:
    found = search("tpe", trials=25)
    losses = [trial.loss for trial in found.trials]
    assert statistics.median(losses[6:]) < 0.1 * statistics.median(losses[:6])  # six are drawn at random


def test_asha_drops_trials_and_costs_less() -> None:
    found = search("asha", trials=15)
    dropped = [trial for trial in found.trials if trial.state == "dropped"]
    assert dropped
    assert all(trial.steps < STEPS and "others were better" in trial.reason for trial in dropped)
    assert found.cost == sum(trial.steps for trial in found.trials) / STEPS < 15
    assert f"{len(dropped)} dropped early" in found.sentence


@pytest.mark.parametrize("method", ["grid", "random", "tpe"])
def test_further_dimensions(method: str) -> None:
    found = search(method, trials=6, also={"momentum": [0.0, 0.5]})
    assert {trial.options["momentum"] for trial in found.trials} == {0.0, 0.5}
    for trial in found.trials:
        expected = height(trial.learning_rate, trial.options["momentum"])
        assert trial.loss == pytest.approx(expected, rel=1e-3, abs=1e-12)
    best = min(found.trials, key=lambda trial: trial.loss)
    assert (found.value, found.options) == (best.learning_rate, {"optimizer": "sgd", **best.options})


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_more_trials_extend_fewer(method: str, tmp_path: Path) -> None:
    few = search(method, trials=3, storage=tmp_path / "s.db")
    more = search(method, trials=5, storage=tmp_path / "s.db")
    assert more.trials[:3] == few.trials
    assert more.trials == search(method, trials=5).trials


def test_a_trial_is_what_fit_would_do(tmp_path: Path) -> None:
    model, data = network()
    words = {"validation_split": 0.25, "epochs": 3, "batch_size": 16, "seed": 4}
    found = find_lr(model, data, "cross_entropy", method="grid", trials=2, low=1e-3, high=1e-2, **words)
    for rate, loss in found.curve:
        run = thalweg.fit(
            copy.deepcopy(model), data, "cross_entropy", optimizer="adamw", learning_rate=rate, patience=None,
            plan="eager", run_dir=tmp_path / str(rate), verbose=False, **words,
        )  # fmt: skip
        assert run.metrics["validation_loss"] == loss


def test_without_held_out_data_the_training_loss_counts() -> None:
    found = search("grid", trials=3, validation_data=None)
    assert "training loss" in found.sentence
    within_an_epoch = search("grid", trials=3, validation_data=None, epochs=None, steps=1, high=1.0)
    assert [loss for _, loss in within_an_epoch.curve] == [1.0, 1.0, 1.0]


def test_auto_is_the_race_that_fit_begins_with(tmp_path: Path) -> None:
    model, data = network()
    words = {"validation_split": 0.25, "epochs": 110, "batch_size": 16, "optimizer": "momentum", "verbose": False}
    found = find_lr(model, data, "cross_entropy", **words)
    run = thalweg.fit(copy.deepcopy(model), data, "cross_entropy", run_dir=tmp_path / "run", patience=None, **words)
    assert found.method == "race"
    assert found.value == run.learning_rate
    assert found.interval[0] < found.value < found.interval[1]
    assert 0 < found.cost < 0.5
    assert "came out of a race of" in found.sentence


def test_auto_is_a_grid_where_trainings_are_short() -> None:
    found = search("auto", trials=4)
    assert found.method == "grid"
    assert len(found.trials) == 4


def test_a_race_stays_in_its_bracket_and_takes_no_dimensions() -> None:
    model, data = network()
    found = find_lr(model, data, "cross_entropy", steps=400, low=0.1, high=0.2)
    assert 0.1 <= found.value <= 0.2
    with pytest.raises(ValueError, match="method 'auto' takes no also: give method='grid', 'random' or 'tpe'"):
        find_lr(model, data, "cross_entropy", steps=400, also={"weight_decay": [0.1, 0.2]})


def test_steps_that_end_inside_an_epoch_are_judged_there() -> None:
    model, _ = parabola()
    data = torch.ones(8, 1), torch.zeros(8, 1)
    found = find_lr(
        model, data, "mse", method="grid", trials=2, low=0.1, high=0.2, optimizer="sgd", batch_size=2, steps=3,
        validation_data=data,
    )  # fmt: skip
    assert all(0 < loss < 1 for _, loss in found.curve)
    assert [trial.steps for trial in found.trials] == [3, 3]


def test_the_budget_is_in_trainings() -> None:
    assert len(search("grid", budget=4.5).trials) == 4
    assert len(search("random", budget=3, trials=5).trials) == 3
    assert len(search("tpe", budget=3, trials=2).trials) == 2


# ── what it leaves alone ─────────────────────────────────────────────────────────────────────────────────────────


def network() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=drawn)
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 2)]
    return nn.Sequential(*layers), (x, (x[:, 0] * x[:, 1] > 0).long())


def loader(data: tuple[torch.Tensor, torch.Tensor]) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5))


def everything(model: nn.Module) -> list[Any]:
    """All that a search could leave behind in a model."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [
        [(name, t.detach().clone()) for name, t in tensors],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [(name, id(t), t.requires_grad) for name, t in tensors],
        [(module.training, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        list(seeds.capture().values()),
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def trained(model: nn.Module, data: Any) -> list[Any]:
    """A loop of the user's own after the search: everything that it ends with."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for x, y in data:
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return everything(model)


class Raises(nn.Module):
    """A layer that fails in its tenth training step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if self.calls > 10:
            raise RuntimeError("the user's own")
        return x


@pytest.mark.parametrize("method", ["grid", "asha", "raises", "diverges", "interrupted"])
def test_a_training_after_a_search_is_the_same_to_the_last_bit(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for searched in (False, True):
        model, data = network()
        model[0].bias.requires_grad_(False)
        model[3].eval()
        if method == "raises":
            model.append(Raises())
        model(data[0]).sum().backward()
        batches = loader(data)
        torch.manual_seed(9)
        before = everything(model)
        if searched:
            _search_in_some_way(method, model, batches, monkeypatch)
            assert same(everything(model), before)
        if method == "raises":
            model = model[:-1]
        ends.append(trained(model, batches))
    without, after = ends
    without[2], after[2] = ([(name, required) for name, _, required in end[2]] for end in ends)  # two models, two ids
    assert same(without, after)


def _search_in_some_way(method: str, model: nn.Module, batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"trials": 3, "epochs": 4, "low": 1e-3, "high": 0.1, "optimizer": "momentum"}
    if method == "raises":
        with pytest.raises(ValueError, match="the trial at rate 0.001 failed: batch 2 of epoch 3 cannot be trained on"):
            find_lr(model, batches, "cross_entropy", method="grid", **words)
    elif method == "diverges":
        assert (
            "1 diverged"
            in find_lr(model, batches, _cubed, method="grid", **{**words, "trials": 2, "high": 1e30}).sentence
        )
    elif method == "interrupted":

        def interrupt(self: Any, record: Any) -> None:
            if record.step == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr("thalweg.run.trainings.Display.step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            find_lr(model, batches, "cross_entropy", method="grid", **words)
    else:
        find_lr(model, batches, "cross_entropy", method=method, validation_data=batches, **words)


def _cubed(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output**3).square().mean()


def test_all_trials_see_the_same_batches_of_a_loader() -> None:
    model, data = network()
    seen: list[float] = []

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(float(target.sum()))
        return nn.functional.cross_entropy(output, target)

    find_lr(model, loader(data), loss, method="grid", trials=2, epochs=3)
    seen = seen[-26:]  # twelve updates each, and the loss of the tenth's batch once more after it
    assert seen[:13] == seen[13:]
    assert seen[:4] != seen[4:8]


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────────────────


class OneShot(IterableDataset[Any]):
    """Can be iterated once, and does not show it."""

    def __init__(self) -> None:
        self.batches = iter([(torch.ones(4, 1), torch.zeros(4, 1))] * 3)

    def __iter__(self) -> Iterator[Any]:
        return self.batches


class OtherEachTime:
    """Draws from a generator of its own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Any]:
        yield torch.randn(4, 1, generator=self.generator), torch.zeros(4, 1)


REPLAYED = "give arrays, a Dataset or a DataLoader"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            lambda: iter([(torch.ones(4, 1), torch.zeros(4, 1))]),
            f"the data is a list_iterator, .* only once; .*{REPLAYED}",
        ),
        (lambda: (batch for batch in [(torch.ones(4, 1), torch.zeros(4, 1))]), f"is a generator, .*{REPLAYED}"),
        (OneShot, f"gives other batches each time it is gone through|{REPLAYED}"),
        (OtherEachTime, f"gives other batches each time it is gone through; .*{REPLAYED}"),
        (
            lambda: DataLoader(OneShot(), batch_size=None),
            f"the data gave no batch to the trial at rate 3: .*{REPLAYED}",
        ),
    ],
    ids=["iterator", "generator", "one shot", "other each time", "loader of one shot"],
)
def test_data_that_cannot_be_replayed(data: Any, sentence: str) -> None:
    model, _ = parabola()
    with pytest.raises(ValueError, match=sentence):
        find_lr(model, data(), "mse", method="grid", optimizer="sgd", low=0.1, high=3.0, trials=2, epochs=2)


@pytest.mark.parametrize("make", [list, lambda batches: lambda: iter(batches)], ids=["list", "function"])
def test_data_that_can(make: Any) -> None:
    model, (x, y) = parabola()
    batches = make([(x, y), (x, y)])
    found = find_lr(model, batches, "mse", method="grid", optimizer="sgd", low=0.01, high=0.4, trials=2, epochs=2)
    assert found.value == 0.4
    assert found.cost == 2


def test_no_finite_loss_anywhere_says_where_and_why() -> None:
    with pytest.raises(ValueError) as caught:
        search("grid", low=1e18, high=1e25, trials=3)
    sentence = str(caught.value)
    assert "no rate from 1e+18 to 1e+25 gave a finite loss (at 1e+18 the loss was not finite at update " in sentence
    assert "give a lower low" in sentence


def test_a_loss_that_is_not_finite_to_begin_with_is_not_the_rates_doing() -> None:
    model, data = parabola()
    with pytest.raises(
        ValueError, match="at 0.01 the loss was not finite before the first update.*the rate is not to blame"
    ):
        find_lr(model, data, lambda o, t: (o - o).mean() / 0.0, method="grid", low=0.01, high=0.1, trials=2, steps=3)


def test_a_range_test_of_what_is_not_finite_to_begin_with_brackets_nothing() -> None:
    model, data = parabola()
    with pytest.raises(ValueError, match="was not finite before the first update: the rate is not to blame"):
        find_lr(model, data, lambda o, t: (o - o).mean() / 0.0, method="range", steps=3)


def test_a_rate_that_makes_the_model_fail_has_diverged() -> None:
    class Picky(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if float(self.weight.detach().abs().max()) > 100:
                raise ValueError("the weights are too large")
            return super().forward(x)

    model = Picky(1, 1)
    found = find_lr(
        model, (torch.ones(4, 1), torch.zeros(4, 1)), "mse", method="grid", optimizer="sgd", low=0.1, high=1e4,
        trials=2, steps=20,
    )  # fmt: skip
    assert found.value == 0.1
    assert found.trials[1].state == "diverged"
    assert "the weights are too large" in found.trials[1].reason


def test_data_smaller_than_a_batch_is_one_batch_of_everything() -> None:
    found = search("grid", trials=2, batch_size=64)
    assert found.trials[0].steps == STEPS
    assert "The 4 examples are fewer than a batch of 64: each update took all of them." in found.sentence


@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_a_study_of_another_model(method: str, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search(method, trials=2, storage=tmp_path / "s.db")
    model = nn.Linear(1, 1)
    _, data = parabola()
    with pytest.raises(ValueError, match="is of another search .model: Linear of 1 numbers there, Linear of 2 numbers"):
        find_lr(
            model, data, "mse", method=method, optimizer="sgd", low=0.01, high=3.0, epochs=STEPS, trials=2,
            validation_data=data, storage=tmp_path / "s.db",
        )  # fmt: skip


@pytest.mark.parametrize("words", [{"seed": 1}, {"epochs": 3}, {"high": 2.0}, {"optimizer": "adam"}, {"batch_size": 2}])
def test_a_study_of_another_search(words: dict[str, Any], tmp_path: Path) -> None:
    search("grid", trials=2, storage=tmp_path / "s.db")
    with pytest.raises(ValueError, match="is of another search"):
        search("grid", trials=2, storage=tmp_path / "s.db", **words)


@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_a_storage_that_cannot_be_reached(method: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the storage .*nowhere/s.db cannot be used"):
        search(method, trials=2, storage=tmp_path / "nowhere" / "s.db")


def test_a_url_that_optuna_does_not_take() -> None:
    with pytest.raises(ValueError, match="the storage nonsense://x cannot be used .*nonsense"):
        search("tpe", trials=2, storage="nonsense://x")


def test_without_optuna_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"need Optuna: pip install 'thalweg\[search\]'"):
        search("tpe", trials=2)


@pytest.mark.parametrize(
    ("words", "kind", "sentence"),
    [
        ({"method": "gird"}, ValueError, "unknown method 'gird': did you mean 'grid'"),
        ({"method": 3}, TypeError, "method takes a word"),
        ({"trials": 1}, ValueError, "trials must be at least 2"),
        ({"trials": 2.5}, TypeError, "trials takes a whole number"),
        ({"budget": 0}, ValueError, "budget must be a number above 0"),
        (
            {"budget": 1.5, "method": "random"},
            ValueError,
            "budget is in trainings, and random needs at least 2, got 1.5",
        ),
        ({"low": 3.0, "high": 0.1}, ValueError, "low must be below high"),
        ({"also": {"momentun": [0.1, 0.2]}}, TypeError, "unknown option of sgd 'momentun': did you mean 'momentum'"),
        (
            {"optimizer": torch.optim.SGD([torch.zeros(1)], 0.1)},
            TypeError,
            "give a rule's name such as 'adamw', got a SGD",
        ),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"storage": 3}, TypeError, "storage takes the path"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(words: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        search(**{"method": "grid", "trials": 2, **words})


# ── several processes ────────────────────────────────────────────────────────────────────────────────────────────

#: In each case two forks of one process search in one study; each waits in its first trial until the other has begun
#: one, and the first may be killed in its second. Each writes which trials it ran, and what it found.
FORKS = """
import json, os, sys, time
from pathlib import Path
import optuna, torch
from thalweg.run import trainings as room
from thalweg.run.find_lr import find_lr
optuna.logging.set_verbosity(optuna.logging.WARNING)

def work(name, method, is_killed):
    torch.manual_seed(0)
    ran, run = [], room.Trainings.run
    def counted(self, number, *rest):
        Path(f"begun-{name}").touch()
        while len(list(Path().glob("begun-*"))) < 2:
            time.sleep(0.005)
        if is_killed and name == "a" and ran:
            os.kill(os.getpid(), 9)
        ran.append(number)
        return run(self, number, *rest)
    room.Trainings.run = counted
    found = find_lr(torch.nn.Linear(1, 1), (torch.ones(4, 1), torch.zeros(4, 1)), "mse", method=method, trials=8,
                         optimizer="sgd", low=0.01, high=1.0, epochs=3, storage="s.db", verbose=False)
    Path(f"{name}.json").write_text(json.dumps([ran, found.value, [t.number for t in found.trials]]))

# What is first used after a fork would be imported in each; but no backward pass, whose threads no fork has.
p = torch.nn.Parameter(torch.ones(1))
p.grad = torch.ones(1)
torch.optim.SGD([p]).step()
storage = optuna.storages.RDBStorage("sqlite:///first.db")
optuna.create_study(storage=storage).ask().suggest_float("x", 0.0, 1.0)
storage.engine.dispose()

for case in sys.argv[1:]:
    os.mkdir(case)
    os.chdir(case)
    for name in "ab":
        if os.fork() == 0:
            work(name, *case.split("-")[:1], case.endswith("killed"))
            os._exit(0)
    for name in "ab":
        os.wait()
    os.chdir("..")
"""
CASES = ("grid-whole", "grid-killed", "tpe-whole", "tpe-killed")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each case, with what each worker has written."""
    folder = tmp_path_factory.mktemp("forks")
    command = [sys.executable, "-W", "ignore", "-c", FORKS, *CASES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert not done.stderr, done.stderr
    return folder


def written(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_two_processes_share_a_grid(forks: Path) -> None:
    found = written(forks / "grid-whole")
    assert sorted(found["a"][0] + found["b"][0]) == list(range(8))
    assert found["a"][0]
    assert found["b"][0]
    assert found["a"][1:] == found["b"][1:]


def test_a_process_that_is_killed_loses_nothing(forks: Path) -> None:
    found = written(forks / "grid-killed")
    assert set(found) == {"b"}
    assert len(found["b"][0]) == 7
    assert found["b"][2] == list(range(8))


def test_two_processes_share_a_study_of_optuna(forks: Path) -> None:
    found = written(forks / "tpe-whole")
    ran = found["a"][0] + found["b"][0]
    assert len(ran) == len(set(ran))
    assert 8 <= len(ran) <= 9  # two at once may run one more
    assert found["a"][0]
    assert found["b"][0]


def test_a_killed_process_leaves_a_study_of_optuna_whole(forks: Path) -> None:
    found = written(forks / "tpe-killed")
    assert set(found) == {"b"}
    assert len(found["b"][2]) == 8
