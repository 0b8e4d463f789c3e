"""A named set of tensors as one vector: laid end to end, and cut apart again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each tensor lies in the vector: the names in order, and their shapes.

    >>> layout = Layout.of({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)})
    >>> layout.size, layout.unflatten(torch.arange(8.0))["bias"]
    (8, tensor([6., 7.]))
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """The layout of these tensors, in their order."""
        return cls(tuple(tensors), tuple(t.shape for t in tensors.values()))

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return sum(shape.numel() for shape in self.shapes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One vector `[size]` of tensors by name, as a copy.

        Raises:
            ValueError: a name is missing or unknown, or a shape differs.
        """
        wrong = sorted(set(self.names) ^ set(tensors))
        if wrong:
            raise ValueError(f"the vector has other names than the parameters: {wrong[0]!r} is in one and not in both")
        for name, shape in zip(self.names, self.shapes, strict=True):
            if tensors[name].shape != shape:
                raise ValueError(
                    f"the vector's {name!r} is {list(tensors[name].shape)}, the parameter is {list(shape)}"
                )
        return flat(tensors[name] for name in self.names)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Tensors by name, views of a vector `[size]`.

        Raises:
            ValueError: the vector is of another size.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"the vector is {list(vector.shape)}, the parameters need [{self.size}]")
        parts = vector.split([shape.numel() for shape in self.shapes])
        return {name: part.view(shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors end to end in one new vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """⟨a, b⟩ over all tensors of the same names, a scalar on their device."""
    return torch.stack([torch.sum(a[name] * b[name]) for name in a]).sum()


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """‖a‖, the Euclidean norm over all tensors together, a scalar on their device."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors.values()]))
