"""What kind of point a model stands at: slope, plateau, saddle or minimum, and the numbers that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS = ("slope", "plateau", "saddle", "minimum")


@dataclass(frozen=True, slots=True)
class Plane:
    """The loss over a plane through the point, which lies at (0, 0); of a run, the plane of its path to that point."""

    x: tuple[float, ...]
    """Distances from the point along the first direction, in units of the weights."""
    y: tuple[float, ...]
    """The same along the second."""
    loss: tuple[tuple[float, ...], ...]
    """[len(y), len(x)]; not finite where the loss overflows."""
    x_label: str
    y_label: str

    sentence: str = ""
    """For a person, where the plane stands by itself."""
    steps: tuple[int, ...] = ()
    """Of a run: the steps after which its weights were kept."""
    path: tuple[tuple[float, float], ...] = ()
    """[len(steps), 2]: where these weights lie, seen from straight above the plane."""
    path_loss: tuple[float, ...] = ()
    """[len(steps)]: the loss in the plane at these places."""
    explained: tuple[float, float] | None = None
    """Shares of the path's variance that the two directions hold."""
    num_examples: int | None = None
    """Examples that the loss of a path's plane is of."""

    def plot(self) -> Any:
        """The loss over the plane, as contours and as a surface, with the path or the point: a plotly figure."""
        from thalweg.reports.landscape import figure

        return figure(self)


@dataclass(frozen=True, slots=True)
class Landscape:
    """`kind` in one word, `sentence` for a person; everything in the units of the loss and of the weights.

    The loss is that of `num_examples` examples, in evaluation mode. Shares are of `loss_scale`.
    """

    kind: str
    sentence: str

    loss: float
    loss_scale: float
    """What is much for this loss: the loss if each output stood for another example, or the loss itself if larger."""
    gradient_norm: float
    gradient_error: float
    """Standard error of the gradient as an estimate from these examples, as a norm."""
    noise_scale: float
    """Simple noise scale tr Σ/|G|² [examples] (McCandlish et al. 2018): the batch at which noise equals signal."""

    largest_eigenvalue: float
    largest_eigenvalue_error: float
    smallest_eigenvalue: float
    smallest_eigenvalue_error: float
    trace: float
    trace_error: float
    """One standard error."""
    max_stable_learning_rate: float
    """2/λ_max, above which plain gradient descent leaves along the steepest curvature; infinite where none rises."""

    descent: float
    """Share by which the loss fell when a step along gradient and curvature was tried."""
    escape: float
    """Share by which the loss fell when both ways along the most negative curvature were tried."""
    flatness: float
    """Share by which the loss would change, to second order, if all weights changed by their own size."""

    num_examples: int
    num_parameters: int
    num_products: int
    """Hessian products that it took."""
    plane: Plane | None = None
    """The loss over the plane of the two extreme eigenvectors."""

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def plot(self) -> Any:
        """The loss around the point, as contours and as a surface: a plotly figure.

        Raises:
            ValueError: no picture was taken.
        """
        from thalweg.reports.landscape import figure

        if self.plane is None:
            raise ValueError("no picture was taken of this point: ask for landscape(..., picture=True)")
        return figure(self.plane, self.sentence, self.loss)
