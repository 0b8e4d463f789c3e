"""What users call, on a GPU: trainings of every rule and form of data, resumed, mended and looked into."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import thalweg
from thalweg.gradients import (
    Curvature,
    extreme_eigenvalues,
    gradient_moments,
    hessian_product,
    noise_scale,
    per_example_norms,
)
from thalweg.optim import catalogue

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that runs CUDA"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    torch.cuda.synchronize()  # an error in a kernel is of the test that launched it


def points(count: int = 600) -> tuple[Tensor, Tensor]:
    """Three classes that a small network tells apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return centres[y] + 0.5 * torch.randn(count, 2, generator=generator), y


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 3))


def quiet(*args: Any, **settings: Any) -> thalweg.Run:
    return thalweg.fit(*args, **{"verbose": False, "patience": None, **settings})


def weights(model: nn.Module) -> list[Tensor]:
    assert all(t.is_cuda for t in model.state_dict().values()), "the model is where it was trained"
    return [t.clone() for t in model.state_dict().values()]


class Stop(Exception):
    """In the midst of a training."""


class Stops(thalweg.Callback):
    """Ends a training with an error after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: thalweg.Run, record: Any) -> None:
        if record.step >= self.step:
            raise Stop


def same_when_resumed(folder: Path, at: int, **words: Any) -> thalweg.Run:
    """A training, and the same one ended by an error and resumed: equal to the last bit; returns the whole one."""
    words = {"metrics": ["accuracy"], "validation_split": 0.2, "loss": "cross_entropy", **words}
    whole = quiet(network(), points(), run_dir=folder / "whole", **words)
    with pytest.raises(Stop):
        quiet(network(), points(), run_dir=folder / "part", callbacks=[Stops(at)], **words)
    again = thalweg.resume(
        folder / "part", model=network(), data=points(), loss="cross_entropy", callbacks=(), verbose=False
    )
    assert again.steps == whole.steps
    assert all(torch.equal(a, b) for a, b in zip(weights(again.model), weights(whole.model), strict=True))
    for name in ("loss", "epoch_loss", "validation_accuracy"):
        assert np.array_equal(again.history.series(name)[1], whole.history.series(name)[1], equal_nan=True), name
    return whole


# ── trainings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rule", [*catalogue.RULES, "auto"])
def test_every_rule_trains_and_is_resumed_to_the_last_bit(rule: str, tmp_path: Path) -> None:
    at = 5 if rule in ("lbfgs", "gauss_newton") else 30  # which make an update an epoch
    run = same_when_resumed(tmp_path, at, optimizer=rule, epochs=12, plan="eager", repair="off", checkpoint_every=20)
    losses = run.history.series("epoch_loss")[1]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "words",
    [
        {"weight_average": "ema"},
        {"weight_average": "swa"},
        {"clip_norm": 0.1, "accumulate": 2},
        {"clip_value": 0.01, "schedule": "one_cycle"},
        {"batch_size": "full", "optimizer": "lbfgs"},
        {"repair": "safe", "learning_rate": 30.0},
    ],
    ids=str,
)
def test_further_settings_are_resumed_to_the_last_bit(words: dict[str, Any], tmp_path: Path) -> None:
    given = {"epochs": 12, "plan": "eager", "repair": "off", "checkpoint_every": 20, **words}
    at = 5 if words.get("batch_size") == "full" else 30
    same_when_resumed(tmp_path, at, **given)


def test_sums_of_metrics_are_gone_on_with(tmp_path: Path) -> None:
    """In the midst of an epoch: ours of several columns, and those of another package."""
    torchmetrics = pytest.importorskip("torchmetrics")

    def training(folder: str, **more: Any) -> dict[str, Any]:
        x = points()[0]
        torch.manual_seed(1)
        return {
            "model": nn.Linear(2, 2), "data": (x, x @ torch.tensor([[1.0, 2.0], [3.0, 4.0]])), "loss": "mse",
            "metrics": ["r2", torchmetrics.R2Score()], "epochs": 4, "batch_size": 16,
            "plan": "eager", "repair": "off", "run_dir": tmp_path / folder, **more,
        }  # fmt: skip

    whole = quiet(**training("whole"))
    with pytest.raises(Stop):
        quiet(**training("part", callbacks=[Stops(50)]))
    again = training("part")
    found = thalweg.resume(
        tmp_path / "part", model=again["model"], data=again["data"], loss="mse", metrics=again["metrics"],
        callbacks=(), verbose=False,
    )  # fmt: skip
    assert found.metrics == whole.metrics


def test_what_is_the_users_own_goes_where_the_model_goes() -> None:
    model = network()
    optimizer = torch.optim.Adagrad(model.parameters(), 0.1)  # its state is made at once, where the model was
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0]))
    run = quiet(model, points(), loss, optimizer=optimizer, epochs=20, metrics=["accuracy"])
    assert run.metrics["accuracy"] > 0.9
    fresh = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 1.0]))
    assert thalweg.evaluate(run.model, points(), fresh)["loss"] == pytest.approx(
        thalweg.evaluate(run.model, points(), loss)["loss"]
    )
    quiet(nn.Linear(2, 1), (points()[0], points()[0][:, :1]), "mae", deterministic=True, epochs=2)


def test_random_states_are_as_they_were_found() -> None:
    before = torch.cuda.get_rng_state()
    quiet(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 3)), points(), "cross_entropy", epochs=2)
    assert torch.equal(torch.cuda.get_rng_state(), before)


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Examples one by one."""

    def __init__(self) -> None:
        self.x, self.y = points()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.x[number], self.y[number]


def loader(**words: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*points()), batch_size=32, shuffle=True, **words)


DATA: dict[str, Any] = {
    "tensors": points,
    "arrays": lambda: tuple(t.numpy() for t in points()),
    "tensors there": lambda: tuple(t.cuda() for t in points()),
    "a data set": Rows,
    "a loader": loader,
    "a pinning loader": lambda: loader(pin_memory=True),
    "batches": lambda: [(x, y) for x, y in loader()],
}


@pytest.mark.parametrize("form", DATA)
def test_data_in_any_form_is_learned_by_whatever_step_is_fastest(form: str) -> None:
    run = quiet(network(), DATA[form](), "cross_entropy", epochs=40, metrics=["accuracy"], learning_rate=0.01)
    assert run.metrics["accuracy"] > 0.95
    assert run.history.series("loss")[1][-1] < 0.3
    predicted = thalweg.predict(run.model, points()[0])
    assert (torch.as_tensor(predicted).argmax(1) == points()[1]).float().mean() > 0.95
    assert thalweg.evaluate(run.model, points(), "cross_entropy", ["accuracy"])["accuracy"] > 0.95


def test_a_long_training_is_captured_and_its_plan_repeats(tmp_path: Path) -> None:
    words = {"epochs": 200, "batch_size": 16, "repair": "off"}  # a second of eager steps, on any host
    run = quiet(network(), points(), "cross_entropy", validation_split=0.2, run_dir=tmp_path / "first", **words)
    assert run.plan.captured_after is not None, run.plan.notes
    plan = thalweg.Plan.of(run.plan.to_dict())
    same_when_resumed(tmp_path, 500, plan=plan, checkpoint_every=400, **words)


def test_images_and_fast_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (800,), generator=generator)
    x = torch.randn(800, 1, 12, 12, generator=generator)
    for i in range(4):
        x[y == i, :, 3 * i : 3 * i + 3] += 1.5
    for precision in ("exact", "fast"):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 4)
        )
        run = quiet(model, (x, y), "cross_entropy", epochs=8, metrics=["accuracy"], precision=precision)
        assert run.metrics["accuracy"] > 0.95
        assert all(p.dtype == torch.float32 and p.is_cuda for p in run.model.parameters())
        assert not torch.backends.cuda.matmul.allow_tf32, "as it was found"


def test_sequences_of_several_lengths() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.cell, self.head = nn.Embedding(9, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.cell(self.embedding(tokens))[0].mean(1))

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 12, (300,), generator=generator).tolist()
    rows = [torch.randint(1, 9, (n,), generator=generator) for n in lengths]
    y = torch.tensor([int(row.float().mean() > 4.5) for row in rows])
    for given in (rows, [row.cuda() for row in rows]):
        run = quiet(Tagger(), (thalweg.Sequences(given), y), "cross_entropy", epochs=15, learning_rate=0.02)
        assert run.history.series("loss")[1][-1] < 0.5


# ── rates, mending ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["auto", "grid", "random", "halving", "range"])
def test_a_rate_is_found(method: str) -> None:
    model = network()
    found = thalweg.find_lr(model, points(), "cross_entropy", method=method, epochs=4, batch_size=16, verbose=False)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert 1e-5 < found.value < 10


def test_rules_are_raced() -> None:
    run = quiet(network(), points(2000), "cross_entropy", optimizer="auto", epochs=20)
    assert run.history.series("loss")[1][-1] < 0.3


@pytest.mark.parametrize("level", ["safe", "full"])
def test_a_sick_training_is_mended(level: str) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(2, 32), nn.Sigmoid()]
    for _ in range(8):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(32, 3))
    run = quiet(
        model, points(1000), "cross_entropy", optimizer="sgd", learning_rate=0.1, epochs=30, batch_size=32, repair=level
    )
    assert run.actions, "a stack of sigmoids that does not learn is found"
    assert np.isfinite(run.history.series("loss")[1]).all()


# ── looking in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_loop_of_ones_own_is_watched() -> None:
    model = network().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=300.0, momentum=0.9)
    x, y = (t.cuda() for t in points())
    with thalweg.watch(model, optimizer, repair="safe") as w:
        for i in range(300):
            rows = slice(32 * i % 576, 32 * i % 576 + 32)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            w.step(loss)
    assert w.history.series("loss")[1].size
    assert w.findings or w.actions


def test_gradients_and_curvature() -> None:
    model = network().cuda().eval()
    batch = points(64)  # which is brought to the model
    assert per_example_norms(model, batch, "cross_entropy").shape == (64,)
    assert torch.isfinite(noise_scale(model, batch, "cross_entropy").trace)
    assert all(m.is_cuda for m in gradient_moments(model, batch, "cross_entropy").mean.values())
    vectors = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    assert all(t.is_cuda for t in hessian_product(model, batch, "cross_entropy", vectors).values())
    assert extreme_eigenvalues(Curvature(model, batch, "cross_entropy")).largest > 0
    assert thalweg.backprop(model, batch, "cross_entropy").sentence
    assert thalweg.check_gradients(model, batch, "cross_entropy").ok


def test_the_report_the_landscape_and_the_weights(tmp_path: Path) -> None:
    run = quiet(network(), points(), "cross_entropy", epochs=5, validation_split=0.2, run_dir=tmp_path / "run")
    assert "<html" in run.report().read_text()
    assert thalweg.landscape(run.model, points(), "cross_entropy") is not None
    assert isinstance(thalweg.diagnose(run.directory), list)
    loaded = thalweg.load(run.directory, model=network())
    if importlib.util.find_spec("onnxscript"):
        assert thalweg.export(run.model, tmp_path / "model.onnx", example=points()[0][:2]).exists()
    kept = {name: t.cpu() for name, t in run.model.state_dict().items()}
    assert all(torch.equal(t.cpu(), kept[name]) for name, t in loaded.state_dict().items())


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

OUT_OF_RANGE = """
import torch, thalweg
from torch import nn
batches = [(torch.randn(16, 2), torch.randint(0, 3, (16,))) for _ in range(3)]
batches[2][1][5] = 7
try:
    thalweg.fit(nn.Linear(2, 3), batches, "cross_entropy", epochs=1, plan="eager", verbose=False)
except ValueError as error:
    print("said:", error)
"""


def test_a_label_without_a_class_is_said_in_one_sentence(tmp_path: Path) -> None:
    """It breaks the process for the GPU, whatever is done then: so in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_RANGE], capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "an index is out of its range on the GPU" in done.stdout
    assert "device='cpu'" in done.stdout


def test_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "thalweg", "fit", "digits"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on cuda" in done.stderr
