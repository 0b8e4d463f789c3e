import pytest
import torch

from thalweg import recipe
from thalweg.tasks.digits import make


def test_a_fifth_is_held_out_in_equal_shares_and_nothing_is_in_both():
    made = make(seed=3)
    (x, y), (x_held, y_held) = made["data"], made["validation_data"]
    assert (len(x), len(x_held)) == (1437, 360)
    assert x.shape[1:] == x_held.shape[1:] == (28, 28)
    assert torch.equal(
        torch.bincount(torch.cat([y, y_held])), torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    )
    assert torch.bincount(y_held).float().sub(36).abs().max() <= 1
    rows = {tuple(row) for row in x.flatten(1).tolist()}
    assert len(rows) + len({tuple(row) for row in x_held.flatten(1).tolist()} - rows) == 1797


def test_statistics_come_from_the_training_part_alone():
    made = make(seed=0)
    x = made["data"][0].double()
    assert made["model"][0].mean == pytest.approx(x.mean().item(), rel=1e-6)
    assert made["model"][0].std == pytest.approx(x.std(correction=0).item(), rel=1e-6)


def test_the_seed_decides_weights_and_part_and_is_handed_on():
    one, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert one["seed"] == 1
    assert torch.equal(one["data"][0], again["data"][0]) and not torch.equal(one["data"][0], other["data"][0])
    assert torch.equal(one["model"][2].weight, again["model"][2].weight)
    assert not torch.equal(one["model"][2].weight, other["model"][2].weight)


@pytest.mark.parametrize("seed", range(5))
def test_the_default_training_reaches_its_accuracy(tmp_path, seed):
    run = recipe("digits", seed=seed).fit(run_dir=tmp_path / "run", verbose=False)
    assert run.metrics["validation_accuracy"] >= 0.94
