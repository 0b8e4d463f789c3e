"""Each change that repairs make, in a training of `fit`: it acts from its update on, and a run that was cut resumes it.

Which helps is another matter (test_mending*.py): here the change is put in the place of what would be prescribed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mending_cases import Stops, made_data, network
from torch import Tensor, nn

import thalweg
from thalweg.repairs.prescriptions import CHANGES, Prescription
from thalweg.run import mending, trials

Data = tuple[Tensor, Tensor]
#: Of an input that the fragile network makes no number of.
BAD = 9.0


def deep(*head: nn.Module, norm: bool = False) -> nn.Module:
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(32)] if norm else []
    return nn.Sequential(
        nn.Linear(20, 32), *middle, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3), *head
    )  # fmt: skip


def frozen() -> nn.Module:
    model = deep()
    model[0].requires_grad_(False)
    return model


def stuck() -> nn.Module:
    model = deep(norm=True).eval()
    model.train = lambda mode=True: model  # type: ignore[method-assign]
    return model


class Fragile(nn.Module):
    """It makes no number of some inputs, which nobody sees in the data."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.0 * torch.log(8.0 - x[:, :1])


def at_a_saddle() -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 3))
    for p in model.parameters():
        nn.init.zeros_(p)
    return model


def of_images() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))


def of_numbers() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 1))


def images() -> Data:
    x, y = made_data()
    return torch.cat([x, x, x, x[:, :4]], 1).reshape(-1, 1, 8, 8), y


def uneven() -> Data:
    x, y = made_data()
    rows = torch.cat([(y == 0).nonzero()[:, 0], (y > 0).nonzero()[:60, 0]])
    return x[rows], y[rows]


def large_targets() -> Data:
    x, _ = made_data()
    return x, 1000.0 * x[:, :1] + 5000.0


def with_bad_rows() -> Data:
    x, y = made_data()
    x = x.clone()
    x[[5, 700], 0] = BAD
    return x, y


def of_another_scale() -> Data:
    x, y = made_data()
    return 100.0 * x + 50.0, y


@dataclass(frozen=True)
class Case:
    """A training, and the words of the change that is made in it."""

    words: dict[str, float | str] | None = None
    model: Callable[[], nn.Module] = network
    data: Callable[[], Data] = made_data
    loss: str = "cross_entropy"
    asked: dict[str, Any] = field(default_factory=dict)
    goes_back: bool = False
    """Whether the weights are lost, so that it begins from the last good ones."""


CASES = {
    "set_learning_rate": Case({"learning_rate": 0.05}),
    "change_rule": Case({"optimizer": "adamw", "learning_rate": 0.002}),
    "decay_weights": Case(asked={"optimizer": "adam", "learning_rate": 1.0}),
    "restart_schedule": Case(),
    "change_batch": Case({"batch_size": 48.0}),
    "reset_moments": Case(),
    "clip_gradients": Case({"clip_norm": 0.1}),
    "skip_batches": Case(model=Fragile, data=with_bad_rows, asked={"learning_rate": 0.05}, goes_back=True),
    "perturb": Case(),
    "follow_curvature": Case(model=at_a_saddle, asked={"learning_rate": 0.05}),
    "set_rows_aside": Case(model=Fragile, data=with_bad_rows, asked={"learning_rate": 0.05}, goes_back=True),
    "initialise": Case(),
    "swap_activation": Case(),
    "insert_norm": Case(model=deep),
    "insert_residual": Case(model=deep, asked={"optimizer": "adam", "learning_rate": 0.3}),
    "standardise_inputs": Case(data=of_another_scale, asked={"optimizer": "adam", "learning_rate": 3e-3}),
    "add_dropout": Case(model=deep),
    "augment_images": Case(model=of_images, data=images),
    "unfreeze": Case(model=frozen),
    "train_mode": Case(model=stuck),
    "drop_head": Case(model=lambda: deep(nn.Softmax(-1))),
    "weigh_classes": Case(data=uneven),
    "scale_targets": Case(
        model=of_numbers, data=large_targets, loss="mse", asked={"optimizer": "adam", "learning_rate": 1e-3}
    ),
}  # fmt: skip


def put_in_place(monkeypatch: pytest.MonkeyPatch, case: Case, *codes: str) -> None:
    """The first question is answered with these changes, untried, and no other is."""

    def prescribe(findings: Any, body: Any, level: str, goes_back: bool = True) -> list[Prescription]:
        is_first = body.settings.repair not in asked
        asked.add(body.settings.repair)
        changes = tuple((code, case.words) for code in codes)
        return [Prescription("forced", changes, case.goes_back)] if is_first else []

    asked: set[str] = set()
    monkeypatch.setattr(mending, "prescribe", prescribe)
    monkeypatch.setattr(trials.Trials, "best_of", lambda self, *of: 0)


def fitted(case: Case, folder: Path, **words: Any) -> thalweg.Run:
    words = {"optimizer": "momentum", "learning_rate": 3.0, "batch_size": 32, **case.asked, **words}
    return thalweg.fit(
        case.model(), case.data(), case.loss, validation_split=0.25, epochs=4, patience=None, run_dir=folder / "run",
        verbose=False, plan="eager", repair="full", **words,
    )  # fmt: skip


def predicted(run: thalweg.Run, case: Case) -> Tensor:
    x, _ = case.data()
    with torch.no_grad():
        return run.model.eval()(x[x.flatten(1).amax(1) != BAD])


def losses(run: thalweg.Run, until: int) -> list[float]:
    steps, values = run.history.series("loss")
    return values[steps <= until].tolist()


def told(run: thalweg.Run) -> list[Any]:
    return [(action.code, action.step, action.kept, action.after) for action in run.actions]


def test_no_change_is_left_out() -> None:
    assert CASES.keys() == CHANGES.keys()


@pytest.mark.parametrize("code", CASES)
def test_it_acts_in_a_training_and_is_gone_on_with(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[code]
    put_in_place(monkeypatch, case)
    without = fitted(case, tmp_path / "without")
    put_in_place(monkeypatch, case, code)
    whole = fitted(case, tmp_path / "whole")
    (repair,) = whole.record.decided["repairs"]
    made_at = repair["step"]
    assert [change for change, _ in repair["changes"]] == [code]
    assert next(action for action in whole.actions if action.kept).lines
    assert losses(whole, made_at) == pytest.approx(losses(without, made_at), rel=0, abs=0, nan_ok=True)
    outputs = predicted(whole, case)
    assert outputs.isfinite().all() and not torch.allclose(outputs, predicted(without, case))
    put_in_place(monkeypatch, case, code)
    cut = fitted(case, tmp_path / "cut", callbacks=[Stops(10 * (made_at // 10) + 20)])
    assert cut.stopped_because == "interrupted"
    resumed = thalweg.resume(
        tmp_path / "cut" / "run", model=case.model(), data=case.data(), loss=case.loss, callbacks=[]
    )
    assert resumed.steps == whole.steps and told(resumed) == told(whole)
    assert torch.equal(predicted(resumed, case), outputs)
