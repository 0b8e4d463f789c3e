"""Listening to layers: what is heard, when, and that nothing stays."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from thalweg.gradients.taps import Tap, Taps, eager


class Recorder:
    def __init__(self, *wants, of=nn.Linear):
        self.wanted, self.kind, self.taps = wants, of, []

    def wants(self, layer, module):
        return self.wanted if isinstance(module, self.kind) else ()

    def read(self, tap):
        self.taps.append(tap)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return [len(getattr(m, name)) for m in model.modules() for name in names]


def test_input_output_and_gradient_of_one_pass():
    model, x = small(), torch.randn(5, 3)
    heard = Recorder("input", "output", "gradient")
    with Taps(model, heard):
        model(x).square().sum().backward()
    last, first = heard.taps
    assert (last.layer, first.layer) == ("2", "0")
    torch.testing.assert_close(first.input, x)
    torch.testing.assert_close(first.output, model[0](x))  # before the in-place layer wrote over it
    torch.testing.assert_close(last.gradient, 2 * last.output)
    torch.testing.assert_close(model[0].weight.grad, first.gradient.T @ first.input)
    torch.testing.assert_close(model[2].weight.grad, last.gradient.T @ last.input)
    assert not any(t.requires_grad for tap in heard.taps for t in (tap.input, tap.output, tap.gradient))


def test_readers_share_a_pass_and_get_what_they_asked_for():
    model = small()
    inputs, gradients, none = Recorder("input"), Recorder("gradient"), Recorder()
    with Taps(model, inputs, gradients, none):
        loss = model(torch.randn(5, 3)).sum()
        assert [tap.layer for tap in inputs.taps] == ["0", "2"]  # at the forward
        assert gradients.taps == []
        loss.backward()
    assert all(tap.output is None and tap.gradient is None for tap in inputs.taps)
    assert all(tap.input is None and tap.gradient is not None for tap in gradients.taps)
    assert none.taps == []


def test_some_modules_only():
    model = small()
    heard = Recorder("gradient")
    with Taps(model, heard, modules={"end": model[2]}):
        model(torch.randn(5, 3)).sum().backward()
    assert [tap.layer for tap in heard.taps] == ["end"]


def test_calls_of_one_layer_are_numbered_within_a_forward():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(self.layer(x))
            return x

    model = Again()
    heard = Recorder("input", "gradient")
    with Taps(model, heard):
        for part in torch.randn(2, 4, 3):  # gradient accumulation
            model(part).sum().backward()
    assert [tap.call for tap in heard.taps] == [2, 1, 0, 2, 1, 0]
    torch.testing.assert_close(model.layer.weight.grad, sum(tap.gradient.T @ tap.input for tap in heard.taps))


def test_accumulated_forwards_before_their_backward():
    model = small()
    heard = Recorder("gradient")
    with Taps(model, heard):
        (model(torch.randn(5, 3)).sum() + model(torch.randn(2, 3)).sum()).backward()
    assert sorted((tap.layer, tap.call, len(tap.gradient)) for tap in heard.taps) == [
        ("0", 0, 2),
        ("0", 0, 5),
        ("2", 0, 2),
        ("2", 0, 5),
    ]


def test_frozen_layers_are_heard_where_a_gradient_passes():
    model = small()
    model[2].requires_grad_(False)
    heard, forwards = Recorder("gradient"), Recorder("input")
    with Taps(model, heard, forwards):
        model(torch.randn(5, 3)).sum().backward()
    assert [tap.layer for tap in heard.taps] == ["2", "0"]
    model[0].requires_grad_(False)
    with Taps(model, heard, forwards):
        assert not model(torch.randn(5, 3)).requires_grad
    assert len(heard.taps) == 2
    assert len(forwards.taps) == 4


def test_evaluation_between_is_not_heard():
    model = small()
    heard = Recorder("input", "gradient")
    forwards = Recorder("input")
    with Taps(model, heard, forwards):
        loss = model(torch.randn(5, 3)).sum()
        with torch.no_grad():
            model(torch.randn(7, 3))
        with torch.inference_mode():
            model(torch.randn(8, 3))
        loss.backward()
    assert {len(tap.input) for tap in heard.taps + forwards.taps} == {5}
    assert len(forwards.taps) == 2


def test_autocast_gives_half_precision_as_it_is():
    model = small()
    heard = Recorder("gradient")
    with Taps(model, heard), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(5, 3)).float().sum().backward()
    assert [tap.gradient.dtype for tap in heard.taps] == [torch.bfloat16, torch.bfloat16]


def test_checkpointed_layers_are_heard_once():
    model = small()

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    heard, forwards = Recorder("gradient"), Recorder("input")
    with Taps(Saving(), heard, forwards) as taps:
        taps.model(torch.randn(5, 3)).sum().backward()
    assert [(tap.layer, tap.call) for tap in heard.taps] == [("inner.2", 0), ("inner.0", 0)]
    assert [tap.layer for tap in forwards.taps] == ["inner.0", "inner.2"]


def test_input_of_a_layer_in_place_is_what_it_was():
    model = small()
    heard = Recorder("input", "gradient", of=nn.ReLU)
    x = torch.randn(5, 3)
    with Taps(model, heard):
        model(x).sum().backward()
    (tap,) = heard.taps
    torch.testing.assert_close(tap.input, model[0](x).detach())


def test_an_input_that_was_overwritten_is_an_error():
    layer = nn.Linear(3, 3)
    layer.requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    with Taps(layer, Recorder("input", "gradient")):
        given = x * 1
        output = layer(given)
        given.add_(1)
        with pytest.raises(RuntimeError, match="changed in place"):
            output.sum().backward()


def test_first_of_several_tensors():
    model = nn.LSTM(3, 4, batch_first=True)
    heard = Recorder("input", "output", "gradient", of=nn.LSTM)
    with Taps(model, heard):
        model(torch.randn(2, 5, 3))[0].sum().backward()
    (tap,) = heard.taps
    assert (tap.input.shape, tap.output.shape, tap.gradient.shape) == ((2, 5, 3), (2, 5, 4), (2, 5, 4))


@pytest.mark.parametrize("cross", [False, True])
def test_projections_of_attention(cross):
    torch.manual_seed(1)
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    x, y = torch.randn(3, 5, 4), torch.randn(3, 6, 4)
    heard = Recorder("projections", of=nn.MultiheadAttention)
    with Taps(model, heard):
        model(x, *([y, y] if cross else [x, x]))[0].square().sum().backward()
    weights = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.ndim == 2}
    for tap in heard.taps:
        assert tap.input.shape[1] == tap.gradient.shape[1] == 3
        g = tap.gradient.flatten(0, 1).T @ tap.input.flatten(0, 1)
        weights[tap.part][tap.offset : tap.offset + len(g)] += g
    for name, g in weights.items():
        torch.testing.assert_close(g, model.get_parameter(name).grad)


def test_no_trace_after_and_none_after_an_error():
    model = small()
    before, attributes = hooks(model), [set(vars(m)) for m in model.modules()]
    with Taps(model, Recorder("input", "gradient", of=nn.Module)):
        model(torch.randn(5, 3)).sum().backward()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), Taps(model, Recorder("gradient")):
        model(torch.randn(5, 7))
    assert hooks(model) == before
    assert [set(vars(m)) for m in model.modules()] == attributes
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(torch.ones(1, 3)), model(torch.ones(1, 3)))


def test_a_copy_made_meanwhile_and_a_late_backward_are_not_heard():
    model = small()
    heard = Recorder("gradient")
    with Taps(model, heard):
        twin = copy.deepcopy(model)
        loss = model(torch.randn(5, 3)).sum()
    loss.backward()
    twin(torch.randn(5, 3)).sum().backward()
    assert heard.taps == []


def test_a_leaf_that_a_layer_hands_through_keeps_no_hook():
    x = torch.randn(3, requires_grad=True)
    layer = nn.Identity()
    heard = Recorder("gradient", of=nn.Identity)
    with Taps(layer, heard):
        layer(x).sum().backward()
    assert len(heard.taps) == 1
    assert not x._backward_hooks


def test_memory_is_freed_as_gradients_arrive():
    class Forgetful(Recorder):
        def read(self, tap: Tap):
            alive.extend(weakref.ref(t) for t in (tap.input, tap.output))

    alive: list = []
    model = small()
    with Taps(model, Forgetful("input", "output", "gradient")):
        loss = model(torch.randn(5, 3)).sum()
        loss.backward()
        assert len(alive) == 4
        assert all(ref() is None for ref in alive)  # the graph itself still stands: `loss` is held


def test_a_graph_without_backward_goes_with_its_tensors():
    model = small()
    gc.collect()
    gc.disable()
    try:
        with Taps(model, Recorder("input", "gradient")):
            output = model(torch.randn(5, 3))
            ref = weakref.ref(output)
            del output
            assert ref() is None
    finally:
        gc.enable()


def test_kept_for_several_backward_passes():
    model = small()
    heard = Recorder("input", "gradient")
    with Taps(model, heard, keep=True):
        output = model(torch.randn(5, 3))
        for column in range(2):
            output[:, column].sum().backward(retain_graph=True)
    assert [tap.layer for tap in heard.taps] == ["2", "0", "2", "0"]
    assert all(tap.input is not None for tap in heard.taps)


def test_a_compiled_model_runs_as_an_eager_one_while_taps_are_on():
    model = small()
    programs = []

    def backend(graph, example_inputs):
        programs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    x = torch.randn(5, 3)
    compiled(x)
    heard = Recorder("gradient")
    with Taps(compiled, heard):
        compiled(x).sum().backward()
    assert [tap.layer for tap in heard.taps] == ["2", "0"]
    compiled(x)
    assert len(programs) == 1
    assert eager(compiled) is model
