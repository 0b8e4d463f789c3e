"""A step captured as a CUDA graph against the eager one. Without a GPU an imitation runs again what was captured."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from step_cases import NAMES, Case, case
from torch import Tensor, nn
from torch.optim import Optimizer

import thalweg
from thalweg.step import graphs, planned, refusals
from thalweg.step.data import Batch
from thalweg.step.forward import Forward
from thalweg.step.graphs import Graph, live
from thalweg.step.plan import Plan
from thalweg.step.planned import Asked, PlannedStep, shapes
from thalweg.step.planner import Budget
from thalweg.step.update import Clip, Update
from thalweg.step.whole import Step
from thalweg.tensors.named import leaves, mapped

Rule = Callable[[Any], Optimizer]
HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
pytestmark = pytest.mark.gpu
on_gpu = pytest.mark.skipif(not HAS_GPU, reason="there is no GPU that runs CUDA")


#: Rules count in single precision where their counts are on the device, as the imitation has them.
TIGHT = 1e-9 if HAS_GPU else 1e-5


def imitated(function: Callable[[], Sequence[Tensor]], device: Any) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """Like `graphs.captured`, on a CPU."""
    function()
    results = [t.clone() for t in function()]

    def replay() -> None:
        for kept, t in zip(results, function(), strict=True):
            kept.copy_(t)

    return replay, results


@pytest.fixture(autouse=True)
def _capture(monkeypatch: pytest.MonkeyPatch) -> None:
    if HAS_GPU:
        return
    monkeypatch.setattr(graphs, "captured", imitated)
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(refusals, "NothingFrozen", contextlib.nullcontext)


def moved(of: Case) -> Case:
    model = of.model.to(DEVICE)
    return Case(model, of.loss, [mapped(lambda t: t.to(DEVICE), batch) for batch in of.batches])


def adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, 0.01)


RULES: dict[str, Rule] = {
    "adamw": adamw,
    "adamw, fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "adam, one by one": lambda p: torch.optim.Adam(p, 0.01, foreach=False),
    "adam, capturable": lambda p: torch.optim.Adam(p, 0.01, capturable=HAS_GPU, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "sgd, fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "muon": lambda p: thalweg.optim.Muon(p, lr=0.01, arithmetic="exact"),
    "soap": lambda p: thalweg.optim.SOAP(p, lr=0.01),
}


def plain(of: Case, rule: Rule, clip: Clip | None = None) -> Step:
    return Step(Forward(of.model), of.loss, Update(rule(of.model.parameters()), clip))


class Captured:
    """Steps eagerly twice, then by a graph."""

    def __init__(self, of: Case, rule: Rule, clip: Clip | None = None) -> None:
        self.step = PlannedStep(
            Forward(of.model), of.loss, Update(rule(of.model.parameters()), clip), Asked(plan=Plan())
        )
        self.graph: Graph | None = None
        self.calls = 0

    def __call__(self, batch: Batch) -> Tensor:
        if self.calls == 2:
            self.graph = Graph(*live(self.step, batch, outputs=False), self.step.forward, self.step.update, batch)
        self.calls += 1
        if self.graph is None or not self.graph.takes(batch):
            return self.step.plainly(batch)
        return self.step.by_program(self.graph, batch)


def losses(step: Any, batches: list[Batch]) -> Tensor:
    torch.manual_seed(7)
    return torch.stack([step(batch) for batch in batches]).double()


def state(model: nn.Module, optimizer: Optimizer) -> list[Tensor]:
    kept = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
    return [t.detach().double().cpu() for t in (*model.state_dict().values(), *kept)]


def assert_same(found: list[Tensor], expected: list[Tensor], limit: float = TIGHT) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=limit, atol=limit)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_eager_step(name: str) -> None:
    of, other = moved(case(name, torch.float64)), moved(case(name, torch.float64))
    step, eager = Captured(of, adamw), plain(other, adamw)
    if HAS_GPU and name == "indexing":
        pytest.skip("its indices are on the CPU, where they cannot be added to rows on a GPU")
    torch.testing.assert_close(losses(step, of.batches), losses(eager, other.batches), rtol=TIGHT, atol=0)
    assert step.graph is not None and step.graph.has_update and step.graph.takes(of.batches[0])
    assert_same(state(of.model, step.step.update.optimizer), state(other.model, eager.update.optimizer))


@pytest.mark.parametrize("rule", RULES)
def test_with_every_rule_at_rates_that_change(rule: str) -> None:
    of, other = moved(case("dense", torch.float64)), moved(case("dense", torch.float64))
    clip = Clip(norm=0.5)
    step, eager = Captured(of, RULES[rule], clip), plain(other, RULES[rule], clip)
    for i, (ours, theirs) in enumerate(zip(of.batches, other.batches, strict=True)):
        for optimizer in (step.step.update.optimizer, eager.update.optimizer):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + i)
        torch.testing.assert_close(step(ours), eager(theirs), rtol=TIGHT, atol=0)
    assert step.graph is not None
    assert_same(state(of.model, step.step.update.optimizer), state(other.model, eager.update.optimizer), 1e-6)


@on_gpu
@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"soap", "muon"}))
def test_the_rules_of_torch_are_in_the_graph(rule: str) -> None:
    of = moved(case("dense"))
    step = Captured(of, RULES[rule])
    losses(step, of.batches)
    assert step.graph is not None
    assert step.graph.has_update is (rule != "nadam"), "NAdam keeps a product of its own on the host"


class Counting(torch.optim.SGD):
    """Halves its steps after the third: what it keeps in Python no graph can follow."""

    number = 0

    def step(self, closure: Any = None) -> Any:
        self.number += 1
        factor = 0.5 if self.number > 3 else 1.0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-factor * float(group["lr"]))


class Listing(torch.optim.SGD):
    """As `Counting`, in a list that is changed where it lies."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.kept: dict[str, list[int]] = {"steps": []}

    def step(self, closure: Any = None) -> Any:
        self.kept["steps"].append(len(self.kept["steps"]))
        factor = 0.5 if len(self.kept["steps"]) > 3 else 1.0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-factor * float(group["lr"]))


class Grouping(torch.optim.SGD):
    """As `Counting`, in a list of its group."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.param_groups[0]["seen"] = [0]

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["seen"][0] += 1
            factor = 0.5 if group["seen"][0] > 3 else 1.0
            for p in group["params"]:
                if p.grad is not None:
                    p.data.add_(p.grad, alpha=-factor * float(group["lr"]))


@pytest.mark.parametrize("of_rule", [Counting, Listing, Grouping])
def test_a_rule_that_counts_in_python_stays_outside(of_rule: Any) -> None:
    rule: Rule = lambda p: of_rule(p, 0.05)  # noqa: E731
    of, other = moved(case("dense", torch.float64)), moved(case("dense", torch.float64))
    step, eager = Captured(of, rule), plain(other, rule)
    torch.testing.assert_close(losses(step, of.batches), losses(eager, other.batches), rtol=TIGHT, atol=0)
    assert step.graph is not None and not step.graph.has_update


def test_between_graphs_steps_are_made_eagerly_and_states_are_loaded() -> None:
    of, other = moved(case("dense", torch.float64)), moved(case("dense", torch.float64))
    step, eager = Captured(of, adamw), plain(other, adamw)
    smaller = mapped(lambda t: t[:7], of.batches[0])
    before = losses(step, of.batches), losses(eager, other.batches)
    torch.testing.assert_close(*before, rtol=TIGHT, atol=0)
    torch.testing.assert_close(step(smaller), eager(smaller), rtol=TIGHT, atol=0)
    assert step.graph is not None and not step.graph.takes(smaller)
    torch.testing.assert_close(step(of.batches[1]), eager(other.batches[1]), rtol=TIGHT, atol=0)
    for one in (step.step, eager):
        one.update.optimizer.load_state_dict(copy.deepcopy(one.update.optimizer.state_dict()))
        one.forward.model.load_state_dict({n: t * 0.9 for n, t in one.forward.model.state_dict().items()})
    for i in range(3):
        assert step.graph.takes(of.batches[i])
        torch.testing.assert_close(step(of.batches[i]), eager(other.batches[i]), rtol=TIGHT, atol=0)
    assert_same(state(of.model, step.step.update.optimizer), state(other.model, eager.update.optimizer))


def test_losses_that_are_kept_stay_what_they_were() -> None:
    of = moved(case("dense"))
    step = Captured(of, adamw)
    kept = [step(batch) for batch in of.batches]
    assert len({float(loss) for loss in kept}) == len(kept)


def test_another_rule_takes_the_place_of_the_first() -> None:
    of, other = moved(case("dense", torch.float64)), moved(case("dense", torch.float64))
    step, eager = Captured(of, RULES["sgd"]), plain(other, RULES["sgd"])
    losses(step, of.batches), losses(eager, other.batches)
    assert step.graph is not None
    for one in (step.step, eager):
        one.update = Update(torch.optim.SGD(one.forward.model.parameters(), 0.3))
    step.graph.serve(step.step.update.optimizer)
    assert step.graph.takes(of.batches[0])
    torch.testing.assert_close(step(of.batches[0]), eager(other.batches[0]), rtol=TIGHT, atol=0)
    assert_same(state(of.model, step.step.update.optimizer), state(other.model, eager.update.optimizer))


@on_gpu
def test_what_cannot_be_captured_hurts_nothing() -> None:
    of = moved(case("dropout"))
    step = PlannedStep(Forward(of.model), of.loss, Update(adamw(of.model.parameters())), Asked(plan=Plan()))
    for batch in of.batches[:2]:
        step.plainly(batch)
    before = [t.clone() for t in of.model.state_dict().values()]
    inner, recorded = live(step, of.batches[0], outputs=False)

    def run(arguments: list[Tensor]) -> list[Tensor]:
        found = list(inner(arguments))
        found[0].item()
        return found

    with pytest.raises(refusals.Untraceable, match="cannot be captured"):
        Graph(run, recorded, step.forward, step.update, of.batches[0])
    assert all(torch.equal(a, b) for a, b in zip(before, of.model.state_dict().values(), strict=True))
    assert all(torch.isfinite(step.plainly(batch)) for batch in of.batches), "random numbers are drawn as before"


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    capture = graphs.captured

    def counted(function: Any, device: Any) -> Any:
        made.append(1)
        return capture(function, device)

    monkeypatch.setattr(graphs, "captured", counted)
    return made


@pytest.mark.parametrize("rule", ["soap", "muon", "adamw", "sgd"])
def test_it_is_captured_once(rule: str, captures: list[int]) -> None:
    of = moved(case("dense"))
    step = Captured(of, RULES[rule])
    losses(step, of.batches[:3])
    made = len(captures)
    losses(step, of.batches * 2)
    assert len(captures) == made


def test_what_cannot_be_captured_anew_is_stepped_on_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    of, other = moved(case("dense", torch.float64)), moved(case("dense", torch.float64))
    step, eager = Captured(of, adamw), plain(other, adamw)
    torch.testing.assert_close(losses(step, of.batches), losses(eager, other.batches), rtol=TIGHT, atol=0)

    def full(function: Any, device: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "captured", full)
    for one in (step.step, eager):
        one.update.optimizer.load_state_dict(copy.deepcopy(one.update.optimizer.state_dict()))
    for i in range(3):
        assert step.graph is not None and not step.graph.takes(of.batches[i])
        torch.testing.assert_close(step(of.batches[i]), eager(other.batches[i]), rtol=TIGHT, atol=0)


@on_gpu
def test_a_capture_that_fails_leaves_random_numbers_alone() -> None:
    of = moved(case("dropout"))
    step = PlannedStep(Forward(of.model), of.loss, Update(adamw(of.model.parameters())), Asked(plan=Plan()))
    step.plainly(of.batches[0])
    inner, recorded = live(step, of.batches[0], outputs=False)

    def run(arguments: list[Tensor]) -> list[Tensor]:
        found = list(inner(arguments))
        torch.cuda.synchronize()  # which nothing sees before it is captured
        return found

    with pytest.raises(refusals.Untraceable, match="cannot be captured"):
        Graph(run, recorded, step.forward, step.update, of.batches[0])
    assert all(torch.isfinite(step.plainly(batch)) for batch in of.batches)


# ── planned ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


def data() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2048, 20, generator=generator), torch.randint(5, (2048,), generator=generator)


@on_gpu
@pytest.mark.parametrize("name", ["dense", "dropout", "cnn", "batch norm", "transformer"])
def test_a_compiled_step_is_captured_too(name: str) -> None:
    of, other = moved(case(name)), moved(case(name))
    plan = Plan(captured_after=2, compiled_after=4, batch=shapes(of.batches[0]))
    step = PlannedStep(Forward(of.model), of.loss, Update(adamw(of.model.parameters())), Asked(plan=plan))
    step.open()
    eager = plain(other, adamw)
    batches = of.batches * 2
    torch.testing.assert_close(losses(step, batches), losses(eager, batches), rtol=3e-3, atol=0)
    assert step.program is not None and not step.plan.notes
    assert isinstance(step.program, Graph) and step.program.has_update
    step.close()


@on_gpu
def test_a_planner_takes_a_graph_and_then_the_compiled_step() -> None:
    of = moved(case("batch norm"))
    update = Update(adamw(of.model.parameters()))
    step = PlannedStep(Forward(of.model), of.loss, update, Asked(budget=Budget(wait=True)))
    step.open()
    for i in range(20):
        step(of.batches[i % len(of.batches)])
    plan = step.plan
    assert plan.captured_after == 9 and plan.gain is not None and plan.gain > 1
    assert plan.compiled_after is not None or any("compiled" in note for note in plan.notes)
    step.close()


@on_gpu
def test_fit_captures_and_the_same_plan_gives_the_same_run() -> None:
    options: dict[str, Any] = {"epochs": 150, "batch_size": 64, "learning_rate": 0.01, "verbose": False, "seed": 3}
    first = thalweg.fit(network(), data(), "cross_entropy", run_dir="first", **options)
    assert first.plan.captured_after is not None, first.plan
    other = thalweg.fit(network(), data(), "cross_entropy", run_dir="other", plan=first.plan, **options)
    assert not other.plan.notes or other.plan.notes == first.plan.notes
    for ours, theirs in zip(first.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@on_gpu
def test_a_race_is_run_by_graphs() -> None:
    run = thalweg.fit(network(), data(), "cross_entropy", epochs=150, batch_size=64, verbose=False)
    assert run.plan.captured_after == 1 or (run.plan.captured_after is None and run.plan.notes), run.plan


def test_a_compiled_step_is_made_for_the_strides_that_it_is_captured_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has gaps, as `tokens[:, :-1]` has between its rows, is copied without."""
    of = moved(case("transformer"))
    batch = mapped(lambda t: torch.stack([t, t], -1)[..., 0], of.batches[0])
    assert not batch[0].is_contiguous()
    strides: dict[str, list[Any]] = {}
    step = PlannedStep(Forward(of.model), of.loss, Update(adamw(of.model.parameters())), Asked(plan=Plan()))
    step.plainly(batch)
    inner, recorded = live(step, batch, outputs=False)
    record = planned.trace

    def traced(step: Step, batch: Batch, outputs: bool) -> Any:
        strides["traced"] = [t.stride() for t in leaves(batch)]
        return record(step, batch, outputs)

    def compiled(traced: Any, arguments: Sequence[Tensor]) -> Any:
        strides["compiled"] = [t.stride() for t in arguments[-2:]]
        return inner

    monkeypatch.setattr(planned, "trace", traced)
    monkeypatch.setattr(planned, "fused", compiled)
    monkeypatch.setattr(step, "device", torch.device("cuda"))
    step.record(batch)
    monkeypatch.setattr(step, "_traced", recorded)
    graph, _ = step.load(batch)
    assert isinstance(graph, Graph) and graph.takes(batch)
    assert strides["traced"] == strides["compiled"] == [t.stride() for t in graph._inputs]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────

NothingFrozen = refusals.NothingFrozen
FROZEN: dict[str, Callable[[Tensor], object]] = {
    "numbers drawn": lambda t: torch.rand(3),
    "a number read": lambda t: float(t.sum()),
    "a mask drawn in place": lambda t: torch.empty(3).bernoulli_(0.5),
}
AWAY: dict[str, Callable[[Tensor], object]] = {
    "to the CPU": lambda t: t.cpu(),
    "from the CPU": lambda t: torch.ones(4).to(t.device),
    "an index on the CPU": lambda t: t[torch.tensor([0])],
    "a scalar on the CPU": lambda t: t * torch.tensor(2.0),
}


@pytest.mark.parametrize("what", [*FROZEN, *(pytest.param(name, marks=on_gpu) for name in AWAY)])
def test_what_a_graph_would_freeze_is_refused(what: str) -> None:
    t = torch.ones(4, device=DEVICE)
    with pytest.raises(refusals.Untraceable, match="on the CPU in each step"), NothingFrozen():
        {**FROZEN, **AWAY}[what](t)


def test_what_happens_on_one_device_is_let_pass() -> None:
    with NothingFrozen():
        assert (torch.ones(4, device=DEVICE) * 2 + torch.arange(4, device=DEVICE)).shape == (4,)


@on_gpu
def test_arithmetic_of_fewer_digits_is_timed_as_it_will_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10))
    model.to(DEVICE)
    x, y = torch.randn(2048, 2048, device=DEVICE), torch.randint(10, (2048,), device=DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    before = torch.get_float32_matmul_precision()
    with thalweg.fast_step(model, "cross_entropy", optimizer, precision="fast", steps=3000) as step:
        for _ in range(14):
            step(x + torch.randn_like(x), y)
        assert step.plan.arithmetic in ("tf32", "bfloat16"), step.plan
    assert torch.get_float32_matmul_precision() == before


@on_gpu
def test_several_updates_by_a_graph_are_as_many_calls() -> None:
    batches = [(torch.randn(8, 4, device=DEVICE), torch.randint(3, (8,), device=DEVICE)) for _ in range(6)]
    plan, made = Plan(captured_after=1, batch=((8, 4), (8,))), []
    for is_at_once in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 3)).to(DEVICE)
        with thalweg.fast_step(model, "cross_entropy", adamw(model.parameters()), plan=plan) as step:
            losses = step.several(batches) if is_at_once else torch.stack([step(*batch) for batch in batches])
            assert step._step.captured is not None
        made.append([losses, *(p.detach().clone() for p in model.parameters())])
    assert all(map(torch.equal, *made))


def test_between_steps_products_are_as_they_were() -> None:
    seen: list[str] = []

    class Looking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.get_float32_matmul_precision())
            return super().forward(x)

    model = Looking(4, 3).to(DEVICE)
    x, y = torch.randn(8, 4, device=DEVICE), torch.randint(3, (8,), device=DEVICE)
    before, plan = torch.get_float32_matmul_precision(), Plan(arithmetic="tf32", arithmetic_after=1)
    with thalweg.fast_step(model, "cross_entropy", adamw(model.parameters()), plan=plan) as step:
        for _ in range(3):
            step(x, y)
            model(x)
    assert seen == [before, before, "high", before, "high", before]
    assert torch.get_float32_matmul_precision() == before
