"""What part of an eager step is convolutions, matrix products and recurrent layers: what only another library shortens.

    python benchmarks/tasks/bound.py --data DIR [--lines mnist housing …]

By torch's profiler, over a few steps of the loop by hand, at the batch size that our run took
(benchmarks/results/tasks.json). Printed, and kept in benchmarks/results/tasks-bound.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lines import BY_NAME, Line
from torch.profiler import ProfilerActivity, profile
from worker import batches_by_hand

import thalweg
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from machine import machine  # noqa: E402

RESULTS = HERE.parent / "results"
#: Operators by the beginnings of their names.
BOUND = ("aten::mkldnn_convolution", "aten::convolution", "aten::_slow_conv", "aten::mm", "aten::addmm", "aten::bmm",
         "aten::baddbmm", "aten::mkldnn_rnn", "aten::_scaled_dot", "aten::thnn_conv", "aten::_conv")  # fmt: skip
WARM, STEPS = 3, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lines", nargs="+", choices=sorted(BY_NAME), default=sorted(BY_NAME))
    asked = parser.parse_args()
    own = json.loads((RESULTS / "tasks.json").read_text())["cells"]
    path = RESULTS / "tasks-bound.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in asked.lines:
            share = measured(BY_NAME[name], asked.data, Path(scratch), own[f"{name}/ours"]["batch_size"])
            found[name] = {**share, "machine": machine("torch", "thalweg")}
            print(f"{name}: {share['share']:.2f} of {share['milliseconds']:.0f} ms", flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")


def measured(line: Line, data: Path, scratch: Path, size: int) -> dict[str, Any]:
    """Share of those operators in the time of all, and milliseconds of a step."""
    given = thalweg.recipe(line.task, data=str(line.folder(data, scratch)), **line.options).arguments
    model, loss = given["model"].train(), resolve(given["loss"]) if given.get("loss") is not None else None
    batches, _ = batches_by_hand(given, size)
    rule = torch.optim.AdamW(model.parameters(), lr=1e-3)
    forward, drawn = Forward(model), batches.epoch(0)

    def step() -> None:
        x, y = next(drawn)
        rule.zero_grad()
        (forward.own_loss(x, y) if loss is None else loss(forward(x), y)).backward()
        rule.step()

    for _ in range(WARM):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    times = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    bound = sum(spent for name, spent in times.items() if name.startswith(BOUND))
    return {"share": bound / sum(times.values()), "milliseconds": sum(times.values()) / STEPS / 1000}


if __name__ == "__main__":
    main()
