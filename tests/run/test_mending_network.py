"""What `full` changes in a network: it is kept only if it helps, resumes, loads, and is folded back at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mending_cases import Stops
from torch import Tensor, nn

import thalweg
from thalweg.repairs.prescriptions import Prescription
from thalweg.repairs.trial import FEWEST, Measured
from thalweg.run import mending, trials

Data = tuple[Tensor, Tensor]


def data(scale: float = 1.0, offset: float = 0.0) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(800, 12, generator=generator)
    return scale * x + offset, (x @ torch.randn(12, 3, generator=generator)).argmax(1)


def dense(activation: type[nn.Module], depth: int, head: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Linear(12, 24), activation()]
    for _ in range(depth - 1):
        layers += [nn.Linear(24, 24), activation()]
    return nn.Sequential(*layers, nn.Linear(24, 3), *([head] if head is not None else []))


def dead() -> nn.Module:
    model = dense(nn.ReLU, 2)
    with torch.no_grad():
        model[0].bias.fill_(-30.0)
    return model


class Faded(nn.Module):
    """Sigmoids that are called as functions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(24 if i else 12, 24) for i in range(12))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


CASES: dict[str, tuple[Callable[[], nn.Module], Data, str]] = {
    "a gradient that fades": (lambda: dense(nn.Sigmoid, 12), data(), "swap_activation"),
    "a gradient that fades in functions": (Faded, data(), "swap_activation"),
    "a softmax too many": (lambda: dense(nn.ReLU, 2, nn.Softmax(-1)), data(), "drop_head"),
    "inputs of another scale": (lambda: dense(nn.ReLU, 2), data(300.0, 300.0), "standardise_inputs"),
    "units that are dead": (dead, data(), "initialise"),
}


def fitted(model: nn.Module, of: Data, folder: Path, **words: Any) -> thalweg.Run:
    words = {"optimizer": "momentum", "learning_rate": 0.05, "epochs": 12, "repair": "full", **words}
    return thalweg.fit(
        model, of, "cross_entropy", validation_split=0.25, batch_size=32, patience=None, run_dir=folder / "run",
        verbose=False, plan="eager", metrics=["accuracy"], **words,
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_mended(name: str, tmp_path: Path) -> None:
    make, of, change = CASES[name]
    off = fitted(make(), of, tmp_path / "off", repair="off")
    full = fitted(make(), of, tmp_path / "full")
    kept = [action for action in full.actions if action.kept]
    assert kept and any(change in action.after for action in kept)
    assert full.metrics["validation_accuracy"] > 0.8
    if name != "a softmax too many":  # which only slows
        assert off.metrics["validation_accuracy"] < 0.6
    assert type(full.model).__name__ in ("Sequential", "Faded") and "Around" not in str(full.model)


@pytest.mark.parametrize("name", CASES)
def test_it_loads_into_the_users_own_network(name: str, tmp_path: Path) -> None:
    make, of, _ = CASES[name]
    run = fitted(make(), of, tmp_path)
    torch.manual_seed(7)
    loaded = thalweg.load(tmp_path / "run", "best", make())
    run.model.eval()
    assert torch.allclose(loaded(of[0][:50]), run.model(of[0][:50]), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["a gradient that fades", "a gradient that fades in functions", "inputs of another scale"]
)
def test_it_resumes_exactly(name: str, tmp_path: Path) -> None:
    make, of, _ = CASES[name]
    whole = fitted(make(), of, tmp_path / "whole")
    mended = next(action.step for action in whole.actions if action.kept)
    cut = fitted(make(), of, tmp_path / "cut", callbacks=[Stops(10 * (mended // 10) + 40)])
    assert cut.stopped_because == "interrupted" and any(action.kept for action in cut.actions)
    resumed = thalweg.resume(tmp_path / "cut" / "run", model=make(), data=of, loss="cross_entropy", callbacks=[])
    assert resumed.steps == whole.steps
    assert resumed.record.decided["tried_steps"] == whole.record.decided["tried_steps"] > 0
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def pictures(count: int, seed: int) -> Data:
    """Four kinds of bars somewhere in noise: more than a hundred examples teach, and easily learned by heart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    x = 0.6 * torch.randn(count, 1, 16, 16, generator=generator)
    bars = torch.zeros(4, 6, 6)
    bars[0, :, 2:4] = bars[1, 2:4] = 1.0
    bars[2] = torch.eye(6)
    bars[3] = bars[2].flip(0)
    for image, kind in zip(x, y, strict=True):
        i, j = torch.randint(3, 8, (2,), generator=generator).tolist()
        image[0, i : i + 6, j : j + 6] += bars[kind]
    return x, y


def convolutional() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 4))


@pytest.mark.parametrize(("code", "left"), [("augment_images", False), ("add_dropout", True), ("decay_weights", False)])
def test_what_answers_overfitting_goes_into_the_training(
    code: str, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever the trial keeps: it trains on, is folded back where it can be, and loads."""
    asked: list[str] = []

    def only(findings: Any, body: Any, level: str, goes_back: bool = True) -> list[Prescription]:
        codes = [finding.code for finding in findings]
        asked.extend(codes)
        return [Prescription(code, ((code, None),))] if "overfitting" in codes and code not in str(asked) else []

    monkeypatch.setattr(mending, "prescribe", only)
    monkeypatch.setattr(mending.trial, "best", lambda *of: asked.append(code) or 0)
    run = thalweg.fit(
        convolutional(), pictures(160, 0), "cross_entropy", validation_data=pictures(200, 1), optimizer="adam",
        learning_rate=3e-3, epochs=24, batch_size=16, patience=None, repair="full", run_dir=tmp_path / "run",
        verbose=False, plan="eager", metrics=["accuracy"],
    )  # fmt: skip
    assert "overfitting" in asked
    (kept,) = [action for action in run.actions if action.kept]
    assert kept.lines and run.stopped_because == "epochs"
    assert ("Around" in str(run.model)) == left
    loaded = thalweg.load(tmp_path / "run", "best", convolutional())
    x = pictures(20, 2)[0]
    run.model.eval()
    assert torch.allclose(loaded(x), run.model(x), atol=1e-6)


def odd(factor: float) -> Data:
    """One feature in other units: a network learns it in the end."""
    x, y = data()
    x = x.clone()
    x[:, 3] *= factor
    return x, y


def test_a_scale_that_has_done_no_harm_yet_is_tried_at_once(tmp_path: Path) -> None:
    words = {"optimizer": "adam", "learning_rate": 3e-3}
    run = fitted(dense(nn.ReLU, 2), odd(120.0), tmp_path, **words)
    (action,) = run.actions  # and not again once it is done
    assert action.kept and action.step == 20 and "standardise_inputs" in action.after
    assert not run.findings  # nor told of any more
    off = fitted(dense(nn.ReLU, 2), odd(120.0), tmp_path / "off", repair="off", **words)
    assert run.metrics["validation_loss"] < 0.7 * off.metrics["validation_loss"]


def test_a_scale_that_does_no_harm_is_tried_briefly_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def none_is_better(self: trials.Trials, tried: list[Prescription], updates: int) -> trials.Compared:
        asked.append(updates)
        still = Measured((1.0, 1.1, 0.9))
        return trials.Compared(still, still, [still] * len(tried), [still] * len(tried), 1.0)

    monkeypatch.setattr(trials.Trials, "_tried", none_is_better)
    words = {"optimizer": "adam", "learning_rate": 3e-3}
    run = fitted(dense(nn.ReLU, 2), data(12.0), tmp_path, **words)
    assert asked == [FEWEST] and [action.kept for action in run.actions] == [False]
    off = fitted(dense(nn.ReLU, 2), data(12.0), tmp_path / "off", repair="off", **words)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), off.model.parameters(), strict=True))


@pytest.mark.parametrize("stop", [10, 20, 30])
def test_a_suspicion_is_tried_again_where_a_run_is_gone_on_with(stop: int, tmp_path: Path) -> None:
    words = {"optimizer": "adam", "learning_rate": 3e-3}
    whole = fitted(dense(nn.ReLU, 2), odd(120.0), tmp_path / "whole", **words)
    cut = fitted(dense(nn.ReLU, 2), odd(120.0), tmp_path / "cut", callbacks=[Stops(stop)], **words)
    assert cut.stopped_because == "interrupted"
    assert same(gone_on_with(tmp_path / "cut" / "run"), whole)


def test_a_repair_that_came_after_the_checkpoint_is_made_again(tmp_path: Path) -> None:
    words = {"optimizer": "adam", "learning_rate": 3e-3}
    whole = fitted(dense(nn.ReLU, 2), odd(120.0), tmp_path / "whole", **words)
    fitted(dense(nn.ReLU, 2), odd(120.0), tmp_path / "cut", callbacks=[Stops(10)], **words)
    run = tmp_path / "cut" / "run"
    shutil.copytree(run / "checkpoints", tmp_path / "early")
    gone_on_with(run, callbacks=[Stops(40)])
    shutil.rmtree(run / "checkpoints")  # as if the later ones had never come to the disk, while the facts had
    shutil.copytree(tmp_path / "early", run / "checkpoints")
    assert same(gone_on_with(run), whole)


def gone_on_with(run: Path, **words: Any) -> thalweg.Run:
    words = {"callbacks": [], **words}
    return thalweg.resume(run, model=dense(nn.ReLU, 2), data=odd(120.0), loss="cross_entropy", **words)


def same(run: thalweg.Run, whole: thalweg.Run) -> bool:
    a, b = run.model.state_dict(), whole.model.state_dict()
    assert [action.code for action in run.actions] == [action.code for action in whole.actions]
    return run.steps == whole.steps and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
