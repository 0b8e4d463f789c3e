"""Rows of similar length put together, as many as there is room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The numbers of all rows, short ones first, cut where rows × the longest of them would exceed the room; a row that
    exceeds it by itself stands alone.

    >>> list(batches([3, 9, 1, 2], room=6))
    [[2, 3], [0], [1]]
    """
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * lengths[number] > room:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
