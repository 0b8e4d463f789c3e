"""Trainings that stand still for a known reason, and what is said of them: saddle, minimum, plateau, noise, slow, done.

    python benchmarks/convergence/stuck.py     # a few minutes on one core

The reason is built in: weights of zero or units that are all the same (saddle_point); XOR with two hidden units, from
first weights that never solve it (local_minimum); sigmoids driven into saturation under a squared error (plateau); one
example an update at a rate that keeps the loss up (noise_floor); a thousandth of a good rate (slow_convergence); a
tuned training to its end (converged). The built-in reason is checked by its outcome: the loss of the first three and of
the noise stays far above that of a sound twin.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import thalweg

#: A loss of XOR below which it is solved.
SOLVED = 0.2
CLASSES = ("saddle_point", "local_minimum", "plateau", "noise_floor", "slow_convergence", "converged")


@dataclass(frozen=True)
class Case:
    """One training, made anew from a seed, and the reason why it stands still."""

    name: str
    truth: str
    make: Callable[[int], tuple[nn.Module, tuple[Tensor, Tensor], str]]
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = 60
    is_held_out: bool = False


def blob(seed: int, classes: int = 3, spread: float = 0.4, count: int = 400) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    angle = 2 * np.pi * y / classes
    x = torch.stack([angle.cos(), angle.sin()], 1) + spread * torch.randn(count, 2, generator=g)
    return x, y


def xor(seed: int, count: int = 200) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 2, (count, 2), generator=g)
    return 2.0 * corner - 1 + 0.15 * torch.randn(count, 2, generator=g), corner.sum(1) % 2


def rings(seed: int, count: int = 400, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 2
    angle = 2 * np.pi * torch.rand(count, generator=g)
    r = torch.where(y == 0, 1.0, 0.4) + noise * torch.randn(count, generator=g)
    return torch.stack([r * angle.cos(), r * angle.sin()], 1), y


def wave(seed: int, count: int = 400, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(count, 2, generator=g) - 2
    return x, (x[:, :1].sin() + x[:, 1:] / 2 + noise * torch.randn(count, 1, generator=g))


def net(*widths: int, activation: type[nn.Module] = nn.Tanh, end: nn.Module | None = None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1], *([end] if end else []))


def zeroed(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def twinned(model: nn.Module) -> nn.Module:
    """Each hidden layer's units all the same."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for i, layer in enumerate(linear):
            if i < len(linear) - 1:
                layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
                layer.bias.copy_(layer.bias[:1].expand_as(layer.bias))
            if i:
                layer.weight.copy_(layer.weight[:, :1].expand_as(layer.weight))
    return model


def saturated(model: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Linear):
                m.bias.add_(by)
    return model


def onehot(data: tuple[Tensor, Tensor], classes: int) -> tuple[Tensor, Tensor]:
    return data[0], nn.functional.one_hot(data[1], classes).float()


def scaled(data: tuple[Tensor, Tensor], low: float = 0.1, high: float = 0.9) -> tuple[Tensor, Tensor]:
    x, y = data
    return x, low + (high - low) * (y - y.min()) / (y.max() - y.min())


def trained_stuck(seed: int, activation: type[nn.Module]) -> nn.Module:
    """First weights from which XOR is not solved with two hidden units, found by trying."""
    x, y = xor(seed)
    for trial in range(120):
        torch.manual_seed(1000 * seed + trial)
        model = net(2, 2, 2, activation=activation)
        first = {k: v.clone() for k, v in model.state_dict().items()}
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for step in range(3000):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if step >= 400 and step % 100 == 0 and loss.item() < 0.3:
                break
        if loss.item() > 0.3:
            model.load_state_dict(first)
            return model
    raise RuntimeError("no seed of many is stuck")


ADAM = {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 32}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 32}
MOMENTUM = {"optimizer": "momentum", "learning_rate": 0.02, "batch_size": 32}
ALL: list[Case] = [
    Case("zero tanh", "saddle_point", lambda s: (zeroed(net(2, 8, 3)), blob(s), "cross_entropy"), ADAM),
    Case("zero tanh wave", "saddle_point", lambda s: (zeroed(net(2, 8, 1)), wave(s), "mse"), SGD),
    Case("zero deep", "saddle_point", lambda s: (zeroed(net(2, 8, 8, 2)), rings(s), "cross_entropy"), MOMENTUM),
    Case("twins rings", "saddle_point", lambda s: (twinned(net(2, 8, 2)), rings(s), "cross_entropy"), MOMENTUM),
    Case("twins xor", "saddle_point", lambda s: (twinned(net(2, 8, 2)), xor(s), "cross_entropy"), ADAM, 250),
    Case("twins relu", "saddle_point",
         lambda s: (twinned(net(2, 12, 3, activation=nn.ReLU)), blob(s), "cross_entropy"), SGD),
    Case("xor tanh", "local_minimum", lambda s: (trained_stuck(s, nn.Tanh), xor(s), "cross_entropy"),
         ADAM | {"learning_rate": 0.05, "batch_size": "full"}, 600),
    Case("xor relu", "local_minimum", lambda s: (trained_stuck(s, nn.ReLU), xor(s), "cross_entropy"),
         ADAM | {"learning_rate": 0.05, "batch_size": "full"}, 600),
    Case("xor batches", "local_minimum", lambda s: (trained_stuck(s, nn.Tanh), xor(s), "cross_entropy"),
         ADAM | {"learning_rate": 0.03}, 120),
    Case("saturated blob", "plateau",
         lambda s: (saturated(net(2, 8, 3, activation=nn.Sigmoid, end=nn.Sigmoid()), 12), onehot(blob(s), 3), "mse"),
         SGD),
    Case("saturated wave", "plateau",
         lambda s: (saturated(net(2, 8, 1, activation=nn.Sigmoid, end=nn.Sigmoid()), 14), scaled(wave(s)), "mse"),
         MOMENTUM),
    Case("saturated tanh", "plateau",
         lambda s: (saturated(net(2, 8, 1, end=nn.Tanh()), 12), scaled(wave(s), -0.8, 0.8), "mse"), ADAM),
    Case("noise wave", "noise_floor", lambda s: (net(2, 16, 1), wave(s, noise=0.5), "mse"),
         {"optimizer": "sgd", "learning_rate": 0.12, "batch_size": 1}, 30),
    Case("noise blob", "noise_floor", lambda s: (net(2, 16, 3), blob(s, spread=0.7), "cross_entropy"),
         {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 1}, 30),
    Case("noise momentum", "noise_floor", lambda s: (net(2, 16, 1), wave(s, noise=0.5), "mse"),
         {"optimizer": "momentum", "learning_rate": 0.012, "batch_size": 1}, 30),
    Case("noise adam", "noise_floor", lambda s: (net(2, 16, 3), blob(s, spread=0.6), "cross_entropy"),
         {"optimizer": "adam", "learning_rate": 0.15, "batch_size": 2}, 30),
    Case("slow blob", "slow_convergence", lambda s: (net(2, 16, 3), blob(s), "cross_entropy"),
         SGD | {"learning_rate": 1e-4}),
    Case("slow wave", "slow_convergence", lambda s: (net(2, 16, 1), wave(s), "mse"),
         MOMENTUM | {"learning_rate": 2e-5}),
    Case("slow adam", "slow_convergence", lambda s: (net(2, 16, 2), rings(s), "cross_entropy"),
         ADAM | {"learning_rate": 1e-5}),
    Case("slow full", "slow_convergence", lambda s: (net(2, 16, 1), wave(s), "mse"),
         {"optimizer": "sgd", "learning_rate": 1e-4, "batch_size": "full"}, 600),
    Case("done blob", "converged", lambda s: (net(2, 16, 3), blob(s, count=1200), "cross_entropy"), ADAM),
    Case("done overlap", "converged", lambda s: (net(2, 16, 3), blob(s, spread=0.7, count=1200), "cross_entropy"),
         SGD | {"schedule": "cosine"}, 80),
    Case("done wave", "converged", lambda s: (net(2, 16, 1), wave(s), "mse"), ADAM | {"schedule": "cosine"}, 100),
    Case("done noisy wave", "converged", lambda s: (net(2, 16, 1), wave(s, noise=0.5), "mse"), ADAM, 100),
    Case("done rings", "converged",
         lambda s: (net(2, 16, 2, activation=nn.ReLU), rings(s, noise=0.3), "cross_entropy"), MOMENTUM, 100),
    Case("done linear", "converged", lambda s: (net(2, 3), blob(s, spread=0.7, count=1200), "cross_entropy"), SGD, 80),
    Case("zero linear", "saddle_point",
         lambda s: (zeroed(net(2, 8, 8, 1, activation=nn.Identity)), wave(s), "mse"), SGD,
         is_held_out=True),
    Case("twins gelu", "saddle_point",
         lambda s: (twinned(net(2, 10, 2, activation=nn.GELU)), rings(s), "cross_entropy"), MOMENTUM, 150, True),
    Case("xor sigmoid", "local_minimum", lambda s: (trained_stuck(s, nn.Sigmoid), xor(s), "cross_entropy"),
         ADAM | {"learning_rate": 0.05}, 200, True),
    Case("dead relu", "local_minimum",
         lambda s: (saturated(net(2, 8, 8, 3, activation=nn.ReLU), -9), blob(s), "cross_entropy"), MOMENTUM,
         is_held_out=True),
    Case("deep sigmoid", "plateau",
         lambda s: (net(2, *[8] * 9, 1, activation=nn.Sigmoid, end=nn.Sigmoid()), scaled(wave(s)), "mse"), SGD,
         is_held_out=True),
    Case("noise rings", "noise_floor", lambda s: (net(2, 16, 2), rings(s, noise=0.3), "cross_entropy"),
         {"optimizer": "adam", "learning_rate": 0.2, "batch_size": 2}, 30, True),
    Case("noise relu", "noise_floor",
         lambda s: (net(2, 16, 3, activation=nn.ReLU), blob(s, spread=0.6), "cross_entropy"),
         {"optimizer": "sgd", "learning_rate": 0.3, "batch_size": 1}, 30, True),
    Case("slow gelu", "slow_convergence",
         lambda s: (net(2, 16, 16, 3, activation=nn.GELU), blob(s), "cross_entropy"), ADAM | {"learning_rate": 1e-5},
         is_held_out=True),
    Case("done gelu", "converged",
         lambda s: (net(2, 16, 16, 3, activation=nn.GELU), blob(s, spread=0.7), "cross_entropy"),
         ADAM | {"learning_rate": 3e-3, "schedule": "cosine"}, 60, True),
    Case("done deep wave", "converged", lambda s: (net(2, 16, 16, 1), wave(s, noise=0.3), "mse"),
         MOMENTUM | {"schedule": "cosine"}, 100, True),
]  # fmt: skip


def recorded(case: Case, seed: int) -> thalweg.Run:
    """Train it to its end."""
    torch.manual_seed(seed)
    model, data, loss = case.make(seed)
    with tempfile.TemporaryDirectory() as directory:
        return thalweg.fit(
            model, data, loss, validation_split=0.2, epochs=case.epochs, patience=None, plan="eager", repair="advise",
            schedule=case.settings.get("schedule", "constant"), checkpoint_every=None, seed=seed, verbose=False,
            run_dir=Path(directory) / "run", **{k: v for k, v in case.settings.items() if k != "schedule"},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--held-out", action="store_true", help="the cases that nothing was tuned on")
    parser.add_argument("--histories", type=Path, help="a folder to keep the numbers in, for a look")
    options = parser.parse_args()
    torch.set_num_threads(1)
    hits: dict[str, list[bool]] = {word: [] for word in CLASSES}
    for case in (case for case in ALL if case.is_held_out == options.held_out):
        for seed in options.seeds:
            run = recorded(case, seed)
            assert run.verdict is not None
            if case.truth == "local_minimum" and run.metrics["loss"] < SOLVED:
                continue  # other batches led out of it after all
            said = run.verdict.cause or run.verdict.state
            said = "converged" if said == "overfitting" else said  # of the training that is asked here, both are done
            hits[case.truth].append(said == case.truth)
            print(
                f"{case.name:18} {seed} {case.truth:17} {said:17} {run.metrics['loss']:.4f} {run.verdict.sentence}",
                flush=True,
            )
            if options.histories:
                options.histories.mkdir(parents=True, exist_ok=True)
                told = {
                    "case": case.name,
                    "truth": case.truth,
                    "series": run.history.to_dict(),
                    "facts": run.history.facts,
                }
                (options.histories / f"{case.name.replace(' ', '-')}-{seed}.json").write_text(json.dumps(told))
    shares = {word: float(np.mean(found)) for word, found in hits.items()}
    print(*(f"{word} {share:.2f}" for word, share in shares.items()), f"balanced {np.mean(list(shares.values())):.3f}")


if __name__ == "__main__":
    main()
