"""What a step of Muon, SOAP and K-FAC consists of, on the problems of this bench: where the time of a rule goes.

    taskset -c 0 python benchmarks/rules/parts.py [--data ../shared/data] [--steps 60]

One thread; milliseconds of a step, and the share of each part, means over the steps. For Muon: the gradient, the
products that make momentum orthogonal, and the rest of the update; and what the products come to, 4 (2m²n + m³)
multiplications for each matrix [m, n]. For SOAP: the gradient, the step in the basis and back, statistics with leading
directions, bases of all directions, and the rest. Results go to benchmarks/results/rules-parts.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from entrants import ENTRANTS
from problems import CACHE, DATA, PROBLEMS
from worker import batches, step

from thalweg.optim import muon, soap

sys.path.append(str(Path(__file__).parents[1]))  # for what the benchmarks share
from machine import machine

FILE = Path(__file__).parents[1] / "results" / "rules-parts.json"
OF_KFAC = {
    "gradient": "_gradient", "factors": "_take_factors", "inverses": "_invert", "direction": "_direction",
    "length": "_length", "moving": "_move",
}  # fmt: skip
OF_UPDATE = {
    "muon": {"products": (muon, "orthogonal")},
    "soap": {"direction": (soap, "direction"), "statistics": (soap, "learn"), "bases": (soap, "refresh")},
}
ASKED = {
    "autoencoder": ("muon", "soap", "kfac"), "digits_autoencoder": ("muon", "soap", "kfac"),
    "housing": ("muon", "soap", "kfac"), "cnn": ("muon", "soap", "kfac"), "transformer": ("muon", "soap"),
    "lstm": ("muon", "soap"),
}  # fmt: skip
WARM = 10
"""Steps before the first that counts."""


@contextmanager
def timed(where: Any, name: str, spent: dict[str, float], word: str) -> Iterator[None]:
    """Adds up what a function takes, under a word."""
    before: Callable[..., Any] = getattr(where, name)

    def watched(*args: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        found = before(*args, **options)
        spent[word] += time.perf_counter() - begun
        return found

    setattr(where, name, watched)
    try:
        yield
    finally:
        setattr(where, name, before)


def shares(problem_name: str, rule: str, folder: Path, cache: Path, steps: int) -> dict[str, float]:
    """Milliseconds of a step, and the share of each part."""
    problem, entrant = PROBLEMS[problem_name], ENTRANTS[rule]
    train = tuple(t.float() if t.is_floating_point() else t for t in problem.read(folder, cache)[0])
    model = problem.model(0)
    optimizer = entrant.make(model, problem.loss, entrant.rate)
    spent: dict[str, float] = defaultdict(float)
    parts = [(optimizer, name, word) for word, name in OF_KFAC.items()] if rule == "kfac" else []
    if rule in OF_UPDATE:
        parts = [(*of, word) for word, of in OF_UPDATE[rule].items()] + [(optimizer, "step", "update")]
    total = 0.0
    with ExitStack() as stack:
        for where, name, word in parts:
            stack.enter_context(timed(where, name, spent, word))
        for number, batch in enumerate(batches(problem, entrant, train, 0)):
            if number == WARM:
                total = 0.0
                spent.clear()
            if number == WARM + steps:
                break
            begun = time.perf_counter()
            step(entrant, optimizer, model, problem, batch)
            total += time.perf_counter() - begun
    found: dict[str, float] = {}
    if rule in OF_UPDATE:
        spent["gradient"] = total - spent["update"]
        spent["rest"] = spent.pop("update") - sum(spent[word] for word in OF_UPDATE[rule])
    if rule == "muon":
        sizes = [
            sorted((p.shape[0], p.numel() // p.shape[0])) for p in optimizer.state if "momentum" in optimizer.state[p]
        ]
        found["billions of multiplications"] = round(4e-9 * sum(2 * m * m * n + m**3 for m, n in sizes), 4)
    return found | {"ms": round(1e3 * total / steps, 3)} | {word: round(s / total, 3) for word, s in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = {}
    for problem, rules in ASKED.items():
        for rule in rules:
            found.setdefault(problem, {})[rule] = shares(problem, rule, options.data, options.cache, options.steps)
            print(problem, rule, found[problem][rule], flush=True)
    told = {"command": "benchmarks/rules/parts.py", "machine": machine("torch", "thalweg"), "steps": options.steps}
    FILE.write_text(json.dumps(told | {"parts": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
