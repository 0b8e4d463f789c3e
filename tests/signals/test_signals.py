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
from thalweg.signals.forward import EVERY, FLAT, WINDOW, Activations
from thalweg.signals.layers import Layers
from thalweg.signals.signals import Signals, is_reported
from thalweg.step.forward import Forward


def data(rows: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 10), activation(), nn.Linear(10, 3))


def fitted(model: nn.Module, steps: int = 1, **settings: Any) -> thalweg.Run:
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
    assert run.history.series("update_ratio/0")[0].tolist() == [1, 100, 200]
    assert run.history.series("dead_share/1")[0].tolist() == [100, 200]


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
