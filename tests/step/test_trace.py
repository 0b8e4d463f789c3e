"""A step written down: the record, run as it stands, is the step; what is not always this program is refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from step_cases import NAMES, Case, case
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.graphs import live
from thalweg.step.losses import resolve
from thalweg.step.trace import Traced, Untraceable, trace
from thalweg.step.update import Clip, Update
from thalweg.step.whole import Step
from thalweg.tensors.named import leaves

O = torch.optim  # noqa: E741
Rule = Callable[[Any], Optimizer]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def batches(count: int = 6, rows: int = 8) -> list[Batch]:
    drawn = torch.Generator().manual_seed(1)
    make = lambda: torch.randn(rows, 4, generator=drawn, dtype=torch.float64)  # noqa: E731
    return [(make(), torch.randint(3, (rows,), generator=drawn)) for _ in range(count)]


def step_of(model: nn.Module, rule: Rule = lambda p: O.SGD(p, 0.1), loss: Any = "cross_entropy", **of: Any) -> Step:
    return Step(
        Forward(model), resolve(loss) if isinstance(loss, str) else loss, Update(rule(model.parameters()), **of)
    )


def replay(traced: Traced, batch: Batch) -> tuple[Tensor, dict[nn.Parameter, Tensor], list[Tensor]]:
    """One step by the record itself, operation by operation."""
    with torch.no_grad():
        loss, *found = traced.graph(*traced.held(), *leaves(batch))
    num = len(traced.graded)
    return loss, dict(zip(traced.graded, found[:num], strict=True)), found[num:]


def state(step: Step) -> list[Tensor]:
    kept = [v for values in step.update.optimizer.state.values() for v in values.values()]
    return [*step.forward.state().values(), *(torch.as_tensor(v) for v in kept if isinstance(v, Tensor | int))]


def assert_same(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def assert_replays(step: Step, twin: Step, data: list[Batch], tolerance: float = 1e-12) -> Traced:
    """Two equal steps: one goes on eagerly, the other by its record."""
    for one in (step, twin):
        torch.manual_seed(7)
        one(data[0])
    traced = trace(twin, data[0], outputs=False)
    for i, batch in enumerate(data[1:]):
        torch.manual_seed(i)
        expected = step(batch)
        torch.manual_seed(i)
        loss, gradients, _ = replay(traced, batch)
        assert_same(loss, expected, tolerance)
        if not traced.has_update:
            for p, g in gradients.items():
                p.grad = g
            twin.update()
    assert_same([t.detach() for t in state(twin)], [t.detach() for t in state(step)], tolerance)
    return traced


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def stepped(of: Case, rule: Rule) -> Step:
    return Step(Forward(of.model), of.loss, Update(rule(of.model.parameters())))


@pytest.mark.parametrize("name", NAMES)
def test_the_record_of_a_model_is_its_step(name: str) -> None:
    rule = lambda p: O.SGD(p, 0.02, momentum=0.9)  # noqa: E731
    first, second = (case(name, torch.float64) for _ in range(2))
    traced = assert_replays(stepped(first, rule), stepped(second, rule), first.batches)
    assert traced.has_update


@pytest.mark.parametrize("name", ["transformer", "own loss", "two inputs", "batch norm"])
def test_outputs_come_back_where_they_are_asked_for(name: str) -> None:
    of = case(name, torch.float64)
    step = stepped(of, lambda p: O.SGD(p, 0.0))
    step(of.batches[0])
    traced = trace(step, of.batches[0], outputs=True)
    torch.manual_seed(0)
    found = replay(traced, of.batches[1])[2]
    torch.manual_seed(0)
    expected = [] if of.loss is None else [step.forward(of.batches[1][0]).detach()]
    assert_same(found, expected)


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────

RULES: dict[str, Rule] = {
    "sgd": lambda p: O.SGD(p, 0.1),
    "momentum": lambda p: O.SGD(p, 0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": lambda p: O.SGD(p, 0.1, momentum=0.8, nesterov=True, maximize=True),
    "adam": lambda p: O.Adam(p, 0.01),
    "adam, weight decay": lambda p: O.Adam(p, 0.01, betas=(0.8, 0.9), weight_decay=0.1, eps=1e-5),
    "adam, fused": lambda p: O.Adam(p, 0.01, fused=True),
    "adamw": lambda p: O.AdamW(p, 0.01, weight_decay=0.1),
    "adamw, amsgrad": lambda p: O.AdamW(p, 0.01, amsgrad=True, maximize=True),
    "nadam": lambda p: O.NAdam(p, 0.01),
    "nadam, decoupled": lambda p: O.NAdam(p, 0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: O.RAdam(p, 0.01),
    "rmsprop": lambda p: O.RMSprop(p, 0.01),
    "rmsprop, centered": lambda p: O.RMSprop(p, 0.01, momentum=0.5, centered=True, weight_decay=0.1),
    "adagrad": lambda p: O.Adagrad(p, 0.05, lr_decay=0.1, initial_accumulator_value=0.1),
    "adadelta": lambda p: O.Adadelta(p, 1.0),
    "adamax": lambda p: O.Adamax(p, 0.01),
    "asgd": lambda p: O.ASGD(p, 0.05, t0=2.0, lambd=0.01),
    "rprop": lambda p: O.Rprop(p, 0.01),
}
#: These keep a product of factors in float32, which is rounded in float32 by one and in float64 by the other.
ROUNDED = ("nadam", "nadam, decoupled", "asgd")


@pytest.mark.parametrize("name", RULES)
def test_the_record_of_a_rule_is_the_rule(name: str) -> None:
    data = batches(9)  # past the step from which RAdam adapts
    step, twin = (step_of(network(), RULES[name]) for _ in range(2))
    traced = assert_replays(step, twin, data, 1e-7 if name in ROUNDED else 1e-12)
    assert traced.has_update


def test_a_count_in_double_precision_is_raised_once() -> None:
    """One count stands for all that are equal: it is copied, whatever its dtype."""
    torch.set_default_dtype(torch.float64)
    try:
        step, twin = (step_of(network(), RULES["adam"]) for _ in range(2))
        assert_replays(step, twin, batches(4))
        (count,) = {float(values["step"]) for values in twin.update.optimizer.state.values()}
        assert count == 4 == float(next(iter(step.update.optimizer.state.values()))["step"])
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "nadam", "radam", "asgd"])
def test_a_rate_that_moves_is_an_argument(name: str) -> None:
    data = batches()
    step, twin = (step_of(network(), RULES[name]) for _ in range(2))
    step(data[0]), twin(data[0])
    traced = trace(twin, data[0], outputs=False)
    for i, batch in enumerate(data[1:]):
        step.update.optimizer.param_groups[0]["lr"] = rate = 0.03 / (i + 1)
        traced.rates[0].fill_(rate)
        step(batch)
        replay(traced, batch)
    assert_same(
        [t.detach() for t in state(twin)], [t.detach() for t in state(step)], 1e-7 if name in ROUNDED else 1e-12
    )


@pytest.mark.parametrize("clip", [Clip(norm=0.1), Clip(norm=1e3), Clip(value=0.01)], ids=str)
def test_clipping_is_part_of_the_record_and_the_gradients_are_those_before_it(clip: Clip) -> None:
    data = batches()
    step, twin = (step_of(network(), RULES["momentum"], clip=clip) for _ in range(2))
    traced = assert_replays(step, twin, data)
    step.gradients(data[0])
    found = replay(traced, data[0])[1]
    for p, q in zip(step.update.parameters, twin.update.parameters, strict=True):
        assert_same(found[q], p.grad)


def test_groups_keep_their_options() -> None:
    def rule(parameters: Any) -> Optimizer:
        first, second, _third, fourth = parameters
        return O.Adam([{"params": [first, fourth], "lr": 0.1}, {"params": [second], "betas": (0.5, 0.6)}], lr=0.01)

    step, twin = (step_of(network(), rule) for _ in range(2))
    before = [p.clone() for p in twin.forward.model.parameters()]
    traced = assert_replays(step, twin, batches())
    assert len(traced.rates) == 2
    moved = [not torch.equal(p, q) for p, q in zip(twin.forward.model.parameters(), before, strict=True)]
    assert moved == [True, True, False, True], "one is not the rule's"


def python(rule: Optimizer) -> Any:
    """What a rule keeps beside tensors."""
    own = [vars(rule).get(name) for name in ("calls", "kept")]
    return own, [{n: v for n, v in group.items() if n != "params"} for group in rule.param_groups]


class Counting(Optimizer):
    """A rule of somebody's, which counts in Python and decides by it."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                values = self.state[p]
                values["count"] = values.get("count", 0) + 1
                p.sub_(p.grad, alpha=group["lr"] / values["count"])


class Deciding(Optimizer):
    """A rule that looks at a value."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad.norm().item() > 0.1:
                    p.sub_(p.grad, alpha=group["lr"])


class Plain(Optimizer):
    """θ ← θ − α∇J, made a rule of somebody's by what `factor` returns, and does."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.calls, self.kept = 0, {"steps": [0]}
        self.param_groups[0]["calls"] = 0

    def factor(self, group: dict[str, Any], p: Tensor) -> Any:
        return 1.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * self.factor(group, p), alpha=group["lr"])


class Calling(Plain):
    """Counts in an attribute."""

    def factor(self, group: dict[str, Any], p: Tensor) -> Any:
        self.calls += 1
        return 1 / self.calls


class Listing(Plain):
    """Counts in a list that lies in a dict."""

    def factor(self, group: dict[str, Any], p: Tensor) -> Any:
        self.kept["steps"][0] += 1
        return 1 / self.kept["steps"][0]


class Grouping(Plain):
    """Counts in its group."""

    def factor(self, group: dict[str, Any], p: Tensor) -> Any:
        group["calls"] += 1
        return 1 / group["calls"]


class Replacing(Plain):
    """Puts a new tensor into its state at each step."""

    def factor(self, group: dict[str, Any], p: Tensor) -> Any:
        self.state[p]["mean"] = mean = 0.9 * self.state[p].get("mean", torch.zeros_like(p)) + 0.1 * p.grad
        return 1 + mean.square()


class Around(Optimizer):
    """A rule around another one, whose groups are its own."""

    def __init__(self, parameters: Any) -> None:
        parameters = list(parameters)
        self.base = O.SGD(parameters, 0.1)
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:
        self.base.step()


def test_a_rule_of_somebodys_that_is_nothing_but_operations_is_recorded() -> None:
    step, twin = (step_of(network(), Plain) for _ in range(2))
    assert assert_replays(step, twin, batches()).has_update


def hooked(parameters: Any) -> Optimizer:
    rule = O.SGD(parameters, 0.1)
    rule.register_step_post_hook(lambda *_: None)
    return rule


@pytest.mark.parametrize(
    "rule",
    [
        Counting, Deciding, hooked, lambda p: O.Adafactor(p, 0.1), lambda p: O.LBFGS(p), Calling, Listing, Grouping,
        Replacing, Around,
    ],
    ids=[
        "counts", "decides", "hooks", "adafactor", "lbfgs", "attribute", "list", "group", "replaces", "around another",
    ],
)  # fmt: skip
def test_a_rule_that_is_no_program_is_left_out(rule: Rule) -> None:
    data = batches()
    step = step_of(network(), rule)
    step(data[0])
    before, counted = [t.clone() for t in state(step)], copy.deepcopy(python(step.update.optimizer))
    traced = trace(step, data[1], outputs=False)
    assert not traced.has_update
    assert python(step.update.optimizer) == counted
    loss, gradients, _ = replay(traced, data[1])
    assert_same(loss, step.gradients(data[1]))
    for p in step.update.parameters:
        assert_same(gradients[p], p.grad)
    assert all(torch.equal(t, b) for t, b in zip(state(step), before, strict=True)), "nothing moves without the rule"


# ── parameters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_has_a_gradient_comes_back() -> None:
    of = case("two inputs")
    of.model.left.bias.requires_grad_(False)
    step = stepped(of, lambda p: O.Adam(p))
    step(of.batches[0])
    traced = trace(step, of.batches[0], outputs=False)
    names = {id(p): name for name, p in of.model.named_parameters()}
    assert [names[id(p)] for p in traced.graded] == [
        "left.weight", "right.weight", "right.bias", "head.weight", "head.bias",
    ]  # fmt: skip


def test_a_rule_that_moves_more_than_the_model_is_refused() -> None:
    """Nothing is known of the gradients of a head that the loss alone has."""
    model, head, data = network(), nn.Linear(3, 3).double(), batches()
    loss = lambda output, target: F.cross_entropy(head(output), target)  # noqa: E731
    step = step_of(model, lambda p: O.Adam([*p, *head.parameters()]), loss)
    step(data[0])
    for record in (lambda: trace(step, data[0], outputs=False), lambda: live(step, data[0], outputs=False)):
        with pytest.raises(Untraceable, match="the rule moves parameters that are not the model's"):
            record()
    for p in head.parameters():
        p.requires_grad_(False)
    assert trace(step, data[0], outputs=False).graded == list(model.parameters())


def test_inputs_that_are_the_targets_too_need_not_be_so_in_the_next_batch() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(4, 4).double()

    step, twin = (step_of(model(), RULES["momentum"], "mse") for _ in range(2))
    drawn = [x for x, _ in batches()]
    assert_replays(step, twin, [(drawn[0], drawn[0]), (drawn[1], drawn[2]), (drawn[3], drawn[4])])


def test_a_tied_parameter_is_held_once() -> None:
    of = case("transformer")
    step = stepped(of, lambda p: O.Adam(p))
    step(of.batches[0])
    traced = trace(step, of.batches[0], outputs=False)
    assert sum(t.data_ptr() == of.model.head.weight.data_ptr() for t in traced.held()) == 1
    assert sum(p is of.model.head.weight for p in traced.graded) == 1


def test_a_rule_without_state_yet_has_none_to_hold() -> None:
    model = network()
    step = step_of(model, RULES["adam"])
    data = batches()
    step(data[0])
    traced = trace(step, data[0], outputs=False)
    step.update.optimizer.state.clear()
    with pytest.raises(LookupError):
        traced.held()


def test_a_tensor_outside_of_the_buffers_is_seen_as_it_is() -> None:
    first, second = case("indexing", torch.float64), case("indexing", torch.float64)
    rule = lambda p: O.SGD(p, 0.1)  # noqa: E731
    step, twin = stepped(first, rule), stepped(second, rule)
    step(first.batches[0]), twin(first.batches[0])
    traced = trace(twin, first.batches[0], outputs=False)
    assert any(t is second.model.order for t in traced.constants)
    for of in (first, second):
        of.model.order.copy_(torch.tensor([0, 1, 2, 3, 4]))
    assert_same(replay(traced, first.batches[1])[0], step(first.batches[1]))


# ── what is not recorded ─────────────────────────────────────────────────────────────────────────────────────────────


class Odd(nn.Module):
    """A linear layer with a peculiarity, which `happens(self, h)` in each call."""

    def __init__(self, happens: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 3).double()
        self.register_buffer("kept", torch.zeros(3, dtype=torch.float64))
        self.calls, self.seen, self.table, self.last = 0, [torch.zeros(())], {"h": torch.zeros(())}, None
        if happens is draws_of_its_own_in_numpy:
            self.drawn = np.random.default_rng(0)
        if happens is draws_of_its_own:
            self.generator = torch.Generator().manual_seed(0)
        self.happens = happens

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        found = self.happens(self, h)
        return found if isinstance(found, Tensor) else h


def counts(m: Any, h: Tensor) -> None:
    m.calls += 1


def appends(m: Any, h: Tensor) -> None:
    m.seen.append(1)


def keeps(m: Any, h: Tensor) -> None:
    m.last = h


def keeps_in_a_list(m: Any, h: Tensor) -> None:
    m.seen[0] = h.detach()


def keeps_in_a_dict(m: Any, h: Tensor) -> None:
    m.table["h"] = h.detach().mean()


def replaces_a_buffer(m: Any, h: Tensor) -> Tensor:
    m.kept = 0.9 * m.kept + 0.1 * h.detach().mean(0)
    return h - m.kept


def begins_to_keep(m: Any, h: Tensor) -> None:
    m.new = h.detach()


def draws(m: Any, h: Tensor) -> Tensor:
    return h * random.random()


def draws_in_numpy(m: Any, h: Tensor) -> Tensor:
    return h * float(np.random.rand())


def draws_of_its_own_in_numpy(m: Any, h: Tensor) -> Tensor:
    return h * float(m.drawn.random())


def draws_of_its_own(m: Any, h: Tensor) -> Tensor:
    return h * torch.rand(3, dtype=h.dtype, generator=m.generator)


def decides(m: Any, h: Tensor) -> Tensor:
    return h * 2 if h.sum().item() > 0 else h


def branches(m: Any, h: Tensor) -> Tensor:
    return h * 2 if h.sum() > 0 else h


def selects(m: Any, h: Tensor) -> Tensor:
    return h + h[h > 0].mean()


def detaches(m: Any, h: Tensor) -> Tensor:
    return h.detach()


FOLLOWED = "it cannot be followed"
ODD: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "counter": (counts, "Odd changes its attribute 'calls' in each call, which a program would not"),
    "appended list": (appends, "Odd changes a list or dict of its own in each call"),
    "attribute": (keeps, "Odd changes its attribute 'last' in each call"),
    "entry of a list": (keeps_in_a_list, "Odd changes a list or dict of its own in each call"),
    "entry of a dict": (keeps_in_a_dict, "Odd changes a list or dict of its own in each call"),
    "buffer replaced": (
        replaces_a_buffer,
        "puts a new tensor in the place of 'kept' in each call, which a program cannot",
    ),
    "new attribute": (begins_to_keep, "Odd changes its attribute 'new' in each call"),
    "random": (draws, "the model draws random numbers in Python, which a program would freeze"),
    "numpy": (draws_in_numpy, "the model draws random numbers in Python"),
    "numpy of its own": (draws_of_its_own_in_numpy, "module '' has a random generator of its own"),
    "a generator of its own": (
        draws_of_its_own,
        "module '' has a random generator of its own, which a program would freeze",
    ),
    "item": (decides, FOLLOWED),
    "branch": (branches, FOLLOWED),
    "mask": (selects, FOLLOWED),
    "no gradient": (detaches, "the loss is no scalar that depends on the parameters|does not require grad"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_model_that_is_not_always_one_program_is_refused_and_left_as_it_was(name: str) -> None:
    happens, sentence = ODD[name]
    model, (batch, *_) = Odd(happens), batches()
    step = step_of(model, RULES["adam"])
    if happens is not detaches:
        step(batch)
    before = left(model, step)
    with pytest.raises(Untraceable, match=sentence):
        trace(step, batch, outputs=False)
    assert_left(model, step, before)


def left(model: nn.Module, step: Step) -> dict[str, Any]:
    """All that tracing could leave behind: attributes, what lists and dicts hold, numbers, generators, modes."""
    modules = list(model.modules())
    held = [v for m in modules for v in m.__dict__.values() if isinstance(v, list | dict)]
    return {
        "attributes": [dict(m.__dict__) for m in modules],
        "contents": [copy.copy(v) for v in held],
        "tensors": state(step),
        "values": [t.detach().clone() for t in state(step)],
        "torch": torch.get_rng_state(),
        "numbers": (random.getstate(), repr(np.random.get_state(legacy=False))),
        "modes": (torch.is_grad_enabled(), torch.compiler.is_compiling(), torch.is_autocast_enabled("cpu")),
    }


def assert_left(model: nn.Module, step: Step, before: dict[str, Any]) -> None:
    now = left(model, step)
    for found, expected in ((now["attributes"], before["attributes"]), (now["contents"], before["contents"])):
        for one, other in zip(found, expected, strict=True):
            if isinstance(one, dict):
                assert list(one) == list(other)
                one, other = list(one.values()), list(other.values())
            assert len(one) == len(other)
            assert all(a is b for a, b in zip(one, other, strict=True))
    assert all(a is b for a, b in zip(now["tensors"], before["tensors"], strict=True) if a.numel() > 1)
    assert all(torch.equal(a, b) for a, b in zip(now["values"], before["values"], strict=True))
    assert torch.equal(now["torch"], before["torch"])
    assert (now["numbers"], now["modes"]) == (before["numbers"], before["modes"])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["dropout", "batch norm", "transformer", "indexing", "in place"])
def test_nothing_of_a_model_changes_by_being_recorded(name: str) -> None:
    of = case(name)
    step = stepped(of, lambda p: O.Adam(p))
    step(of.batches[0])
    before = left(of.model, step)
    trace(step, of.batches[0], outputs=True)
    assert_left(of.model, step, before)


def hook_forward(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda *_: None)


def hook_before(model: nn.Sequential) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def hook_backward(model: nn.Sequential) -> None:
    model[2].register_full_backward_hook(lambda *_: None)


def hook_parameter(model: nn.Sequential) -> None:
    model[2].weight.register_hook(lambda g: g * 2)


def hook_gradient(model: nn.Sequential) -> None:
    model[2].weight.register_post_accumulate_grad_hook(lambda p: None)


def normalise(model: nn.Sequential) -> None:
    nn.utils.parametrizations.spectral_norm(model[0])


HOOKS: dict[Callable[[nn.Sequential], None], str] = {
    hook_forward: "module '0' has hooks, which a program passes over",
    hook_before: "it has hooks",
    hook_backward: "module '2' has hooks",
    hook_parameter: "parameter '2.weight' has hooks, which a program passes over",
    hook_gradient: "parameter '2.weight' has hooks",
}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda f: f.__name__)
def test_hooks_are_not_passed_over(hook: Callable[[nn.Sequential], None]) -> None:
    model, data = network(), batches()
    hook(model)
    step = step_of(model)
    step(data[0])
    with pytest.raises(Untraceable, match=HOOKS[hook]):
        trace(step, data[0], outputs=False)


def test_hooks_on_all_modules_are_not_passed_over() -> None:
    step, data = step_of(network()), batches()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(Untraceable, match="hooks are set on all modules"):
            trace(step, data[0], outputs=False)
    finally:
        handle.remove()
    assert trace(step, data[0], outputs=False).has_update


def test_autocast_of_the_users_own_is_refused() -> None:
    step, data = step_of(network()), batches()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(Untraceable, match="autocast is on around it"):
        trace(step, data[0], outputs=False)


class Remembering(nn.CrossEntropyLoss):
    """A loss that counts its calls."""

    calls = 0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(output, target) / self.calls


def test_a_loss_that_is_not_always_one_program_is_refused_and_left_as_it_was() -> None:
    data, loss = batches(), Remembering()
    step = step_of(network(), loss=resolve(loss))
    step(data[0])
    with pytest.raises(Untraceable, match="Remembering changes its attribute 'calls' in each call"):
        trace(step, data[0], outputs=False)
    assert loss.calls == 1
    listened = nn.CrossEntropyLoss()
    listened.register_forward_hook(lambda *_: None)
    with pytest.raises(Untraceable, match="the loss has hooks, which a program passes over"):
        trace(step_of(network(), loss=resolve(listened)), data[0], outputs=False)


def test_a_parametrised_weight_is_computed_in_the_record() -> None:
    def model() -> nn.Module:
        found = network()
        nn.utils.parametrizations.weight_norm(found[0])
        return found

    assert assert_replays(step_of(model()), step_of(model()), batches()).has_update


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))
    batch = torch.arange(8).reshape(4, 2), torch.arange(4) % 3
    step = step_of(model)
    step(batch)
    with pytest.raises(Untraceable, match="module '0' has sparse gradients"):
        trace(step, batch, outputs=False)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # which torch's own compiler sets off
def test_a_compiled_model_is_refused() -> None:
    (batch, *_) = batches()
    part = nn.Sequential(torch.compile(network()))
    for model, sentence in ((torch.compile(network()), "the model is"), (part, "module '0' is")):
        with pytest.raises(Untraceable, match=f"{sentence} compiled already"):
            trace(step_of(model), batch, outputs=False)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_is_refused() -> None:
    (batch, *_) = batches()
    with pytest.raises(Untraceable, match="the model is compiled already"):
        trace(step_of(torch.jit.script(network())), batch, outputs=False)


def test_a_keras_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    step, data = step_of(network()), batches()
    monkeypatch.setattr(step.forward, "is_keras", True)
    with pytest.raises(Untraceable, match="a Keras model keeps its state outside of the graph"):
        trace(step, data[0], outputs=False)


def test_a_batch_of_more_than_tensors_is_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor, words: Any) -> Tensor:
            return self.inner(x)

    (x, y), *_ = batches()
    step = step_of(Named())
    batch = ((x, ["a word"]), y)
    step(batch)
    with pytest.raises(Untraceable, match="a batch holds more than tensors"):
        trace(step, batch, outputs=False)


def test_outputs_that_are_more_than_tensors_are_refused_where_they_are_asked_for() -> None:
    class Wordy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Any:
            return {"logits": self.inner(x), "word": "logits"}

    data = batches()
    loss = lambda output, target: F.cross_entropy(output["logits"], target)  # noqa: E731
    step = step_of(Wordy(), loss=loss)
    step(data[0])
    with pytest.raises(Untraceable, match="the model's outputs hold more than tensors"):
        trace(step, data[0], outputs=True)
    assert len(trace(step, data[0], outputs=False).graded) == 4


def test_a_step_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.step.rewrites.LIMIT", 10)
    with pytest.raises(Untraceable, match=r"it is \d\d operations long"):
        trace(step_of(network()), batches()[0], outputs=False)


def test_a_counter_is_noted_as_it_is() -> None:
    from collections import Counter

    from thalweg.step.values import apart

    counted = Counter(a=1, b=2)
    assert apart(counted) == counted and apart(counted) is not counted
