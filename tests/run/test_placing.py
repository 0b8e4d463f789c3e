"""What a GPU needs of whatever is not the model; devices are stood in for by `meta`, which holds nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import thalweg
from thalweg.loop.evaluate import place
from thalweg.loop.memory import _restore_optimizer
from thalweg.loop.train import BatchFailed, Training
from thalweg.repairs.loss import _Held
from thalweg.run.placing import follow_parameters, told_once
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


@pytest.mark.parametrize("gpus", [0, 2])
def test_random_states_of_gpus_that_are_not_here_are_left_out(gpus, monkeypatch):
    states, put_back = seeds.capture() | {"cuda": list(range(64))}, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.append)
    seeds.restore(states)
    assert put_back == ([[0, 1]] if gpus else [])


def test_an_error_that_a_gpu_gives_away_late_is_one_sentence(monkeypatch, tmp_path):
    """Here when the losses of some updates are read."""
    x, y = torch.randn(64, 2), torch.randint(0, 3, (64,))
    words = {"batch_size": 4, "epochs": 5, "plan": "eager", "verbose": False, "run_dir": tmp_path / "run"}

    def read(training):
        if training.at.step >= 10:
            raise broken("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Training, "_read_losses", read)
    with pytest.raises(ValueError, match="update 10, or one before it, failed: an index is out of its range.*'cpu'"):
        thalweg.fit(nn.Linear(2, 3), (x, y), "cross_entropy", **words)


def test_weights_of_a_mended_loss_keep_digits_and_place():
    held = _Held([0.1, 0.7])
    first = held.beside(torch.ones(1))
    assert held.beside(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    again = held.beside(torch.ones(1))
    assert again.data_ptr() == first.data_ptr() and torch.equal(again, torch.tensor([0.1, 0.7]))


def test_find_lr_leaves_a_loss_where_it_was():
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    x, y = torch.randn(64, 2), torch.randint(0, 3, (64,))
    held = loss.weight
    thalweg.find_lr(nn.Linear(2, 3), (x, y), loss, method="range", epochs=2, batch_size=8, verbose=False)
    assert loss.weight is held
