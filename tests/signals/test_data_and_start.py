"""Facts of data, model and first batch against what they were made to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thalweg
from thalweg.signals.data import _shared
from thalweg.signals.start import output_function
from thalweg.step.batches import Batches, Order
from thalweg.step.data import Arrays


def facts(model: nn.Module, data: Any, loss: Any = "cross_entropy", **settings: Any) -> dict[str, Any]:
    run = thalweg.fit(
        model, data, loss, learning_rate=1e-3, optimizer="adam", verbose=False, patience=None,
        **{"steps": 1, "batch_size": 200, **settings},
    )  # fmt: skip
    return run.history.facts


def table(rows: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3


def dense(*last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), *last)


def test_inputs_by_feature() -> None:
    x, y = table()
    x = x.clone()
    x[:, 1] *= 1000
    x[:, 2] = 5.0
    told = facts(dense(), (x, y))
    assert told["constant_features"] == 1
    assert told["largest_feature"] == 1
    assert told["largest_feature_std"] == pytest.approx(float(x[:, 1].std(correction=0)), rel=1e-4)
    assert told["input_max_abs"] == pytest.approx(float(x.abs().max()))
    assert told["input_is_integer"] is False


def test_labels_of_an_example_are_counted() -> None:
    x, y = torch.randint(5, (40, 7)), torch.randint(5, (40, 7))

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.letters(x)).transpose(1, 2)

    assert facts(Letters(), (x, y))["labels_in_sequence"] == 7
    assert facts(dense(), table())["labels_in_sequence"] == 1


def test_classes_and_the_loss_of_an_answer_that_knows_nothing() -> None:
    x, _ = table()
    y = (torch.arange(200) >= 180).long()
    told = facts(dense(), (x, y))
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert told["largest_class_share"] == pytest.approx(0.9)
    assert told["label_entropy"] == pytest.approx(entropy)
    assert told["expected_initial_loss"] == pytest.approx(entropy)
    model = dense()
    rows = torch.linspace(0, 199, 64).round().long()
    assert told["initial_loss"] == pytest.approx(F.cross_entropy(model(x[rows]), y[rows]).item(), rel=1e-5)


def test_neighbours_agree_where_labels_follow_inputs_and_not_where_they_are_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(600) % 3
    near = F.one_hot(y, 4).float() * 5 + torch.randn(600, 4, generator=generator)
    follows = facts(dense(), (near, y))
    drawn = facts(dense(), (torch.randn(600, 4, generator=generator), y))
    assert follows["neighbour_agreement"] > 0.95
    assert drawn["neighbour_agreement"] == pytest.approx(drawn["neighbour_chance"], abs=0.1)


def test_examples_on_both_sides() -> None:
    x, y = table()
    told = facts(dense(), (x, y), validation_data=(torch.cat([x[:50], x[:50] + 1]), torch.cat([y[:50], y[:50]])))
    assert told["shared_with_validation"] == pytest.approx(0.5)
    assert told["repeated_examples"] == 0


def test_targets_of_regression() -> None:
    x, _ = table()
    y = 100 + 10 * x[:, :1]
    told = facts(nn.Linear(4, 1), (x, y), "mse")
    assert told["target_mean"] == pytest.approx(float(y.mean()), rel=1e-5)
    assert told["expected_initial_loss"] == pytest.approx(float(y.var(correction=0)), rel=1e-3)
    assert told["task"] == "regression"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda t: t.softmax(1), "softmax"),
        (lambda t: torch.sigmoid(t).squeeze(1), "sigmoid"),
        (lambda t: F.relu(t)[:, :2], "relu"),
        (lambda t: t.log_softmax(1), "log_softmax"),
        (lambda t: t.tanh().view(-1), "tanh"),
        (lambda t: t.softmax(1) @ torch.ones(3, 3), "none"),
        (lambda t: t.detach(), "none"),
    ],
)
def test_what_an_output_came_out_of(function: Any, name: str) -> None:
    assert output_function(function(torch.zeros(2, 3, requires_grad=True))) == name


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)

    def train(self, mode: bool = True) -> Odd:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.relu(self.first(x))))


def test_parts_that_do_not_learn() -> None:
    model = Odd()
    nn.init.zeros_(model.first.weight)
    model.last.weight.requires_grad_(False)
    told = facts(model, table())
    assert told["unreached_parameters"] == ["unused.weight", "unused.bias"]
    assert told["frozen_parameters"] == ["last.weight"]
    assert told["modules_in_eval"] == ["norm"]
    assert told["symmetric_layers"] == ["first"]


def test_looking_leaves_the_training_as_it_was() -> None:
    """The same weights, buffers and random numbers, with facts or without."""

    def trained(monkeypatch: pytest.MonkeyPatch | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        if monkeypatch is not None:
            monkeypatch.setattr("thalweg.run.course.facts", lambda *_: {"none": True})
        thalweg.fit(
            model,
            table(),
            "cross_entropy",
            steps=30,
            learning_rate=0.1,
            repair="off",
            plan="eager",
            verbose=False,
            patience=None,
        )
        return {name: t.clone() for name, t in model.state_dict().items()}

    with_facts = trained(None)
    with pytest.MonkeyPatch.context() as patch:
        without = trained(patch)
    assert all(torch.equal(with_facts[name], without[name]) for name in without)


def test_facts_are_read_back_from_the_run_directory(tmp_path: Any) -> None:
    told = facts(dense(), table(), run_dir=tmp_path / "run")
    assert thalweg.History.open(tmp_path / "run" / "history.sqlite").facts == told


def test_examples_on_both_sides_of_many_columns_and_of_several_inputs() -> None:
    generator = torch.Generator().manual_seed(2)
    x = (torch.rand(3000, 5000, generator=generator) > 0.999).float()  # most columns that are looked at first are 0
    data = Batches(Arrays((x, torch.arange(3000)[:, None]), None), Order(32), torch.float32, torch.device("cpu"))

    def shared(number: Tensor) -> float:
        held = torch.cat([x[-100:], 1 - x[:100]]), number
        return float(_shared(data, held)["shared_with_validation"])

    assert shared(torch.arange(2900, 3100)[:, None]) == pytest.approx(0.5)
    assert shared(torch.arange(200)[:, None]) == 0, "the second input differs"
    assert _shared(data, (x[:9], torch.arange(9)[:, None]))["repeated_examples"] == 0


def test_units_that_start_alike_and_stay_so() -> None:
    def constant(layer: int) -> nn.Sequential:
        model = dense()
        nn.init.constant_(model[layer].weight, 0.1)
        nn.init.zeros_(model[layer].bias)
        return model

    both = constant(0)
    nn.init.constant_(both[2].weight, 0.1)
    told = facts(both, table())
    assert told["symmetric_layers"] == ["0", "2"]
    assert told["unbroken_layers"] == ["0"]
    # Behind it lies a layer that tells the units apart: their gradients differ.
    assert facts(constant(0), table())["unbroken_layers"] == []


class Placed(nn.Module):
    """A layer of the user's own with all weights alike, and a table of places of zeros: rows that are no units."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(8, 4))
        self.first = Dense(weight)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(len(x)) % 8
        return self.last(torch.tanh(self.first(x + self.place[rows])))


class Dense(nn.Module):
    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((6, 4), weight))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def test_rows_that_are_no_units_may_begin_alike() -> None:
    torch.manual_seed(0)
    model = Placed(0.1)
    nn.init.constant_(model.last.weight, 0.1)
    assert facts(model, table())["symmetric_layers"] == ["first", "last"]
    assert facts(Placed(0.1), table())["symmetric_layers"] == []  # the layer behind tells its units apart


def test_a_race_leaves_the_facts_those_of_the_first_weights() -> None:
    x, y = table()
    raced = thalweg.fit(dense(), (x, y), "cross_entropy", steps=300, batch_size=200, verbose=False, patience=None)
    assert raced.record.decided["search"] is not None
    told = raced.history.facts
    rows = torch.linspace(0, 199, 64).round().long()
    assert told["initial_loss"] == pytest.approx(F.cross_entropy(dense()(x[rows]), y[rows]).item(), rel=1e-5)
    assert told["learning_rate"] == raced.record.decided["learning_rate"]


def test_a_resumed_run_keeps_its_facts(tmp_path: Path) -> None:
    before = facts(dense(), table(), run_dir=tmp_path)
    trained = dense()
    nn.init.constant_(trained[0].weight, 3.0)
    run = thalweg.resume(tmp_path, model=trained, data=table(), loss="cross_entropy", steps=3)
    assert run.history.facts == before | {"planned_steps": 3, "ended_at": 3}


class Beside(nn.Module):
    """Two inputs, either of which may have no columns at all."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.layer = nn.Linear(columns, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(torch.cat([a, b], 1))


@pytest.mark.parametrize("first", [0, 4])
def test_of_several_inputs_one_without_columns_is_passed_over(first: int) -> None:
    x, y = table()
    parts = (x[:, :first], x[:, first:])
    held = tuple(part[:20] for part in parts)
    found = facts(Beside(4), (parts, y), validation_data=(held, y[:20]))
    assert found["num_features"] == 4 and found["input_std"] == pytest.approx(float(x.double().std(correction=0)))
    assert found["shared_with_validation"] == 1
