"""Where a loss is heading, with its error band: what more training would bring, and what it could not.

The newest values are explained by a level with noise about it,

    v(t) = a + b s(t) + d t + ε,     b ≥ 0, d ≥ 0

where s is one of the ways in which losses are known to fall, t^−c (power laws: Hestness et al. 2017, arXiv 1712.00409;
learning curves of Domhan et al. 2015) or e^(−t/τ), and d t is the rise of overfitting. For each shape on a grid, a, b
and d follow by least squares in which outliers count less (Huber 1964); a shape counts by a power of e^(−BIC/2), the
large-sample posterior of Schwarz 1978. Futures are drawn from that mixture, each with its coefficients' uncertainty and
noise of its own: a band that knows neither the shape nor the numbers for certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: c and τ (in units of the time so far), as fine as a curve with some noise tells them apart.
POWERS = np.geomspace(0.1, 3.0, 10)
SCALES = np.geomspace(0.02, 2.5, 24)
#: Residuals beyond so many deviations count less: 95 % as efficient as least squares on normal noise (Huber 1964).
HUBER = 1.345
#: Futures that are drawn.
DRAWS = 300
#: Values of a curve are no independent draws: powers of the likelihood, for the choice among shapes and for the errors
#: of coefficients. So chosen that a 90 % band holds about nine in ten of the values to come, on the runs for tuning.
OF_SHAPES = 0.5
OF_ERRORS = 0.1
#: Probability of a rise, before the values are seen: a loss that rises is the exception.
RISES = 0.1
#: Share of the newest values that is explained: how a loss begins says little of how it goes on.
NEWEST = 0.7
FEWEST = 6


@dataclass(frozen=True, slots=True)
class Forecast:
    """Futures of a loss, drawn: `levels` `[draws, moments]` without noise, `values` with it."""

    times: Floats
    """[moments], in the unit of the times that were given."""
    levels: Floats
    values: Floats
    now: Floats
    """[draws]: the level at the last time."""
    noise: float
    """Standard deviation of a value about the level, in the loss's unit."""

    @property
    def level(self) -> float:
        """Where the loss stands, noise apart: the median."""
        return float(np.median(self.now))

    @property
    def gain(self) -> float:
        """By how much the level will have come down at its lowest: the median; never below 0."""
        return max(0.0, float(np.median(self.now - np.minimum(self.now, self.levels.min(1)))))

    def band(self, share: float = 0.9) -> tuple[Floats, Floats]:
        """Between which a value will lie with this probability: low and high `[moments]`."""
        low, high = np.quantile(self.values, [(1 - share) / 2, (1 + share) / 2], axis=0)
        return low, high

    def falls_below(self, value: float) -> float:
        """The probability that one of the coming values lies below this one."""
        return float(np.mean(self.values.min(1) < value))

    def falls_by(self, much: float) -> float:
        """The probability that the level comes down by more than this."""
        return float(np.mean(self.levels.min(1) < self.now - much))

    def ends_above(self, value: float) -> float:
        """The probability that the level ends above this value."""
        return float(np.mean(self.levels[:, -1] > value))


def forecast(times: Floats, values: Floats, ahead: Floats, noise: Floats | None = None) -> Forecast:
    """Futures of a loss at times ahead.

    `times` `[n]` rise, all above 0; `values` `[n]` are finite, at least `FEWEST`; `ahead` `[moments]` lie beyond the
    last time. `noise` `[n + moments]` says how large the noise is taken to be at each time, up to a factor that is found; by
    default it is the same at all. The same numbers give the same draws.
    """
    now, count = float(times[-1]), len(values)
    first = min(count - FEWEST, count - int(np.ceil(NEWEST * count)))
    spread = np.ones(count + len(ahead)) if noise is None else noise
    mixture = _explained(times[first:] / now, values[first:], spread[first:count])
    rng = np.random.default_rng(0)
    levels, noises = mixture.drawn(np.concatenate([[1.0], ahead / now]), rng)
    errors = noises[:, None] * spread[count:] * rng.standard_normal((DRAWS, len(ahead)))
    deviation = float(np.sqrt(np.mean(noises**2)) * spread[count - 1])
    return Forecast(ahead, levels[:, 1:], levels[:, 1:] + errors, levels[:, 0], deviation)


def _columns(t: Floats) -> Floats:
    """`[models, 3, n]`: 1, s(t) and t − 1, of which a model takes what its mask says; s and t are 0 now."""
    shapes = np.concatenate([t ** -POWERS[:, None], np.exp(-(t - 1) / SCALES[:, None])]) - 1
    shapes = np.concatenate([np.zeros((1, len(t))), shapes])
    return np.stack([np.ones_like(shapes), shapes, np.broadcast_to(t - 1, shapes.shape)], axis=1)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """Explanations: each with its weight, coefficients a, b, d, their covariance, and the noise."""

    weights: Floats
    coefficients: Floats
    covariances: Floats
    variances: Floats
    models: npt.NDArray[np.int64]
    """[explanations]: the shape of each, by its place among the columns."""

    def drawn(self, t: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Levels `[draws, times]` and deviations of the noise `[draws]`."""
        chosen = np.sort(rng.choice(len(self.weights), size=DRAWS, p=self.weights))
        roots = _root(self.covariances[chosen])
        drawn = self.coefficients[chosen] + np.einsum("dij,dj->di", roots, rng.standard_normal((DRAWS, 3)))
        drawn[:, 1:] = np.maximum(0.0, drawn[:, 1:])  # the sign that they are known to have
        levels = np.einsum("di,dit->dt", drawn, _columns(t)[self.models[chosen]])
        return levels, np.sqrt(self.variances[chosen])


def _explained(t: Floats, v: Floats, spread: Floats) -> _Mixture:
    """All explanations whose signs are allowed, where the noise at each time is of this size up to a factor."""
    columns = _columns(t)
    masks = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=bool)
    pairs = [(k, mask) for k in range(len(columns)) for mask in masks if mask[1] == (k > 0)]
    models = np.array([k for k, _ in pairs])
    used = np.array([mask for _, mask in pairs])
    X = columns[models] * used[:, :, None]
    weights = spread**-2
    for _ in range(3):
        solved = _least_squares(X, used, v, weights)
        best = int(np.argmin(solved[2]))
        residuals = (v - solved[0][best] @ X[best]) / spread
        deviation = 1.4826 * np.median(np.abs(residuals)) + 1e-12 * np.abs(v).max()  # of normal noise (MAD)
        shares = np.minimum(1.0, HUBER / np.maximum(np.abs(residuals) / max(deviation, 1e-300), 1e-9))
        weights = shares / spread**2
    coefficients, inverses, sums = solved
    count, used_up = float(shares.sum()), used.sum(1)
    sums = sums + 1e-12 * float(weights @ v**2) + 1e-300
    variances = sums / np.maximum(1.0, count - used_up)
    evidence = OF_SHAPES * (-count / 2 * np.log(sums / count) - used_up / 2 * np.log(count))
    evidence -= np.where(used[:, 1], np.log(len(columns) - 1), 0.0)  # any shape, as likely as none
    evidence += np.where(used[:, 2], np.log(RISES), np.log(1 - RISES))
    evidence[(coefficients[:, 1:] < 0).any(1)] = -np.inf
    likely = np.exp(evidence - evidence.max())
    return _Mixture(
        likely / likely.sum(), coefficients, inverses * variances[:, None, None] / OF_ERRORS, variances, models
    )


def _least_squares(X: Floats, used: npt.NDArray[np.bool_], v: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighted least squares of every model at once: coefficients, (XᵀWX)⁻¹, sums of squared residuals."""
    scale = np.sqrt(np.einsum("kin,n->ki", X**2, weights))
    scale[~used] = 1.0
    scaled = X / scale[:, :, None]
    gram = np.einsum("kin,n,kjn->kij", scaled, weights, scaled) + 1e-10 * np.eye(3)
    gram[:, range(3), range(3)] += ~used  # what a model leaves out stays 0
    inverse = np.linalg.inv(gram)
    coefficients = np.einsum("kij,kjn,n->ki", inverse, scaled, weights * v)
    residuals = v - np.einsum("ki,kin->kn", coefficients, scaled)
    inverse = inverse * (used[:, :, None] & used[:, None, :])
    return coefficients / scale, inverse / (scale[:, :, None] * scale[:, None, :]), (residuals**2) @ weights


def _root(covariances: Floats) -> Floats:
    """The symmetric square roots of matrices `[…, 3, 3]`, singular ones too; of all roots the one that is unique."""
    values, vectors = np.linalg.eigh(covariances)
    roots: Floats = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    return roots
