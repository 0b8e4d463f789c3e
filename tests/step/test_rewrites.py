"""What is computed of one count for each parameter anew is computed once, and nothing else becomes another number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from thalweg.step import rewrites

COUNT = torch.tensor(3.0)


def raised(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """As rules do: a copy for each parameter, raised where it lies."""
    first, second = c.double(), c.double()
    first += 1
    one = v * (1 - 0.9**first)
    second += 1
    two = v * (1 - 0.9**second)
    return one, two


def changed_between(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    exact = c.double()
    one = v * 0.9**exact
    exact.sub_(1)
    return one, v * 0.9**exact


def changed_where_it_is_held(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    one = v * (c.double() + 1)
    c.detach().add_(1)  # by another name, as a rule has it
    return one, v * (c.double() + 1)


def each_of_its_own(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    first, second = torch.zeros_like(c, dtype=torch.float64), torch.zeros_like(c, dtype=torch.float64)
    first.fill_(2.0)
    return v * first, v * second


def of_vectors(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    one = v.sum(dtype=torch.float64) * 2
    v.detach().mul_(c)
    return one, v.sum(dtype=torch.float64) * 2


def written_under_another_name(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    one, two = c.double() + 1, c.double() + 1
    two.detach().mul_(2)
    return v * one, v * two


def raised_with_another_name(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    exact = c.double()
    alias = exact.detach()
    exact += 1
    return v * exact, v * alias


def a_place_of_a_vector(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    exact = v.double()
    place = exact[1]
    one = v * (place * 2)
    exact.add_(1)
    return one, v * (place * 2)


def one_of_a_vector(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    exact = v.double()
    place, *_ = exact.unbind()
    one = v * (place * 2)
    exact.add_(1)
    return one, v * (place * 2)


def seen_as_a_vector(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    exact = c.double() * 1
    one = v * (exact * 2)
    exact.view(1).add_(1)
    return one, v * (exact * 2)


def drawn(c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return v * torch.rand_like(c, dtype=torch.float64), v * torch.rand_like(c, dtype=torch.float64)


def shared(function: Callable[..., tuple[Tensor, ...]]) -> tuple[GraphModule, GraphModule]:
    """A function as it was recorded, and with its scalars shared."""
    before, after = (make_fx(function)(COUNT.clone(), torch.ones(4)) for _ in range(2))
    rewrites._share_scalars(after)
    after.graph.lint()
    after.recompile()
    return before, after


def called(graph: GraphModule) -> list[Tensor]:
    torch.manual_seed(0)
    count, values = COUNT.clone(), torch.arange(4.0)
    return [*graph(count, values), count, values]


FUNCTIONS = [
    raised,
    changed_between,
    changed_where_it_is_held,
    each_of_its_own,
    of_vectors,
    written_under_another_name,
    raised_with_another_name,
    a_place_of_a_vector,
    one_of_a_vector,
    seen_as_a_vector,
    drawn,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_numbers_are_the_same(function: Callable[..., tuple[Tensor, ...]]) -> None:
    before, after = shared(function)
    assert all(map(torch.equal, called(after), called(before)))


def test_powers_of_one_count_are_taken_once() -> None:
    before, after = shared(raised)
    powers = [sum("pow" in str(node.target) for node in graph.graph.nodes) for graph in (before, after)]
    assert powers == [2, 1]


def test_each_draw_stays() -> None:
    before, after = shared(drawn)
    assert len(after.graph.nodes) == len(before.graph.nodes)
