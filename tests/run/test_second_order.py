"""`fit` with the rules that evaluate the loss by themselves, by name."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thalweg
from thalweg.step.planned import OWN_STEP

RULES = ("lbfgs", "kfac", "gauss_newton")


def points(count: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return centres[y] + 0.5 * torch.randn(count, 2, generator=generator), y


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 16), *extra, nn.Tanh(), nn.Linear(16, 3))


def quiet(model: nn.Module, data: Any = None, loss: Any = "cross_entropy", **settings: Any) -> thalweg.Run:
    return thalweg.fit(model, points() if data is None else data, loss, **{"verbose": False, **settings})


@pytest.mark.parametrize(("rule", "batch"), [("lbfgs", "full"), ("kfac", 128), ("gauss_newton", "full")])
def test_by_name(rule: str, batch: Any) -> None:
    run = quiet(network(), optimizer=rule, epochs=6, validation_split=0.2, metrics=["accuracy"])
    assert run.metrics["validation_accuracy"] >= 0.95
    decided = run.record.decided
    assert (decided["batch_size"], decided["optimizer"], run.learning_rate) == (batch, rule, 1.0)
    assert decided.get("search") is None
    assert OWN_STEP in run.plan.notes
    assert "kernel" not in str(run.plan.products)
    assert run.plan.compiled_after is None
    assert decided["schedule"] == ("warm-up, then cosine" if rule == "kfac" else "constant")
    assert {"gradient_norm", "loss", "validation_loss"} <= set(run.history.names)
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("rule", RULES)
def test_the_probed_gradient_is_that_of_the_loss(rule: str) -> None:
    model = network()
    x, y = points()
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    run = quiet(model, optimizer=rule, batch_size="full", epochs=1)
    expected = sum(float(g.square().sum()) for g in gradients) ** 0.5
    assert run.history.series("gradient_norm")[1][0] == pytest.approx(expected, rel=1e-4)


class _Stop:
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, run: Any, record: Any) -> None:
        if record.step == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("at", [3, 10])
@pytest.mark.parametrize("rule", RULES)
def test_resumed_exactly(rule: str, at: int, tmp_path: Path) -> None:
    """Dropout, batch norm, averages; at a report, where the gradient itself is looked at, and where factors are old."""

    def given() -> dict[str, Any]:
        model = network(nn.BatchNorm1d(16), nn.Dropout(0.2))
        return {"model": model, "data": points(), "loss": "cross_entropy", "verbose": False}

    words = {"optimizer": rule, "batch_size": 64, "steps": 24, "weight_average": "ema", "validation_split": 0.2}
    whole = thalweg.fit(**given(), **words, run_dir=tmp_path / "whole")
    stopped = thalweg.fit(**given(), **words, run_dir=tmp_path / "part", callbacks=[_Stop(at)])
    assert (stopped.stopped_because, stopped.steps) == ("interrupted", at)
    resumed = thalweg.resume(tmp_path / "part", **given(), callbacks=())
    assert resumed.steps == whole.steps == 24
    assert resumed.history.to_dict() == whole.history.to_dict()
    for name, t in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], t), name


@pytest.mark.parametrize("rule", RULES)
def test_accumulated_in_micro_batches(rule: str) -> None:
    found = []
    for accumulate in (1, 4):
        run = quiet(network(), optimizer=rule, batch_size="full", accumulate=accumulate, epochs=3)
        found.append(run.metrics["loss"])
    assert found[1] < 0.5
    if rule == "lbfgs":
        assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_schedules_and_clipping_count_for_kfac() -> None:
    start = [p.detach().clone() for p in network().parameters()]
    moved = []
    for norm in (None, 1e-3):  # far below the gradient's: a step is as much shorter
        model = quiet(network(), optimizer="kfac", steps=1, clip_norm=norm).model
        moved.append(
            sum(float((p.detach() - q).square().sum()) for p, q in zip(model.parameters(), start, strict=True)) ** 0.5
        )
    assert 0 < moved[1] < 0.01 * moved[0]
    rates = quiet(network(), optimizer="kfac", steps=40, schedule="cosine").history.series("learning_rate")[1]
    assert rates[0] == 1.0
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "lbfgs", "clip_norm": 1.0}, "lbfgs goes no further than the loss falls.*leave clip_norm"),
        ({"optimizer": "gauss_newton", "clip_value": 1.0}, "gauss_newton goes no further"),
        ({"optimizer": "lbfgs", "schedule": "cosine", "epochs": 3}, "leave schedule out"),
        ({"optimizer": "kfac", "optimizer_options": {"groups": {"0.*": {}}}}, "leave groups out"),
        ({"optimizer": "lbfgs", "data": [points()]}, "lbfgs takes all data in one batch"),
    ],
)
def test_what_is_refused_in_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quiet(network(), **settings)


@pytest.mark.parametrize("rule", ["kfac", "gauss_newton"])
def test_a_model_that_makes_its_own_loss(rule: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.inner(x), y)

    with pytest.raises(TypeError, match="give loss="):
        quiet(Own(), loss=None, optimizer=rule)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="unknown option of kfac 'dampin': did you mean 'damping'"):
        quiet(network(), optimizer="kfac", optimizer_options={"dampin": 1.0})


def test_an_object_is_taken_as_it_is() -> None:
    model = network()
    run = quiet(model, optimizer=thalweg.optim.KFAC(model, "cross_entropy", 0.5), epochs=10)
    assert run.optimizer.param_groups[0]["initial_lr"] == 0.5
    assert run.metrics["loss"] < 0.1


def test_small_batches_for_lbfgs_are_told() -> None:
    run = quiet(network(), optimizer="lbfgs", batch_size=50, epochs=1)
    assert any("batch_size='full' is meant for it" in note for note in run.record.notes)


@pytest.mark.parametrize("rule", ["kfac", "gauss_newton"])
def test_a_fast_step_of_ones_own_loop(rule: str) -> None:
    model, (x, y) = network(), points()
    made = thalweg.optim.KFAC if rule == "kfac" else thalweg.optim.GaussNewton
    step = thalweg.fast_step(model, "cross_entropy", made(model, "cross_entropy"))
    losses = [float(step(x, y)) for _ in range(10)]
    step.close()
    assert losses[-1] < 0.2 * losses[0]


def test_the_words_of_optim() -> None:
    import thalweg.optim as room

    rules = ["GaussNewton", "KFAC", "LBFGS", "Muon", "SOAP"]
    assert room.__all__ == sorted(["CautiousDecay", "ScheduleFree", *rules])
    assert all(issubclass(getattr(room, word), torch.optim.Optimizer) for word in rules)
    with pytest.raises(AttributeError, match="KFAQ"):
        _ = room.KFAQ
