import inspect
import json
import math

import pytest
import torch
from torch.optim import lr_scheduler

from thalweg.optim import schedules
from thalweg.optim.schedules import NAMES, build
from thalweg.records.settings import SCHEDULES


def optimizer(rates=(0.5,), momentum=0.0):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum)


def rates(schedule, o, steps):
    """The rate of the first group at each update, as a training would set it."""
    seen = []
    for step in steps:
        schedule.apply(o, step)
        seen.append(o.param_groups[0]["lr"])
        o.step()
    return seen


def factors(name, total, epoch=None, steps=None):
    o = optimizer((1.0,))
    return rates(build(name, o, total, epoch), o, range(steps or total))


def test_names_are_those_of_the_settings():
    assert NAMES == SCHEDULES


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("cosine", lambda o, T: lr_scheduler.CosineAnnealingLR(o, T)),
        ("one_cycle", lambda o, T: lr_scheduler.OneCycleLR(o, 0.5, T, cycle_momentum=False)),
        ("exponential", lambda o, T: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / T))),
        ("step", lambda o, T: lr_scheduler.StepLR(o, math.ceil(T / 3))),
        ("warm_restarts", lambda o, T: lr_scheduler.CosineAnnealingWarmRestarts(o, math.ceil(T / 7), 2)),
        ("constant", lambda o, T: lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
@pytest.mark.parametrize("total", [5, 70, 203])
def test_equal_to_torch(name, theirs, total):
    o = optimizer()
    ours = rates(build(name, o, total), o, range(total))
    o = optimizer()
    scheduler, expected = theirs(o, total), []
    for _ in range(total):
        expected.append(o.param_groups[0]["lr"])
        o.step()
        scheduler.step()
    assert ours == pytest.approx(expected, rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "plateau"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 19, 20, 21, 100])
def test_every_factor_is_above_zero_and_at_most_one(name, total):
    values = factors(name, total)
    assert all(0 < value <= 1 for value in values)
    past = factors(name, total, steps=3 * total + 2)[total:]
    assert all(0 <= value <= 1 for value in past)


@pytest.mark.parametrize("name", ["auto", "constant", "exponential", "step", "warm_restarts"])
@pytest.mark.parametrize("epoch", [None, 1, 30])
def test_length_unknown(name, epoch):
    values = factors(name, None, epoch, steps=500)
    assert all(0 < value <= 1 for value in values)


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "warmup_stable_decay"])
def test_length_needed(name):
    with pytest.raises(ValueError, match=f"'{name}' needs the length of the training: give epochs= or steps="):
        build(name, optimizer(), None, 10)


def test_auto_with_the_length_known():
    values = factors("auto", 1000)
    assert values[:50] == pytest.approx([(t + 1) / 51 for t in range(50)])
    assert values[50] == 1
    assert values[50:] == sorted(values[50:], reverse=True)
    assert values[525] == pytest.approx(0.505)
    assert values[-1] == pytest.approx(0.01, rel=1e-3)
    assert factors("auto", 1000, steps=1200)[1000:] == [0.01] * 200
    assert factors("auto", 100_000, steps=1001)[999:] == [1000 / 1001, 1.0]


@pytest.mark.parametrize(("epoch", "warmup"), [(None, 100), (7, 7), (4000, 100)])
def test_auto_with_the_length_unknown(epoch, warmup):
    values = factors("auto", None, epoch, steps=300)
    assert values[0] == 1 / (warmup + 1)
    assert values[warmup - 1] < 1
    assert values[warmup:] == [1.0] * (300 - warmup)


def test_warmup_stable_decay():
    values = factors("warmup_stable_decay", 100)
    assert values[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert values[5:80] == [1.0] * 75
    assert values[80:] == pytest.approx([k / 21 for k in range(20, 0, -1)])


def test_unknown_lengths_count_epochs():
    values = factors("exponential", None, 10, steps=21)
    assert [values[0], values[10], values[20]] == pytest.approx([1, 0.95, 0.95**2])
    values = factors("step", None, 2, steps=121)
    assert [values[59], values[60], values[120]] == pytest.approx([1, 0.1, 0.01])
    values = factors("warm_restarts", None, 1, steps=71)
    assert [values[10], values[30], values[70]] == [1, 1, 1]
    assert values[9] < 0.05 > values[69]


def test_each_group_keeps_its_own_rate():
    o = optimizer((0.5, 0.1))
    build("cosine", o, 10).apply(o, 5)
    assert [group["lr"] for group in o.param_groups] == pytest.approx([0.25, 0.05])


def test_constant_does_nothing_after_the_first():
    o = optimizer()
    schedule = build("constant", o)
    o.param_groups[0]["initial_lr"] = 0.25
    schedule.apply(o, 0)
    assert o.param_groups[0]["lr"] == 0.25
    o.param_groups[0]["lr"] = 7.0
    schedule.apply(o, 1)
    assert o.param_groups[0]["lr"] == 7.0


LOSSES = [1.0, 0.5, math.nan, *[0.6] * 30, 0.1, *[0.1] * 15]


@pytest.mark.parametrize("cut", range(0, len(LOSSES), 5))
def test_plateau_is_torchs_and_resumes_exactly(cut):
    theirs = optimizer()
    scheduler = lr_scheduler.ReduceLROnPlateau(theirs)
    o = optimizer()
    schedule = build("plateau", o, 100)
    for i, loss in enumerate(LOSSES):
        if i == cut:
            saved = json.loads(json.dumps([schedule.state_dict(), o.state_dict()], allow_nan=False))
            o = optimizer()
            schedule = build("plateau", o, 100)
            o.load_state_dict(saved[1])
            schedule.load_state_dict(saved[0])
        scheduler.step(loss)
        schedule.apply(o, i)
        schedule.validated(loss)
        assert o.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert o.param_groups[0]["lr"] < 0.5


FACTORIES = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5, 9]),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 20),
    "chained": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=4), lr_scheduler.MultiStepLR(o, [3, 6])], [4]
    ),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.93),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, step_size_up=3),
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("cut", [1, 2, 4, 6, 13])
def test_a_torch_scheduler_is_stepped_once_an_update_and_resumes_exactly(name, cut):
    make = FACTORIES[name]
    o = optimizer(momentum=0.9)
    scheduler, expected = make(o), []
    for _ in range(18):
        expected.append(o.param_groups[0]["lr"])
        o.step()
        scheduler.step()

    o = optimizer(momentum=0.9)
    schedule = build(make, o)
    before = rates(schedule, o, range(cut))
    state = json.loads(json.dumps(schedule.state_dict(), allow_nan=False))
    saved = o.state_dict()
    o = optimizer(momentum=0.9)
    schedule = build(make, o)
    o.load_state_dict(saved)
    schedule.load_state_dict(state)
    assert before + rates(schedule, o, range(cut, 18)) == expected


def test_applying_one_step_twice_is_applying_it_once():
    o = optimizer()
    schedule = build(FACTORIES["exponential"], o)
    assert rates(schedule, o, [0, 1, 1, 2]) == pytest.approx([0.5, 0.5 * 0.93, 0.5 * 0.93, 0.5 * 0.93**2])


def test_a_plateau_scheduler_of_the_users_is_stepped_at_validations():
    o = optimizer()
    schedule = build(lr_scheduler.ReduceLROnPlateau(o, patience=0), o)
    assert rates(schedule, o, range(5)) == [0.5] * 5
    for _ in range(2):
        schedule.validated(1.0)
    assert o.param_groups[0]["lr"] == pytest.approx(0.05)


def test_what_is_no_schedule():
    o = optimizer()
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        build("cosin", o, 10)
    with pytest.raises(TypeError, match="torch scheduler"):
        build(3, o)
    with pytest.raises(TypeError, match="torch scheduler"):
        build(lambda o: None, o)
    with pytest.raises(ValueError, match="another optimizer"):
        build(lr_scheduler.StepLR(optimizer(), 3), o)


def test_a_state_that_json_cannot_hold_is_an_error():
    class Odd(lr_scheduler.StepLR):
        def state_dict(self):
            return {"odd": object()}

    with pytest.raises(ValueError, match="holds a object"):
        build(lambda o: Odd(o, 3), optimizer()).state_dict()


def test_every_factor_states_its_source_or_formula():
    functions = [f for _, f in inspect.getmembers(schedules, inspect.isfunction) if f.__annotations__.get("t") == "int"]
    assert len(functions) == 9
    assert all(f.__doc__ for f in functions)


def test_an_update_that_was_left_out_is_counted_without_a_warning(recwarn):
    """A first batch that is not finite, with `skip_batches`: the optimizer has not stepped, the schedule goes on."""
    o = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = schedules.TorchSchedule(lr_scheduler.ExponentialLR(o, 0.5))
    schedule.apply(o, 1)
    assert o.param_groups[0]["lr"] == 0.5
    assert not recwarn.list
