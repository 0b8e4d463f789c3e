"""What kind of point a model stands at: slope, plateau, saddle or minimum.

All judgements are shares, so that they do not change with the units of the loss or of the weights. The loss is measured
by what it would be with each output standing for another example, or where that is nothing too (an exact fit of targets
that are all alike) by what the curvature makes of weights changed by their own length; the weights by their own length
r, or by the length they would have with unit weight vectors where that is larger, so that weights of zero have a
measure too.

    plateau   to second order the loss would change by less than a hundredth if the weights changed by their own length:
              ‖g‖ r and |λ|max r²/2 both below 1e-2
    slope     a step along gradient and curvature, of at most r/10, was tried and lowered the loss by 1e-3 or more, and
              the gradient stands out of what the choice of examples may have made
    saddle    a walk both ways along the lowest curvature, ended where the loss rises above that of the point, lowered
              it by 1e-3 or more; by a hundredth of the loss itself where that curvature is certainly negative; by
              1e-6 where it is below −0.02 |λ|max
    minimum   none of these; also a plateau on which less than a thousandth of the loss is left
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.gradients.ground import Ground, Slope, floating_dtype, sample, standing
from thalweg.gradients.lanczos import Estimate, Extremes, Lanczos, extreme_eigenvalues, trace
from thalweg.gradients.products import LossLike
from thalweg.records.landscape import Landscape, Plane
from thalweg.tensors import seeds
from thalweg.tensors.vector import norm

#: Examples that the point is judged on, at most.
EXAMPLES = 2048
#: Of the eigenvalues, as a share of the larger magnitude: finer than what decides between saddle and minimum.
TOLERANCE = 5e-4
#: Points along each side of the picture.
GRID = 21
#: Products behind the step that is tried along gradient and curvature, and behind the trace.
STEP_PRODUCTS = 8
TRACE_PROBES = 10
#: Behind the ends of the spectrum, at most.
MAX_PRODUCTS = 100

PLATEAU = 1e-2
SLOPE = 1e-3
#: Share of the largest curvature from which a negative one counts, and the share of the loss that it must then gain.
NEGATIVE = 0.02
ESCAPE = 1e-6
#: Share of the loss itself that a certainly negative curvature must gain, if that is less than `SLOPE` of its scale.
WORTH = 0.01
#: Share of the loss scale below which nothing worth descending for is left.
LEFT = 1e-3


@dataclass(frozen=True, slots=True)
class _Measured:
    """The numbers behind the judgement; shares are of the loss scale."""

    slope: Slope
    extremes: Extremes
    trace: Estimate
    reach: float
    """r, what the weights are measured by."""
    complete: bool
    descent: float
    escape: float

    @property
    def steepest(self) -> float:
        """|λ|max."""
        return max(abs(self.extremes.largest), abs(self.extremes.smallest))

    @property
    def first_order(self) -> float:
        """‖g‖ r: the share by which the loss would change along the gradient."""
        return self.slope.norm * self.reach / self.slope.loss_scale

    @property
    def second_order(self) -> float:
        """|λ|max r²/2."""
        return self.steepest * self.reach**2 / 2 / self.slope.loss_scale

    @property
    def stands_out(self) -> bool:
        """Whether the gradient is more than the choice of examples may have made; of all the data it is exact."""
        return self.complete or not self.slope.norm <= self.slope.standard_error


def landscape(
    model: nn.Module,
    data: Any,
    loss: LossLike = None,
    *,
    examples: int = EXAMPLES,
    picture: bool = True,
    seed: int = 0,
) -> Landscape:
    """Which kind of point the model's weights are for the loss over data, with the numbers that say so.

    Args:
        model: taken in evaluation mode; its weights, buffers, gradients and modes are left as they are. Up to a million
            parameters the measurements are made in float64.
        data: `(x, y)` or any form that `fit` takes.
        loss: a name, a function (output, target), or None where the model returns its loss.
        examples: at most so many are taken, by `seed`.
        picture: whether to take the loss over the plane of the extreme eigenvectors, 21 × 21 losses, for `.plot()`.
        seed: what the choice of examples and the random starts follow from.

    Raises:
        ValueError: nothing to train, a loss that is not finite here, or one that cannot be differentiated twice.
    """
    return surveyed(model, data, loss, examples, picture, seed)


def surveyed(
    model: nn.Module,
    data: Any,
    loss: LossLike,
    examples: int,
    picture: bool,
    seed: int,
    max_products: int = MAX_PRODUCTS,
    trace_probes: int = TRACE_PROBES,
) -> Landscape:
    """As `landscape`, with so many products at most for the ends of the spectrum; without probes, no trace (NaN)."""
    with seeds.untouched():
        taken = sample(data, floating_dtype(model), examples, seed)
        with standing(model, taken, loss) as ground:
            slope = ground.slope()
            if not math.isfinite(slope.loss) or not math.isfinite(slope.norm):
                raise ValueError(
                    f"the loss is {slope.loss:.4g} here, its gradient {slope.norm:.4g}: there is no ground"
                )
            extremes = extreme_eigenvalues(ground.curvature, tolerance=TOLERANCE, max_products=max_products, seed=seed)
            traced = Estimate(math.nan, math.nan, 0)
            if trace_probes:
                traced = trace(ground.curvature, probes=trace_probes, seed=seed)
            reach = _reach(ground)
            slope = _measurable(slope, extremes, reach)
            descent = _descent(ground, slope, reach)
            escape = _escape(ground, slope, extremes, reach)
            measured = _Measured(slope, extremes, traced, reach, taken.complete, descent, escape)
            plane = _plane(ground, measured) if picture else None
    return _record(measured, plane, ground.curvature.size, ground.curvature.num_products)


def _reach(ground: Ground) -> float:
    """The measure r = max(‖w‖, √Σ rows): each row of a weight matrix feeds a unit, and is of length 1 in the second."""
    weights = dict(zip(ground.curvature.layout.names, ground.parameters, strict=True))
    own = float(norm({name: p.detach() for name, p in weights.items()}))
    return max(own, math.sqrt(sum(p.shape[0] for p in weights.values() if p.ndim > 1)), 1e-3)


def _measurable(slope: Slope, extremes: Extremes, reach: float) -> Slope:
    """With a loss scale that shares can be taken of.

    A scale that is lost in the rounding of |λ|max r²/2 is replaced by it; where that is nothing as well, by 1.
    """
    bend = max(abs(extremes.largest), abs(extremes.smallest)) * reach**2 / 2
    if slope.loss_scale > torch.finfo(slope.gradient.dtype).eps * bend:
        return slope
    return replace(slope, loss_scale=bend or 1.0)


def _step(ground: Ground, slope: Slope, reach: float) -> Tensor:
    """The step that gradient and curvature suggest, of at most about r/10 `[parameters]`.

    In the Krylov space of the gradient, −|H|⁻¹g with every |θ| raised to ‖g‖/(r/10) (Dauphin et al. 2014 take |H|).
    """
    if slope.norm == 0:
        return torch.zeros_like(slope.gradient)
    lanczos = Lanczos(ground.curvature, slope.gradient, min(STEP_PRODUCTS, ground.curvature.size))
    while not lanczos.ended:
        lanczos.extend()
    values, vectors, _ = lanczos.ritz()
    floor = slope.norm / (reach / 10)
    coefficients = -slope.norm * vectors[0] / values.abs().clamp_min(floor)
    return lanczos.lift(vectors @ coefficients)


def _descent(ground: Ground, slope: Slope, reach: float) -> float:
    """The share by which the loss falls at the best of several lengths of the step."""
    step = _step(ground, slope, reach)
    here = ground.loss_at(None)
    tried = [ground.loss_at(step * t) for t in (4.0, 2.0, 1.0, 0.5, 0.25, 0.0625)]
    ground.place(None)
    return max(0.0, *(here - value for value in tried if math.isfinite(value))) / slope.loss_scale


def _escape(ground: Ground, slope: Slope, extremes: Extremes, reach: float) -> float:
    """The share by which the loss falls on a walk along the most negative curvature, before it first rises.

    The lengths are those at which that curvature changes the loss by 4⁻¹⁰ … 1 of its scale, or r 2⁻¹⁰ … r where they
    are shorter: a lower place beyond a rise does not make a saddle of a minimum.
    """
    here, lowest = ground.loss_at(None), math.inf
    farthest = min(reach, _length(slope.loss_scale, extremes.smallest))
    for sign in (1.0, -1.0):
        for i in range(10, -1, -1):
            value = ground.loss_at(extremes.smallest_vector * (sign * farthest * 2.0**-i))
            if not value <= here + ESCAPE * slope.loss_scale:
                break
            lowest = min(lowest, value)
    ground.place(None)
    return max(0.0, here - lowest) / slope.loss_scale


def _length(change: float, eigenvalue: float) -> float:
    """The distance t at which |λ|t²/2 is this change of the loss."""
    return math.sqrt(2 * change / abs(eigenvalue)) if eigenvalue else math.inf


def _kind(m: _Measured) -> str:
    if m.first_order < PLATEAU and m.second_order < PLATEAU:
        return "plateau" if abs(m.slope.loss) >= LEFT * m.slope.loss_scale else "minimum"
    if m.descent >= SLOPE and m.stands_out:
        return "slope"
    enough, lowest = SLOPE, m.extremes.smallest
    if lowest < -NEGATIVE * m.steepest:
        enough = ESCAPE
    elif lowest < -m.extremes.smallest_error:
        enough = min(SLOPE, WORTH * abs(m.slope.loss) / m.slope.loss_scale)
    return "saddle" if m.escape > enough else "minimum"


def _sentence(kind: str, m: _Measured) -> str:
    e, g = m.extremes, m.slope
    ends = f"curvature runs from {e.smallest:.3g} ± {e.smallest_error:.1g} to {e.largest:.3g} ± {e.largest_error:.1g}"
    if kind == "plateau":
        return (
            f"Plateau: the gradient ({g.norm:.3g}) and the curvature (at most {m.steepest:.3g}) are so small that "
            f"weights changed by their own size would change the loss of {g.loss:.4g} by about "
            f"{(m.first_order + m.second_order) * g.loss_scale:.1g}."
        )
    if kind == "slope":
        return (
            f"Slope: one step along the gradient ({g.norm:.3g}, standard error {g.standard_error:.2g}) and the "
            f"curvature lowers the loss of {g.loss:.4g} by {m.descent * g.loss_scale:.3g}; {ends}."
        )
    if kind == "saddle":
        return (
            f"Saddle: the gradient ({g.norm:.3g}) gives nothing, but along the lowest curvature the loss falls from "
            f"{g.loss:.4g} to {g.loss - m.escape * g.loss_scale:.4g}; {ends}."
        )
    return (
        f"Minimum: the gradient ({g.norm:.3g}, standard error {g.standard_error:.2g}) gives nothing to a loss of "
        f"{g.loss:.4g}; {ends}, and a walk along the lowest gained {m.escape * g.loss_scale:.1g}."
    )


def _record(m: _Measured, plane: Plane | None, num_parameters: int, num_products: int) -> Landscape:
    kind = _kind(m)
    return Landscape(
        kind=kind,
        sentence=_sentence(kind, m),
        loss=m.slope.loss,
        loss_scale=m.slope.loss_scale,
        gradient_norm=m.slope.norm,
        gradient_error=m.slope.standard_error,
        noise_scale=m.slope.noise_scale,
        largest_eigenvalue=m.extremes.largest,
        largest_eigenvalue_error=m.extremes.largest_error,
        smallest_eigenvalue=m.extremes.smallest,
        smallest_eigenvalue_error=m.extremes.smallest_error,
        trace=m.trace.value,
        trace_error=m.trace.standard_error,
        max_stable_learning_rate=2 / m.extremes.largest if m.extremes.largest > 0 else math.inf,
        descent=m.descent,
        escape=m.escape,
        flatness=m.first_order + m.second_order,
        num_examples=m.slope.num_examples,
        num_parameters=num_parameters,
        num_products=num_products,
        plane=plane,
    )


def _plane(ground: Ground, m: _Measured) -> Plane | None:
    """The loss over the plane of the extreme eigenvectors, each way as far as it takes to change it by its scale."""
    if ground.curvature.size < 2:
        return None
    across, up = m.extremes.largest_vector, m.extremes.smallest_vector
    ends = [m.extremes.largest, m.extremes.smallest]
    xs, ys = (
        [min(m.reach, _length(m.slope.loss_scale, value)) * (2 * i / (GRID - 1) - 1) for i in range(GRID)]
        for value in ends
    )
    losses = tuple(tuple(ground.loss_at(across * x + up * y) for x in xs) for y in ys)
    ground.place(None)
    labels = [f"{word} eigenvector, curvature {value:.3g}" for word, value in zip(("first", "last"), ends, strict=True)]
    return Plane(tuple(xs), tuple(ys), losses, labels[0], labels[1])
