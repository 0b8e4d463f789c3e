"""Trainings that fail, each for a reason of its own, and the same with repair="full".

    python benchmarks/clinic/stories.py [--only TEXT …] [--seeds 0 1 2] [--picture docs/pictures/stories.svg]

Data of the first seven are made up, so that each story is alone with its reason; the last two are the demo cases that
AUTOTRAINER comes with, from their stored weights and settings, and are left out where their folder is absent. Printed
are the final losses without and with repair, and what was changed; the results go to
benchmarks/results/clinic-stories.json.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DATA
from torch import Tensor, nn
from torch.utils.data import Dataset

import thalweg

sys.path.append(str(Path(__file__).parents[1] / "step"))  # for what the benchmarks share
from tables import machine, ours, save

#: Points of a curve at most.
POINTS = 200
FILE = Path(__file__).parents[1] / "results" / "clinic-stories.json"


@dataclass(frozen=True)
class Story:
    """One training, and the loss below which it has succeeded."""

    title: str
    model: Callable[[], nn.Module]
    data: Callable[[], Any]
    loss: Any
    words: dict[str, Any] = field(default_factory=dict)
    reached: float = 0.5
    """A loss that only a training that works comes below: the training loss; of the demo cases the validation loss, a
    little above those of the clinic's healthy references on the same points (0.34 to 0.38, and 0.36 to 0.39, measured
    by hand).
    """
    held_out: Callable[[], Any] | None = None
    """Validation data, where the case comes with some."""
    needs: Path | None = None
    """A folder without which there is no such story."""


def classes(count: int, features: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian inputs, and the largest of as many random directions."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator)
    return x, (x @ torch.randn(features, num_classes, generator=generator)).argmax(1)


def deep_sigmoid() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(10, 32), nn.Sigmoid()]
    for _ in range(29):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(32, 3))


def deep_cnn() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    for _ in range(48):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))


def stripes(count: int = 400) -> tuple[Tensor, Tensor]:
    """Images 8 × 8 of stripes that lie or stand."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (count,), generator=generator)
    wave = torch.sin(torch.arange(8) * 1.6 + 6.3 * torch.rand(count, 1, generator=generator))
    lying = wave[:, :, None].expand(-1, 8, 8)
    x = torch.where(y[:, None, None] == 0, lying, lying.transpose(1, 2))
    return (x + 0.3 * torch.randn(count, 8, 8, generator=generator))[:, None], y


class Memory(nn.Module):
    """An LSTM that answers after its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(2, 24, batch_first=True)
        self.out = nn.Linear(24, 1)
        with torch.no_grad():  # a gate that forgets from the first
            for name, p in self.cell.named_parameters():
                if name.startswith("bias"):
                    p[24:48].fill_(-3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0][:, -1])


def long_memory(count: int = 256, length: int = 500) -> tuple[Tensor, Tensor]:
    """Class 1 where the first number of the sequence is above zero."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(count, length, 2, generator=generator)
    sign = torch.randint(0, 2, (count,), generator=generator).float() * 2 - 1
    x[:, :10, 0] = sign[:, None]
    return x, (sign > 0).float()[:, None]


def at_its_saddle() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False))
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def linear_map(count: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator)
    return x, x @ torch.randn(8, 4, generator=generator)


def in_a_minimum() -> nn.Module:
    """Two units, of which both have died for most points: one line cannot part four corners."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([-1.5, -1.6, -1.7]))
        model[2].weight.fill_(0.3)
    return model


def exclusive_or(count: int = 400) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 2, (count, 2), generator=generator).float() * 2 - 1
    return corner + 0.2 * torch.randn(count, 2, generator=generator), (corner.prod(1, keepdim=True) > 0).float()


class Reader(nn.Module):
    """A Transformer of two layers with the norms behind the sums, which wants a warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 32)
        self.place = nn.Parameter(torch.zeros(12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.embed(x) + self.place)[:, -1])


def copied(count: int = 1000) -> tuple[Tensor, Tensor]:
    """The letter after the mark (letter 0) is to be said."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(1, 16, (count, 12), generator=generator)
    at = torch.randint(0, 11, (count,), generator=generator)
    rows = torch.arange(count)
    x[rows, at] = 0
    return x, x[rows, at + 1]


class OneBadBatch(Dataset):  # type: ignore[type-arg]
    """Examples of which one is broken on one pass over them: it holds an infinite number."""

    def __init__(self) -> None:
        self.x, self.y = classes(4000, 20, 3)
        self.drawn = 0

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        self.drawn += 1
        x = self.x[i]
        return (x * torch.inf if i == 7 and 31_000 < self.drawn <= 35_000 else x), self.y[i]


def plain_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


CASES = (DATA / "tabular" / "autotrainer").resolve()


def stored(case: str, hidden: type[nn.Module], last: nn.Module) -> nn.Module:
    """A network of dense layers with the weights that came with a demo case."""
    with np.load(CASES / f"{case}.npz") as arrays:
        kernels = [torch.tensor(arrays[f"dense_{i + 1}/kernel"]) for i in range(len(arrays.files) // 2)]
        biases = [torch.tensor(arrays[f"dense_{i + 1}/bias"]) for i in range(len(kernels))]
    layers: list[nn.Module] = []
    for kernel, bias in zip(kernels, biases, strict=True):
        layer = nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(kernel.T)
            layer.bias.copy_(bias)
        layers += [layer, hidden()]
    return nn.Sequential(*layers[:-1], last)


def points(name: str, part: str = "") -> tuple[Tensor, Tensor]:
    with np.load(CASES / f"{name}.npz") as arrays:
        x, y = (torch.tensor(arrays[letter + part], dtype=torch.float32) for letter in "xy")
    return x, y if y.ndim == 2 else y[:, None]


STORIES = (
    Story("30-layer sigmoid MLP", deep_sigmoid, lambda: classes(800, 10, 3), "cross_entropy",
          {"optimizer": "adam", "learning_rate": 1e-3, "epochs": 30, "batch_size": 32}),
    Story("50-layer plain CNN", deep_cnn, stripes, "cross_entropy",
          {"optimizer": "momentum", "learning_rate": 0.01, "epochs": 20, "batch_size": 32}, 0.35),
    Story("LSTM over 500 steps", Memory, long_memory, "binary_cross_entropy",
          {"optimizer": "adam", "learning_rate": 3e-3, "epochs": 25, "batch_size": 32}, 0.35),
    Story("deep linear network at its saddle", at_its_saddle, linear_map, "mse",
          {"optimizer": "momentum", "learning_rate": 0.01, "epochs": 30, "batch_size": 32}),
    Story("XOR net in a local minimum", in_a_minimum, exclusive_or, "binary_cross_entropy",
          {"optimizer": "momentum", "learning_rate": 0.05, "epochs": 40, "batch_size": 32}, 0.35),
    Story("Transformer at ten times its rate", Reader, copied, "cross_entropy",
          {"optimizer": "adam", "learning_rate": 0.02, "epochs": 30, "batch_size": 32}, 1.0),
    Story("one bad batch at step 1,000", plain_mlp, OneBadBatch, "cross_entropy",
          {"optimizer": "momentum", "learning_rate": 0.02, "epochs": 24, "batch_size": 32}, 0.02),
    Story("AUTOTRAINER's vanishing gradient", lambda: stored("gradient-vanish-demo", nn.Sigmoid, nn.Sigmoid()),
          lambda: points("circle"), nn.BCELoss(),
          {"optimizer": "adam", "learning_rate": 1e-3, "epochs": 300, "batch_size": 128}, 0.4,
          lambda: points("circle", "_val"), CASES),
    Story("AUTOTRAINER's oscillating loss", lambda: stored("oscillating-loss-demo", nn.ReLU, nn.Softmax(-1)),
          lambda: points("blob"), "categorical_cross_entropy",
          {"optimizer": "momentum", "learning_rate": 0.01, "epochs": 200, "batch_size": 1}, 0.4,
          lambda: points("blob", "_val"), CASES),
)  # fmt: skip


def told(story: Story, repair: str, seed: int) -> Any:
    """The story's training with a level of repair."""
    torch.manual_seed(seed)
    model = story.model()
    with tempfile.TemporaryDirectory() as folder:
        return thalweg.fit(
            model, story.data(), story.loss, schedule="constant", patience=None, repair=repair, seed=seed,
            verbose=False, plan="eager", run_dir=Path(folder) / "run",
            validation_data=story.held_out() if story.held_out else None, **story.words,
        )  # fmt: skip


def final(run: Any) -> float:
    """The training loss of the last epoch; with validation data the loss there of the network that is handed over."""
    return float(run.metrics.get("validation_loss", run.metrics["loss"]))


def means(steps: Any, values: Any) -> tuple[list[float], list[float]]:
    """A curve in at most `POINTS` points: the means of so many reports in a row, at the first of them."""
    every = -(-len(steps) // POINTS)
    firsts = range(0, len(steps), every)
    return [float(steps[i]) for i in firsts], [float(values[i : i + every].mean()) for i in firsts]


def picture(runs: dict[str, tuple[Any, Any]], path: Path) -> None:
    """The training losses of all stories, without repair and with it, as one figure."""
    width, height, columns = 330, 200, 4
    rows = -(-len(runs) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * columns}" height="{height * rows + 24}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (title, pair) in enumerate(runs.items()):
        x0, y0 = width * (number % columns) + 52, height * (number // columns) + 30
        w, h = width - 76, height - 62
        series = [means(*run.history.series("loss")) for run in pair]
        values = [v for _, vs in series for v in vs if 0 < v < 1e6]
        low, high = max(min(values), 1e-4), min(max(values), 1e3)
        last = max(int(s[-1]) for s, _ in series)
        scale = (torch.tensor([high]).log() - torch.tensor([low]).log()).item() or 1.0
        parts.append(f'<text x="{x0}" y="{y0 - 10}" font-weight="bold">{title}</text>')
        parts.append(f'<rect x="{x0}" y="{y0}" width="{w}" height="{h}" fill="none" stroke="#bbb"/>')
        for (steps, vs), colour in zip(series, ("#b4442f", "#1f6f78"), strict=True):
            points = []
            for s, v in zip(steps, vs, strict=True):
                if math.isfinite(v):
                    clipped = min(max(v, low), high)
                    up = (torch.tensor(clipped).log() - torch.tensor(low).log()).item() / scale
                    points.append(f"{x0 + w * s / last:.1f},{y0 + h * (1 - up):.1f}")
            parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        for action in pair[1].actions:
            if action.kept:
                at = x0 + w * action.step / last
                parts.append(
                    f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{y0}" y2="{y0 + h}" '
                    'stroke="#1f6f78" stroke-dasharray="3 3"/>'
                )
        parts.append(f'<text x="{x0 - 4}" y="{y0 + 8}" text-anchor="end">{high:.2g}</text>')
        parts.append(f'<text x="{x0 - 4}" y="{y0 + h}" text-anchor="end">{low:.2g}</text>')
        parts.append(f'<text x="{x0 + w}" y="{y0 + h + 13}" text-anchor="end">{last:,} updates</text>')
    y = height * rows + 14
    parts.append(f'<text x="36" y="{y}" fill="#b4442f">loss without repair</text>')
    parts.append(f'<text x="160" y="{y}" fill="#1f6f78">with repair="full"; dashed where it was mended</text></svg>')
    path.write_text("\n".join(parts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, drawn = [], {}
    print("| story | seed | loss without | with repair | below | changed |\n|---|---|---|---|---|---|")
    for story in STORIES:
        if not any(text in story.title for text in options.only) or (story.needs and not story.needs.exists()):
            continue
        for seed in options.seeds:
            pair = told(story, "off", seed), told(story, "full", seed)
            drawn.setdefault(story.title, pair)
            kept = [[a.code, a.step, dict(a.after)] for a in pair[1].actions if a.kept]
            losses = [final(run) for run in pair]
            rows.append({"story": story.title, "seed": seed, "off": losses[0], "full": losses[1],
                         "reached": story.reached, "changed": kept})  # fmt: skip
            words = "; ".join(f"{name} at {step}" for name, step, _ in kept) or "nothing"
            print(
                f"| {story.title} | {seed} | {losses[0]:.3g} | {losses[1]:.3g} | {story.reached} | {words} |",
                flush=True,
            )
    if options.picture:
        picture(drawn, options.picture)
    if options.only == [""]:
        save(FILE, {"machine": machine(), "thalweg": ours(), "command": " ".join(sys.argv), "stories": rows})


if __name__ == "__main__":
    main()
