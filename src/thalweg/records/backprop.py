"""What became of the gradient on its way from the loss to the first layer: a row for each call of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: A gradient that arrives this many times smaller or larger than it left is called vanishing or exploding: across it,
#: no single learning rate moves the first and the last layer alike.
FACTOR = 1e4


@dataclass(frozen=True, slots=True)
class LayerFlow:
    """One call of a layer y = f(x, w), seen from behind. All norms are Euclidean, over the whole batch.

    What a layer does not have is None: weights that are trained, or an input that a gradient can go to.
    """

    name: str
    kind: str
    signal: float | None
    """Root mean square of the incoming activations x."""
    jacobian: float | None
    """|∂J/∂x| / |∂J/∂y|: how much the layer grows (above 1) or shrinks (below 1) the gradient on its way down; None
    also where nothing arrives."""
    output_gradient: float
    """|∂J/∂y|, what arrives."""
    input_gradient: float | None
    """|∂J/∂x|, what goes on: this layer's share where x is used elsewhere too."""
    weight_gradient: float | None
    """|∂J/∂w|, what is left behind for the weights: this call's share where they are used elsewhere too."""
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()


_COLUMNS: tuple[tuple[str, Callable[[LayerFlow], float | None]], ...] = (
    ("signal x", lambda row: row.signal),
    ("|∂J/∂y|", lambda row: row.output_gradient),
    ("growth |∂y/∂x|", lambda row: row.jacobian),
    ("|∂J/∂x|", lambda row: row.input_gradient),
    ("|∂J/∂w|", lambda row: row.weight_gradient),
)


@dataclass(frozen=True, slots=True)
class Backprop:
    """The sweep in the order it was made, the output layer first; and the loss it started from."""

    rows: tuple[LayerFlow, ...]
    loss: float

    @property
    def growth(self) -> float:
        """How many times larger the gradient is at the first layer than at the output; below 1 it has shrunk.

        From what arrives at the output layer to what arrives at the first layer.
        """
        if not self.rows or not self.rows[0].output_gradient:
            return math.nan
        return self.rows[-1].output_gradient / self.rows[0].output_gradient

    @property
    def sentence(self) -> str:
        """What it comes to, for a person."""
        growth = self.growth
        if not self.rows:
            return "No layer was passed on the way."
        if not all(math.isfinite(row.output_gradient) for row in self.rows):
            broken = next(row.name for row in self.rows if not math.isfinite(row.output_gradient))
            return f"The gradient is not finite from {broken} on."
        if math.isnan(growth):
            return "The gradient is zero at the output: there is nothing to learn from."
        if growth == 0:
            dead = next(row.name for row in self.rows if row.output_gradient == 0)
            return f"The gradient is zero from {dead} on."
        way = f"from {self.rows[0].name} to {self.rows[-1].name}"
        if growth < 1 / FACTOR:
            return f"The gradient vanishes: {way} it becomes {_number(1 / growth)} times smaller."
        if growth > FACTOR:
            return f"The gradient explodes: {way} it becomes {_number(growth)} times larger."
        return f"The gradient arrives: {way} it changes by a factor of {_number(growth)}."

    def table(self) -> str:
        """The rows as aligned text, the output layer on top.

        >>> row = LayerFlow("out", "Linear", 1.0, 0.5, 2.0, 1.0, 3.0, (8, 4), (8, 2))
        >>> print(Backprop((row,), 0.25).table())
        layer  kind    output  signal x  |∂J/∂y|  growth |∂y/∂x|  |∂J/∂x|  |∂J/∂w|
        out    Linear  8×2            1        2             0.5        1        3
        <BLANKLINE>
        Loss 0.25. The gradient arrives: from out to out it changes by a factor of 1.
        """
        heading = ["layer", "kind", "output", *[name for name, _ in _COLUMNS]]
        lines = [
            [row.name, row.kind, _shape(row.output_shape), *[_cell(f(row)) for _, f in _COLUMNS]] for row in self.rows
        ]
        return f"{aligned([heading, *lines], words=3)}\n\nLoss {_number(self.loss)}. {self.sentence}"

    def plot(self) -> Any:
        """A plotly figure, first layer on the left: what arrives at each layer and stays there, and each growth.

        The scale is logarithmic, so that a gradient that vanishes or explodes is a slope, and the layer to blame lies
        far from 1 in the lower picture.
        """
        from thalweg.reports.chart import Chart, Line, Mark
        from thalweg.reports.figures import figure

        rows = self.rows[::-1]
        places = tuple(float(place) for place in range(len(rows)))

        def line(name: str, value: Callable[[LayerFlow], float | None], colour: int) -> Line:
            # A logarithm has no place for zero: the line has a gap there.
            values = tuple(math.nan if not (v := value(row)) or not math.isfinite(v) else v for row in rows)
            return Line(name, places, values, colour, dotted=True)

        far = [(i, row) for i, row in enumerate(rows) if row.jacobian is not None and not 0.1 <= row.jacobian <= 10]
        marks = tuple(Mark(float(i), "shrinks" if (row.jacobian or 0) < 1 else "grows", problem=True) for i, row in far)
        flow = (
            line("∂J/∂y, arrives", lambda row: row.output_gradient, 0),
            line("∂J/∂w, stays", lambda row: row.weight_gradient, 1),
            line("signal x", lambda row: row.signal, 2),
        )
        ones = Line("1", places, (1.0,) * len(rows), 3, faint=True)
        growth = (line("growth", lambda row: row.jacobian, 0), ones)
        drawn = figure(
            [
                Chart("Gradient at each layer", "", flow, log_y=True),
                Chart("Growth of the gradient through each layer, |∂J/∂x| / |∂J/∂y|", "", growth, marks, log_y=True),
            ],
            self.sentence,
        )
        drawn.update_xaxes(tickmode="array", tickvals=places, ticktext=[row.name for row in rows])
        drawn.update_yaxes(exponentformat="power")
        return drawn.update_layout(showlegend=True, height=720)


def aligned(lines: Sequence[Sequence[str]], words: int) -> str:
    """Columns of one width each; the first `words` to the left, numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _cell(value: float | None) -> str:
    return "–" if value is None else _number(value)


def _number(value: float) -> str:
    return f"{value:.3g}"
