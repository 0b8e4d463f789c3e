import math

import torch

from thalweg.tasks.network import ROWS, Standardise, network


def test_statistics_are_those_of_all_numbers_also_of_bytes_in_several_parts():
    x = torch.randint(0, 256, (2 * ROWS + 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    layer = Standardise.of(x)
    y = layer(x).double()
    assert y.dtype == torch.float64 and layer(x).dtype == torch.float32
    assert abs(y.mean()) < 1e-6
    assert abs(y.std(correction=0) - 1) < 1e-6


def test_a_constant_input_is_only_centred():
    x = torch.full((5, 2), 3.0)
    assert torch.equal(Standardise.of(x)(x), torch.zeros(5, 2))


def test_statistics_are_part_of_the_state():
    x = torch.tensor([[0.0], [10.0]])
    state = network(x).state_dict()
    assert (state["0.mean"], state["0.std"]) == (5.0, 5.0)


def test_the_network_is_784_10_10_for_images_of_any_layout():
    x = torch.zeros(2, 28, 28)
    model = network(x)
    assert [tuple(p.shape) for p in model.parameters()] == [(10, 784), (10,), (10, 10), (10,)]
    assert model(x).shape == model(x.flatten(1)).shape == model(x.unsqueeze(1)).shape == (2, 10)


def test_weights_follow_from_the_seed_alone_and_leave_the_global_state():
    x = torch.zeros(2, 784)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = network(x, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), network(x, seed=7).parameters(), strict=True))
    assert not torch.equal(first[2].weight, network(x, seed=8)[2].weight)


def test_weights_start_with_the_deviation_of_he():
    weight = network(torch.zeros(2, 784), hidden=100)[2].weight
    assert abs(weight.std() / math.sqrt(2 / 784) - 1) < 0.02
