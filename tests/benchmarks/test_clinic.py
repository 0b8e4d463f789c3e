"""The clinic's split, truth and scores, on made-up outcomes: no run is recorded here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.records.step import StepRecord

ROOM = Path(__file__).parents[2] / "benchmarks" / "clinic"


@pytest.fixture(scope="module", autouse=True)
def _room():
    sys.path.insert(0, str(ROOM))
    yield
    sys.path.remove(str(ROOM))


def test_split_covers_everything_once_and_does_not_depend_on_order():
    from configurations import every
    from split import FAMILIES, PARTS, RULES, parts

    known = parts(every())
    assert set(known) == {c.name for c in every()} and set(known.values()) == set(PARTS)
    assert parts(tuple(reversed(every()))) == known
    tuned = [c for c in every() if known[c.name] == "tuning"]
    assert all(c.family in FAMILIES and c.rule in RULES and c.grade != "mild" for c in tuned)
    severe = {c.name for c in every() if c.family in FAMILIES and c.rule in RULES and c.grade == "severe"}
    assert severe <= {c.name for c in tuned}


def test_well_configurations_of_tuned_families_are_halved():
    from configurations import every
    from split import FAMILIES, RULES, parts

    known = parts(every())
    for_tuning = [
        known[c.name] == "tuning"
        for c in every()
        if c.kind in ("healthy", "hard_healthy") and c.family in FAMILIES and c.rule in RULES
    ]
    assert abs(sum(for_tuning) - len(for_tuning) / 2) <= 0.5


def test_there_are_as_many_configurations_as_the_clinic_needs():
    from configurations import every
    from sicknesses import FAULTS

    kinds = [c.kind for c in every()]
    assert kinds.count("sick") >= 230 and kinds.count("hard_healthy") >= 90
    assert kinds.count("healthy") + kinds.count("reference") >= 100
    assert {fault.number for fault in FAULTS} == set(range(1, 17))
    assert {c.sickness for c in every() if c.kind == "sick"} == set(range(1, 18))


def _outcome(score: float, stopped: str = "epochs") -> dict:
    scores = [score / 2, score, score, score]
    return {"chance": 0.1, "steps": [10, 20, 30, 40], "scores": scores, "stopped_because": stopped}


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ([0.5, 0.52, 0.48, 0.51], "sick"),
        ([0.895, 0.91, 0.9, 0.905], "hard_healthy"),  # no difference
        ([0.87, 0.872, 0.871, 0.873], "hard_healthy"),  # a sure one, that does not matter
        ([0.9, 0.91, 0.9, 0.1], "hard_healthy"),  # one bad seed is no proof
    ],
)
def test_a_fault_is_a_sickness_only_where_it_does_harm(scores, kind):
    from configurations import Configuration
    from truth import judge

    of = Configuration("blob_mlp", "adam", "sick", "made-up", sickness=1)
    reference = {i: _outcome(v) for i, v in enumerate((0.9, 0.91, 0.89, 0.9))}
    found = judge(of, {i: _outcome(v) for i, v in enumerate(scores)}, reference)
    assert found.kind == kind
    assert set(found.runs.values()) == (
        {"sick"} if kind == "sick" else {"well"} if min(scores) > 0.5 else {"well", "unclear"}
    )


def test_a_training_that_diverged_has_gained_nothing():
    from truth import final

    assert final(_outcome(0.9, "diverged"), 0.1) == 0.1
    assert final(_outcome(float("nan")), 0.1) == 0.1
    assert final(_outcome(-40.0), 0.0) == 0.0


def test_a_standstill_is_what_its_certificate_says_unless_it_is_good_enough():
    from truth import stuck

    assert stuck({"certificate": {"kind": "saddle"}}, 0.2) == "saddle"
    assert stuck({"certificate": {"kind": "slope"}}, 0.2) == "slow"
    assert stuck({"certificate": {"kind": "slope"}}, 0.95) == "converged"
    assert stuck({"certificate": {"refused": "weights are not finite"}}, 0.0) is None
    assert stuck({}, 1.0) is None


def test_causes_that_are_told_are_the_deepest_or_the_right_ones():
    from scores import told

    assert told(["oscillating_loss", "vanishing_gradient"], ()) == ["vanishing_gradient"]
    assert told(["vanishing_gradient", "bad_initialization"], ()) == ["bad_initialization"]
    both = (("dead_units",), ("learning_rate_too_high",))
    assert told(["dead_units", "learning_rate_too_high"], both) == ["dead_units", "learning_rate_too_high"]


def test_notes_are_no_alarms():
    from scores import alarms

    assert alarms([Finding("plateau", "note", 1, ""), Finding("dead_units", "warning", 1, "")]) == ["dead_units"]


def _history() -> History:
    history = History()
    for step in (10, 20, 30, 40):
        history.append(StepRecord(step, step / 20, 0.0, {"loss": 1 - step / 100, "gradient_norm/0": 0.1}))
        if step % 20 == 0:
            history.evaluate(StepRecord(step, step / 20, 0.0, {"validation_loss": 2.0 / step}))
    return history


def test_a_history_comes_back_whole_or_as_it_stood():
    from recording import packed, unpacked

    held = packed(_history())
    assert unpacked(held).to_dict() == _history().to_dict()
    half = unpacked(held, 0.5)
    assert half.series("loss")[0].tolist() == [10, 20] and half.series("validation_loss")[0].tolist() == [20]


def test_every_peer_says_something_of_a_broken_training_and_takes_a_short_one():
    from peers import PEERS

    broken = History()
    for step in range(1, 60):
        values = {
            "loss": float("nan") if step > 5 else 2.0, "learning_rate": 0.1, "gradient_norm": float("nan"),
            "gradient_norm/0": float("nan"), "gradient_norm/2": float("nan"),
        }  # fmt: skip
        broken.append(StepRecord(step, step / 10, 0.0, values))
        if step % 10 == 0:
            measured = {"accuracy": 0.1, "validation_accuracy": 0.1, "epoch_loss": float("nan")}
            broken.evaluate(StepRecord(step, step / 10, 0.0, measured))
    for name, detector in PEERS.items():
        assert detector(broken), name
        detector(_history())
