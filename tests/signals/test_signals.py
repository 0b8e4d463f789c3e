"""Signals against the same numbers taken by hand from a twin that trains beside."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thalweg
import thalweg.gradients
from thalweg.signals.cadence import EVERY, is_reported
from thalweg.signals.forward import FLAT, WINDOW, Activations
from thalweg.signals.layers import Layers
from thalweg.signals.signals import Signals
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve


def data(rows: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), activation(), nn.Linear(10, 3))


def fitted(model: nn.Module, steps: int = 1, **settings: Any) -> thalweg.Run:
    settings = {"repair": "advise", **settings}
    return thalweg.fit(
        model, data(), "cross_entropy", optimizer="sgd", learning_rate=0.1, schedule="constant", batch_size=64,
        steps=steps, shuffle=False, verbose=False, patience=None, **settings,
    )  # fmt: skip


def at(run: thalweg.Run, name: str, step: int) -> float:
    steps, values = run.history.series(name)
    return float(values[list(steps).index(step)])


def test_the_norms_of_each_layer_and_of_the_whole() -> None:
    model = net()
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    by_hand = {
        layer: math.sqrt(sum(float(p.grad.square().sum()) for p in model[int(layer)].parameters())) for layer in "02"
    }
    model.zero_grad()
    run = fitted(model)
    for layer, norm in by_hand.items():
        assert at(run, f"gradient_norm/{layer}", 1) == pytest.approx(norm, rel=1e-5)
    assert at(run, "gradient_norm", 1) == pytest.approx(math.hypot(*by_hand.values()), rel=1e-5)


def test_norms_are_taken_before_clipping() -> None:
    free, clipped = fitted(net()), fitted(net(), clip_norm=1e-4)
    assert at(clipped, "gradient_norm", 1) == at(free, "gradient_norm", 1)
    assert at(clipped, "update_ratio/0", 1) < 1e-2 * at(free, "update_ratio/0", 1)


def test_how_far_each_layer_moved() -> None:
    model = net()
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = fitted(model)
    for layer in "02":
        pairs = [(p.detach(), old[f"{layer}.{name}"]) for name, p in model[int(layer)].named_parameters()]
        size = math.sqrt(sum(float(new.square().sum()) for new, _ in pairs))
        moved = math.sqrt(sum(float((new - before).square().sum()) for new, before in pairs))
        assert at(run, f"weight_norm/{layer}", 1) == pytest.approx(size, rel=1e-5)
        assert at(run, f"update_ratio/{layer}", 1) == pytest.approx(moved / size, rel=1e-3)


def test_a_layer_without_weights_has_no_ratio() -> None:
    model = net()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    model[2].requires_grad_(False)
    run = fitted(model)
    assert "update_ratio/2" not in run.history.names
    assert "update_ratio/0" in run.history.names


def test_which_layer_lost_its_numbers_first() -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * float("nan")

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.high(Breaks.apply(self.low(x)))

    run = fitted(Broken())
    assert math.isnan(at(run, "gradient_norm/low", 1))
    assert math.isfinite(at(run, "gradient_norm/high", 1))
    assert math.isnan(at(run, "gradient_norm", 1))


def sampled(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    signals = Signals(Forward(model), list(model.parameters()))
    found: dict[str, float] = {}
    for i, x in enumerate(inputs, 1):
        with signals.taking(i * EVERY):
            model(x).sum().backward()
        found = signals.read()
    return found


def test_activations_by_hand() -> None:
    model, (x, _) = net(nn.Tanh), data()
    y = torch.tanh(model[0](x))
    found = sampled(model, x)
    assert found["activation_mean/1"] == pytest.approx(y.mean().item(), abs=1e-6)
    assert found["activation_spread/1"] == pytest.approx(y.std(correction=0).item(), rel=1e-5)
    assert found["saturated_share/1"] == pytest.approx((1 - y**2 < FLAT).float().mean().item(), abs=1e-7)
    assert "dead_share/1" not in found


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid])
def test_saturation_is_where_the_slope_is_gone(activation: type[nn.Module]) -> None:
    z = torch.linspace(-30, 30, 2001, requires_grad=True)
    layer = activation()
    layer(z).sum().backward()
    assert z.grad is not None
    by_slope = (z.grad < FLAT * z.grad.max()).float().mean().item()
    reader = Activations()
    model = nn.Sequential(nn.Linear(1, 1), layer)
    nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
    assert 0.1 < by_slope < 1
    assert sampled(model, z.detach()[:, None])["saturated_share/1"] == pytest.approx(by_slope, abs=2e-3)
    assert reader.wants("", layer) == ("output",)


def test_dead_is_a_unit_over_many_batches_and_not_a_zero() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
    rare = torch.tensor([[1.0, -1.0, -1.0, -1.0]])
    # One unit fires in each batch: three zeros in four, yet over four batches no unit but the last is dead.
    batches = [rare.roll(shift, 1) for shift in (0, 1, 2)] + [rare]
    assert sampled(model, *batches)["dead_share/1"] == pytest.approx(0.25)
    assert sampled(model, *[rare] * (WINDOW + 1))["dead_share/1"] == pytest.approx(0.75)
    # A unit that fired once, and not in the last WINDOW samples, is dead by now.
    assert sampled(model, rare.roll(1, 1), *[rare] * (WINDOW - 1))["dead_share/1"] == pytest.approx(0.5)
    assert sampled(model, rare.roll(1, 1), *[rare] * WINDOW)["dead_share/1"] == pytest.approx(0.75)


def test_a_unit_of_a_convolution_is_a_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -100.0, 0.0]))
    assert sampled(model, torch.randn(5, 1, 4, 4))["dead_share/1"] == pytest.approx(1 / 3)


def test_what_is_taken_depends_on_the_number_of_the_step_alone() -> None:
    run = fitted(net(), steps=2 * EVERY)
    assert run.history.series("gradient_norm/0")[0].tolist() == [s for s in range(1, 201) if is_reported(s)]
    assert run.history.series("update_ratio/0")[0].tolist() == [1, 10, 20, 50, 100, 200]
    assert run.history.series("dead_share/1")[0].tolist() == [10, 20, 50, 100, 200]


def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = net()
    fitted(looked, steps=EVERY + 5)
    blind = net()
    monkeypatch.setattr("thalweg.loop.train.is_reported", lambda step: False)
    fitted(blind, steps=EVERY + 5)
    for a, b in zip(looked.parameters(), blind.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not looked[1]._forward_hooks


def test_layers_group_parameters_by_the_module_that_owns_them() -> None:
    layers = Layers.of(["a.weight", "a.bias", "b.c.weight", "scale"])
    assert layers.names == ("a", "b.c", "scale")
    assert layers.places == ((0, 1), (2,), (3,))


def test_the_report_shows_the_flow() -> None:
    run = fitted(net(), steps=EVERY)
    page = run.report().read_text()
    assert "Gradient flow by layer" in page


def test_the_noise_scale_is_that_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.signals.noise.EVERY", 5)
    model = net()
    run = fitted(model, steps=4)
    by_hand = thalweg.gradients.noise_scale(run.model, data(), "cross_entropy").simple
    again = fitted(net(), steps=5)
    assert at(again, "noise_scale", 5) == pytest.approx(by_hand.item(), rel=1e-4)
    assert again.history.series("noise_scale")[0].tolist() == [5]


@pytest.mark.parametrize("extra", [lambda: nn.BatchNorm1d(10), lambda: nn.Dropout(0.5)], ids=["norm", "dropout"])
def test_taking_it_changes_nothing(extra: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(every: int) -> thalweg.Run:
        monkeypatch.setattr("thalweg.signals.noise.EVERY", every)
        torch.manual_seed(3)
        return fitted(nn.Sequential(nn.Linear(6, 10), extra(), nn.Tanh(), nn.Linear(10, 3)), steps=12)

    looked, blind = trained(10), trained(1000)
    assert ("noise_scale" in looked.history.names) == isinstance(extra(), nn.Dropout)
    for a, b in zip(looked.model.parameters(), blind.model.parameters(), strict=True):
        assert torch.equal(a, b)


def dead(model: nn.Module, *inputs: Tensor) -> float:
    return next(value for name, value in sampled(model, *inputs).items() if name.startswith("dead_share/"))


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_a_unit_of_a_one_dimensional_convolution_is_a_channel(kind: Any) -> None:
    model = nn.Sequential(kind(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7, 3))
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([-100.0, 100.0, 100.0, 100.0])
    assert dead(model, torch.randn(5, 2, 7)) == 0.25


def test_a_unit_behind_a_one_dimensional_batch_norm_is_a_channel() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([-100.0, 100.0, 100.0, 100.0])
    assert dead(model, torch.randn(5, 4, 7)) == 0.25


def test_a_unit_of_positions_is_a_feature_even_beside_a_convolution() -> None:
    class Read(nn.Module):
        """A convolution along the text, as wide as the text is long, then a dense layer at each position."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.dense, self.activation = nn.Conv1d(2, 7, 1), nn.Linear(7, 4), nn.ReLU()
            with torch.no_grad():
                self.dense.bias[:] = torch.tensor([-100.0, 100.0, 100.0, 100.0])

        def forward(self, x: Tensor) -> Tensor:
            return self.activation(self.dense(self.convolution(x).mT))

    assert dead(Read(), torch.randn(5, 2, 7)) == 0.25


def quadratic(curvature: float, steps: int, rate: float, **settings: Any) -> thalweg.Run:
    """J(w) = a w² / 2 in one weight, descended with plain steps."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.full((8, 1), math.sqrt(curvature / 2))
    return thalweg.fit(
        model, (x, torch.zeros(8, 1)), "mse", optimizer="sgd", learning_rate=rate, schedule="constant", steps=steps,
        batch_size=8, patience=None, verbose=False, repair="advise", **settings,
    )  # fmt: skip


@pytest.mark.parametrize("step_times_curvature", [0.1, 0.5, 1.5, 2.2])
def test_the_descent_ratio_is_that_of_a_parabola(step_times_curvature: float) -> None:
    # 1 + Δ²a / (2gΔ) = 1 − αa/2: near 1 for short steps, ½ for the step to the bottom, below 0 beyond twice that.
    run = quadratic(4.0, 20, step_times_curvature / 4.0)
    assert run.history.series("descent_ratio")[0].tolist() == [10, 20]
    assert at(run, "descent_ratio", 10) == pytest.approx(1 - step_times_curvature / 2, abs=1e-3)
    # The bottom was passed or not: this step goes on where the last one went, or comes back.
    assert at(run, "update_cosine", 10) == pytest.approx(1.0 if step_times_curvature < 1 else -1.0, abs=1e-5)


def test_the_descent_ratio_of_micro_batches_and_of_rounding() -> None:
    whole, parts = quadratic(4.0, 10, 0.1), quadratic(4.0, 10, 0.1, accumulate=4)
    assert at(parts, "descent_ratio", 10) == pytest.approx(at(whole, "descent_ratio", 10), abs=1e-5)
    assert "descent_ratio" not in quadratic(4.0, 10, 1e-9).history.names  # the loss is the same to its last digits


def test_a_rule_that_evaluates_by_itself_has_no_descent_ratio() -> None:
    model = net(nn.Tanh)
    run = thalweg.fit(
        model, data(), "cross_entropy", optimizer=torch.optim.LBFGS(model.parameters(), max_iter=2, lr=0.1),
        schedule="constant", batch_size=64, steps=10, verbose=False, patience=None,
    )  # fmt: skip
    assert "descent_ratio" not in run.history.names
    assert run.history.series("update_cosine")[0].tolist() == [10]


class Counting(nn.Module):
    """Remembers in an attribute, a list and a buffer how often it was called, and computes with all three."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.listed = 0, [0]
        self.register_buffer("counted", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.listed[0] += 1
        self.counted += 1.0
        return x * (1 + 1e-3 * (self.calls + self.listed[0] + self.counted))


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"clip_norm": 0.1}], ids=["whole", "parts", "clipped"])
@pytest.mark.parametrize("rule", ["momentum", "adamw"])
def test_sampling_leaves_no_trace(settings: Any, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> thalweg.Run:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.5), Counting(), nn.Linear(10, 3)
        )
        return thalweg.fit(
            model, data(), "cross_entropy", optimizer=rule, learning_rate=0.02, batch_size=16, steps=60,
            verbose=False, patience=None, **settings,
        )  # fmt: skip

    looked = trained()
    assert looked.history.series("descent_ratio")[0].tolist() == [10, 20, 50]
    monkeypatch.setattr("thalweg.signals.signals.is_sampled", lambda step: False)
    blind = trained()
    assert "descent_ratio" not in blind.history.names
    ours, theirs = looked.model.state_dict(), blind.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert looked.model[4].calls == blind.model[4].calls
    assert looked.history.series("loss")[1].tolist() == blind.history.series("loss")[1].tolist()


def test_the_angle_between_updates_survives_a_stop_between_them(tmp_path: Any) -> None:
    straight = fitted(net(), steps=12, run_dir=tmp_path / "straight")
    fitted(net(), steps=9, run_dir=tmp_path / "stopped")
    resumed = thalweg.resume(tmp_path / "stopped", model=net(), data=data(), loss="cross_entropy", steps=12)
    assert at(resumed, "update_cosine", 10) == at(straight, "update_cosine", 10)


def test_the_spread_of_losses_is_that_of_the_reports() -> None:
    run = fitted(net(), steps=40)
    assert run.history.series("loss_spread")[0].tolist() == [30, 40]
    single = fitted(net(), steps=40, callbacks=[])
    assert at(run, "loss_spread", 30) == at(single, "loss_spread", 30) > 0


def test_outputs_by_hand() -> None:
    model, (x, y) = net(), data()
    signals = Signals(Forward(model), list(model.parameters()), resolve("cross_entropy"))
    with signals.taking(10, (x, y)):
        output = model(x)
    found = signals.read()
    assert found["output_spread"] == pytest.approx(output.std(0, correction=0).mean().item(), rel=1e-5)
    assert (found["output_low"], found["output_high"]) == (output.min().item(), output.max().item())
    assert found["prediction_share"] == pytest.approx(output.argmax(1).bincount().max().item() / len(x))


@pytest.mark.parametrize(
    ("loss", "shape", "target", "share"),
    [
        ("cross_entropy", (4, 5, 3), (4, 5), 0.8),  # classes last
        ("cross_entropy", (4, 3, 5), (4, 5), 0.8),  # and on axis 1
        ("binary_cross_entropy", (20, 1), (20, 1), 0.8),
        ("mse", (20, 3), (20, 3), None),
    ],
)
def test_the_share_of_the_class_that_is_named_most(loss: str, shape: Any, target: Any, share: float | None) -> None:
    rows = torch.zeros(20, 3)
    rows[:16, 1], rows[16:, 2] = 1.0, 1.0
    output = rows.reshape(4, 5, 3) if shape == (4, 5, 3) else rows.reshape(4, 5, 3).mT if len(shape) == 3 else rows
    output = rows[:, 1:2] * 2 - 1 if shape[-1] == 1 else output

    class Answers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return output.clone().requires_grad_()

    model = Answers()
    signals = Signals(Forward(model), [], resolve(loss))
    with signals.taking(10, (torch.zeros(len(output), 1), torch.zeros(target))):
        model(torch.zeros(len(output), 1))
    assert signals.read().get("prediction_share") == (pytest.approx(share) if share else None)
