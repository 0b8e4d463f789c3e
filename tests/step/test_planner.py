"""How a plan is made: what is weighed, what is left alone, and that nothing which goes wrong ends a training.

Where a measured time would decide, the ratio of two times is given.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from step_cases import Case, case
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.step import compiler, planner
from thalweg.step.batches import Parts
from thalweg.step.compiler import Compilation, CompileFailed
from thalweg.step.data import Batch, shapes
from thalweg.step.forward import Forward
from thalweg.step.kernels import allocator
from thalweg.step.losses import resolve
from thalweg.step.plan import Plan
from thalweg.step.planned import Asked, PlannedStep
from thalweg.step.planner import TOO_SHORT, Budget, Planner
from thalweg.step.snapshot import Snapshot
from thalweg.step.trace import Untraceable
from thalweg.step.update import Clip, Update
from thalweg.step.whole import Step

KEPT = allocator.is_available()
#: What is chosen where nothing is: memory is kept, for it changes no number.
NOTHING = Plan(keep_memory=KEPT, is_settled=True)


def adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, 0.01)


def planned(of: Case, told: list[Plan] | None = None, **asked: Any) -> PlannedStep:
    update = Update(adam(of.model.parameters()))
    return PlannedStep(Forward(of.model), of.loss, update, Asked(**asked), (told if told is not None else []).append)


def trained(step: Step, batches: list[Any], count: int = 16) -> list[Tensor]:
    """Losses, and in the end all that a training leaves; the random numbers are those of one seed."""
    torch.manual_seed(0)
    losses = [step(batches[i % len(batches)]) for i in range(count)]
    return [*losses, *(t.detach().clone() for t in step.forward.state().values()), torch.get_rng_state()]


def eager(name: str, count: int = 16) -> list[Tensor]:
    of = case(name)
    return trained(Step(Forward(of.model), of.loss, Update(adam(of.model.parameters()))), of.batches, count)


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compilation, "start", lambda *_: pytest.fail("nothing is to be compiled"))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """What any comparison of two times comes to; whatever else runs here, a step is a short one."""

    def seconds(self: Planner, call: Callable[[], object]) -> float:
        call()
        return 1e-3

    def are(gain: float) -> None:
        monkeypatch.setattr(Planner, "_seconds", seconds)
        monkeypatch.setattr(planner, "ratio", lambda *_: gain)

    return are


# ── what there is to gain ────────────────────────────────────────────────────────────────────────────────────────────

#: budget, (cost, updates so far, seconds of one, what is allowed in any case) → whether it is allowed
WEIGHED = [
    (Budget(), (1e9, 0, 1e-6, 1.0), True),
    (Budget(1000), (1.0, 0, 1e-6, 1.0), True),
    (Budget(1000), (1.01, 0, 1e-6, 1.0), False),
    (Budget(1000), (2.0, 0, 0.1, 1.0), True),
    (Budget(1000), (2.01, 0, 0.1, 1.0), False),
    (Budget(1000), (1.0, 500, 0.1, 0.0), True),
    (Budget(1000), (1.01, 500, 0.1, 0.0), False),
    (Budget(1000), (0.001, 1000, 0.1, 0.0), False),
    (Budget(1000), (0.001, 2000, 0.1, 0.0), False),
    (Budget(1000, seconds=10.0), (0.2, 0, 0.1, 0.0), True),
    (Budget(1000, seconds=10.0), (0.21, 0, 0.1, 0.0), False),
    (Budget(None, seconds=10.0), (0.21, 0, 0.1, 0.0), False),
]


@pytest.mark.parametrize(("budget", "of", "is_allowed"), WEIGHED)
def test_what_planning_may_cost(budget: Budget, of: tuple[float, int, float, float], is_allowed: bool) -> None:
    assert budget.allows(*of) is is_allowed


@pytest.mark.usefixtures("no_process")
def test_a_short_training_stays_eager() -> None:
    step = planned(case("dropout"), told := [], budget=Budget(50))
    step.open()
    found = trained(step, case("dropout").batches, 50)
    assert same(found, eager("dropout", 50))
    assert step.plan.notes == (TOO_SHORT,)
    assert (step.plan.compiled_after, step.plan.is_settled) == (None, True)
    assert told[-1] == step.plan
    step.close()


#: gain of one thread, updates that follow, whether there is a compiler → whether it is taken for a step of 1 ms.
#: A core to compile on is worth a slower step only where compiling may follow.
THREADS = [
    (0.95, 1_000_000, True, True),
    (0.85, 1_000_000, True, False),
    (0.95, 1_000_000, False, False),
    (0.95, 20, True, False),
    (1.1, 20, False, True),
]


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(("gain", "steps", "has_compiler", "is_taken"), THREADS)
def test_one_thread_leaves_a_core_to_compile_on(
    gain: float,
    steps: int,
    has_compiler: bool,
    is_taken: bool,
    times: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    times(gain)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(planner, "has_compiler", lambda: has_compiler)
    assert of_two_threads(monkeypatch, steps).threads == (1 if is_taken else None)


def of_two_threads(monkeypatch: pytest.MonkeyPatch, steps: int) -> Plan:
    """What is chosen before the first update, where torch has two threads."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    step = planned(case("dense"), budget=Budget(steps))
    step.open()
    trained(step, case("dense").batches, 1)
    step.close()
    return step.plan


@pytest.mark.usefixtures("no_process")
def test_one_thread_is_taken_where_a_program_for_it_is_at_hand(
    times: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    times(0.95)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(planner, "has_compiler", lambda: True)
    assert of_two_threads(monkeypatch, 5000).threads is None
    of = case("dense")
    trained(step := planned(of, by_clock=False), of.batches, 1)
    library = compiler.cache_directory() / "made.so"
    library.touch()
    compiler.remember(step.in_words(of.batches[0], threads=1), library)
    assert of_two_threads(monkeypatch, 5000).threads == 1
    assert of_two_threads(monkeypatch, 20).threads is None, "too short to record it"


def taken(budget: Budget) -> PlannedStep:
    """A step after sixteen updates."""
    step = planned(case("dense"), budget=budget)
    step.open()
    trained(step, case("dense").batches)
    step.close()
    return step


@pytest.mark.parametrize("is_known", [True, False])
def test_a_short_training_takes_a_program_that_is_at_hand(
    is_known: bool, ready: Any, times: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether one is at hand is known, before the step is recorded, where a training like it has taken it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ready(Faithful), times(2.0)
    if is_known:
        assert taken(Budget()).plan.compiled_after is not None
    monkeypatch.setattr(planner, "RECORDING", 2 * planner.SHARE)
    plan = taken(Budget(None, seconds=1.0)).plan  # of which recording is more than a small share
    assert (plan.compiled_after is not None) is is_known
    assert (TOO_SHORT in plan.notes) is not is_known


def test_a_program_that_was_said_to_be_at_hand_and_is_not_is_not_waited_for(
    ready: Any, times: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Something that its words do not say is another. It is found once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ready(Faithful), times(2.0)
    taken(Budget())
    monkeypatch.setattr(planner, "RECORDING", 2 * planner.SHARE)
    monkeypatch.setattr(Ready, "was_ready", False)
    of = case("dense")
    words = planned(of).in_words(of.batches[0])
    assert compiler.is_remembered(words)
    assert taken(Budget(None, seconds=1.0)).plan.notes == (TOO_SHORT,)
    assert not compiler.is_remembered(words)


def test_a_step_in_other_words_is_not_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    of, other = case("dense"), case("dropout")
    words = planned(of).in_words(of.batches[0])
    library = compiler.cache_directory() / "made.so"
    compiler.remember(words, library)
    assert not compiler.is_remembered(words), "the library is not there"
    library.touch()
    assert compiler.is_remembered(words)
    assert compiler.is_remembered(planned(case("dense")).in_words(of.batches[0])), "of another model of the kind"
    assert not compiler.is_remembered(planned(other).in_words(other.batches[0]))
    assert not compiler.is_remembered(planned(of).in_words(tuple(t[:8] for t in of.batches[0])))
    clipped = planned(of)
    clipped.update.clip = Clip(norm=1.0)
    assert not compiler.is_remembered(clipped.in_words(of.batches[0]))
    compiler.forget(words)
    assert not compiler.is_remembered(words)
    compiler.remember(words, library)
    compiler.cache_directory().chmod(0o777)
    assert not compiler.is_remembered(words), "others may have written it"


class Named(nn.Linear):
    """Says where one of its parts lies; or cannot say anything."""

    part: Any = None

    def extra_repr(self) -> str:
        if self.part is None:
            raise ArithmeticError("halfway")
        return f"part={self.part!r}"


def test_where_a_part_of_a_model_lies_is_not_among_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    of, models = case("dense"), [Named(12, 5) for _ in range(3)]
    models[0].part, models[1].part = object(), object()
    first, second, nothing = (planned(Case(model, of.loss, of.batches)).in_words(of.batches[0]) for model in models)
    assert first == second != ""
    assert nothing == ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (library := compiler.cache_directory() / "made.so").touch()
    compiler.remember(nothing, library)
    assert not compiler.is_remembered(nothing)


@pytest.mark.usefixtures("no_process")
def test_nothing_is_decided_by_the_clock_where_it_must_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.time, "perf_counter", lambda: pytest.fail("the clock is looked at"))
    step = planned(case("batch norm"), by_clock=False)
    step.open()
    assert step.plan == NOTHING
    assert same(trained(step, case("batch norm").batches), eager("batch norm"))
    assert step.plan == NOTHING
    step.close()


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_layout_is_taken_where_it_is_faster(gain: float, times: Callable[[float], None]) -> None:
    times(gain)
    of = case("cnn")
    strides = [p.stride() for p in of.model.parameters()]
    step = planned(of, told := [], budget=Budget(20))
    step.open()
    found = trained(step, of.batches)
    is_last = of.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    if gain > 1:
        assert (step.plan.layout, is_last, told[0].layout) == ("channels_last", True, "channels_last")
        torch.testing.assert_close(found, eager("cnn"), rtol=1e-4, atol=1e-5)
    else:
        assert (step.plan.layout, is_last) == ("as_is", False)
        assert same(found, eager("cnn")), "what was tried leaves no trace"
    step.close()
    assert [p.stride() for p in of.model.parameters()] == strides


class Viewed(nn.Module):
    """Asks for one order in memory, as much code does that flattens by `view`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inner, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x).relu().view(len(x), -1))


@pytest.mark.usefixtures("no_process")
def test_a_layout_in_which_a_step_fails_is_left_and_planning_goes_on(times: Callable[[float], None]) -> None:
    times(2.0)
    of = case("cnn")
    step = planned(Case(Viewed(), of.loss, of.batches), budget=Budget(20))
    step.open()
    found = trained(step, of.batches)
    failed, *others = step.plan.notes
    assert failed.startswith("channels last was not taken: a step fails in it (RuntimeError: view size is not")
    assert (step.plan.layout, others) == ("as_is", [TOO_SHORT])
    other = Viewed()
    expected = trained(Step(Forward(other), of.loss, Update(adam(other.parameters()))), of.batches)
    assert same(found, expected)
    step.close()


# ── what is not compiled ─────────────────────────────────────────────────────────────────────────────────────────────


def assert_goes_on_eagerly(step: PlannedStep, name: str, note: str, told: list[Plan]) -> None:
    step.open()
    found = trained(step, case(name).batches)
    assert same(found, eager(name))
    (said,) = step.plan.notes
    assert said.startswith(note)
    assert step.plan.is_settled
    assert step.plan.compiled_after is None
    assert step.program is None
    assert sum(plan.is_settled for plan in told) == 1, "it is said once"
    step.close()


def test_without_a_compiler_it_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "has_compiler", lambda: False)
    step = planned(case("dropout"), told := [])
    note = "The step is not compiled: there is no C++ compiler (install g++ or clang++, or set CXX)."
    assert_goes_on_eagerly(step, "dropout", note, told)


@pytest.mark.skipif(not compiler.has_compiler(), reason="there is no C++ compiler")
def test_a_compilation_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    step = planned(case("dropout"), told := [], budget=Budget(wait=True))
    assert_goes_on_eagerly(step, "dropout", "The step is not compiled: it could not be compiled (", told)


@pytest.mark.usefixtures("no_process")
def test_a_model_that_cannot_be_recorded() -> None:
    of = case("dropout")
    of.model.register_forward_hook(lambda *_: None)
    step = planned(of, told := [])
    assert_goes_on_eagerly(step, "dropout", "The step is not compiled: it has hooks.", told)


class Heard:
    """A probe that listens to one update by hooks, as the signals of a training do to its tenth."""

    def __init__(self, model: nn.Module, update: int) -> None:
        self.model, self.update, self.listens = model, update, False

    def before(self, parameters: Any) -> None: ...

    def after(self, parameters: Any) -> None: ...

    def gradients(self, parameters: Any) -> None: ...

    def train(self, step: PlannedStep, batches: list[Any], count: int) -> None:
        for number in range(1, count + 1):
            self.listens = number == self.update
            handle = self.model.register_forward_pre_hook(lambda *_: None) if self.listens else None
            step(batches[number % len(batches)], self)
            if handle is not None:
                handle.remove()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After how many updates a step was to be recorded; it never is."""
    numbers: list[int] = []

    def record(step: PlannedStep, batch: Batch) -> None:
        assert not step.forward.model._forward_pre_hooks
        numbers.append(step.number)
        raise Untraceable("it was only to be seen when")

    monkeypatch.setattr(PlannedStep, "record", record)
    return numbers


@pytest.mark.parametrize("update", [10, 11])
def test_an_update_that_is_listened_to_is_not_the_one_to_record(update: int, recorded: list[int]) -> None:
    """The tenth update is listened to in every training, and is the first at which a program may be recorded."""
    of = case("dense")
    step = planned(of, budget=Budget())
    step.open()
    Heard(of.model, update).train(step, of.batches, 14)
    step.close()
    assert len(recorded) == 1 and recorded[0] + 1 != update


@pytest.mark.parametrize("update", [3, 4])
def test_a_given_plan_is_not_recorded_at_such_an_update_either(update: int, recorded: list[int]) -> None:
    of = case("dense")
    step = planned(of, plan=Plan(compiled_after=3, batch=shapes(of.batches[0])))
    step.open()
    Heard(of.model, update).train(step, of.batches, 8)
    step.close()
    assert len(recorded) == 1 and recorded[0] + 1 != update


@pytest.mark.usefixtures("no_process")
def test_weights_that_are_constrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.step.keras.apply_constraints", lambda model: None)
    step = planned(case("dropout"), told := [])
    step.constrained = True
    assert_goes_on_eagerly(step, "dropout", "The step is not compiled: its weights are constrained.", told)


@pytest.mark.usefixtures("no_process")
def test_batches_in_parts() -> None:
    of = case("dense")
    step = planned(of, told := [])
    step.open()
    for i in range(12):
        x, y = of.batches[i % 6]
        step(Parts(lambda x=x, y=y: iter([(x[:9], y[:9]), (x[9:], y[9:])])))
    assert step.plan.notes == ("The step is not compiled: batches come in parts.",)
    assert sum(plan.is_settled for plan in told) == 1
    step.close()


@pytest.mark.parametrize("where", ["_first_choices", "_second_choices", "_is_usual"])
def test_planning_that_fails(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ArithmeticError("halfway")

    monkeypatch.setattr(Planner, where, fails)
    step = planned(case("dropout"), told := [])
    note = "Planning ended (ArithmeticError: halfway); steps run as before."
    assert_goes_on_eagerly(step, "dropout", note, told)


# ── when it is ready ─────────────────────────────────────────────────────────────────────────────────────────────────


class Ready:
    """A compilation that has been made before."""

    was_ready = True

    @property
    def path(self) -> Path:
        library = compiler.cache_directory() / "made.so"
        library.touch()
        return library

    def is_done(self) -> bool:
        return True

    def stop(self) -> None: ...


class Faithful:
    """A program that does just what the eager step does; others do something else."""

    has_update = True
    reuses_memory = False

    def __init__(self, step: PlannedStep, batch: Batch) -> None:
        self.step = step
        self.shape = batch[0].shape
        self.graded = list(step.update.parameters)
        self.calls = 0

    def takes(self, batch: Batch) -> bool:
        return bool(batch[0].shape == self.shape)

    def __call__(self, batch: Batch) -> Any:
        self.calls += 1
        loss = Step.gradients(self.step, batch)
        gradients = [p.grad.clone() for p in self.graded]
        self.step.update()
        return loss, gradients, None


class Wrong(Faithful):
    def __call__(self, batch: Batch) -> Any:
        loss, gradients, _ = super().__call__(batch)
        return loss, [gradients[0] * 1.1, *gradients[1:]], None


class Forgetful(Faithful):
    def __call__(self, batch: Batch) -> Any:
        with torch.no_grad():
            found = super().__call__(batch)
            return (found[0], found[1], None) if self.graded[0].mul_(2) is not None else None


class Failing(Faithful):
    def __call__(self, batch: Batch) -> Any:
        super().__call__(batch)
        raise ArithmeticError("inside the program")


class Unloadable(Faithful):
    def __init__(self, step: PlannedStep, batch: Batch) -> None:
        raise CompileFailed("what was made cannot be loaded")


class Blind(Faithful):
    def takes(self, batch: Batch) -> bool:
        raise ArithmeticError("inside the question")


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Faithful]], None]:
    """Whatever is recorded is there at once, as a program of this kind."""

    def are(kind: type[Faithful]) -> None:
        def record(self: PlannedStep, batch: Batch) -> None:
            self.compilation = Ready()  # type: ignore[assignment]

        monkeypatch.setattr(planner, "SMALL", 0.0)  # whatever the number of threads here, another is not tried
        monkeypatch.setattr(PlannedStep, "record", record)
        monkeypatch.setattr(PlannedStep, "load", lambda self, batch: (kind(self, batch), {"choices": {"a b": "small"}}))

    return are


LEFT = {
    Wrong: "The compiled step was not taken: a gradient differs by",
    Forgetful: "Planning ended (RuntimeError: ",
    Failing: "Planning ended (ArithmeticError: inside the program); steps run as before.",
    Unloadable: "The step is not compiled: what was made cannot be loaded.",
    Blind: "Planning ended (ArithmeticError: inside the question); steps run as before.",
}


@pytest.mark.parametrize("kind", LEFT, ids=lambda kind: kind.__name__)
def test_a_program_that_is_wrong_is_left(kind: type[Faithful], ready: Any, times: Callable[[float], None]) -> None:
    ready(kind), times(2.0)
    assert_goes_on_eagerly(planned(case("dropout"), told := []), "dropout", LEFT[kind], told)


def test_a_program_that_is_slow_is_left(ready: Any, times: Callable[[float], None]) -> None:
    ready(Faithful), times(0.8)
    note = "The compiled step was not taken: it takes 1.25 times as long as the plain one."
    assert_goes_on_eagerly(planned(case("dropout"), told := []), "dropout", note, told)


def test_a_program_that_is_the_same_and_faster_is_taken(ready: Any, times: Callable[[float], None]) -> None:
    ready(Faithful), times(2.0)
    of = case("dropout")
    seen: list[tuple[int, Plan]] = []
    step = planned(of)
    step._changed = lambda plan: seen.append((step.number, plan))
    step.open()
    assert same(trained(step, of.batches), eager("dropout"))
    ((number, plan),) = [(n, p) for n, p in seen if p.compiled_after is not None]
    assert number == plan.compiled_after == 9, "it is told before the first update that is made by it"
    assert plan == step.plan
    assert plan.batch == ((16, 12), (16,))
    assert (plan.products, plan.gain, plan.notes, plan.is_settled) == ({"a b": "small"}, 2.0, (), True)
    before = step.program.calls  # type: ignore[union-attr]
    trained(step, of.batches, 4)
    assert step.program.calls == before + 4  # type: ignore[union-attr]
    step.close()


def test_a_plan_of_a_gpu_keeps_its_compiled_step_on_a_cpu(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(Faithful)
    monkeypatch.setattr(PlannedStep, "capture", lambda *_: pytest.fail("there is no GPU"))
    of = case("dense")
    plan = Plan(captured_after=3, compiled_after=6, batch=shapes(of.batches[0]))
    step = planned(of, plan=plan)
    step.open()
    trained(step, of.batches)
    assert isinstance(step.program, Faithful) and step.program.calls == 10
    assert step.plan.captured_after == 3 and not step.plan.notes
    step.close()


def test_a_last_smaller_batch_is_not_what_a_program_is_made_for(ready: Any, times: Callable[[float], None]) -> None:
    ready(Faithful), times(2.0)
    of = case("dropout")
    x, y = of.batches[0]
    step = planned(of)
    step.open()
    for batch in [*of.batches, *of.batches[:3], (x[:7], y[:7])]:
        step(batch)
    assert (step.number, step.compilation) == (10, None)
    step(of.batches[1])
    assert step.plan.compiled_after == 10
    assert step.plan.batch == ((16, 12), (16,))
    before = step.program.calls  # type: ignore[union-attr]
    step((x[:7], y[:7]))
    assert step.program.calls == before  # type: ignore[union-attr]
    step.close()


def test_planning_on_one_batch_leaves_no_trace(ready: Any, times: Callable[[float], None]) -> None:
    ready(Faithful), times(2.0)
    of = case("dropout")
    step = planned(of, budget=Budget(wait=True))
    step.open()
    before = [t.detach().clone() for t in step.forward.state().values()]
    torch.manual_seed(0)
    step.plan_on(itertools.repeat(of.batches[0]))
    assert (step.plan.compiled_after, step.number) == (1, 0), "all that follow begin with it"
    assert same([t.detach() for t in step.forward.state().values()], before)
    assert not step.update.optimizer.state
    assert same(trained(step, of.batches), eager("dropout"))
    step.close()


def test_a_rate_at_which_planning_diverges_is_lowered_for_it(ready: Any, times: Callable[[float], None]) -> None:
    ready(Faithful), times(2.0)
    of = case("dense")
    update = Update(torch.optim.SGD(of.model.parameters(), 1e12))
    step = PlannedStep(Forward(of.model), of.loss, update, Asked(budget=Budget(wait=True)))
    before = [t.detach().clone() for t in step.forward.state().values()]
    step.open()
    step.plan_on(itertools.repeat(of.batches[0]))
    assert step.plan.compiled_after == 1 and not step.plan.notes
    assert update.optimizer.param_groups[0]["lr"] == 1e12
    assert same([t.detach() for t in step.forward.state().values()], before)
    step.close()


def test_a_rate_that_is_a_tensor_is_what_it_was_afterwards(ready: Any, times: Callable[[float], None]) -> None:
    ready(Faithful), times(2.0)
    of, rate = case("dense"), torch.tensor(1e12)
    update = Update(torch.optim.SGD(of.model.parameters(), rate, foreach=False))
    step = PlannedStep(Forward(of.model), of.loss, update, Asked(budget=Budget(wait=True)))
    step.open()
    step.plan_on(itertools.repeat(of.batches[0]))
    assert step.plan.compiled_after == 1
    assert update.optimizer.param_groups[0]["lr"] is rate and float(rate) == float(torch.tensor(1e12))
    step.close()


def test_planning_leaves_no_trace_in_a_head_that_only_the_rule_knows(times: Callable[[float], None]) -> None:
    times(2.0)

    def made() -> tuple[Case, nn.Module, Callable[..., Tensor]]:
        of = case("cnn")
        torch.manual_seed(4)
        head = nn.Linear(5, 5)
        return of, head, lambda output, target: nn.functional.cross_entropy(head(output), target)

    ends, plan = [], None
    for _ in range(2):
        of, head, loss = made()
        update = Update(adam([*of.model.parameters(), *head.parameters()]))
        step = PlannedStep(Forward(of.model), resolve(loss), update, Asked(plan=plan))
        step.open()
        ends.append([*trained(step, of.batches), *(p.detach().clone() for p in head.parameters())])
        step.close()
        plan = step.plan
    assert plan is not None and plan.layout == "channels_last"
    assert same(*ends)


def test_what_an_earlier_part_of_a_run_has_chosen_is_not_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(Planner, "_first_choices", lambda self, batch: chosen.append(self.step.number))
    for number, begun in ((0, Plan()), (50, Plan()), (50, None)):
        of = case("dense")
        step = planned(of, begun=begun, budget=Budget(60))
        step.begin(number)
        step.open()
        trained(step, of.batches, 2)
        step.close()
    assert chosen == [0, 50], "by a run that goes on; one that has changed its rule chooses anew"


def test_a_way_that_is_refused_on_one_batch_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def record(self: PlannedStep, batch: Batch) -> None:
        asked.append(self.number)
        raise Untraceable("it is what it is")

    monkeypatch.setattr(PlannedStep, "record", record)
    step = planned(case("dropout"), told := [])
    assert_goes_on_eagerly(step, "dropout", "The step is not compiled: it is what it is.", told)
    assert asked == [9]


# ── arithmetic of fewer digits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_bfloat16_is_taken_where_it_is_faster_and_as_good(gain: float, times: Callable[[float], None]) -> None:
    times(gain)
    of = case("dense")
    step = planned(of, is_fast=True, budget=Budget(20))
    step.open()
    found = trained(step, of.batches)
    if gain > 1:
        assert (step.plan.arithmetic, step.arithmetic) == ("bfloat16", torch.bfloat16)
        assert same(found[:9], eager("dense")[:9]), "the first ones are exact"
        assert not same(found, eager("dense"))
        assert all(p.dtype == torch.float32 for p in of.model.parameters())
    else:
        assert step.plan.arithmetic == "exact"
        assert "bfloat16 was not taken: with it a step takes 2.00 times as long on this machine." in step.plan.notes
        assert same(found, eager("dense"))
    step.close()
    assert step.arithmetic is None


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(("name", "is_fast"), [("cnn", False), ("batch norm", False), ("dense", True)])
def test_what_was_chosen_repeats_to_the_last_bit(name: str, is_fast: bool, times: Callable[[float], None]) -> None:
    """Given from the beginning, a plan switches where the training that has chosen it did."""
    times(2.0)
    step = planned(of := case(name), is_fast=is_fast, budget=Budget(20))
    step.open()
    found = trained(step, of.batches)
    assert not step.plan.is_eager
    step.close()
    again = planned(of := case(name), plan=step.plan)
    again.open()
    assert same(trained(again, of.batches), found)
    again.close()


@pytest.mark.usefixtures("no_process")
def test_bfloat16_begins_at_its_update_also_where_a_run_is_gone_on_with() -> None:
    plan = Plan(arithmetic="bfloat16", arithmetic_after=5)
    step = planned(case("dense"), plan=plan)
    step.open()
    seen = []
    for batch in case("dense").batches[:3]:
        step(batch)
        seen.append(step.arithmetic)
    step.resumed(4)
    for batch in case("dense").batches[:3]:
        step(batch)
        seen.append(step.arithmetic)
    assert seen == [None, None, None, None, torch.bfloat16, torch.bfloat16]
    step.close()
    later = planned(case("dense"), plan=plan)
    later.resumed(9)
    later.open()
    assert later.arithmetic == torch.bfloat16
    later.close()


@pytest.mark.usefixtures("no_process")
def test_a_run_that_is_put_back_returns_to_bfloat16_at_its_update(times: Callable[[float], None]) -> None:
    """Also where it has chosen so by itself and goes on choosing."""
    times(2.0)
    step = planned(of := case("dense"), is_fast=True, budget=Budget(20))
    step.open()
    trained(step, of.batches, 12)
    assert (step.plan.arithmetic, step.plan.arithmetic_after) == ("bfloat16", 9)
    step.begin(7)
    seen = []
    for batch in of.batches[:4]:
        step(batch)
        seen.append(step.arithmetic)
    assert seen == [None, None, torch.bfloat16, torch.bfloat16]
    step.close()


@pytest.mark.usefixtures("no_process")
def test_bfloat16_is_left_where_the_loss_is_off(times: Callable[[float], None]) -> None:
    times(2.0)
    of = case("dense")
    step = planned(of, is_fast=True, budget=Budget(20))
    step.update.optimizer.param_groups[0]["lr"] = 0.0  # the loss on one batch has no noise then
    step.open()
    trained(step, of.batches[:1])
    assert step.plan.arithmetic == "exact"
    assert any(note.startswith("bfloat16 was not taken: over 8 steps the loss was off by") for note in step.plan.notes)
    step.close()


@pytest.mark.usefixtures("no_process")
def test_an_arithmetic_in_which_a_step_fails_is_left_and_planning_goes_on(
    monkeypatch: pytest.MonkeyPatch, times: Callable[[float], None]
) -> None:
    times(2.0)
    plainly = PlannedStep.plainly

    def fails(step: PlannedStep, batch: Batch) -> Tensor:
        loss = plainly(step, batch)
        if step.arithmetic is not None:
            raise RuntimeError("not implemented for 'BFloat16'\nand more")
        return loss

    monkeypatch.setattr(PlannedStep, "plainly", fails)
    step = planned(case("dense"), is_fast=True, budget=Budget(20))
    step.open()
    assert same(trained(step, case("dense").batches), eager("dense"))
    failed, *others = step.plan.notes
    assert failed == "bfloat16 was not taken: a step fails in it (RuntimeError: not implemented for 'BFloat16')."
    assert (step.plan.arithmetic, others) == ("exact", [TOO_SHORT])
    step.close()


def test_without_asking_there_is_no_bfloat16(monkeypatch: pytest.MonkeyPatch, no_process: None) -> None:
    monkeypatch.setattr(Planner, "_try_fast", lambda self: pytest.fail("nobody asked"))
    step = planned(case("dense"), budget=Budget(20))
    step.open()
    assert same(trained(step, case("dense").batches), eager("dense"))
    step.close()


# ── around a training ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("no_process")
def test_threads_and_memory_are_as_found_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    entered: list[str] = []

    class Kept:
        def __enter__(self) -> None:
            entered.append("in")

        def __exit__(self, *_: object) -> None:
            entered.append("out")

    monkeypatch.setattr(allocator, "kept", Kept)
    step = planned(case("dense"), plan=Plan(threads=3, keep_memory=True))
    step.open()
    assert (seen, entered) == ([3], ["in"])
    step.close()
    assert (seen, entered) == ([3, 5], ["in", "out"])


@pytest.mark.usefixtures("no_process")
def test_a_plan_that_is_given_is_followed_and_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planner, "consider", lambda self, batch: pytest.fail("nothing is to be chosen"))
    of = case("batch norm")
    step = planned(of, plan=Plan(layout="channels_last"))
    step.open()
    assert of.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    trained(step, of.batches)
    assert step.plan == Plan(layout="channels_last", is_settled=True)
    step.close()
    assert of.model[0].weight.stride() == case("batch norm").model[0].weight.stride()


def test_a_snapshot_of_nothing_is_nothing() -> None:
    model = nn.Linear(1, 1)
    optimizer = adam(model.parameters())
    Snapshot(Forward(model), optimizer).restore()
    assert not optimizer.state
