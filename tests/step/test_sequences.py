"""Rows of different length: padded, bucketed, and trained on as if each stood alone."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import thalweg
from thalweg.step.batches import WINDOW, Batches, Order
from thalweg.step.data import read
from thalweg.step.sequences import Sequences
from thalweg.tensors.named import leaves

CPU = torch.device("cpu")


def rows(count: int = 203, seed: int = 0) -> list[torch.Tensor]:
    """Row i holds i + 1 in each place, in 1 to 30 places."""
    lengths = torch.randint(1, 31, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [torch.full((length,), number + 1) for number, length in enumerate(lengths)]


def numbers(data: Any, order: Order, epoch: int = 0, start: int = 0) -> list[list[int]]:
    """Which rows each batch holds, by their first entry."""
    batches = Batches(read(data), order, torch.float32, CPU)
    return [(x[:, 0] - 1).tolist() for x, _ in batches.epoch(epoch, start)]


def test_rows_are_padded_to_the_longest_of_the_batch() -> None:
    sequences = Sequences([[1, 2, 3], [4], [], [5, 6]], padding=-100)
    taken = sequences.take(torch.tensor([3, 1, 2]))
    assert taken.tolist() == [[5, 6], [4, -100], [-100, -100]]
    assert [row.tolist() for row in (sequences[0], sequences[2])] == [[1, 2, 3], []]
    frames = Sequences([torch.ones(2, 3), torch.ones(1, 3)])
    assert frames.take(torch.tensor([0, 1])).sum((1, 2)).tolist() == [6, 3]


def test_an_epoch_holds_every_row_once_in_an_order_that_seed_and_epoch_decide() -> None:
    given = rows()
    data = (Sequences(given), torch.zeros(len(given)))
    order = Order(8, seed=3, by_length=True)
    first, second = numbers(data, order, 0), numbers(data, order, 1)
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(203))
    assert first != second
    assert [len(batch) for batch in first] == [8] * 25 + [3]
    for start in (0, 1, 9, 25):
        assert numbers(data, order, 0, start) == first[start:]


@pytest.mark.parametrize("where", ["x", "y", "a part of y"])
def test_each_batch_is_padded_by_itself_wherever_its_rows_are(where: str) -> None:
    given = rows()
    plain, ragged = torch.arange(len(given)), Sequences(given)
    data = {"x": (ragged, plain), "y": (plain, ragged), "a part of y": (plain, {"a": plain, "b": ragged})}[where]
    for batch in Batches(read(data), Order(8), torch.float32, CPU).epoch(0):
        (padded,) = [t for t in leaves(batch) if t.ndim == 2]
        assert padded.shape[1] == max(len(given[int(i)]) for i in next(t for t in leaves(batch) if t.ndim == 1))


def test_rows_of_similar_length_share_a_batch_which_spares_most_of_the_padding() -> None:
    given = rows(count=4 * WINDOW * 16)
    lengths = torch.tensor([len(row) for row in given])

    def padding(order: Order) -> float:
        longest = [len(batch) * int(lengths[batch].max()) for batch in numbers((Sequences(given), lengths), order)]
        return sum(longest) / int(lengths.sum()) - 1

    assert padding(Order(16, by_length=True)) < 0.05 < 0.5 < padding(Order(16))


def test_batches_of_a_bucketed_epoch_do_not_come_by_length() -> None:
    given = rows(count=800)
    lengths = torch.tensor([len(row) for row in given])
    means = [float(lengths[b].double().mean()) for b in numbers((Sequences(given), lengths), Order(8, by_length=True))]
    assert abs(float(np.corrcoef(means, range(len(means)))[0, 1])) < 0.3


def test_predictions_keep_the_order_of_the_data() -> None:
    given = rows(count=300)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight * x[:, 0]

    assert thalweg.predict(First(), Sequences(given)).tolist() == [row[0] for row in given]


class Reader(nn.Module):
    """Mean of the embeddings of a row's tokens, without its padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = (x != 0).unsqueeze(-1)
        return self.head((self.embedding(x) * kept).sum(1) / kept.sum(1).clamp_min(1))


def words(count: int = 400) -> tuple[Sequences, torch.Tensor]:
    """Rows of tokens 1 to 10, an 11 in half of them, which is what is asked."""
    source = np.random.default_rng(0)
    made, labels = [], []
    for number in range(count):
        row = source.integers(1, 11, size=source.integers(3, 20))
        if number % 2:
            row[source.integers(len(row))] = 11
        made.append(row)
        labels.append(number % 2)
    return Sequences(made), torch.tensor(labels)


def test_a_training_on_rows_of_different_length_learns_and_is_told_nothing_wrong(tmp_path) -> None:
    x, y = words()
    torch.manual_seed(0)
    run = thalweg.fit(
        Reader(), (x, y), "cross_entropy", validation_split=0.2, metrics="accuracy", epochs=30, learning_rate=0.02,
        run_dir=tmp_path / "run", verbose=False,
    )  # fmt: skip
    assert run.metrics["validation_accuracy"] > 0.95
    assert [f.code for f in run.findings if f.severity != "note"] == []
    assert thalweg.evaluate(run.model, (x, y), "cross_entropy", "accuracy")["accuracy"] > 0.95


def test_a_resumed_training_is_the_uninterrupted_one_to_the_last_bit(tmp_path) -> None:
    def train(name: str, **changes: Any) -> thalweg.Run:
        torch.manual_seed(0)
        settings = {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 16, "patience": None, "verbose": False}
        return thalweg.fit(
            Reader(), words(), "cross_entropy", **settings, schedule="constant", run_dir=tmp_path / name, **changes
        )

    whole, part = train("whole", steps=40), train("part", steps=17)
    resumed = thalweg.resume(
        part.directory, model=part.model, data=words(), loss="cross_entropy", steps=40, verbose=False
    )
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "no sequences"),
        ([[1.0, 2.0], [1]], "sequence 1 has entries of"),
        ([torch.ones(2, 3), torch.ones(2, 4)], "sequence 1 has entries of"),
        ([[1], 2], "sequence 1 is a single number"),
    ],
)
def test_rows_that_are_no_rows_are_refused(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Sequences(given)


def test_a_row_of_words_is_refused() -> None:
    with pytest.raises(TypeError, match="sequence 0 holds <U5, not numbers"):
        Sequences([["hello"]])


def test_nan_is_named_by_its_row(tmp_path) -> None:
    x = Sequences([[1.0, 2.0], [3.0], [4.0, float("nan")]])
    with pytest.raises(ValueError, match=r"x holds NaN or Inf in 1 row, the first is row 2"):
        thalweg.fit(nn.Linear(2, 1), (x, torch.zeros(3, 1)), "mse", run_dir=tmp_path, verbose=False)


def test_lengths_that_differ_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="x has 2 rows and y has 3"):
        thalweg.fit(nn.Linear(2, 1), (Sequences([[1.0], [2.0]]), torch.zeros(3, 1)), "mse", verbose=False)


def test_a_small_data_set_too_is_cut_into_other_batches_each_epoch():
    lengths = torch.arange(160)
    given = Sequences([torch.full((int(length) + 1,), float(length)) for length in lengths])
    batches = Batches(read((given, lengths)), Order(16, by_length=True), torch.float32, torch.device("cpu"))
    first, second = ({frozenset(y.tolist()) for _, y in batches.epoch(epoch)} for epoch in (0, 1))
    assert len(first) == 10 and not first & second
    spread = [max(batch) - min(batch) for batch in first]
    assert sum(spread) / len(spread) < 120  # of batches drawn without a look at their lengths: 141
