"""Every rule on its way down a badly conditioned valley and off a saddle: a picture, and the table of docs/rules.md.

    python benchmarks/rules/trajectories.py      # five minutes; writes results, the picture and the page

Both surfaces are sums of squares of two residuals, so that rules of the second order have what they need. The valley is
Rosenbrock's, r = (1 − x, 10(y − x²)), from (−1.2, 1); at its floor the Hessian's condition number is 2,500. The saddle
is that of r = (x, (y² − 1)/√2) at (0, 0), whose curvatures are 1 and −1; the start, (0.6, 0.001), lies beside a ridge,
and the minima at y = ±1. Each rule has the best of 22 rates, three a decade from 1e-5 to 100: the one that reaches the
goal in the fewest steps; L-BFGS and Gauss–Newton, which find the length of a step themselves, have the rate 1. The goal
is a loss below 1e-4 (both minima are at 0), the limit 2,000 steps.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
from machine import machine  # noqa: E402
from thalweg.optim.catalogue import RULES, build  # noqa: E402
from thalweg.reports.contours import loops  # noqa: E402

ROOT = HERE.parents[1]
RESULTS = HERE.parent / "results" / "rules-trajectories.json"
PICTURE, PAGE = ROOT / "docs" / "pictures" / "trajectories.svg", ROOT / "docs" / "rules.md"
GOAL, LIMIT = 1e-4, 2000
RATES = np.geomspace(1e-5, 100, 22).tolist()
BEGIN, END = "<!-- benchmarks/rules/trajectories.py -->\n", "<!-- end -->\n"
#: What is drawn; matrix rules move two numbers as AdamW does, and K-FAC finds no layer in them.
DRAWN = {
    "sgd": "#8a8f94", "momentum": "#0b62a8", "adam": "#c94f00", "rmsprop": "#a34a80", "lbfgs": "#00795a",
    "gauss_newton": "#1c2024",
}  # fmt: skip
LEFT_OUT = ("soap", "muon", "kfac", "adafactor")


@dataclass(frozen=True)
class Surface:
    """J(x, y) = ½‖r(x, y)‖² with where it begins and what of it is drawn."""

    name: str
    residuals: Callable[[Tensor], Tensor]
    start: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]


SURFACES = (
    Surface(
        "valley", lambda p: torch.stack([1 - p[0], 10 * (p[1] - p[0] ** 2)]), (-1.2, 1.0), (-1.6, 1.4), (-0.5, 2.0)
    ),
    Surface(
        "saddle", lambda p: torch.stack([p[0], (p[1] ** 2 - 1) / math.sqrt(2)]), (0.6, 1e-3), (-0.5, 0.8), (-0.2, 1.3)
    ),
)


class Point(nn.Module):
    """Two numbers as a model: inputs pick which of the residuals to put out."""

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor(surface.start, dtype=torch.float64))
        self.residuals = surface.residuals

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[2, 2]`, the unit matrix → `[2, 1]`."""
        return (x @ self.residuals(self.place)).unsqueeze(1)


def way(name: str, rate: float, surface: Surface, limit: int = LIMIT) -> list[tuple[float, float]]:
    """Where a rule is after each step, until the goal, the limit, or beyond all bounds."""
    model = Point(surface)
    # The mean of two squared residuals is ½‖r‖²: what is drawn is the loss itself.
    x, y = torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    rule = build(name, model.named_parameters(), rate, {}, model, "mse")

    def closure() -> Tensor:
        rule.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    places = [surface.start]
    for _ in range(limit):
        if RULES[name].of_model:
            rule.step(x, y)  # type: ignore[call-arg]
        else:
            rule.step(closure)
        places.append(tuple(model.place.tolist()))
        with torch.no_grad():
            loss = float((model(x) - y).square().mean())
        if loss < GOAL or not math.isfinite(loss) or loss > 1e6:
            break
    return places


def reached(places: list[tuple[float, float]], surface: Surface) -> bool:
    return _loss(places, surface) < GOAL


def _loss(places: list[tuple[float, float]], surface: Surface) -> float:
    return float(0.5 * surface.residuals(torch.tensor(places[-1], dtype=torch.float64)).square().sum())


def best(name: str, surface: Surface) -> dict[str, Any]:
    """The way of a rule at its best rate."""
    rates = [1.0] if RULES[name].of_model or name == "lbfgs" else RATES
    found: dict[str, Any] = {"rate": None, "steps": None, "places": [surface.start]}
    for rate in rates[::-1]:
        places = way(name, rate, surface, (found["steps"] or LIMIT + 1) - 1)  # one that takes longer is not the best
        if reached(places, surface):
            found = {"rate": rate, "steps": len(places) - 1, "places": places}
        elif (
            found["steps"] is None and len(places) > LIMIT and _loss(places, surface) < _loss(found["places"], surface)
        ):
            found |= {"rate": rate, "places": places}  # as far as it came
    return found


def picture(found: dict[str, Any]) -> str:
    """Both surfaces with the ways of the rules that are drawn."""
    side, gap = 420, 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * side + 3 * gap} {side + 140}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, surface in enumerate(SURFACES):
        x0, y0 = gap + number * (side + gap), 40
        parts.append(f'<svg x="{x0}" y="{y0}" width="{side}" height="{side}" viewBox="0 0 {side} {side}">')
        parts += _levels(surface, side)
        for name, colour in DRAWN.items():
            parts.append(_way(found[surface.name][name]["places"], surface, side, colour))
        parts.append(f'</svg><rect x="{x0}" y="{y0}" width="{side}" height="{side}" fill="none" stroke="#b4b9be"/>')
        title = {"valley": "A badly conditioned valley (Rosenbrock)", "saddle": "Off a saddle"}[surface.name]
        parts.append(f'<text x="{x0}" y="{y0 - 12}" font-weight="600" font-size="15">{title}</text>')
        for row, (name, colour) in enumerate(DRAWN.items()):
            steps = found[surface.name][name]["steps"]
            words = f"{name.replace('_', '–')}: {f'{steps:,} steps' if steps else f'not in {LIMIT:,}'}"
            x, y = x0 + 215 * (row % 2), y0 + side + 26 + 22 * (row // 2)
            parts.append(f'<path d="M{x} {y - 4}h16" stroke="{colour}" stroke-width="3"/>')
            parts.append(f'<text x="{x + 21}" y="{y}" fill="#1c2024">{words}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _levels(surface: Surface, side: int) -> list[str]:
    """Filled level lines of the logarithm of the loss."""
    xs, ys = np.linspace(*surface.x, 81), np.linspace(*surface.y, 81)
    grid = torch.tensor(np.stack(np.meshgrid(xs, ys)))
    field = np.log10(0.5 * surface.residuals(grid).square().sum(0).numpy() + 1e-3)
    levels = np.linspace(field.min(), field.max(), 14)
    parts = []
    for number, level in enumerate(levels[:-1]):
        shade = round(253 - 3.5 * number)
        d = "".join(
            "M" + "L".join(_at(px, py, surface, side) for px, py in loop) + "z" for loop in loops(xs, ys, field, level)
        )
        grey = f"rgb({shade},{shade},{shade + 2})"
        parts.append(f'<path d="{d}" fill="{grey}" fill-rule="evenodd" stroke="#cfd3d6" stroke-width=".6"/>')
    return parts


def _at(x: float, y: float, surface: Surface, side: int) -> str:
    across = side * (x - surface.x[0]) / (surface.x[1] - surface.x[0])
    up = side * (1 - (y - surface.y[0]) / (surface.y[1] - surface.y[0]))
    return f"{min(max(across, -side), 2 * side):.1f} {min(max(up, -side), 2 * side):.1f}"


def _numbers(at: str) -> list[float]:
    return [float(word) for word in at.split()]


def _way(places: list[tuple[float, float]], surface: Surface, side: int, colour: str) -> str:
    kept = [_at(*places[0], surface, side)]
    for place in places[1:]:
        at = _at(*place, surface, side)
        if max(abs(a - b) for a, b in zip(_numbers(at), _numbers(kept[-1]), strict=True)) >= 1:  # a pixel
            kept.append(at)
    path = f'<path d="M{"L".join(kept)}" fill="none" stroke="{colour}" stroke-width="1.8" opacity=".85"/>'
    if len(places) > 40:
        return path
    return path + "".join(f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="2.4" fill="{colour}"/>' for p in kept)


def table(found: dict[str, Any], memory: dict[str, Any]) -> str:
    """A row for each rule of the catalogue."""
    head = "| rule | formula | rate | memory | valley | saddle | source |\n|---|---|---|---|---|---|---|"
    rows = []
    for name, rule in RULES.items():
        steps = ["–", "–"]
        if name not in LEFT_OUT:
            steps = [f"{found[s.name][name]['steps'] or f'> {LIMIT:,}'}" for s in SURFACES]
        kept = memory.get(name)
        formula = rule.summary.replace("|", "\\|")
        rows.append(
            f"| `{name}` | {formula} | {rule.learning_rate:g} | {'–' if kept is None else f'{kept:.2g}'} "
            f"| {steps[0]} | {steps[1]} | {rule.source} |"
        )
    return "\n".join([head, *rows]) + "\n"


def main() -> None:
    names = [name for name in RULES if name not in LEFT_OUT]
    found = {surface.name: {name: best(name, surface) for name in names} for surface in SURFACES}
    PICTURE.write_text(picture(found))
    brief = {
        surface: {name: {"rate": way["rate"], "steps": way["steps"]} for name, way in ways.items()}
        for surface, ways in found.items()
    }
    told = {"command": "benchmarks/rules/trajectories.py", "machine": machine("torch", "thalweg"), "steps": brief}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    memory = json.loads((HERE.parent / "results" / "rules-cost.json").read_text())["memory_over_adamw"]
    memory = next(sizes for network, sizes in memory.items() if network.startswith("MLP"))
    text = PAGE.read_text()
    PAGE.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n{table(found, memory)}\n{END}{text.split(END)[1]}")
    for surface, ways in brief.items():
        print(surface, {name: way["steps"] for name, way in ways.items()})


if __name__ == "__main__":
    main()
