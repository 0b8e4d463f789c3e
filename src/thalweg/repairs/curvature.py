"""Repairs of a standstill: a step along the direction in which the loss bends down."""

from __future__ import annotations

import math

from torch import Tensor

from thalweg.gradients.ground import Ground, floating_dtype, sample, standing
from thalweg.gradients.lanczos import extreme_eigenvalues
from thalweg.repairs.change import Body, Undo, Words, as_count
from thalweg.tensors.named import assign, copied
from thalweg.tensors.seeds import untouched

#: Products behind the direction, and the examples that they are of: the trial says whether both were enough.
PRODUCTS, EXAMPLES = 16, 128
#: Parameters up to which it is tried: the products are vectors of as many numbers.
LARGEST = 10_000_000
#: Lengths that are tried both ways, each half of the one before.
LENGTHS = 12
#: Share of the largest curvature from which a negative one counts (as `landscape` has it).
NEGATIVE = 0.02


class FollowCurvature:
    """θ ← θ + s v, where vᵀHv = λ is the lowest curvature, if it is negative, and s the best of several lengths.

    At a saddle the gradient is nothing and says nothing of the way down; v does (Dauphin et al. 2014; Curtis & Robinson
    2019). The direction by Lanczos on a few examples, in float64 where the network is small; s both ways from
    √(2L/|λ|), at which the curvature alone changes the loss L by itself, or from the length of the weights where that
    is shorter. Where nothing bends down, nothing is done.
    """

    code = "follow_curvature"
    level = "safe"

    def words(self, body: Body) -> Words | None:
        """How many products of the Hessian with a vector it takes: each costs about four gradients, and is kept."""
        size = sum(p.numel() for p in body.forward.parameters().values())
        return {"products": float(PRODUCTS)} if 0 < size <= LARGEST else None

    def apply(self, body: Body, words: Words) -> Undo:
        """Take the step, from weights and sample alone."""
        state = body.forward.state()
        before = copied(state)
        if (below := _below(body, as_count(words["products"]))) is not None:
            assign(body.forward.parameters(), below)
        return lambda: assign(state, before)

    def lines(self, words: Words) -> list[str]:
        """In a program of the user's own."""
        return [
            "curvature = thalweg.gradients.Curvature(model, (x, y), loss)",
            "lowest = thalweg.gradients.extreme_eigenvalues(curvature).smallest_vector",
            "# p.add_(s * part of `lowest`) for each parameter p, with the s of either sign that lowers the loss most",
        ]


def _below(body: Body, products: int) -> dict[str, Tensor] | None:
    """Parameter → its value after the step; None where no curvature is negative or none can be had."""
    for in_double in (True, False):  # a loss may hold weights, and a model tensors, that know single precision only
        try:
            taken = sample(body.sample, floating_dtype(body.model), EXAMPLES, 0)
            with untouched(), standing(body.model, taken, body.loss, in_double) as ground:
                step = _step(ground, products)
                return ground.curvature.layout.unflatten(ground.origin + step) if step is not None else None
        except ValueError:  # a loss that is not finite here
            return None
        except RuntimeError:
            continue
    return None


def _step(ground: Ground, products: int) -> Tensor | None:
    found = extreme_eigenvalues(ground.curvature, tolerance=0.01, max_products=products)
    if not found.smallest < -NEGATIVE * max(abs(found.largest), abs(found.smallest)):
        return None
    here = ground.loss_at(None)
    farthest = min(math.sqrt(2 * abs(here) / -found.smallest), max(1.0, float(ground.origin.norm())))
    lengths = [sign * farthest * 2.0**-i for i in range(LENGTHS) for sign in (1.0, -1.0)]
    losses = {length: ground.loss_at(length * found.smallest_vector) for length in lengths}
    ground.place(None)
    best = min(lengths, key=lambda length: losses[length] if not math.isnan(losses[length]) else math.inf)
    return best * found.smallest_vector if losses[best] < here else None
