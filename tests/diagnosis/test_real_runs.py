"""One small real training for every code, sick on purpose; and the healthy one that it was made from."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thalweg

Words = dict[str, Any]


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rings(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three classes by the distance from the middle, in two of four features."""
    x = torch.randn(count, 4, generator=drawn(seed))
    return x, (x[:, :2].norm(dim=1) * 1.2).long().clamp(max=2)


def mlp(
    depth: int = 2, width: int = 24, activation: type[nn.Module] = nn.ReLU, outputs: int = 3, *last: nn.Module
) -> nn.Sequential:
    sizes = [4, *[width] * depth]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers, nn.Linear(width, outputs), *last)


def changed(model: nn.Sequential, change: Callable[[nn.Linear], Any], all_but_last: bool = True) -> nn.Sequential:
    layers = [module for module in model if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for layer in layers[:-1] if all_but_last else layers:
            change(layer)
    return model


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Kept(torch.optim.SGD):
    """Never sets its gradients to zero."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        pass


class Items(torch.utils.data.Dataset):
    """Examples one by one: their values are not looked at before training."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Louder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 6 * x.relu()


def healthy() -> Words:
    return {
        "model": mlp(), "data": rings(), "loss": "cross_entropy", "validation_data": rings(300, 1), "optimizer": "adam",
        "learning_rate": 0.01, "batch_size": 32, "epochs": 20, "schedule": "constant", "metrics": "accuracy",
    }  # fmt: skip


def unlike(**words: Any) -> Callable[[], Words]:
    return lambda: {**healthy(), **words}


class AlwaysDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


def eval_norm() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))
    model[1].eval()
    model[1].train = lambda mode=True: model[1]  # type: ignore[method-assign]
    return model


def with_nan() -> Words:
    x, y = rings()
    x[300, 0] = torch.nan
    return {**healthy(), "data": Items(x, y)}


def stale() -> Words:
    model = mlp()
    words = healthy() | {"model": model, "optimizer": Kept(model.parameters(), lr=0.03)}
    return {word: value for word, value in words.items() if word != "learning_rate"}


def scaled(data: tuple[Tensor, Tensor], factor: float = 1.0, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    return data[0] * factor + offset, data[1]


def numbers(count: int = 600, seed: int = 0, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    x, _ = rings(count, seed)
    return x, factor * (x[:, :1] * x[:, 1:2])


def quarters(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Left or right, near or far: four classes, of which a straight line tells two."""
    x = torch.randn(count, 2, generator=drawn(seed))
    return x, (x[:, 0] > 0).long() + 2 * (x.norm(dim=1) > 1.2).long()


def one_or_not(count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = rings(count, seed)
    return x, (y == 0).float()[:, None]


def shuffled() -> tuple[Tensor, Tensor]:
    x, y = rings()
    return x, y[torch.randperm(len(y), generator=drawn(2))]


def by_heart() -> Words:
    x, y = rings(80)
    y = torch.where(torch.rand(80, generator=drawn(3)) < 0.15, torch.randint(0, 3, (80,), generator=drawn(4)), y)
    return unlike(model=mlp(2, 128), data=(x, y), epochs=150)()


#: Code → the keywords of a training that has it.
RUNS: dict[str, Callable[[], Words]] = {
    "learning_rate_too_high": unlike(optimizer="momentum", learning_rate=100.0),
    "learning_rate_too_low": unlike(learning_rate=1e-6),
    "vanishing_gradient": lambda: unlike(model=mlp(8, 24, nn.Sigmoid), optimizer="momentum", learning_rate=0.03)(),
    "exploding_gradient": lambda: unlike(model=mlp(6, 24, Louder), optimizer="sgd", learning_rate=1e-3)(),
    "dead_units": lambda: unlike(model=changed(mlp(), lambda layer: layer.bias.fill_(-20.0)))(),
    "saturated_units": lambda: unlike(
        model=changed(mlp(3, 24, nn.Tanh), lambda layer: layer.bias.fill_(8.0)), optimizer="sgd"
    )(),
    "bad_initialization": lambda: unlike(
        model=changed(mlp(3, 24, nn.Tanh), lambda layer: layer.weight.fill_(0.1)), optimizer="sgd", learning_rate=0.03
    )(),
    "optimizer_misconfigured": unlike(optimizer="momentum", learning_rate=0.3, optimizer_options={"momentum": 0.999}),
    "stale_gradients": stale,
    "frozen_parameters": lambda: unlike(
        model=nn.Sequential(nn.Linear(4, 24), nn.ReLU(), Detached(), nn.Linear(24, 3))
    )(),
    "wrong_mode": lambda: unlike(model=nn.Sequential(nn.Linear(4, 24), nn.ReLU(), AlwaysDropout(), nn.Linear(24, 3)))(),
    "loss_output_mismatch": lambda: unlike(model=mlp(2, 24, nn.ReLU, 3, nn.Softmax(1)))(),
    "unscaled_inputs": lambda: unlike(
        data=scaled(rings(), 300, 500), validation_data=scaled(rings(300, 1), 300, 500), optimizer="momentum"
    )(),
    "unscaled_targets": lambda: unlike(
        model=mlp(outputs=1), data=numbers(factor=1e4), validation_data=numbers(300, 1, 1e4), loss="mse", metrics=()
    )(),
    "bad_labels": lambda: unlike(data=shuffled(), validation_data=rings(300, 1))(),
    "data_leak": lambda: unlike(validation_data=tuple(part[:300] for part in rings()))(),
    "overfitting": by_heart,
    "non_finite": with_nan,
    "diverging_loss": unlike(optimizer="momentum", learning_rate=100.0),
    "plateau": lambda: unlike(
        model=mlp(2, 24, nn.ReLU, 1, nn.Softmax(1)),
        data=one_or_not(),
        validation_data=one_or_not(300, 1),
        loss="binary_cross_entropy",
    )(),
    "saddle_point": lambda: unlike(
        model=changed(mlp(2, 24, nn.Tanh), lambda layer: (layer.weight.zero_(), layer.bias.zero_()), all_but_last=False)
    )(),
    "slow_convergence": unlike(learning_rate=1e-4, optimizer="adam", epochs=4),
    "collapsed_output": lambda: unlike(model=changed(mlp(), lambda layer: layer.bias.fill_(-20.0)))(),
    "underfitting": lambda: unlike(model=nn.Linear(2, 4), data=quarters(), validation_data=quarters(300, 1))(),
    "batch_too_small": unlike(batch_size=1, optimizer="momentum", learning_rate=0.1, epochs=3),
}


def trained(words: Words, folder: Path) -> thalweg.Run:
    words = dict(words)
    model, data, loss = (words.pop(word) for word in ("model", "data", "loss"))
    return thalweg.fit(
        model, data, loss, patience=None, verbose=False, plan="eager", repair="advise", run_dir=folder, **words
    )


@pytest.mark.parametrize("code", RUNS)
def test_a_training_that_has_it(code: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = trained(RUNS[code](), tmp_path / "run")
    found = [finding.code for finding in run.findings if finding.severity != "note"]
    assert code in found, [(f.code, f.severity) for f in run.findings]
    assert found[: len(found)] == [f.code for f in thalweg.diagnose(run) if f.severity != "note"]


@pytest.mark.parametrize("rule, rate", [("adam", 0.01), ("momentum", 0.03), ("rmsprop", 0.003)])
def test_the_healthy_training_has_nothing_above_a_note(rule: str, rate: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = trained({**healthy(), "optimizer": rule, "learning_rate": rate}, tmp_path / "run")
    assert [finding for finding in run.findings if finding.severity != "note"] == []


def test_a_norm_that_is_kept_in_evaluation_and_does_no_harm_is_a_note(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = trained({**healthy(), "model": eval_norm()}, tmp_path / "run")
    assert "wrong_mode" in [finding.code for finding in run.findings]
    assert [finding.code for finding in run.findings if finding.severity != "note"] == []


@pytest.mark.parametrize(("rule", "depth"), [("adamw", 1), ("adam", 2), ("momentum", 4)])
def test_a_rate_of_ten_comes_before_the_units_that_it_killed(rule: str, depth: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = {**healthy(), "model": mlp(depth), "optimizer": rule, "learning_rate": 10.0}
    run = trained(words, tmp_path / "run")
    found = [finding.code for finding in run.findings if finding.severity != "note"]
    assert found[0] == "learning_rate_too_high" and "dead_units" not in found


def test_labels_of_which_a_third_is_wrong(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = rings(2000)
    wrong = torch.rand(len(y), generator=drawn(2)) < 0.35
    y[wrong] = torch.randint(3, (int(wrong.sum()),), generator=drawn(3))
    words = {**healthy(), "data": (x, y), "validation_data": rings(1000, 1), "metrics": ("accuracy",)}
    told = next(f for f in trained(words, tmp_path / "run").findings if f.code == "bad_labels")
    assert told.severity == "warning" and 0.25 < told.evidence["share_wrong"] < 0.5
