"""Data in any form a user has it → one of three forms that batches can be cut from.

- `Arrays`: everything in memory as tensors, examples along axis 0. Indexed directly, whole batches at a time.
- `Items`: a map-style dataset; single examples by number, collated.
- `Stream`: an iterable of ready batches (a `DataLoader`, a list of batches, a generator).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from thalweg.step.refusal import Refusal
from thalweg.step.sequences import Sequences
from thalweg.tensors.named import leaves, mapped

#: Inputs and targets of a batch; the target is None where the model makes its own loss.
Batch = tuple[Any, Any]

#: What holds one entry an example, in memory.
COLUMNS = (Tensor, Sequences)

FORMS = "(x, y) of arrays or tensors, a Dataset, a DataLoader, or any iterable of (x, y) batches"


@dataclass(slots=True)
class Arrays:
    """`x` a tensor `[examples, …]`, `Sequences`, or a tuple or dict of them; `y` the same, or None."""

    x: Any
    y: Any

    def __len__(self) -> int:
        return len(next(leaves(self.x, COLUMNS)))

    def take(self, indices: Tensor) -> Batch:
        """The examples with these numbers, in this order, as a copy; sequences padded to the longest of them."""

        def taken(part: Tensor | Sequences) -> Tensor:
            if isinstance(part, Sequences):
                return part.take(indices)
            return part.index_select(0, indices.to(part.device))

        return mapped(taken, (self.x, self.y), COLUMNS)

    def part(self, indices: Sequence[int]) -> Arrays:
        """Some of the examples, as data of their own."""
        rows = torch.as_tensor(indices, dtype=torch.int64)

        def chosen(part: Tensor | Sequences) -> Tensor | Sequences:
            if isinstance(part, Sequences):
                return part.part(rows)
            return part.index_select(0, rows.to(part.device))

        return Arrays(*mapped(chosen, (self.x, self.y), COLUMNS))

    @property
    def lengths(self) -> Tensor | None:
        """How long each example is, over all its inputs `[examples]`; None where they are of one length."""
        found = [part.lengths for part in leaves(self.x, Sequences)]
        return torch.stack(found).sum(0) if found else None


@dataclass(slots=True)
class Items:
    """A map-style dataset seen through a list of its numbers."""

    dataset: Any
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> Batch:
        """The examples with these numbers, collated into a batch."""
        numbers = [int(self.indices[i]) for i in indices.tolist()]
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(numbers)
        else:
            items = [self.dataset[i] for i in numbers]
        return as_batch(default_collate(items))

    def part(self, indices: Sequence[int]) -> Items:
        """Some of the examples, as data of their own."""
        return Items(self.dataset, [self.indices[i] for i in indices])


@dataclass(slots=True)
class Stream:
    """Ready batches; `num_batches` where the source knows its length, `once` where it cannot start again."""

    source: Any
    num_batches: int | None
    once: bool = False

    def batches(self) -> Iterator[Batch]:
        """One pass over the source."""
        source = self.source() if isinstance(self.source, Callable) else self.source  # type: ignore[arg-type]
        return (as_batch(batch) for batch in source)


Data = Arrays | Items | Stream


def read(data: Any, dtype: torch.dtype = torch.float32) -> Data:
    """Recognise the form of data; floating arrays become `dtype`, the model's own.

    Raises:
        TypeError: a form that is not understood.
        ValueError: empty data, or x and y of different length.
    """
    if isinstance(data, TensorDataset):
        data = _columns(data.tensors)
    if _is_pair(data) or isinstance(data, Mapping | Sequences) or _is_array(data):
        return _arrays(data, dtype)
    if isinstance(data, Subset) and isinstance(data.dataset, TensorDataset):
        whole = read(data.dataset, dtype)
        return whole.part(data.indices)  # type: ignore[union-attr]
    if isinstance(data, DataLoader | IterableDataset):
        return Stream(data, _length(data))
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and not isinstance(data, list | tuple | str)):
        return _items(data)
    if isinstance(data, str | bytes):
        raise TypeError(f"data {data!r} is a string; give {FORMS}")
    if isinstance(data, Iterable):
        if isinstance(data, list | tuple) and not data:
            raise ValueError(f"the data is empty: there is no batch in it; give {FORMS}")
        return Stream(data, _length(data), once=isinstance(data, Iterator))
    if callable(data):
        return Stream(data, None)
    raise TypeError(f"data of type {type(data).__name__} is not understood; give {FORMS}")


def as_batch(batch: Any) -> Batch:
    """A batch as a loader yields it → `(x, y)`.

    Raises:
        TypeError: it is not a pair, and no dict either.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return _inputs(batch[0]), _tensors(batch[1])
    if isinstance(batch, Mapping | Tensor | np.ndarray):
        return _tensors(batch), None
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return _tensors(batch[0]), None
    if isinstance(batch, tuple | list) and len(batch) > 2:
        return _inputs(batch[:-1]), _tensors(batch[-1])
    raise TypeError(f"a batch must be a pair (x, y) or a dict of tensors, got {type(batch).__name__}")


def cast(tree: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Every tensor on the device, floating ones in the dtype; a tensor that is so already is passed on."""
    is_away = device.type != "cpu"  # what comes from a GPU without waiting may not be there yet when it is read

    def move(t: Tensor) -> Tensor:
        return t.to(device, dtype if t.is_floating_point() else t.dtype, non_blocking=is_away)

    return mapped(move, tree)


def shapes(batch: Batch) -> tuple[tuple[int, ...], ...]:
    """Shapes of a batch's tensors."""
    return tuple(tuple(t.shape) for t in leaves(batch))


def num_examples(batch: Batch) -> int:
    """Rows of a batch."""
    return len(next(leaves(batch[0])))


def _arrays(data: Any, dtype: torch.dtype) -> Arrays:
    x, y = (data, None) if isinstance(data, Mapping | Sequences) or _is_array(data) else data
    arrays = Arrays(_convert(_inputs(x), dtype, "x"), _convert(y, dtype, "y") if y is not None else None)
    parts = [*_parts(arrays.x, "x"), *_parts(arrays.y, "y")]
    for name, part in parts:
        if isinstance(part, Tensor) and not part.ndim:
            words = f"{name} is a single number, without an axis of examples: of one example give x[None] and y[None]"
            raise Refusal("wrong_shape", words)
    if not parts or not all(len(part) for _, part in parts):
        raise ValueError("the data is empty: there is no example in it; give at least one")
    first, rows = parts[0][0], len(parts[0][1])
    for name, part in parts:
        if len(part) != rows:
            what = f"{first} and {name} differ in length ({first} has {rows} rows and {name} has {len(part)})"
            missing = "target" if name.startswith("y") else "row"
            raise Refusal("wrong_shape", f"{what}; give one {missing} for each example")
    return arrays


def _columns(tensors: tuple[Tensor, ...]) -> Any:
    """Of the tensors of a `TensorDataset` the last is the target; one alone is the inputs, without any."""
    if len(tensors) < 3:
        return tensors if len(tensors) == 2 else tensors[0]
    return tensors[:-1], tensors[-1]


def _parts(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What holds one entry an example, each with the words that a user would write for it."""
    if isinstance(tree, COLUMNS):
        yield name, tree
    elif isinstance(tree, Mapping | tuple):
        for key, part in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _parts(part, f"{name}[{key!r}]")


def _items(dataset: Any) -> Items:
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"the dataset {type(dataset).__name__} has no __len__; give it one, or give {FORMS}")
    if len(dataset) == 0:
        raise ValueError("the data is empty: the dataset has no examples; give at least one")
    return Items(dataset, range(len(dataset)))


def _convert(tree: Any, dtype: torch.dtype, name: str) -> Any:
    """Arrays → tensors: floating ones in the model's dtype, whole numbers as int64 where torch has no use for less."""
    if isinstance(tree, Mapping):
        return {key: _convert(value, dtype, f"{name}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_convert(value, dtype, f"{name}[{i}]") for i, value in enumerate(tree))
    if isinstance(tree, Sequences):
        return tree.to(_wanted(tree.values, dtype))
    tensor = _tensor(tree, name)
    return tensor.to(_wanted(tensor, dtype))


def _wanted(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_floating_point():
        return dtype
    return torch.int64 if tensor.dtype in (torch.int16, torch.int32, torch.uint16) else tensor.dtype


def _tensor(array: Any, name: str) -> Tensor:
    if isinstance(array, Tensor):
        return array.detach()
    try:
        values = np.asarray(array)
    except ValueError as error:
        raise Refusal("wrong_shape", f"{name} is ragged ({error}); give rows of one shape") from error
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{name} holds {values.dtype}, not numbers; encode it as numbers first")
    if values.dtype.byteorder not in "=|" or not values.flags.writeable or any(s < 0 for s in values.strides):
        values = values.astype(values.dtype.newbyteorder("="), order="C", copy=True)
    return torch.from_numpy(values)


def _tensors(tree: Any) -> Any:
    """Numpy leaves of a ready batch → tensors; the rest stays."""
    return mapped(lambda array: _tensor(array, "a batch"), tree, np.ndarray)


def _inputs(x: Any) -> Any:
    """Several inputs are a tuple here, also where they came as a list of arrays."""
    if isinstance(x, list) and x and all(_is_array(part) for part in x):
        x = tuple(x)
    return _tensors(x)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def _is_pair(data: Any) -> bool:
    """`(x, y)` as a tuple; or a list of two arrays, which cannot be two batches."""
    if isinstance(data, tuple):
        return len(data) == 2
    return isinstance(data, list) and len(data) == 2 and all(_is_array(part) for part in data)


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:
        return None
