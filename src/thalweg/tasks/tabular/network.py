"""Numbers and categories embedded, then a multilayer perceptron of which several members share the weights.

Two findings make such networks match boosted trees on tables: numbers embedded by sines of learned frequencies
(Gorishniy et al. 2022, "On embeddings for numerical features", section 3.3), and an ensemble that is trained as one,
each member with scales of its own around shared weights (Gorishniy et al. 2025, "TabM", section 3).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Sines and cosines of each number, and what they are mixed into; the deviation of their first frequencies.
FREQUENCIES, EMBEDDED, SPREAD = 24, 12, 0.6


class Normal(nn.Module):
    """Each number along a piecewise linear map onto a normal distribution: `[batch, numbers]` → the same.

    Beyond the first and last knot it stays where they are.
    """

    knots: Tensor  # [numbers, knots]
    rise: Tensor  # [numbers, knots − 1]
    start: Tensor  # [numbers]

    def __init__(self, knots: list[list[float]], places: list[list[float]]) -> None:
        super().__init__()
        longest = max((len(row) for row in knots), default=2)
        filled = [[row + row[-1:] * (longest - len(row)) for row in rows] for rows in (knots, places)]
        x, z = (torch.tensor(rows, dtype=torch.float32).reshape(len(knots), longest) for rows in filled)
        self.register_buffer("knots", x, persistent=False)
        self.register_buffer("rise", z.diff(dim=1), persistent=False)
        self.register_buffer("start", z[:, 0], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """z₀ + Σₖ (zₖ₊₁ − zₖ) · clamp((x − tₖ) / (tₖ₊₁ − tₖ), 0, 1)."""
        width = self.knots.diff(dim=1)
        part = (x[:, :, None] - self.knots[:, :-1]) / width.clamp_min(1e-12)
        return self.start + (part.clamp(0, 1) * self.rise).sum(-1)


class Periodic(nn.Module):
    """Each number z as ReLU(W [sin 2πcz, cos 2πcz] + b), with c and W of its own: `[batch, numbers, EMBEDDED]`."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(SPREAD * torch.randn(numbers, FREQUENCIES).clamp(-3, 3))
        self.mix = nn.Parameter(torch.randn(numbers, 2 * FREQUENCIES, EMBEDDED) / math.sqrt(2 * FREQUENCIES))
        self.bias = nn.Parameter(torch.zeros(numbers, EMBEDDED))

    def forward(self, z: Tensor) -> Tensor:
        """`z` `[batch, numbers]`."""
        angle = 2 * math.pi * self.frequencies * z[:, :, None]
        waves = torch.cat([angle.sin(), angle.cos()], -1).transpose(0, 1)  # [numbers, batch, 2 FREQUENCIES]
        return F.relu(torch.baddbmm(self.bias[:, None], waves, self.mix)).transpose(0, 1)


class Shared(nn.Module):
    """s ⊙ W (r ⊙ x) + b with W shared by the members and r, s, b their own: `[batch, members, width]`."""

    def __init__(self, inputs: int, outputs: int, members: int, is_first: bool) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        # Only the first layer's scales differ at the start: members begin apart, and share what comes after.
        signs = 2.0 * torch.randint(0, 2, (members, inputs)) - 1
        self.inner = nn.Parameter(signs if is_first and members > 1 else torch.ones(members, inputs))
        self.outer = nn.Parameter(torch.ones(members, outputs))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[batch, members, inputs]`, or `[batch, 1, inputs]` for all of them."""
        return F.linear(x * self.inner, self.weight) * self.outer + self.bias


class Own(nn.Module):
    """A linear layer for each member by itself: `[batch, members, inputs]` → `[batch, members, outputs]`."""

    def __init__(self, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        return torch.einsum("bmi,mio->bmo", x, self.weight) + self.bias


class TableNetwork(nn.Module):
    """Numbers and where they are missing `[batch, numbers]`, categories `[batch, categories]` → answers.

    In training the answers of each member, `[batch, members, outputs]`; else their mean `[batch, outputs]` (classes:
    the logarithm of their mean probability). Of one number, which is no class, the last axis is left out, and it is in
    the target's own unit.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        columns, width, members = facts["columns"], facts["width"], facts["members"]
        numbers = [column for column in columns if column["kind"] != "category"]
        levels = [2 + len(column["levels"]) for column in columns if column["kind"] == "category"]
        self.normal = Normal([c["knots"] for c in numbers], [c["places"] for c in numbers])
        self.periodic = Periodic(len(numbers))
        self.categories = nn.ModuleList(_embedding(count) for count in levels)
        sizes = [len(numbers) * (EMBEDDED + 2) + sum(_embedded(count) for count in levels)]
        sizes += [width] * facts["layers"]
        pairs = list(itertools.pairwise(sizes))
        self.layers = nn.ModuleList(Shared(i, o, members, n == 0) for n, (i, o) in enumerate(pairs))
        self.dropout = nn.Dropout(facts["dropout"])
        self.classes = facts["classes"]
        outputs = len(self.classes) if self.classes else 1
        self.last = Own(width, outputs, members)
        self.centre, self.scale = facts["centre"], facts["scale"]

    def forward(self, numbers: Tensor, missing: Tensor, categories: Tensor) -> Tensor:
        """See above."""
        z = self.normal(numbers)
        parts = [self.periodic(z).flatten(1), z, missing]
        parts += [embedding(categories[:, i]) for i, embedding in enumerate(self.categories)]
        x = torch.cat(parts, 1)[:, None]
        for layer in self.layers:
            x = self.dropout(F.relu(layer(x)))
        scores = self.last(x)
        if not self.classes:
            answers = self.centre + self.scale * scores[:, :, 0]
            return answers if self.training else answers.mean(1)
        return scores if self.training else scores.log_softmax(-1).exp().mean(1).clamp_min(1e-30).log()


def build(facts: dict[str, Any]) -> TableNetwork:
    """The network that the facts of a run describe, with fresh weights from torch's generator."""
    return TableNetwork(facts)


def _embedding(levels: int) -> nn.Embedding:
    """Of a category; what was never seen begins at 0, and stays there where training never meets it."""
    embedding = nn.Embedding(levels, _embedded(levels))
    with torch.no_grad():
        embedding.weight[0] = 0
    return embedding


def _embedded(levels: int) -> int:
    return min(16, 1 + levels // 2)
