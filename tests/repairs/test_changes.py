"""What every change of the network promises, on every kind of network."""

from __future__ import annotations

import copy

import pytest
import torch
from bodies import KINDS, body_of, predicted

from thalweg.repairs.change import Body
from thalweg.repairs.network import CHANGES, fold
from thalweg.step.forward import Forward
from thalweg.step.trace import trace
from thalweg.step.update import Update
from thalweg.step.whole import Step

#: Changes that leave the function as it is, in evaluation.
KEEPING = ("insert_norm", "insert_residual", "add_dropout", "augment_images", "unfreeze", "train_mode")
#: What each kind of network has for each change to do; all others have nothing.
EXPECTED = {
    "initialise": {"mlp", "images", "named", "recurrent", "transformer", "words", "bare", "tied"},
    "swap_activation": {"mlp", "images", "named", "recurrent", "words", "tied"},
    "insert_norm": {"mlp", "images", "named", "recurrent", "transformer", "words", "tied"},
    "insert_residual": {"mlp", "images", "recurrent", "words"},
    "add_dropout": {"mlp", "images", "named", "recurrent", "transformer", "words", "tied"},
    "augment_images": {"images"},
    "unfreeze": {"mlp", "images", "named", "recurrent", "transformer", "words", "bare", "tied"},
    "train_mode": {"mlp", "images", "named", "recurrent", "transformer", "words", "tied"},
    "drop_head": set(),
    "weigh_classes": {"mlp", "images", "named", "recurrent", "transformer", "words", "bare", "tied"},
    "standardise_inputs": {"mlp", "images", "named", "recurrent", "transformer", "tied"},
    "scale_targets": {"mlp", "images", "named", "recurrent", "words", "tied"},
}  # fmt: skip
PAIRS = [(code, kind) for code in CHANGES for kind in KINDS]


def prepared(code: str, kind: str, seed: int = 0) -> Body:
    body = body_of(kind, "mse" if code == "scale_targets" else "cross_entropy", seed)
    if code == "unfreeze":
        next(iter(body.model.parameters())).requires_grad_(False)
    if code == "train_mode":
        for module in body.model.children():
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return body


def everything(body: Body) -> tuple[list[object], ...]:
    """Modules with names, modes and own attributes, tensors by name, and copies of their values."""
    named = list(body.model.named_modules(remove_duplicate=False))
    tensors = {**dict(body.model.named_parameters(remove_duplicate=False)), **dict(body.model.named_buffers())}
    return (
        [(name, id(module), module.training, type(module), "train" in vars(module)) for name, module in named],
        [(name, id(tensor), tensor.requires_grad) for name, tensor in tensors.items()],
        [body.loss, body.settings],
    )


@pytest.mark.parametrize(("code", "kind"), PAIRS)
def test_it_has_something_to_do_where_it_should(code: str, kind: str) -> None:
    assert (CHANGES[code].words(prepared(code, kind)) is not None) == (kind in EXPECTED[code])


APPLIED = [(code, kind) for code, kind in PAIRS if kind in EXPECTED[code]]


@pytest.mark.parametrize(("code", "kind"), APPLIED)
def test_looking_changes_nothing(code: str, kind: str) -> None:
    body = prepared(code, kind)
    before, values, drawn = everything(body), copy.deepcopy(body.model.state_dict()), torch.get_rng_state()
    CHANGES[code].words(body)
    assert everything(body) == before
    assert all(torch.equal(t, values[name]) for name, t in body.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize(("code", "kind"), APPLIED)
def test_undone_exactly_also_after_training(code: str, kind: str) -> None:
    body = prepared(code, kind)
    change = CHANGES[code]
    words = change.words(body)
    assert words is not None
    before, values = everything(body), copy.deepcopy(body.model.state_dict())
    undo = change.apply(body, words)
    assert everything(body) != before or any(
        not torch.equal(t, values[name]) for name, t in body.model.state_dict().items()
    )
    undo()
    assert everything(body) == before
    assert all(torch.equal(t, values[name]) for name, t in body.model.state_dict().items())


@pytest.mark.parametrize(("code", "kind"), APPLIED)
def test_parameters_stay_the_same_objects(code: str, kind: str) -> None:
    body = prepared(code, kind)
    before = {id(p) for p in body.model.parameters()}
    CHANGES[code].apply(body, CHANGES[code].words(body) or {})
    assert before <= {id(p) for p in body.model.parameters()}
    assert {p.dtype for p in body.model.parameters()} == {torch.float64}


@pytest.mark.parametrize(("code", "kind"), [pair for pair in APPLIED if pair[0] in KEEPING])
def test_the_function_is_what_it_was(code: str, kind: str) -> None:
    body = prepared(code, kind)
    words = CHANGES[code].words(body)
    assert words is not None
    before = predicted(body)
    CHANGES[code].apply(body, words)
    torch.testing.assert_close(predicted(body), before, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("code", "kind"), APPLIED)
def test_the_words_make_the_structure(code: str, kind: str) -> None:
    """Applied to the user's fresh model, then given the saved tensors, it is the model that was saved."""
    body, again = prepared(code, kind), prepared(code, kind, seed=5)
    change = CHANGES[code]
    words = change.words(body)
    assert words is not None
    change.apply(body, words)
    body.model.train()
    body.forward(body.sample[0])
    change.apply(again, dict(words))
    again.model.train()
    again.model.load_state_dict(body.model.state_dict())
    torch.testing.assert_close(predicted(again), predicted(body), rtol=0, atol=0)
    assert everything(again)[2][1] == everything(body)[2][1]


@pytest.mark.filterwarnings("ignore:The tensor attributes:UserWarning")  # of torch's own recurrent layers
@pytest.mark.parametrize(("code", "kind"), APPLIED)
def test_copied_traced_and_trained(code: str, kind: str) -> None:
    body = prepared(code, kind)
    CHANGES[code].apply(body, CHANGES[code].words(body) or {})
    twin = copy.deepcopy(body.model)
    x, y = body.sample
    torch.testing.assert_close(
        predicted(Body(type(body.forward)(twin), None, body.settings, (x, y), 0)), predicted(body)
    )
    twin.eval()
    exported = torch.export.export(twin, (x,)).module()
    torch.testing.assert_close(exported(x), twin(x))
    if kind in ("mlp", "images", "named", "tied"):
        torch.testing.assert_close(torch.fx.symbolic_trace(twin)(x), twin(x))
    body.model.train()
    assert body.loss is not None
    body.loss(body.forward(x), y).backward()
    fresh = [p for p in body.model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fresh)


@pytest.mark.parametrize("kind", ["mlp", "images", "named", "transformer", "words", "bare"])
def test_a_step_is_still_one_program(kind: str) -> None:
    """With all changes in place that draw nothing: the record of a step is the step.

    Not of the tied layers and the recurrent ones: a batch norm that is called twice in a step, and a GRU, are recorded
    for nobody.
    """
    batch, steps = None, []
    for _ in range(2):
        body = body_of(kind)
        for code, change in CHANGES.items():
            words = change.words(body) if code not in ("add_dropout", "augment_images", "initialise") else None
            if words is not None:
                change.apply(body, words)
        assert body.loss is not None
        rule = torch.optim.SGD(body.model.parameters(), 1e-3, momentum=0.9)
        steps.append(Step(body.forward, body.loss, Update(rule)))
        batch = body.sample
        steps[-1](batch)
    assert batch is not None
    traced = trace(steps[1], batch, outputs=False)
    expected = steps[0](batch)
    with torch.no_grad():
        loss, *_ = traced.graph(*traced.held(), *batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(steps[1].forward.model.state_dict(), steps[0].forward.model.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_all_together_and_back(kind: str) -> None:
    """One on top of the other, undone from the last to the first."""
    body = body_of(kind)
    before, values = everything(body), copy.deepcopy(body.model.state_dict())
    undone = []
    for change in CHANGES.values():
        words = change.words(body)
        if words is not None:
            undone.append(change.apply(body, words))
    assert len(undone) >= 2
    body.model.train()
    body.forward(body.sample[0])
    assert fold(copy.deepcopy(body.model)) is not None
    for undo in reversed(undone):
        undo()
    assert everything(body) == before
    assert all(torch.equal(t, values[name]) for name, t in body.model.named_parameters(remove_duplicate=False))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("closed", ["keras", "compiled", "compiled inside", "scripted"])
def test_nothing_is_done_to_what_is_closed(closed: str) -> None:
    for code, change in CHANGES.items():
        body = prepared(code, "images" if EXPECTED[code] == {"images"} else "mlp")
        assert change.words(body) is not None or not EXPECTED[code], code
        if closed == "keras":
            body.forward.is_keras = True
        elif closed == "compiled":
            body.forward = Forward(torch.compile(body.model))  # type: ignore[arg-type]
        elif closed == "compiled inside":
            body.model.get_submodule("0").compile()
        else:
            body.forward = Forward(torch.jit.trace(body.model.eval(), body.sample[0]))
        assert change.words(body) is None, code


@pytest.mark.parametrize(("code", "kind"), APPLIED)
def test_the_lines_are_python(code: str, kind: str) -> None:
    body = prepared(code, kind)
    lines = CHANGES[code].lines(CHANGES[code].words(body) or {})
    assert lines
    compile("\n".join(lines), "lines", "exec")
