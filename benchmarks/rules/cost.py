"""What a step of SOAP and of Muon costs beside the same rule elsewhere, and what each rule keeps in memory.

    python -m pip install -r benchmarks/rules/requirements.txt
    taskset -c 0 python benchmarks/rules/cost.py [--blocks 5] [--quick] [--memory]

Three networks are trained, each contender with a copy of its own, on the same batches; only `optimizer.step()` is
timed, in processor time of one thread, ten steps a block so that work done every tenth step is in each. After the first
steps, which each has to itself, contenders take turns step by step. A figure is the median over blocks of contender ÷
reference; the spread is the middle half of the ratios.

- SOAP as it comes, with leading directions of long sides, on every side (`budget=inf`), and with all directions, which
  is the same rule at the same settings: at most 0.33 of pytorch_optimizer's SOAP at the same rate, betas, period (10).
  Beside them: all directions, all in the weights' dtype, statistics in every step, no basis left as it is (`exact`).
- Muon: at most 0.5 of torch's with AdamW (fused) for what torch's does not take. torch's has five iterations, ours four
  of other coefficients.
- What SOAP adds to AdamW's step with a budget of 0.25, as a share of forward and backward: at most that, and 0.05.

Convolutions are given to the peers as matrices `[out, in·k·k]`, which is what ours makes of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parents[1]
sys.path.append(str(BENCHMARKS))  # for what the benchmarks share
from machine import machine  # noqa: E402
from thalweg.optim import SOAP, Muon  # noqa: E402
from thalweg.optim.catalogue import RULES, build  # noqa: E402
from thalweg.tensors.named import leaves  # noqa: E402

RESULTS = BENCHMARKS / "results" / "rules-cost.json"
RATE = 1e-3
WARM = 20
"""Steps before the first that is timed: what is decided at the start is decided, bases are found."""
STEPS = 10
"""Of a block."""


# ── networks and data ────────────────────────────────────────────────────────────────────────────────────────────────


class Characters(nn.Module):
    """A small Transformer over characters."""

    def __init__(self, width: int = 128, num_characters: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores `[batch · positions, characters]` of tokens `[batch, positions]`."""
        return self.head(self.blocks(self.embedding(tokens))).flatten(0, 1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def vectors(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """Inputs whose variances fall like 1/k along turned directions, as those of images do, and a teacher's classes."""
    d = math.prod(shape[1:])
    covariance, teacher = world(d)
    x = torch.randn(shape[0], d, generator=generator) @ covariance
    return x.view(shape), (x @ teacher).argmax(1)


@cache
def world(d: int) -> tuple[Tensor, Tensor]:
    """What turns white noise into inputs, and the teacher."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return (d / 7 / torch.arange(1, d + 1)).sqrt().unsqueeze(1) * Q, torch.randn(d, 10, generator=generator)


def characters(generator: torch.Generator, batch: int, positions: int) -> tuple[Tensor, Tensor]:
    """Walks over 64 characters, each of which has few successors."""
    successors = torch.randint(0, 64, (64, 4), generator=torch.Generator().manual_seed(0))
    walk = [torch.randint(0, 64, (batch,), generator=generator)]
    for _ in range(positions):
        walk.append(successors[walk[-1], torch.randint(0, 4, (batch,), generator=generator)])
    tokens = torch.stack(walk, 1)
    return tokens[:, :-1], tokens[:, 1:].flatten()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], tuple[Tensor, Tensor]]]] = {
    "MLP 784-512-512-10, batch 128": (mlp, lambda g: vectors(g, 128, 784)),
    "CNN 32-64-64-128, 3×16×16, batch 64": (cnn, lambda g: vectors(g, 64, 3, 16, 16)),
    "Transformer 4×128, batch 16×32": (Characters, lambda g: characters(g, 16, 32)),
}


# ── contenders ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Flat:
    """A peer that takes matrices only: it moves views `[out, in·k·k]` of the model's parameters."""

    def __init__(self, parameters: list[nn.Parameter], make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]):
        self.parameters = parameters
        self.views = [nn.Parameter(p.data.flatten(1) if p.ndim > 2 else p.data) for p in parameters]
        self.optimizer = make(self.views)

    def lend(self) -> None:
        """The gradients as they are now."""
        for p, view in zip(self.parameters, self.views, strict=True):
            view.grad = p.grad.view_as(view)  # type: ignore[union-attr]


@dataclass
class Contender:
    """A model, and what steps it."""

    model: nn.Module
    optimizers: list[Any]
    """Optimizers, or `Flat` ones."""
    times: list[float]
    passes: list[float]
    """Seconds of the last forward and backward passes."""

    def step(self, x: Tensor, y: Tensor) -> float:
        """Seconds of one step, forward and backward passes left out."""
        started = time.process_time()
        self.model.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.passes.append(time.process_time() - started)
        for optimizer in self.optimizers:
            if isinstance(optimizer, Flat):
                optimizer.lend()
        steps = [o.optimizer.step if isinstance(o, Flat) else o.step for o in self.optimizers]
        started = time.process_time()
        for step in steps:
            step()
        return time.process_time() - started


def exact(model: nn.Module) -> SOAP:
    return SOAP(model, RATE, rank=None, budget=None, statistics_period=1, tolerance=0.0)


def peer_soap(model: nn.Module) -> list[Any]:
    from pytorch_optimizer import load_optimizer  # type: ignore

    aside = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    ours = [p for p in model.parameters() if id(p) not in aside]
    rest = [p for p in model.parameters() if id(p) in aside]
    peer = load_optimizer("soap")
    made: list[Any] = [Flat(ours, lambda ps: peer(ps, lr=RATE, precondition_frequency=10))]
    return made + ([torch.optim.AdamW(rest, RATE, (0.95, 0.95), fused=True)] if rest else [])


def peer_muon(model: nn.Module) -> list[Any]:
    ours = Muon(model).param_groups[0]["params"]
    rest = [p for p in model.parameters() if all(p is not q for q in ours)]
    muon = Flat(ours, lambda ps: torch.optim.Muon(ps, RATE, 0.01, adjust_lr_fn="match_rms_adamw"))
    return [muon, torch.optim.AdamW(rest, RATE, fused=True)]


PROMISE, MARGIN = 0.25, 0.05
WITHIN = f"SOAP (thalweg, budget {PROMISE})"
CONTENDERS: dict[str, Callable[[nn.Module], list[Any]]] = {
    "AdamW (torch, fused)": lambda model: [torch.optim.AdamW(model.parameters(), RATE, fused=True)],
    "SOAP (pytorch_optimizer)": peer_soap,
    "SOAP (thalweg)": lambda model: [SOAP(model, RATE, budget=math.inf)],
    "SOAP (thalweg, all directions)": lambda model: [SOAP(model, RATE, rank=None, budget=math.inf)],
    "SOAP (thalweg, exact)": lambda model: [exact(model)],
    WITHIN: lambda model: [SOAP(model, RATE, budget=PROMISE)],
    "Muon (torch)": peer_muon,
    "Muon (thalweg)": lambda model: [Muon(model, RATE)],
}
RATIOS = [
    ("SOAP (thalweg)", "SOAP (pytorch_optimizer)", 0.33),
    ("SOAP (thalweg, all directions)", "SOAP (pytorch_optimizer)", 0.33),
    ("SOAP (thalweg, exact)", "SOAP (pytorch_optimizer)", None),
    ("Muon (thalweg)", "Muon (torch)", 0.5),
]


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure(name: str, blocks: int) -> list[dict[str, Any]]:
    """The rows of one network."""
    network, draw = NETWORKS[name]
    contenders = {}
    for word, make in CONTENDERS.items():
        torch.manual_seed(0)
        model = network()
        try:
            contenders[word] = Contender(model, make(model), [], [])
        except ModuleNotFoundError as error:
            print(f"{word}: absent, no module {error.name}")
    for contender in contenders.values():
        generator = torch.Generator().manual_seed(0)
        for _ in range(WARM):
            contender.step(*draw(generator))
    for step in range(blocks * STEPS):
        x, y = draw(generator)
        if step % STEPS == 0:
            for contender in contenders.values():
                contender.times.append(0.0)
        for contender in list(contenders.values())[:: 1 if step % 2 else -1]:
            contender.times[-1] += contender.step(x, y) / STEPS
    rows = [
        row(name, "step", one, contenders, contenders[one].times, contenders[other].times, other, limit)
        for one, other, limit in RATIOS
        if one in contenders and other in contenders
    ]
    return [*rows, overhead(name, contenders)]


def overhead(name: str, contenders: dict[str, Contender]) -> dict[str, Any]:
    """What SOAP within a budget adds to AdamW's step, over forward and backward."""
    word, base = WITHIN, contenders["AdamW (torch, fused)"]
    passes = base.passes[WARM:]
    under = [statistics.mean(passes[i : i + STEPS]) for i in range(0, len(passes), STEPS)]
    over = [a - b for a, b in zip(contenders[word].times, base.times, strict=True)]
    found = row(name, "added", word, contenders, over, under, "forward and backward", PROMISE + MARGIN)
    return found | {"choices": contenders[word].optimizers[0].choices}


def row(
    network: str, figure: str, word: str, contenders: dict[str, Contender], over: list[float], under: list[float],
    other: str, limit: float | None,
) -> dict[str, Any]:  # fmt: skip
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    found: dict[str, Any] = {
        "network": network, "figure": figure, "contender": word, "over": other, "value": round(median, 3),
        "middle_half": [round(low, 3), round(high, 3)], "ms": round(statistics.median(over) * 1e3, 3),
        "ms_under": round(statistics.median(under) * 1e3, 3),
    }  # fmt: skip
    optimizer = contenders[word].optimizers[0]
    if isinstance(optimizer, SOAP):
        found["choices"] = optimizer.choices
    return found if limit is None else found | {"target": limit, "met": median <= limit}


def memory(name: str) -> dict[str, float]:
    """Bytes that each rule of the catalogue keeps after a few steps, over AdamW's."""
    network, draw = NETWORKS[name]
    kept = {}
    for word, rule in RULES.items():
        torch.manual_seed(0)
        model = network()
        options = {"budget": None, "start": 2} if word == "soap" else {}
        optimizer: Any = build(word, model.named_parameters(), "auto", options, model, "cross_entropy")
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            x, y = draw(generator)

            def closure(model: nn.Module = model, x: Tensor = x, y: Tensor = y) -> Tensor:
                model.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                loss.backward()
                return loss.detach()

            optimizer.step(x, y) if rule.of_model else optimizer.step(closure)
        tensors = (t for state in optimizer.state.values() for t in leaves(state))
        kept[word] = sum(t.numel() * t.element_size() for t in tensors)
    return {word: round(size / kept["adamw"], 3) for word, size in kept.items()}


def line(found: dict[str, Any]) -> str:
    target = f"  target {found['target']}: {'met' if found['met'] else 'MISSED'}" if "target" in found else ""
    spread = "({:.3f} to {:.3f})".format(*found["middle_half"])
    return (
        f"{found['network']:36} {found['contender']:32} {found['figure']:6} {found['value']:7.3f} × {found['over']:25} "
        f"{spread:18} {found['ms']:8.2f} ms{target}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5, help="blocks of ten steps")
    parser.add_argument("--quick", action="store_true", help="see that it runs; the results file is left alone")
    parser.add_argument("--memory", action="store_true", help="only what rules keep, put into the results there are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        record = json.loads(RESULTS.read_text()) | {"memory_over_adamw": {name: memory(name) for name in NETWORKS}}
        RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    started = time.perf_counter()
    rows, kept = [], {}
    for name in NETWORKS:
        for found in measure(name, 2 if options.quick else options.blocks):
            print(line(found), flush=True)
            rows.append(found)
        kept[name] = memory(name)
        print(f"{name}: memory over AdamW's: {kept[name]}", flush=True)
    if not options.quick:
        record = {
            "command": " ".join(sys.argv),
            "machine": machine("thalweg", "torch", "pytorch_optimizer"),
            "seconds": round(time.perf_counter() - started),
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "rows": rows,
            "memory_over_adamw": kept,
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
