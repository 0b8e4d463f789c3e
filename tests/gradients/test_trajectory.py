from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.gradients.trajectory import GRID, Path, _principal, path_plane, weights
from thalweg.records.landscape import Plane
from thalweg.step.forward import Forward
from thalweg.tensors.vector import Layout, flat


class Valley(nn.Module):
    """Two weights; its own loss is a curved valley in them, times the mean of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([-1.0, 1.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return height(self.w[0], self.w[1]) * x.mean()


def height(a: Any, b: Any) -> Any:
    return 1e-3 + (1 - a) ** 2 + 10 * (b - a**2) ** 2


def descended(steps: int = 60) -> list[Tensor]:
    """The weights of gradient descent in the valley."""
    model, x = Valley(), torch.ones(4, 1, dtype=torch.float64)
    found = [model.w.detach().clone()]
    for _ in range(steps):
        (g,) = torch.autograd.grad(model(x), model.w)
        with torch.no_grad():
            model.w -= 5e-3 * g
        found.append(model.w.detach().clone())
    return found


def path_of(model: nn.Module, points: Tensor) -> Path:
    tensors = weights(Forward(model))
    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    return Path(Layout.of(tensors), trained, tuple(range(len(points))), points)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).eval()


def data(count: int = 50) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return x, torch.sin(x[:, :1])


def noisy_path(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    """Points around the model's weights, with no plane in particular; variances stay positive."""
    here = flat(t.detach() for t in weights(Forward(model)).values())
    noise = torch.rand(count, len(here), generator=torch.Generator().manual_seed(seed))
    return here + noise * torch.linspace(0.2, 1, len(here))


def loss_of(model: nn.Module, point: Tensor, x: Tensor, y: Tensor) -> float:
    own = copy.deepcopy(model).double()
    tensors = weights(Forward(own))
    with torch.no_grad():
        for name, value in Layout.of(tensors).unflatten(point.double()).items():
            tensors[name].copy_(value)
    return F.mse_loss(own(x.double()), y.double()).item()


# ── exactness ──


def test_in_a_valley_of_two_weights_the_plane_is_the_valley_itself() -> None:
    points = torch.stack(descended())
    plane = path_plane(Valley(), (np.ones((4, 1)), None), path=path_of(Valley(), points))
    for loss, (a, b) in zip(plane.path_loss, points.tolist(), strict=True):
        assert loss == pytest.approx(height(a, b), rel=1e-12)
    assert plane.explained is not None and sum(plane.explained) == pytest.approx(1)
    # The plane is a turned and shifted copy of the weights: distances along the path are kept.
    places = np.array(plane.path)
    assert np.linalg.norm(np.diff(places, axis=0), axis=1) == pytest.approx(
        np.linalg.norm(np.diff(points.numpy(), axis=0), axis=1), rel=1e-9, abs=1e-12
    )
    # So is the grid: solved for the turn, each of its losses is the valley's.
    turn, *_ = np.linalg.lstsq(places, points.numpy() - points[-1].numpy(), rcond=None)
    for i in range(0, GRID, 6):
        for j in range(0, GRID, 6):
            a, b = points[-1].numpy() + np.array([plane.x[j], plane.y[i]]) @ turn
            assert plane.loss[i][j] == pytest.approx(height(a, b), rel=1e-6)


def test_directions_and_shares_against_the_covariance() -> None:
    model = nn.Linear(4, 3).double()
    points = noisy_path(model, 30).double() ** 3
    x = torch.randn(9, 4, dtype=torch.float64)
    plane = path_plane(model, (x, torch.zeros(9, 3)), "mse", path=path_of(model, points))
    values, vectors = np.linalg.eigh(np.cov(points.numpy().T))
    assert plane.explained == pytest.approx(tuple((values[::-1] / values.sum())[:2]), rel=1e-9)
    for k in (0, 1):
        places = (points - points[-1]).numpy() @ vectors[:, -1 - k]
        found = np.array(plane.path)[:, k]
        assert found == pytest.approx(places if places @ found > 0 else -places, abs=1e-9)


def test_the_end_is_the_model_itself_and_lies_at_the_origin() -> None:
    """Also where the plane holds little of the path, and with running statistics."""
    model, (x, y) = network(), data()
    points = noisy_path(model, 40)
    plane = path_plane(model, (x, y), "mse", path=path_of(model, points))
    assert plane.explained is not None and sum(plane.explained) < 0.9
    assert plane.path[-1] == (0, 0)
    assert plane.path_loss[-1] == pytest.approx(loss_of(model, points[-1], x, y), rel=1e-9)


def test_running_statistics_go_along_with_the_weights() -> None:
    """Three points lie in a plane: all losses are those of the networks that were kept."""
    model, (x, y) = network(), data()
    points = noisy_path(model, 3)
    plane = path_plane(model, (x, y), "mse", path=path_of(model, points))
    for loss, point in zip(plane.path_loss, points, strict=True):
        assert loss == pytest.approx(loss_of(model, point, x, y), rel=1e-5)
    # Their own movement gives no direction: made a thousand times as large it changes none.
    statistics = flat(torch.full((t.numel(),), "running" in n) for n, t in weights(Forward(model)).items())
    larger = points.clone()
    larger[:, statistics] *= 1000
    again = path_plane(model, (x, y), "mse", path=path_of(model, larger))
    assert again.explained == pytest.approx(plane.explained, rel=1e-9)
    assert np.array(again.path) == pytest.approx(np.array(plane.path), abs=1e-9)


def test_the_grid_holds_the_path_with_a_margin() -> None:
    plane = path_plane(Valley(), (np.ones((4, 1)), None), path=path_of(Valley(), torch.stack(descended())))
    for axis, places in zip((plane.x, plane.y), np.array(plane.path).T, strict=True):
        extent = places.max() - places.min()
        assert axis[0] == pytest.approx(places.min() - extent / 4)
        assert axis[-1] == pytest.approx(places.max() + extent / 4)
    assert np.array(plane.loss).shape == (GRID, GRID)
    assert plane.path[0][0] < 0 and sum(y for _, y in plane.path) >= 0


def test_a_straight_path_has_a_second_direction_all_the_same() -> None:
    model = nn.Linear(4, 1).double()
    start = flat(p.detach() for p in model.parameters())
    points = torch.stack([start + t * torch.ones(5, dtype=torch.float64) for t in (0.0, 1.0, 2.0, 3.0)])
    plane = path_plane(model, (torch.ones(3, 4), torch.zeros(3, 1)), "mse", path=path_of(model, points))
    assert plane.explained == pytest.approx((1, 0), abs=1e-12)
    assert plane.y[-1] - plane.y[0] == pytest.approx(0.05 * (plane.x[-1] - plane.x[0]))
    assert np.isfinite(np.array(plane.loss)).all()


def test_a_random_walk_holds_six_tenths_in_its_first_direction() -> None:
    """In many dimensions the shares are 6/π² and 6/(4π²), whatever the draw: why a large share alone says little."""
    walk = torch.randn(200, 10_000, generator=torch.Generator().manual_seed(0)).cumsum(0)
    found = _principal(walk, torch.ones(10_000, dtype=torch.bool))
    assert found.explained == pytest.approx((6 / math.pi**2, 1.5 / math.pi**2), rel=0.03)


# ── what is left alone, and what cannot be done ──


@pytest.mark.parametrize("copied", [True, False])
def test_the_model_is_left_as_it_was(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not copied:
        monkeypatch.setattr("thalweg.gradients.ground.COPIED_PARAMETERS", 0)
    model, (x, y) = network().train(), data()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plane = path_plane(model, (x, y), "mse", path=path_of(model, noisy_path(model, 5)))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training and model[1].training
    assert torch.equal(torch.get_rng_state(), random)
    assert plane.path_loss[-1] == pytest.approx(loss_of(network(), noisy_path(model, 5)[-1], x, y), rel=1e-4)


def test_large_data_is_sampled_by_the_seed() -> None:
    model = network()
    path = path_of(model, noisy_path(model, 4))
    planes = [path_plane(model, data(300), "mse", path=path, examples=40, seed=seed) for seed in (0, 0, 1)]
    assert planes[0] == planes[1] and planes[0].num_examples == 40
    assert planes[2].path_loss != planes[0].path_loss and planes[2].path == planes[0].path


def test_a_path_ends_before_its_weights_are_not_finite() -> None:
    model = network()
    points = noisy_path(model, 8)
    points[5, 2] = math.nan
    points[6:] = math.inf
    plane = path_plane(model, data(), "mse", path=path_of(model, points))
    assert plane == path_plane(model, data(), "mse", path=path_of(model, points[:5]))
    assert plane.steps == (0, 1, 2, 3, 4)
    points[2] = math.nan
    with pytest.raises(ValueError, match="at least 3 points, this one has 2 with finite weights"):
        path_plane(model, data(), "mse", path=path_of(model, points))


def still(model: nn.Module) -> Tensor:
    return noisy_path(model, 1).expand(5, -1).clone()


@pytest.mark.parametrize(
    ("model", "points", "words"),
    [
        (network, still, "have not moved"),
        (lambda: nn.Linear(1, 1, bias=False), lambda model: noisy_path(model, 5), "at least 2 trained parameters"),
        (network, lambda model: noisy_path(model, 2), "this one has 2"),
    ],
    ids=["still", "one weight", "two points"],
)
def test_what_has_no_plane(model: Callable[[], nn.Module], points: Callable[[nn.Module], Tensor], words: str) -> None:
    own = model()
    with pytest.raises(ValueError, match=words):
        path_plane(own, data(), "mse", path=path_of(own, points(own)))


def test_a_path_of_another_model() -> None:
    path = path_of(network(), noisy_path(network(), 5))
    with pytest.raises(ValueError, match="of another model"):
        path_plane(nn.Linear(3, 1), data(), "mse", path=path)


# ── the picture ──


def valley_plane() -> Plane:
    return path_plane(Valley(), (np.ones((4, 1)), None), path=path_of(Valley(), torch.stack(descended(800))))


def test_the_picture_shows_the_path_with_its_ends() -> None:
    plane = valley_plane()
    figure = plane.plot()
    assert [trace.type for trace in figure.data] == ["contour", *["scatter"] * 2, "surface", *["scatter3d"] * 2]
    contour, way, ends, surface, raised, _ = figure.data
    assert list(zip(way.x, way.y, strict=True)) == list(plane.path)
    assert list(zip(ends.x, ends.y, strict=True)) == [plane.path[0], plane.path[-1]]
    assert [note.text for note in figure.layout.annotations] == ["start", "end"]
    # The losses span more than two decades: heights are logarithms, and the path lies just above the surface.
    assert contour.colorbar.title.text == "log₁₀ loss"
    assert np.asarray(surface.z) == pytest.approx(np.log10(np.array(plane.loss)))
    lifted = np.array(raised.z) - np.log10(plane.path_loss)
    assert (lifted > 0).all() and lifted == pytest.approx(0.01 * np.ptp(np.asarray(surface.z)))
    assert figure.layout.title.text.replace("<br>", " ") == plane.sentence


def test_the_sentence_says_how_much_of_the_path_is_seen() -> None:
    plane = valley_plane()
    assert plane.explained is not None
    first, second = plane.explained
    assert f"100.0% of the variance ({first:.1%} and {second:.1%})" in plane.sentence
    assert "Path of 801 points from step 0 to 800" in plane.sentence
    assert f"from {plane.path_loss[0]:.4g} to {plane.path_loss[-1]:.4g}" in plane.sentence
