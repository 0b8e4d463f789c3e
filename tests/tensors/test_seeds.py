"""Random state: held as it was found, and put back as often as asked."""

import random

import numpy as np
import pytest
import torch

from thalweg.tensors import seeds


def drawn():
    return torch.rand(3).tolist(), random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand()


def test_the_state_as_found_is_put_back_each_time():
    random.gauss(0, 1), np.random.standard_normal()  # each has a second number in store now
    put_back = seeds.as_found()
    first = drawn()
    assert drawn() != first
    for _ in range(2):
        put_back()
        assert drawn() == first


@pytest.mark.parametrize("inside", [seeds.untouched, lambda: seeds.seeded(3)])
def test_what_is_drawn_inside_leaves_no_trace(inside):
    put_back = seeds.as_found()
    expected = drawn()
    put_back()
    with inside():
        drawn()
    assert drawn() == expected
