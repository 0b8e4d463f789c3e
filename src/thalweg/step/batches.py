"""Data → batches, in an order that (seed, epoch, position) alone decides.

A batch is `(x, y)`; or `Parts`, its micro-batches, where one update is to be made from several.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg.step.data import Arrays, Batch, Data, Items, Stream, cast, num_examples
from thalweg.step.sequences import Sequences
from thalweg.tensors.named import leaves, mapped, num_bytes
from thalweg.tensors.seeds import generator

#: Batches of arrays are gathered several at a time up to this size: one gather of 64 small batches costs little more
#: than one of a single batch. Half a megabyte stays in a core's second-level cache.
CHUNK_BYTES = 1 << 19
CHUNK_BATCHES = 64
#: Batches among whose examples those of similar length are put together; at most this share of all batches, so that a
#: small data set, too, is cut into other batches each epoch.
WINDOW, WINDOW_SHARE = 50, 0.25
#: Rows of a micro-batch where the batch is the whole data set and nothing else was asked.
MICRO_BATCH = 1024


@dataclass(slots=True)
class Parts:
    """The micro-batches of one update, made one after the other so that only one is in memory."""

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()


def num_rows(batch: Batch | Parts) -> int:
    """Examples of a batch; micro-batches are made for it once more."""
    return sum(map(num_examples, batch)) if type(batch) is Parts else num_examples(batch)  # type: ignore[arg-type]


@dataclass(slots=True)
class Order:
    """How batches are cut.

    `batch_size` is None for one batch of everything; `accumulate` micro-batches make a batch; `keep_single` is False
    where a last batch of one example would fail (batch norm in training): it joins the batch before it. With
    `by_length` rows of similar length share a batch where they differ in it (`Sequences`).
    """

    batch_size: int | None
    shuffle: bool = True
    seed: int = 0
    accumulate: int = 1
    keep_single: bool = True
    by_length: bool = False


class Batches:
    """One epoch after the other, each a sequence of batches; a pass may start at any position."""

    def __init__(self, data: Data, order: Order, dtype: torch.dtype, device: torch.device) -> None:
        self.data = data
        self.order = order
        self.dtype = dtype
        self.device = device
        self._seen: Batch | None = None
        self._bounds = None if isinstance(data, Stream) else _bounds(len(data), order)

    @property
    def num_examples(self) -> int | None:
        """Examples in one epoch, where known."""
        return None if isinstance(self.data, Stream) else len(self.data)

    @property
    def per_epoch(self) -> int | None:
        """Batches in one epoch, where known."""
        return self.data.num_batches if isinstance(self.data, Stream) else len(self._cuts) - 1

    @property
    def repeatable(self) -> bool:
        """Whether (seed, epoch, position) alone decides each batch, so that a resumed run sees the same ones."""
        return not isinstance(self.data, Stream)

    def is_cut_like(self, other: Batches) -> bool:
        """Whether the other's batches of the same data are the same ones: whether single rows are kept matters only
        where there are any, or may be in micro-batches.
        """
        is_ordered_alike = replace(self.order, keep_single=other.order.keep_single) == other.order
        is_cut_alike = self._bounds == other._bounds and self.order.accumulate == 1
        return self.order == other.order or (is_ordered_alike and is_cut_alike)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from a position on, each `(x, y)` or `Parts`, on the device."""
        data = self.data
        if isinstance(data, Stream):
            return self._from_stream(data, start)
        if self.order.batch_size is None:
            return iter([Parts(self._everything)][start:])
        batches = self._gathered(data, epoch, start) if isinstance(data, Arrays) else self._items(data, epoch, start)
        return map(self._split, batches) if self.order.accumulate > 1 else batches

    def first(self, rows: int) -> Batch:
        """Some examples to try a model on, in the data's own order; takes nothing away from training.

        Raises:
            ValueError: a stream that yields nothing.
        """
        data = self.data
        if not isinstance(data, Stream):
            return self._cast(data.take(torch.arange(min(rows, len(data)))))
        if self._seen is None:  # a loader is started once for this, and a generator is given back what was taken
            batch = next(data.batches(), None)
            if batch is None:
                raise ValueError("the data is empty: the iterable yields no batch; give at least one")
            if data.once:
                data.source = itertools.chain([batch], data.source)
            self._seen = batch
        return self._cast(self._seen)

    # ── arrays and items ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _cuts(self) -> list[int]:
        assert self._bounds is not None
        return self._bounds

    def _permutation(self, epoch: int, count: int) -> Tensor:
        source = generator(self.order.seed, "order", epoch)
        order = torch.randperm(count, generator=source) if self.order.shuffle else torch.arange(count)
        lengths = self.data.lengths if isinstance(self.data, Arrays) and self.order.by_length else None
        if lengths is None or self.order.batch_size is None:
            return order
        return bucketed(order, lengths, self.order.batch_size, source if self.order.shuffle else None)

    def _gathered(self, data: Arrays, epoch: int, start: int) -> Iterator[Batch]:
        """Several batches are gathered at once and cut apart: views of one copy."""
        cuts, order = self._cuts, self._permutation(epoch, len(data))
        rows = num_bytes((data.x, data.y)) / len(data)
        at_once = max(1, min(CHUNK_BATCHES, int(CHUNK_BYTES / max(1.0, rows * (cuts[1] - cuts[0])))))
        if any(True for _ in leaves((data.x, data.y), Sequences)):  # each is padded by itself
            at_once = 1
        for first in range(start, len(cuts) - 1, at_once):
            last = min(first + at_once, len(cuts) - 1)
            gathered = self._cast(data.take(order[cuts[first] : cuts[last]]))
            if last - first == 1:
                yield gathered
                continue
            yield from _cut(gathered, [cuts[i + 1] - cuts[i] for i in range(first, last)])

    def _items(self, data: Items, epoch: int, start: int) -> Iterator[Batch]:
        cuts, order = self._cuts, self._permutation(epoch, len(data))
        for i in range(start, len(cuts) - 1):
            yield self._cast(data.take(order[cuts[i] : cuts[i + 1]]))

    def _everything(self) -> Iterator[Batch]:
        """The whole data set in micro-batches: what full-batch descent takes one step from."""
        data = self.data
        assert not isinstance(data, Stream)
        size = math.ceil(len(data) / self.order.accumulate) if self.order.accumulate > 1 else MICRO_BATCH
        cuts = _cuts(len(data), size, self.order.keep_single)
        for i in range(len(cuts) - 1):
            yield self._cast(data.take(torch.arange(cuts[i], cuts[i + 1])))

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _from_stream(self, data: Stream, start: int) -> Iterator[Any]:
        batches = data.batches()
        if not self.order.keep_single:
            batches = _joined(batches)
        batches = map(self._cast, itertools.islice(batches, start, None))
        return map(self._split, batches) if self.order.accumulate > 1 else batches

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _cast(self, batch: Batch) -> Batch:
        return cast(batch, self.dtype, self.device)

    def _split(self, batch: Batch) -> Parts:
        """A batch as its micro-batches, all of one size but the last."""
        rows = num_examples(batch)
        size = math.ceil(rows / self.order.accumulate)
        if not self.order.keep_single:
            size = max(2, size)
        cuts = _cuts(rows, size, self.order.keep_single)
        sizes = [cuts[i + 1] - cuts[i] for i in range(len(cuts) - 1)]
        return Parts(lambda: _cut(batch, sizes))


def bucketed(order: Tensor, lengths: Tensor, size: int, source: torch.Generator | None) -> Tensor:
    """Examples in `order`, rearranged so that each `size` that follow each other are of similar length.

    Within windows of `WINDOW` batches (fewer of small data) the examples are sorted by length and cut into batches,
    which are then drawn in a new order; the last batch of all stays the one that may be smaller. Without a `source` of
    randomness everything is sorted.

    >>> bucketed(torch.arange(6), torch.tensor([5, 1, 4, 2, 6, 3]), 2, None).tolist()
    [1, 3, 5, 2, 0, 4]
    """
    window_size = max(2, min(WINDOW, int(WINDOW_SHARE * len(order) / size)))
    windows = order.split(size * window_size if source is not None else len(order))
    windows = [window[lengths[window].argsort(stable=True)] for window in windows]
    if source is None:
        return torch.cat(windows)
    batches = [batch for window in windows for batch in window.split(size)]
    full = len(order) // size
    drawn = torch.randperm(full, generator=source).tolist()
    return torch.cat([*(batches[number] for number in drawn), *batches[full:]])


def automatic_size(num_examples: int | None) -> int:
    """Examples per update by the size of the data: 32 to 512, about 1/50 of an epoch.

    >>> automatic_size(1_437), automatic_size(60_000)
    (32, 512)
    """
    if num_examples is None:
        return 32
    return 2 ** min(9, max(5, round(math.log2(max(1, num_examples) / 50))))


def _bounds(count: int, order: Order) -> list[int]:
    return [0, count] if order.batch_size is None else _cuts(count, order.batch_size, order.keep_single)


def _cuts(count: int, size: int, keep_single: bool) -> list[int]:
    """Where batches begin and end.

    >>> _cuts(7, 3, keep_single=True), _cuts(7, 3, keep_single=False)
    ([0, 3, 6, 7], [0, 3, 7])
    """
    cuts = [*range(0, count, size), count]
    if not keep_single and size > 1 and len(cuts) > 2 and cuts[-1] - cuts[-2] == 1:
        del cuts[-2]
    return cuts


def _cut(batch: Batch, sizes: list[int]) -> Iterator[Batch]:
    x, y = batch
    if isinstance(x, Tensor) and isinstance(y, Tensor):  # the usual case, at a third of the cost of the general one
        return zip(x.split(sizes), y.split(sizes), strict=True)
    ends = list(itertools.accumulate(sizes))
    return (mapped(operator.itemgetter(slice(end - size, end)), batch) for size, end in zip(sizes, ends, strict=True))


def _joined(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches; one of a single example joins the one before it."""
    held: Batch | None = None
    for batch in batches:
        if held is None:
            held = batch
        elif num_examples(batch) == 1:
            held = concatenated(held, batch)
        else:
            yield held
            held = batch
    if held is not None:
        yield held


def concatenated(first: Any, second: Any) -> Any:
    """Two trees of tensors, joined along axis 0."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if isinstance(first, dict):
        return {key: concatenated(value, second[key]) for key, value in first.items()}
    if isinstance(first, tuple | list):
        parts = [concatenated(a, b) for a, b in zip(first, second, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return first
