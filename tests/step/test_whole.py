"""The four steps, against formulas and against autograd in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.optim.catalogue import build
from thalweg.step.backward import accumulate, objective
from thalweg.step.batches import Batches, Order, Parts
from thalweg.step.data import read
from thalweg.step.fast import fast_step
from thalweg.step.forward import Forward
from thalweg.step.losses import resolve
from thalweg.step.planned import PlannedStep
from thalweg.step.update import Clip, Update
from thalweg.step.whole import Step


def model(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, classes)).double()


def problem(rows: int = 23, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (rows,), generator=generator)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_one_step_of_sgd_is_theta_minus_alpha_gradient() -> None:
    network, (x, y) = model(), problem()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    F.cross_entropy(network(x), y).backward()
    expected = {name: before[name] - 0.1 * g for name, g in gradients(network).items()}
    network.zero_grad()
    optimizer = build("sgd", network.named_parameters(), 0.1)
    loss = Step(Forward(network), resolve("cross_entropy"), Update(optimizer))((x, y))
    for name, p in network.named_parameters():
        # One unit in the last place: the fused kernel rounds θ − α∇J once, the formula written out rounds it twice.
        torch.testing.assert_close(p, expected[name], rtol=2**-52, atol=2**-56)
    assert not loss.requires_grad
    assert all(p.grad is None for p in network.parameters())


class Summed:
    """A user's loss that adds up instead of averaging."""

    reduction = "sum"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="sum")


def ignoring(y: Tensor) -> Tensor:
    y = y.clone()
    y[::3] = -100
    y[:6] = -100  # a whole micro-batch of nothing
    return y


LOSSES: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "mean": ("cross_entropy", lambda y: y),
    "sum": (Summed(), lambda y: y),
    "ignored index": ("cross_entropy", ignoring),
    "class weights": (nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.3], dtype=torch.float64)), lambda y: y),
    "one-hot": ("cross_entropy", lambda y: F.one_hot(y, 3)),
    "mse": ("mse", lambda y: F.one_hot(y, 3).double()),
    "user's mean": (lambda output, target: (output[:, 0] - target).square().mean(), lambda y: y.double()),
}


@pytest.mark.parametrize("size", [1, 5, 6, 22, 23])
@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_give_the_gradient_of_the_whole_batch(name: str, size: int) -> None:
    loss, targets = LOSSES[name]
    rule, network, (x, y) = resolve(loss), model(), problem()
    y = targets(y)
    value, _ = objective(Forward(network), rule, (x, y))
    value.backward()
    whole = gradients(network)
    network.zero_grad()
    parts = [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]
    combined = accumulate(Forward(network), rule, parts)
    assert float(combined) == pytest.approx(value.item(), rel=1e-12)
    for key, gradient in gradients(network).items():
        assert (gradient - whole[key]).norm() <= 1e-12 * whole[key].norm()


@pytest.mark.parametrize("size", [1, 5, 8])
def test_micro_batches_divide_whatever_the_rule_moves(size: int) -> None:
    """Also what the loss has of its own."""
    network, (x, y) = model(), problem()
    head = nn.Linear(3, 3).double()
    loss = resolve(lambda output, target: F.cross_entropy(head(output), target))
    step = Step(Forward(network), loss, Update(torch.optim.SGD([*network.parameters(), *head.parameters()], 0.1)))
    step.gradients((x, y))
    expected = [p.grad.clone() for p in step.update.parameters]
    step.update.optimizer.zero_grad()
    step.gradients(Parts(lambda: zip(x.split(size), y.split(size), strict=True)))
    torch.testing.assert_close([p.grad for p in step.update.parameters], expected, rtol=1e-12, atol=1e-14)


def test_the_full_batch_is_never_in_memory_at_once() -> None:
    x, y = problem(rows=2500)
    network = model()
    largest = 0

    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal largest
        largest = max(largest, len(args[0]))

    network.register_forward_pre_hook(watch)
    batches = Batches(read((x, y), torch.float64), Order(None), torch.float64, torch.device("cpu"))
    update = Update(build("sgd", network.named_parameters(), 0.1))
    step = Step(Forward(network), resolve("cross_entropy"), update)
    for batch in batches.epoch(0):
        step(batch)
    assert largest == 1024


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_clipping_by_norm_keeps_the_direction(scale: float) -> None:
    network, (x, y) = model(), problem()
    (F.cross_entropy(network(x), y) * scale).backward()
    before = torch.cat([g.flatten() for g in gradients(network).values()])
    Update(build("sgd", network.named_parameters(), 0.1), Clip(norm=0.5)).clip_gradients()
    after = torch.cat([g.flatten() for g in gradients(network).values()])
    assert after.norm().item() == pytest.approx(min(0.5, before.norm().item()), rel=1e-5)
    assert torch.cosine_similarity(before, after, dim=0).item() == pytest.approx(1.0, abs=1e-12)


def test_clipping_by_value_bounds_each_entry() -> None:
    network, (x, y) = model(), problem()
    F.cross_entropy(network(x), y).backward()
    before = gradients(network)
    Update(build("sgd", network.named_parameters(), 0.1), Clip(value=0.01)).clip_gradients()
    assert any((g.abs() > 0.01).any() for g in before.values())
    for name, g in gradients(network).items():
        assert torch.equal(g, before[name].clamp(-0.01, 0.01))


def test_a_rule_that_searches_along_a_line_evaluates_for_itself() -> None:
    network, (x, y) = model(), problem()
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=20, line_search_fn="strong_wolfe")
    step = Step(Forward(network), resolve("cross_entropy"), Update(optimizer))
    losses = [float(step((x, y))) for _ in range(10)]
    assert losses[-1] < 0.05 * losses[0]


class OwnLoss(nn.Module):
    """A model that returns its loss, in one of the usual ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.inner = model()
        self.form = form

    def forward(self, x: Tensor, target: Tensor) -> Any:
        loss = F.cross_entropy(self.inner(x), target)
        return {
            "scalar": loss,
            "dict": {"loss": loss},
            "tuple": (loss, 1),
            "object": type("Out", (), {"loss": loss})(),
        }[self.form]


@pytest.mark.parametrize("form", ["scalar", "dict", "tuple", "object"])
def test_a_model_may_make_its_own_loss(form: str) -> None:
    network, (x, y) = OwnLoss(form), problem()
    expected = F.cross_entropy(network.inner(x), y).item()
    value, output = objective(Forward(network), None, (x, y))
    assert value.item() == expected
    assert output is None
    by_name, _ = objective(Forward(network), None, ({"x": x, "target": y}, None))
    assert by_name.item() == expected


def test_a_model_without_a_loss_is_told_so() -> None:
    class Outputs(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"scalar loss, it returned a tensor of shape \[23, 4\]"):
        objective(Forward(Outputs()), None, problem())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArithmeticError("halfway")], ids=repr)
def test_a_fast_step_that_cannot_be_prepared_is_closed(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise error

    closed: list[PlannedStep] = []
    close = PlannedStep.close
    monkeypatch.setattr(PlannedStep, "plan_on", fails)
    monkeypatch.setattr(PlannedStep, "close", lambda self: closed.append(self) or close(self))
    network = model()
    with pytest.raises(type(error)):
        fast_step(network, "cross_entropy", torch.optim.SGD(network.parameters(), 0.1), example=problem())
    assert len(closed) == 1


def test_what_a_fast_step_refuses() -> None:
    with pytest.raises(TypeError, match=r"torch.optim.SGD\(model.parameters\(\), lr=0.1\), got 'sgd'"):
        fast_step(model(), "cross_entropy", "sgd")  # type: ignore[arg-type]
    network, (x, y) = model(), problem()
    step = fast_step(network, "cross_entropy", torch.optim.SGD(network.parameters(), lr=0.1), plan="eager")
    for inputs in (x.numpy(), {"x": x.numpy()}):
        with pytest.raises(TypeError, match="takes tensors.*NumPy array"):
            step(inputs, y)


def test_several_updates_of_a_fast_step_and_what_they_refuse() -> None:
    network, twin, (x, y) = model(), model(), problem()
    step, other = (
        fast_step(n, "cross_entropy", torch.optim.SGD(n.parameters(), lr=0.1), plan="eager") for n in (network, twin)
    )
    batches = [(x[i : i + 4], y[i : i + 4]) for i in range(0, 12, 4)]
    found = step.several(list(batch) for batch in batches)  # as a loader gives them
    assert torch.equal(found, torch.stack([other(*batch) for batch in batches]))
    assert found.shape == (3,) and not found.requires_grad
    before = [p.clone() for p in network.parameters()]
    for wrong, error, words in (
        ([], ValueError, r"at least one batch \(x, y\), got none"),
        ([batches[0], x], TypeError, r"takes batches \(x, y\), got a Tensor among them"),
        ([(x, y, y)], TypeError, r"got a tuple of 3 among them"),
        ([batches[0], (x.numpy(), y)], TypeError, "takes tensors.*NumPy array"),
    ):
        with pytest.raises(error, match=words):
            step.several(wrong)  # type: ignore[arg-type]
    assert all(map(torch.equal, network.parameters(), before)), "nothing is made of the first ones"


class OfDict(nn.Module):
    """Takes its inputs as one dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model()

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.inner(inputs["a"] + inputs["b"])


class OfNames(OfDict):
    """Takes them by name."""

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        return super().forward({"a": a, "b": torch.zeros_like(a) if b is None else b})


class OfOneName(OfDict):
    """Takes one, by its name."""

    def forward(self, a: Tensor) -> Tensor:
        return self.inner(a)


class OfAnyNames(OfDict):
    """Takes one, and more by name."""

    def forward(self, first: Any = None, **inputs: Tensor) -> Tensor:
        return super().forward(inputs)


@pytest.mark.parametrize("kind", [OfDict, OfNames, OfAnyNames, lambda: nn.Sequential(OfDict(), nn.Identity())])
def test_a_dict_goes_by_name_or_whole_where_one_is_taken(kind: Any) -> None:
    x, _ = problem()
    network = kind()
    inner = network.inner if hasattr(network, "inner") else network[0].inner
    assert torch.equal(Forward(network)({"a": x, "b": x}), inner(2 * x))


def test_a_dict_of_one_goes_by_its_name() -> None:
    x, _ = problem()
    network = OfOneName()
    assert torch.equal(Forward(network)({"a": x}), network.inner(x))
    with pytest.raises(TypeError, match="'b'"):
        Forward(network)({"a": x, "b": x})


def test_a_compiled_model_takes_a_dict_as_the_model_does() -> None:
    x, _ = problem()
    network = OfDict()
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(Forward(compiled)({"a": x, "b": x}), network.inner(2 * x))
