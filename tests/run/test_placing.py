"""What a GPU needs of whatever is not the model; devices are stood in for by `meta`, which holds nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg.loop.memory import _restore_optimizer
from thalweg.loop.train import BatchFailed
from thalweg.run.placing import follow_parameters, place, told_once
from thalweg.tensors import seeds


def stepped(**options):
    model = nn.Linear(2, 3)
    rule = torch.optim.Adam(model.parameters(), 0.1, **options)
    model(torch.ones(4, 2)).sum().backward()
    rule.step()
    return model, rule


@pytest.mark.parametrize(("kernel", "place_of_counts"), [("foreach", "cpu"), ("fused", "meta")])
def test_state_goes_where_the_parameters_went_and_counts_where_they_are_read(kernel, place_of_counts):
    model = nn.Linear(2, 3, device="meta")
    rule = torch.optim.Adam(model.parameters(), 0.1)
    rule.param_groups[0][kernel] = True
    for p in model.parameters():
        rule.state[p] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(p.shape)}
    follow_parameters(rule)
    for p in model.parameters():
        assert rule.state[p]["exp_avg"].device.type == "meta"
        assert rule.state[p]["step"].device.type == place_of_counts


def test_a_loss_that_is_a_module_is_moved_and_another_left():
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    place(loss, torch.device("meta"))
    assert loss.weight.device.type == "meta"
    place("mse", torch.device("meta"))


def broken(text):
    error = torch.AcceleratorError.__new__(torch.AcceleratorError)
    RuntimeError.__init__(error, text)
    return error


def test_of_a_broken_gpu_the_first_error_is_told():
    with pytest.raises(BatchFailed, match="batch 3"), told_once():
        try:
            raise BatchFailed("batch 3 cannot be trained on")
        finally:
            raise broken("random numbers cannot be put back")
    with pytest.raises(torch.AcceleratorError, match="nothing before it"), told_once():
        raise broken("nothing before it")


def test_kernels_are_those_of_here_where_a_state_comes_from_another_device():
    _, saved = stepped(fused=True)
    _, rule = stepped(foreach=True)
    _restore_optimizer(rule, copy.deepcopy(saved.state_dict()))
    assert rule.param_groups[0]["foreach"] is True and not rule.param_groups[0]["fused"]


def test_random_states_of_gpus_that_are_not_here_are_left_out():
    torch.manual_seed(3)
    states = seeds.capture() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 64}
    expected = torch.rand(2)
    if torch.cuda.is_available():
        pytest.skip("GPUs are here")
    seeds.restore(states)
    assert torch.equal(torch.rand(2), expected)
