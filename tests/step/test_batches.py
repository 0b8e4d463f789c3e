from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import thalweg
from thalweg.step.batches import CHUNK_BYTES, Batches, Order, Parts, automatic_size
from thalweg.step.data import Arrays, Items, Stream, cast, read
from thalweg.tensors.named import leaves


def cut(data: Any, order: Order, epoch: int = 0, start: int = 0) -> list[Any]:
    return list(Batches(read(data), order, torch.float32, torch.device("cpu")).epoch(epoch, start))


def numbered(count: int, width: int = 1) -> tuple[Tensor, Tensor]:
    """x[i] = y[i] = i, so that a batch says which examples it holds."""
    return torch.arange(count).float()[:, None].repeat(1, width), torch.arange(count)


def drawn(batches: list[Any]) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


# ── the order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_epoch_holds_every_example_once_in_an_order_of_its_own() -> None:
    first, second = (cut(numbered(103), Order(10), epoch=e) for e in (0, 1))
    for epoch in (first, second):
        assert sorted(itertools.chain(*drawn(epoch))) == list(range(103))
    assert drawn(first) != drawn(second)
    assert [len(y) for y in drawn(first)] == [10] * 10 + [3]


def test_order_follows_from_seed_epoch_and_position_alone() -> None:
    whole = drawn(cut(numbered(1000), Order(7, seed=5), epoch=3))
    torch.manual_seed(99)
    for start in (0, 1, 64, 65, 142):
        assert drawn(cut(numbered(1000), Order(7, seed=5), epoch=3, start=start)) == whole[start:]
    assert drawn(cut(numbered(1000), Order(7, seed=6), epoch=3)) != whole


def test_drawing_batches_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    cut(numbered(50), Order(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_unshuffled_keeps_the_order_of_the_data() -> None:
    assert drawn(cut(numbered(7), Order(3, shuffle=False))) == [[0, 1, 2], [3, 4, 5], [6]]


def test_inputs_and_targets_stay_together_across_gathered_chunks() -> None:
    width = 1000
    assert width * 4 * 1000 > 4 * CHUNK_BYTES, "the test must span several chunks"
    for x, y in cut(numbered(1000, width), Order(16)):
        assert torch.equal(x[:, 0], y.float())
        assert torch.equal(x[:, -1], y.float())


def test_a_batch_is_a_copy() -> None:
    x, y = numbered(6)
    for shuffle in (True, False):
        for inputs, _ in cut((x, y), Order(2, shuffle=shuffle)):
            inputs.fill_(-1)
    assert torch.equal(x[:, 0], torch.arange(6).float())


@pytest.mark.parametrize("count", [7, 13, 1])
def test_a_last_single_example_joins_the_batch_before_it(count: int) -> None:
    sizes = [len(y) for y in drawn(cut(numbered(count), Order(6, keep_single=False)))]
    assert sum(sizes) == count
    assert min(sizes) > 1 or count == 1


def test_a_loaders_last_single_example_joins_too() -> None:
    loader = DataLoader(TensorDataset(*numbered(7)), batch_size=3)
    assert drawn(cut(loader, Order(None, keep_single=False))) == [[0, 1, 2], [3, 4, 5, 6]]
    assert drawn(cut(loader, Order(None))) == [[0, 1, 2], [3, 4, 5], [6]]
    for start, left in ((1, [[3, 4, 5, 6]]), (2, [])):
        assert drawn(cut(loader, Order(None, keep_single=False), start=start)) == left


# ── micro-batches ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_accumulation_cuts_each_batch_into_micro_batches() -> None:
    batches = cut(numbered(10), Order(5, shuffle=False, accumulate=2))
    assert all(isinstance(batch, Parts) for batch in batches)
    assert [drawn(list(batch)) for batch in batches] == [[[0, 1, 2], [3, 4]], [[5, 6, 7], [8, 9]]]


def test_the_full_batch_comes_in_micro_batches_of_bounded_size() -> None:
    (batch,) = cut(numbered(2500), Order(None))
    sizes = [len(y) for _, y in batch]
    assert sizes == [1024, 1024, 452]
    assert [len(y) for _, y in batch] == sizes, "it can be gone through again, as a line search does"


# ── forms of data ────────────────────────────────────────────────────────────────────────────────────────────────────


class Squares(Dataset):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor([float(i)]), i


FORMS = {
    "tensors": (numbered(9), Arrays),
    "numpy": ((numbered(9)[0].numpy(), numbered(9)[1].numpy()), Arrays),
    "float64 and int32": ((np.arange(9.0)[:, None], np.arange(9, dtype=np.int32)), Arrays),
    "python lists": (([[float(i)] for i in range(9)], list(range(9))), Arrays),
    "read-only": ((np.broadcast_to(np.arange(9.0)[:, None], (9, 1)), np.arange(9)), Arrays),
    "reversed view": ((np.arange(9.0)[::-1, None][::-1], np.arange(9)), Arrays),
    "big-endian": ((np.arange(9, dtype=">f4")[:, None], np.arange(9, dtype=">i8")), Arrays),
    "TensorDataset": (TensorDataset(*numbered(9)), Arrays),
    "Subset of a TensorDataset": (Subset(TensorDataset(*numbered(20)), range(9)), Arrays),
    "Dataset": (Squares(), Items),
    "DataLoader": (DataLoader(Squares(), batch_size=4), Stream),
    "list of batches": ([tuple(part[i : i + 4] for part in numbered(9)) for i in (0, 4, 8)], Stream),
    "generator function": (lambda: iter(DataLoader(Squares(), batch_size=4)), Stream),
    "generator": (iter(DataLoader(Squares(), batch_size=4)), Stream),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_examples(name: str) -> None:
    data, kind = FORMS[name]
    form = read(data)
    assert isinstance(form, kind)
    batches = list(Batches(form, Order(4, shuffle=False), torch.float32, torch.device("cpu")).epoch(0))
    assert list(itertools.chain(*drawn(batches))) == list(range(9))
    for x, y in batches:
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert torch.equal(x[:, 0], y.float())


def test_several_inputs_by_position_and_by_name() -> None:
    x, y = numbered(8)
    for inputs in ((x, x + 1), {"a": x, "b": x + 1}, [x, x + 1]):
        for batch, target in cut((inputs, y), Order(3)):
            first, second = leaves(batch)
            assert torch.equal(first + 1, second)
            assert torch.equal(first[:, 0], target.float())


class Pair(NamedTuple):
    left: Any
    right: Any


def test_a_named_tuple_of_inputs_stays_one() -> None:
    x, y = numbered(7)
    parts = [(Pair(x[i : i + 3].numpy(), x[i : i + 3] + 1), y[i : i + 3]) for i in (0, 3, 6)]
    for order, rows in ((Order(None), [3, 3, 1]), (Order(None, keep_single=False), [3, 4])):
        found = cut(parts, order)
        assert [len(inputs.left) for inputs, _ in found] == rows
        for inputs, target in found:
            assert isinstance(inputs, Pair)
            assert torch.equal(inputs.left + 1, inputs.right) and torch.equal(inputs.left[:, 0], target.float())


def test_a_tensor_dataset_of_one_is_inputs_without_a_target(tmp_path: Path) -> None:
    form = read(TensorDataset(numbered(5)[0]))
    assert isinstance(form, Arrays) and len(form) == 5 and form.y is None
    with pytest.raises(ValueError, match="target"):
        thalweg.fit(nn.Linear(1, 1), TensorDataset(numbered(5)[0]), "mse", run_dir=tmp_path / "run", verbose=False)


def test_what_goes_to_the_cpu_is_waited_for() -> None:
    """What comes from a GPU without waiting may be read before it is there."""
    asked: list[bool] = []

    class Seen(Tensor):
        def to(self, *_: Any, non_blocking: bool = False, **__: Any) -> Any:
            asked.append(non_blocking)
            return self

    t = torch.ones(2).as_subclass(Seen)
    for device in ("cpu", "cuda"):
        cast((t, t), torch.float32, torch.device(device))
    assert asked == [False, False, True, True]


def test_a_stream_starts_where_it_was_left() -> None:
    batches = [tuple(part[i : i + 2] for part in numbered(8)) for i in (0, 2, 4, 6)]
    assert drawn(cut(batches, Order(None), start=2)) == [[4, 5], [6, 7]]


def test_a_look_at_a_generator_takes_nothing_from_it() -> None:
    stream = Batches(read(iter([numbered(4), numbered(2)])), Order(None), torch.float32, torch.device("cpu"))
    assert stream.first(1)[1].tolist() == [0, 1, 2, 3]
    assert [len(y) for _, y in stream.epoch(0)] == [4, 2]


BAD = {
    "empty arrays": ((np.zeros((0, 3)), np.zeros(0)), ValueError, "empty"),
    "different length": ((np.zeros((5, 3)), np.zeros(4)), ValueError, "x has 5 rows and y has 4"),
    "words": ((np.array(["a", "b"]), np.zeros(2)), TypeError, "not numbers"),
    "ragged": (([[1.0], [1.0, 2.0]], [0, 1]), ValueError, "ragged"),
    "a string": ("mnist", TypeError, "string"),
    "a number": (3, TypeError, "int"),
    "no batches": ([], ValueError, "empty"),
    "a scalar": ((np.float32(1), np.float32(2)), ValueError, "single number"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_data_is_named(name: str) -> None:
    data, kind, words = BAD[name]
    with pytest.raises(kind, match=words):
        read(data)


def test_an_iterable_without_batches_is_named() -> None:
    with pytest.raises(ValueError, match="yields no batch"):
        Batches(read(iter([])), Order(None), torch.float32, torch.device("cpu")).first(1)


def test_automatic_size_grows_with_the_data() -> None:
    sizes = [automatic_size(n) for n in (10, 1_000, 10_000, 100_000, 10_000_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 32
    assert sizes[-1] == 512
