"""Random search: each trial's rate and options are drawn by its own number (Bergstra & Bengio 2012).

In one dimension a grid covers the range more evenly; with further dimensions that matter little, random points try more
rates for the same number of trials.
"""

from __future__ import annotations

import torch

from thalweg.search.candidate import Choice
from thalweg.search.space import Space
from thalweg.tensors.seeds import generator

#: Trials where nothing was asked, as many as a grid has rates.
TRIALS = 11


def point(space: Space, seed: int, number: int) -> Choice:
    """The choice of one trial; it follows from seed and number alone, so that more trials extend fewer."""
    drawn = torch.rand(1 + len(space.also), generator=generator(seed, "random search", number), dtype=torch.float64)
    shares = drawn.tolist()
    options = {
        name: dimension.at(share) for (name, dimension), share in zip(space.also.items(), shares[1:], strict=True)
    }
    return space.choice(space.learning_rate.at(shares[0]), options)
