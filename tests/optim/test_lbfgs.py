from __future__ import annotations

import numpy as np
import pytest
import torch
from second_order_cases import batch_of, model_of, saved
from torch import nn

from thalweg.optim import LBFGS


def minimised(parameters, value, steps=20, **options):
    """Losses at the start of each step, and how often the loss was evaluated."""
    optimizer, calls = LBFGS(parameters, **options), []

    def closure():
        optimizer.zero_grad()
        loss = value()
        loss.backward()
        calls.append(loss.item())
        return loss

    return [float(optimizer.step(closure)) for _ in range(steps)], calls


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -2.0], [-1.2, 1.0, 0.5, -0.5, 2.0]])
def test_rosenbrock_as_scipy_has_it(start):
    from scipy.optimize import minimize, rosen, rosen_der

    x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    _, calls = minimised([x], lambda: rosenbrock(x), steps=8)
    theirs = minimize(rosen, start, jac=rosen_der, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12})
    assert np.allclose(x.detach(), theirs.x, atol=1e-5)
    assert rosenbrock(x).item() < 1e-15
    assert next(i for i, loss in enumerate(calls) if loss < 1e-10) < 3 * theirs.nfev


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_regression_as_scikit_learn_has_it(classes):
    """‖W‖²/2C beside the sum of the losses, no penalty on the bias; W up to what softmax leaves open."""
    from sklearn.linear_model import LogisticRegression

    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=g, dtype=torch.float64)
    y = (x @ torch.randn(5, classes, generator=g, dtype=torch.float64) + torch.randn(200, classes, generator=g)).argmax(
        1
    )
    model = nn.Linear(5, classes).double()

    def value():
        penalty = model.weight.square().sum() / 2
        return (nn.functional.cross_entropy(model(x), y, reduction="sum") + penalty) / len(x)

    minimised(model.parameters(), value, steps=10)
    if classes == 2:  # scikit-learn has one row then, and its penalty is twice ours at the same probabilities
        theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(x.numpy(), y.numpy())
    else:
        theirs = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x.numpy(), y.numpy())
    ours = model(x).softmax(1).detach().numpy()
    assert np.allclose(ours, theirs.predict_proba(x.numpy()), atol=1e-5)


def test_one_group_is_torchs_own():
    """Step by step, bit by bit."""
    ours, theirs = (nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64)) for _ in range(2))
    words = {"max_iter": 3, "history_size": 4, "tolerance_grad": 1e-20, "tolerance_change": 1e-20}
    made = LBFGS([ours], **words), torch.optim.LBFGS([theirs], line_search_fn="strong_wolfe", max_eval=6, **words)
    for _ in range(6):
        for p, optimizer in zip((ours, theirs), made, strict=True):

            def closure(p=p, optimizer=optimizer):
                optimizer.zero_grad()
                loss = rosenbrock(p)
                loss.backward()
                return loss

            optimizer.step(closure)
        assert torch.equal(ours, theirs)


def test_groups_are_scaled_variables():
    """With rates α_k the trajectory is that of φ_k = θ_k √(α_1/α_k), one group."""
    a, b = (nn.Parameter(torch.tensor([t], dtype=torch.float64)) for t in (-1.2, 1.0))
    scaled = nn.Parameter(torch.tensor([-1.2, 1.0 / 0.1**0.5], dtype=torch.float64))
    groups = [{"params": [a]}, {"params": [b], "lr": 0.1}]
    first, _ = minimised(groups, lambda: rosenbrock(torch.cat([a, b])), steps=4, max_iter=3)
    unit = torch.tensor([1.0, 0.1**0.5], dtype=torch.float64)
    second, _ = minimised([scaled], lambda: rosenbrock(scaled * unit), steps=4, max_iter=3)
    assert np.allclose(first, second, rtol=1e-6)


def test_a_wall_is_gone_back_from():
    """−log x + x has its minimum at 1 and nothing below 0; a first length of 50 leads there."""
    x = nn.Parameter(torch.tensor([4.0], dtype=torch.float64))
    _, calls = minimised([x], lambda: (x - x.log()).sum(), steps=6, lr=50.0)
    assert any(not np.isfinite(loss) for loss in calls)
    assert x.item() == pytest.approx(1.0, abs=1e-6)


def test_goes_back_to_the_last_good_point_and_forgets():
    model, (x, y) = model_of("dense"), batch_of("dense")
    optimizer = LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    good = [p.detach().clone() for p in model.parameters()]
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert len(state["old_dirs"]) == 8
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.warns(RuntimeWarning, match="went back"):
        optimizer.step(closure)
    assert all(torch.equal(p, t) for p, t in zip(model.parameters(), good, strict=True))
    assert "old_dirs" not in state
    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


def test_a_history_that_leads_nowhere_is_forgotten():
    """All of a step's evaluations but the first were walls."""
    x = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer, is_walled = LBFGS([x], max_iter=2), [False]

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(3 * x)
        loss.backward()
        if is_walled[0] and not torch.equal(x.detach(), start):
            return torch.tensor(float("inf"))
        return loss

    start = x.detach().clone()
    optimizer.step(closure)
    assert len(optimizer.state[x]["old_dirs"])
    start, is_walled[0] = x.detach().clone(), True
    optimizer.step(closure)
    assert torch.equal(x, start)
    assert "old_dirs" not in optimizer.state[x]
    is_walled[0] = False
    before = closure().item()
    optimizer.step(closure)
    assert closure().item() < before


def test_other_rates_forget_the_history():
    x = nn.Parameter(torch.tensor([-1.2], dtype=torch.float64))
    y = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = LBFGS([{"params": [x]}, {"params": [y], "lr": 0.5}], max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = rosenbrock(torch.cat([x, y]))
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.param_groups[1]["lr"] = 0.25
    optimizer.step(closure)
    assert len(optimizer.state[x]["old_dirs"]) == 1
    assert saved(optimizer)["state"][0]["rates"] == [1.0, 0.25]


@pytest.mark.parametrize(("count", "kept"), [(50, 20), (1 << 20, 10)])
def test_as_many_pairs_are_kept_as_there_is_room_for(count: int, kept: int) -> None:
    p = nn.Parameter(torch.ones(count))
    curvature = torch.logspace(-4, 0, count)
    optimizer = LBFGS([p], max_iter=21)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (curvature * p**2).sum() + (p**4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(optimizer.state[p]["old_dirs"]) == kept


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"max_iter": 0}, {"history_size": 0}])
def test_what_is_refused(options):
    with pytest.raises(ValueError, match=r"above 0|at least 1"):
        LBFGS(nn.Linear(1, 1).parameters(), **options)
