from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thalweg
from thalweg.run.trajectory import MOST, Trajectory


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def data(count: int = 56) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(1))
    return x, torch.sin(x[:, :1])


def trained(model: nn.Module, trajectory: Any, run_dir: Path, **settings: Any) -> thalweg.Run:
    given = {"optimizer": "adamw", "learning_rate": 0.01, "batch_size": 8, "patience": None, "verbose": False}
    return thalweg.fit(model, data(), "mse", **{**given, **settings}, callbacks=trajectory, run_dir=run_dir)


@pytest.mark.parametrize("settings", [{}, {"weight_average": "ema"}, {"validation_split": 0.2}], ids=str)
def test_training_is_the_same_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, watched, trajectory = network(), network(), Trajectory()
    first = trained(plain, (), tmp_path / "a", epochs=6, **settings)
    again = trained(watched, trajectory, tmp_path / "b", epochs=6, **settings)
    assert len(trajectory.steps) > 20
    assert first.history.to_dict() == again.history.to_dict()
    assert first.record.notes == again.record.notes
    for name, t in plain.state_dict().items():
        assert torch.equal(t, watched.state_dict()[name]), name


def test_what_is_kept_are_the_weights_at_reported_steps(tmp_path: Path) -> None:
    """7 updates an epoch: 21 is the end of the third, reported by nothing but its evaluation."""
    seen: dict[int, dict[str, Tensor]] = {}

    class Watch(thalweg.Callback):
        def on_start(self, run: thalweg.Run) -> None:
            self.keep(run, 0)

        def on_step(self, run: thalweg.Run, record: thalweg.StepRecord) -> None:
            self.keep(run, record.step)

        def on_validate(self, run: thalweg.Run, record: thalweg.StepRecord) -> None:
            self.keep(run, record.step)

        def keep(self, run: thalweg.Run, step: int) -> None:
            seen[step] = {name: t.clone() for name, t in run.model.state_dict().items() if t.is_floating_point()}

    trajectory = Trajectory()
    trained(network(), [Watch(), trajectory], tmp_path / "a", epochs=3)
    assert trajectory.steps == tuple(range(22))
    path = trajectory.path
    assert path.points.dtype == torch.float32 and path.points.device.type == "cpu"
    for step, point in zip(path.steps, path.points, strict=True):
        kept = path.layout.unflatten(point)
        assert all(torch.equal(kept[name], t) for name, t in seen[step].items())
    assert path.trained == {name for name, _ in network().named_parameters()}
    assert set(path.layout.names) - path.trained == {"1.running_mean", "1.running_var"}


def test_a_tied_weight_is_kept_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    model[1].weight = model[0].weight
    trajectory = Trajectory()
    trained(model, trajectory, tmp_path / "a", steps=4)
    assert trajectory.path.points.shape == (5, sum(p.numel() for p in model.parameters()))


@pytest.mark.parametrize("room", [3, 4, 5, 8, 11])
def test_full_memory_is_thinned_evenly(room: int, tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    trajectory = Trajectory(memory=4 * 4 * room + 3)
    trained(model, trajectory, tmp_path / "a", epochs=None, steps=140)
    taken = sorted({*range(21), *range(30, 141, 10), *range(21, 141, 7)})  # reports, and evaluations each 7 steps
    assert room / 2 <= len(trajectory.steps) <= room
    assert trajectory.steps[0] == 0 and trajectory.steps[-1] == 140
    gaps = [taken.index(b) - taken.index(a) for a, b in pairwise(trajectory.steps)]
    assert len(set(gaps[:-1])) <= 1 and gaps[-1] <= gaps[0]
    assert torch.equal(trajectory.path.points[-1], torch.cat([p.detach().reshape(-1) for p in model.parameters()]))


def test_more_than_a_picture_shows_is_not_kept(tmp_path: Path) -> None:
    trajectory = Trajectory()
    trained(nn.Linear(3, 1), trajectory, tmp_path / "a", epochs=300)
    assert MOST / 2 <= len(trajectory.steps) <= MOST
    assert trajectory.steps[-1] == 2100


def test_a_model_too_large_keeps_its_first_and_last_weights_and_says_so(tmp_path: Path) -> None:
    trajectory = Trajectory(memory=100)
    run = trained(network(), trajectory, tmp_path / "a", epochs=3)
    assert trajectory.steps == (0, 21)
    (note,) = [note for note in run.record.notes if "fewer than 3 copies" in note]
    assert "only the first and those of the last evaluation" in note
    with pytest.raises(ValueError, match="fewer than 3 copies fit into 0.0001 MB"):
        trajectory.plane(run.model, data(), "mse")
    assert note.split("Trajectory(memory=")[1].startswith(str(40 * trajectory.path.layout.size))


def test_the_next_training_begins_anew_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    trajectory = Trajectory()
    trained(nn.Linear(3, 1), trajectory, tmp_path / "a", steps=6)
    trained(network(), trajectory, tmp_path / "b", epochs=1)
    assert trajectory.steps == tuple(range(8))
    trained(network(), trajectory, tmp_path / "b", epochs=2, resume=True)
    assert trajectory.steps == tuple(range(15))
    late = Trajectory()
    trained(network(), late, tmp_path / "b", epochs=3, resume=True)
    assert late.steps == tuple(range(15, 22))


def test_nothing_kept_yet() -> None:
    with pytest.raises(ValueError, match="callbacks=trajectory"):
        Trajectory().plane(network(), data(), "mse")


def test_the_report_shows_the_path_and_the_point(tmp_path: Path) -> None:
    trajectory, model = Trajectory(), network()
    run = trained(model, trajectory, tmp_path / "a", epochs=4)
    plane, point = trajectory.plane(model, data(), "mse"), thalweg.landscape(model, data(), "mse")
    assert plane.path_loss[-1] == pytest.approx(point.loss, rel=1e-5)
    one = run.report(landscape=plane).read_text(encoding="utf-8")
    both = run.report(tmp_path / "both.html", landscape=[point, plane]).read_text(encoding="utf-8")
    title = "<h2>Landscape along the training</h2>"
    assert title in one and title in both and title not in run.report().read_text(encoding="utf-8")
    assert f"<h2>Landscape: {point.kind}</h2>" in both
    with pytest.raises(TypeError, match="a Landscape or a Plane, got str"):
        run.report(landscape="saddle")  # type: ignore[arg-type]
