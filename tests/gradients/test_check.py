"""Right gradients pass on every seed, kinks and dropout included; wrong ones are found and named."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from gradient_cases import NAMES, case
from torch import nn

from thalweg.gradients.check import ENTRIES, check_gradients


class WrongSquare(torch.autograd.Function):
    """x², whose backward says x instead of 2x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class RightSquare(WrongSquare):
    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class WrongEntry(torch.autograd.Function):
    """The identity, whose backward is wrong in one single entry."""

    @staticmethod
    def forward(ctx, w):
        return w * 1

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g[17, 23] *= 1.01
        return g


class Squares(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.first, self.scale, self.square = nn.Linear(4, 3), nn.Parameter(torch.rand(3) + 0.5), square

    def forward(self, x):
        return self.first(x) + self.square.apply(self.scale)


class OneWrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(40, 50) / 7)

    def forward(self, x):
        return (x @ WrongEntry.apply(self.w)).tanh()


@pytest.mark.parametrize("name", NAMES)
def test_the_shared_cases_are_right(name):
    known = case(name)
    result = check_gradients(known.model, known.data, known.loss)
    assert result.ok, result.table()
    assert [row.name for row in result.rows] == [name for name, _ in known.model.named_parameters()]


def kinked():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


@pytest.mark.parametrize("seed", range(6))
def test_kinks_dropout_and_batch_norm_pass_on_every_seed(seed):
    torch.manual_seed(seed)
    model = kinked()
    result = check_gradients(model, (torch.randn(8, 1, 8, 8), torch.arange(8) % 3), "cross_entropy")
    assert result.ok, result.table()
    assert sum(row.checked for row in result.rows) > 20 * sum(row.kinks for row in result.rows)


def test_a_wrong_function_is_found_and_its_parameter_named():
    torch.manual_seed(0)
    data = torch.randn(6, 4), torch.randn(6, 3)
    result = check_gradients(Squares(WrongSquare), data, "mse")
    assert not result.ok
    assert {row.name: row.ok for row in result.rows} == {"scale": False, "first.weight": True, "first.bias": True}
    wrong = result.rows[0]
    assert wrong.error == pytest.approx(0.5, abs=1e-6)
    assert wrong.slope == pytest.approx(2 * wrong.gradient, rel=1e-6)
    assert "scale" in result.sentence and "wrong" in result.table()
    assert check_gradients(Squares(RightSquare), data, "mse").ok


def test_one_wrong_entry_among_two_thousand_is_located():
    torch.manual_seed(0)
    [row] = check_gradients(OneWrong(), (torch.randn(9, 40), torch.randn(9, 50)), "mse").rows
    assert row.shape == (40, 50) and row.checked < 40 * 50
    assert row.place == (17, 23)
    assert row.error == pytest.approx(0.01 / 1.01, rel=1e-2)


def test_entries_on_a_kink_are_left_out_and_counted():
    """Zero weights before a ReLU: each entry's slope is one thing to the left and another to the right."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU())
    nn.init.zeros_(model[0].weight)
    result = check_gradients(model, (torch.ones(4, 3), -torch.ones(4, 2)), "mse")
    assert result.ok
    assert (result.rows[0].checked, result.rows[0].kinks, result.rows[0].place) == (0, 6, None)
    assert "6 lie on a kink" in result.sentence


def test_a_wrong_gradient_beside_kinks_is_still_found():
    class WrongRelu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.relu()

        @staticmethod
        def backward(ctx, g):
            return g * (ctx.saved_tensors[0] > -0.5)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 20), nn.Linear(20, 3)

        def forward(self, x):
            return self.b(WrongRelu.apply(self.a(x)))

    torch.manual_seed(1)
    result = check_gradients(Net(), (torch.randn(16, 5), torch.arange(16) % 3), "cross_entropy")
    assert {row.name for row in result.rows if not row.ok} == {"a.weight", "a.bias"}


def test_a_small_gradient_is_compared_as_strictly_as_a_large_one():
    torch.manual_seed(0)
    model = Squares(WrongSquare)
    data = torch.randn(6, 4), torch.randn(6, 3)
    assert not check_gradients(model, data, lambda z, y: 1e-3 * F.mse_loss(z, y)).ok
    assert not check_gradients(model, data, lambda z, y: 1e3 * F.mse_loss(z, y)).ok
    assert check_gradients(Squares(RightSquare), data, lambda z, y: 1e3 * F.mse_loss(z, y)).ok


def test_vanishing_gradients_are_no_error():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(6, 6), nn.Sigmoid())])
    assert check_gradients(model, (torch.randn(8, 6), torch.randn(8, 6)), "mse").ok


def test_the_model_is_left_alone():
    torch.manual_seed(0)
    model = kinked()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = check_gradients(model, (torch.randn(8, 1, 8, 8), torch.arange(8) % 3), "cross_entropy")
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())
    assert model.training and all(p.grad is None and p.dtype is torch.float32 for p in model.parameters())
    torch.set_rng_state(random)
    again = check_gradients(model, (torch.randn(8, 1, 8, 8), torch.arange(8) % 3), "cross_entropy")
    assert first == again


def test_frozen_and_unused_parameters():
    class HalfUsed(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    model = HalfUsed()
    model.used.bias.requires_grad_(False)
    rows = check_gradients(model, (torch.randn(4, 2), torch.randn(4, 1)), "mse").rows
    assert [row.name for row in rows] == ["used.weight", "idle.weight", "idle.bias"]
    assert all(row.ok for row in rows) and rows[1].gradient == 0.0


def test_large_tensors_are_sampled():
    [weight, bias] = check_gradients(nn.Linear(30, 20), (torch.randn(8, 30), torch.randn(8, 20)), "mse").rows
    assert weight.checked == ENTRIES + 3 and bias.checked == 20


def test_a_model_with_randomness_of_its_own_is_refused():
    own = torch.Generator().manual_seed(0)

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(1, generator=own)

    with pytest.raises(ValueError, match="another loss each time"):
        check_gradients(Noisy(2, 1), (torch.randn(4, 2), torch.randn(4, 1)), "mse")


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="the loss is inf"):
        check_gradients(nn.Linear(2, 1), (torch.randn(4, 2), torch.randn(4, 1)), lambda z, y: z.sum() / 0)


def test_a_compiled_model_is_checked_under_its_own_names():
    made = case("dense")
    compiled = torch.compile(made.model, backend="eager")
    assert check_gradients(compiled, made.data, made.loss) == check_gradients(made.model, made.data, made.loss)
