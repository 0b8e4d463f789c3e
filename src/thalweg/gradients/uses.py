"""Where parameters are used, read from the graph that autograd made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge


class Graph:
    """Where parameters stand in the graph that autograd made."""

    def __init__(self, root: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        trained = {id(p) for p in parameters}
        self.uses: Counter[int] = Counter()
        """How many operations use each parameter, by `id`; a cast, transposition or split counts by who uses it."""
        self.direct: dict[Any, list[nn.Parameter]] = {}
        """Parameters that a node uses."""
        self.inner: dict[Any, list[Any]] = {}
        """Nodes below a node, other than parameters."""
        stack = [root.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in self.inner:
                continue
            sources = [(source, origin(source, index)[0]) for source, index in node.next_functions]
            self.direct[node] = [p for _, p in sources if id(p) in trained]
            self.inner[node] = [source for source, p in sources if source is not None and id(p) not in trained]
            self.uses.update(id(p) for p in self.direct[node])
            stack.extend(self.inner[node])

    def ends(self, by_parameter: set[int]) -> list[Any]:
        """What a backward pass has to reach to pass by every use of a parameter: the lowest of them.

        Args:
            by_parameter: parameters, by `id`, whose own gradient has to be computed for the taps to be heard.
        """
        reached: set[Any] = set()  # nodes that a parameter is below of, or at
        found: list[Any] = []
        for node in self._upwards():
            below = any(source in reached for source in self.inner[node])
            if self.direct[node] and not below:
                chosen = [p for p in self.direct[node] if id(p) in by_parameter]
                found.extend(chosen or [GradientEdge(node, 0)])
            if below or self.direct[node]:
                reached.add(node)
        return found

    def _upwards(self) -> Iterator[Any]:
        """Every node after all those below it."""
        seen: set[Any] = set()
        for start in self.inner:
            stack = [(start, False)]
            while stack:
                node, complete = stack.pop()
                if complete:
                    yield node
                elif node not in seen:
                    seen.add(node)
                    stack.append((node, True))
                    stack.extend((source, False) for source in self.inner[node])


def products(output: Tensor, weights: Mapping[int, str], below: list[Any], width: int) -> list[tuple[Any, str, int]]:
    """The matrix products x Wᵀ with some weights in the graph of a tensor.

    `nn.MultiheadAttention` multiplies with slices of its weights inside one function, where no hook reaches; autograd's
    graph knows each product, its input (saved for the weight's gradient) and hands over its output gradient.

    Args:
        output: where to begin.
        weights: their names by `id`.
        below: graph nodes at which to stop.
        width: rows of a slice where a weight is used in slices.

    Returns:
        (node, name of the weight, first row used) of each product.
    """
    found, seen, stack = [], set(below), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for number, (source, index) in enumerate(node.next_functions):
            stack.append(source)
            if (node.name(), number) in (("AddmmBackward0", 2), ("MmBackward0", 1)):
                parameter, slice_number = origin(source, index)
                if id(parameter) in weights:
                    found.append((node, weights[id(parameter)], slice_number * width))
    return found


def origin(node: Any, index: int) -> tuple[Any, int]:
    """The leaf behind casts, a transposition and a split, and the number of the slice."""
    number = 0
    while node is not None and not hasattr(node, "variable"):
        name = node.name()
        if name.startswith("Split"):
            number = index
        elif name not in ("TBackward0", "ToCopyBackward0"):
            return None, 0
        node, index = node.next_functions[0]
    return (None, 0) if node is None else (node.variable, number)
