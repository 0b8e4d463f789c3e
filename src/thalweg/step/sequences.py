"""Rows of different length as one array: what texts, sounds and series are before they are cut into batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Sequences:
    """Arrays `[length, …]`, one an example, that differ in nothing but their length.

    Anywhere in the x or y of data, as an array would be. A batch of them is a tensor `[rows, longest, …]`, filled up
    with `padding` at the end of each row; rows of similar length are put into one batch. A model tells padding by its
    value, or by the lengths given beside it as another input; a target of −100 is counted by no loss and no metric.

    Raises:
        ValueError: there are no rows, or they differ in more than their length.
        TypeError: a row holds no numbers.

    >>> rows = Sequences([[1, 2, 3], [4]], padding=0)
    >>> rows.take(torch.tensor([1, 0]))
    tensor([[4, 0, 0],
            [1, 2, 3]])
    """

    def __init__(self, rows: Iterable[Any], padding: float = 0) -> None:
        tensors = [_tensor(row, number) for number, row in enumerate(rows)]
        if not tensors:
            raise ValueError("there are no sequences: give at least one")
        first = next((row for row in tensors if len(row)), tensors[0])
        tensors = [row if len(row) else first[:0] for row in tensors]  # nothing is of every kind
        for number, row in enumerate(tensors):
            if row.shape[1:] != first.shape[1:] or row.dtype != first.dtype:
                raise ValueError(
                    f"sequence {number} has entries of {list(row.shape[1:])} {row.dtype} and the first of "
                    f"{list(first.shape[1:])} {first.dtype}: give entries of one kind"
                )
        self.padding = padding
        self.lengths = torch.tensor([len(row) for row in tensors])
        self.values = torch.cat(tensors)
        self._starts = self.lengths.cumsum(0) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> Tensor:
        """One row without padding `[length, …]`."""
        start = int(self._starts[number])
        return self.values[start : start + int(self.lengths[number])]

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return self.values.numel() * self.values.element_size()

    @property
    def finite(self) -> Tensor:
        """Whether each row holds neither NaN nor Inf, bool `[rows]`."""
        good = torch.ones(len(self), dtype=torch.bool)
        if self.values.is_floating_point():
            bad = ~torch.isfinite(self.values).reshape(len(self.values), -1).all(1)
            good[torch.arange(len(self)).repeat_interleave(self.lengths)[bad]] = False
        return good

    def take(self, numbers: Tensor) -> Tensor:
        """The rows with these numbers, in this order `[rows, longest, …]`."""
        numbers = numbers.cpu()
        lengths = self.lengths[numbers]
        along = torch.arange(max(1, int(lengths.max())) if len(numbers) else 1)
        places = (self._starts[numbers].unsqueeze(1) + along).clamp_(max=max(0, len(self.values) - 1))
        taken = (
            self.values[places] if len(self.values) else self.values.new_zeros(*places.shape, *self.values.shape[1:])
        )
        beyond = along >= lengths.unsqueeze(1)
        return taken.masked_fill_(beyond.reshape(*beyond.shape, *(1,) * (taken.ndim - 2)), self.padding)

    def part(self, numbers: Tensor) -> Sequences:
        """Some of the rows, as sequences of their own."""
        return Sequences([self[int(number)] for number in numbers], self.padding)

    def to(self, dtype: torch.dtype) -> Sequences:
        """The same rows in another type."""
        made = object.__new__(Sequences)
        made.padding, made.lengths, made._starts = self.padding, self.lengths, self._starts
        made.values = self.values.to(dtype)
        return made


def _tensor(row: Any, number: int) -> Tensor:
    if not isinstance(row, Tensor):
        array = np.asarray(row)
        if array.dtype.kind not in "fiub" and array.size:
            raise TypeError(f"sequence {number} holds {array.dtype}, not numbers; encode it as numbers first")
        row = torch.from_numpy(array.astype(np.int64 if array.dtype.kind in "iu" else array.dtype, order="C"))
    if row.ndim < 1:
        raise ValueError(f"sequence {number} is a single number: give one with an axis of its own")
    return row.detach().cpu()  # where batches are cut from them
