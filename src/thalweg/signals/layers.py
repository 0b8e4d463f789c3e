"""Parameters belong to layers: the numbers of a layer's weight and bias are told as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layers:
    """Which parameters, by their place in a list, make up each layer; layers in the order of the model.

    >>> list(Layers.of(["0.weight", "0.bias", "2.weight", "scale"]).split([1.0, 2.0, 3.0, 4.0]))
    [('0', [1.0, 2.0]), ('2', [3.0]), ('scale', [4.0])]
    """

    names: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parameters: Iterable[str]) -> Layers:
        """Group parameter names by the module that owns them; one of the model itself is a layer of its own."""
        groups: dict[str, list[int]] = {}
        for place, name in enumerate(parameters):
            groups.setdefault(name.rpartition(".")[0] or name, []).append(place)
        return cls(tuple(groups), tuple(tuple(places) for places in groups.values()))

    def split(self, values: Sequence[float]) -> Iterator[tuple[str, list[float]]]:
        """The values of each layer's parameters."""
        for name, places in zip(self.names, self.places, strict=True):
            yield name, [values[place] for place in places]
