"""What is tried first, and which of the arms of a trial is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bodies import body_of

from thalweg.records.finding import Finding
from thalweg.repairs import prescriptions
from thalweg.repairs.answers import RENEW, TABLE
from thalweg.repairs.prescriptions import MOST, Prescription, candidates, prescribe, promise, successes
from thalweg.repairs.trial import Measured, as_good, best, harmless, is_better
from thalweg.run.trials import right

CONTROL = Measured((2.0, 2.1, 1.9, 2.0))
GOOD = Measured((1.0, 1.2, 0.9, 1.1))
AS_GOOD = Measured((1.1, 1.0, 1.0, 1.0))
BETTER_THAN_NONE = Measured((1.8, 1.9, 1.7, 1.8))
LOST = Measured((float("inf"),) * 4)


def test_of_arms_within_the_noise_the_first_is_kept() -> None:
    assert best([CONTROL] * 3, [BETTER_THAN_NONE, GOOD, AS_GOOD]) == 1
    assert best([CONTROL] * 3, [BETTER_THAN_NONE, AS_GOOD, GOOD]) == 1
    assert best([CONTROL] * 2, [BETTER_THAN_NONE, CONTROL]) == 0
    assert best([CONTROL] * 2, [CONTROL, CONTROL]) is None


def test_what_could_not_be_done_is_never_as_good() -> None:
    assert as_good([CONTROL, CONTROL], [LOST, CONTROL]) == [1]
    assert as_good([], []) == []


def test_a_control_that_is_lost_makes_no_difference_between_arms() -> None:
    lost = Measured((float("inf"),) * 4)
    assert best([lost] * 2, [BETTER_THAN_NONE, GOOD]) == 1


def test_where_nothing_is_learned_what_does_no_harm_may_be_kept() -> None:
    worse, a_little_worse = Measured((3.0, 3.1, 2.9, 3.0)), Measured((2.04, 2.14, 1.94, 2.04))
    assert harmless(CONTROL, [LOST, worse, a_little_worse], trivial=2.0) == [2]
    assert harmless(CONTROL, [LOST, worse], trivial=2.0) == []
    for trivial in (2.3, float("inf")):  # it has learned something, or that is not known
        assert harmless(CONTROL, [a_little_worse], trivial) == []
        assert harmless(LOST, [a_little_worse], trivial) == []
    weak = Measured((0.954, 0.956, 0.955, 0.955))  # little, and all that is in the data
    assert harmless(weak, [Measured((1.0,) * 4)], trivial=1.0) == []


def test_a_group_without_any_loss_does_not_hide_the_others() -> None:
    control = Measured((1.0,) * 16)
    uneven, even = Measured((0.0,) * 8 + (0.7,) * 8), Measured((0.01,) * 16)
    assert best([control] * 2, [uneven, even]) == 1
    assert best([control] * 2, [even, uneven]) == 0


def test_of_one_group_the_lowest_is_kept_and_losses_may_be_negative() -> None:
    lost = Measured((float("inf"),))
    assert best([lost] * 2, [Measured((5.0,)), Measured((0.1,))]) == 1
    below = Measured((-1.0, -1.1, -0.9, -1.0))
    arms = [Measured((-2.0, -2.1, -1.9, -2.0)), Measured((-5.0, -5.1, -4.9, -5.0))]
    assert best([below] * 2, arms) == 1


def test_what_a_control_gains_counts_only_in_its_own_terms() -> None:
    start, moving = Measured((4.0, 4.1, 3.9, 4.0)), CONTROL
    own = Measured((2.0, 2.1, 1.9, 2.0))  # another loss
    assert best([moving, own], [GOOD, GOOD], start, control=moving) == 1


def test_what_is_right_by_itself_answers_a_sure_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(*names: str) -> list[Prescription]:
        return [Prescription(name, ()) for name in names]

    monkeypatch.setattr(prescriptions, "successes", dict)
    sure = Finding("bad_initialization", "warning", 0, "", confidence=0.95)
    symptom = Finding("plateau", "warning", 10, "", confidence=0.95)
    elsewhere = Finding("bad_labels", "warning", 10, "", confidence=0.95)  # nothing here answers it
    tried = named("initialise", "rate × 10", "together")
    assert right([sure, symptom], tried) == {"initialise", "together"}
    from_before = Prescription("rule", (), is_from_the_start=True)  # it was asked for from where the training stands
    assert right([sure], [from_before]) == set() and right([sure], named("rule")) == {"rule"}
    assert right([symptom], tried) == right([elsewhere, symptom], tried) == set()
    assert right([replace(sure, confidence=0.5)], tried) == set()
    hardly = {"bad_initialization": {"initialise": [1, 10], "rule": [2, 10], "perturb": [0, 7]}}
    monkeypatch.setattr(prescriptions, "successes", lambda: hardly)
    assert right([sure], named("initialise", "rule", "perturb", "together")) == {"rule", "perturb", "together"}


def finding(code: str) -> Finding:
    return Finding(code, "warning", 10, "")


def test_what_has_mended_most_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    names = [made.key for made in candidates([finding("vanishing_gradient")], body, "full")]
    assert len(names) > MOST
    counts = {"vanishing_gradient": {names[-1]: [6, 7], names[0]: [0, 10], names[1]: [0, 10]}}
    monkeypatch.setattr(prescriptions, "successes", lambda: counts)
    tried = [made.key for made in prescribe([finding("vanishing_gradient")], body, "full")]
    assert len(tried) == MOST
    assert tried[0] == names[-1]
    assert tried[-1] == names[0]  # what was asked for
    assert names[1] not in tried
    assert promise([finding("vanishing_gradient")], names[-1]) > promise([finding("dead_units")], names[0])


def test_what_has_mended_nearly_all_is_tried_beside_what_was_asked_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    keys = [made.key for made in candidates([finding("vanishing_gradient")], body, "full")]
    monkeypatch.setattr(
        prescriptions, "successes", lambda: {"vanishing_gradient": {keys[-2]: [15, 20], keys[-1]: [18, 20]}}
    )
    tried = prescribe([finding("vanishing_gradient")], body, "full")
    assert [made.key for made in tried] == [keys[-1], keys[0]] and tried[1].is_asked


def test_what_has_mended_next_to_nothing_is_tried_only_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)

    def tried(**counts: list[int]) -> list[str]:
        by_name = {name.replace("_", " / "): of for name, of in counts.items()}
        monkeypatch.setattr(prescriptions, "successes", lambda: {"oscillating_loss": by_name})
        return [made.key for made in prescribe([finding("oscillating_loss")], body, "safe")]

    assert set(tried(batch=[2, 14], rate_10=[2, 14])) == {"rate / 10", "batch"}
    assert tried(batch=[1, 14], rate_10=[2, 14]) == ["rate / 10"]
    assert set(tried(batch=[2, 14], rate_10=[0, 14])) == {"rate / 10", "batch"}  # it is what the finding asks for
    assert set(tried(batch=[1, 14], rate_10=[0, 14])) == {"rate / 10", "batch"}


def test_a_name_stands_for_one_prescription() -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    two = [finding("learning_rate_too_high"), finding("diverging_loss"), finding("non_finite")]
    keys = [made.key for made in candidates(two, body, "full")]
    assert keys.count("-rule") == 1 and len(keys) == len(set(keys))


def test_several_causes_are_answered_together_and_what_they_explain_is_not() -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    two = candidates([finding("vanishing_gradient"), finding("saturated_units"), finding("plateau")], body, "full")
    one = candidates([finding("vanishing_gradient"), finding("plateau")], body, "full")
    assert two[0].name == "together" and "together" not in [made.name for made in one]
    assert "change_rule" in [code for code, _ in two[0].changes]  # of the first alone


@pytest.mark.parametrize(("rule", "rates"), [("adam", {2e-3, 4e-3}), ("momentum", {2e-3, 1e-2})])
def test_a_new_rule_is_no_faster_than_what_is_said_to_be_too_fast_for_one_like_it(rule: str, rates: set[float]) -> None:
    high = Finding("learning_rate_too_high", "warning", 10, "", evidence={"suggested_learning_rate": 4e-3})
    found = candidates([high], body_of("mlp", optimizer=rule, batch_size=4, epochs=10), "full")
    assert {words["learning_rate"] for made in found for code, words in made.changes if code == "change_rule"} == rates


def test_a_gain_that_a_few_large_losses_hide_is_seen_by_its_signs() -> None:
    thrown = Measured(tuple(10.0 + 3.0**i for i in range(12)))
    assert is_better(thrown, Measured(tuple(1.0 + 0.1 * i for i in range(12))))
    assert not is_better(thrown, Measured(tuple(9.0 + 3.0**i if i % 2 else 11.0 + 3.0**i for i in range(12))))


def test_to_come_down_to_one_answer_for_all_is_no_gain() -> None:
    above, at, below = (Measured((level, level + 0.01, level - 0.01, level)) for level in (0.72, 0.69, 0.5))
    assert not is_better(above, at, trivial=0.693) and is_better(above, below, trivial=0.693)
    assert is_better(Measured((9.0, 9.1, 8.9, 9.0)), at, trivial=0.693)  # which is far out


def test_without_a_good_state_nothing_begins_there() -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    found = prescribe([finding("diverging_loss")], body, "safe", goes_back=False)
    assert not any(made.is_from_the_start for made in found)


def test_a_bad_batch_is_left_out_by_fresh_weights_too() -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    anew = [made for made in candidates([finding("non_finite")], body, "full") if made.begins_anew]
    assert {"-renew", "-renew, fast"} < {made.key for made in anew}
    assert all([code for code, _ in made.changes].count("skip_batches") == 1 for made in anew)
    caused = candidates(
        [finding("vanishing_gradient"), finding("non_finite")], body, "full"
    )  # by a cause that is first
    fresh = [made for made in caused if made.key in ("-renew", "-renew, fast")]
    assert len(fresh) == 2 and all("skip_batches" in [code for code, _ in made.changes] for made in fresh)
    others = candidates([finding("vanishing_gradient")], body, "full")
    assert not any(code == "skip_batches" for made in others for code, _ in made.changes)


def test_batches_that_are_left_out_already_leave_the_rest_of_an_answer() -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    body.skips = True
    found = {made.key: [code for code, _ in made.changes] for made in candidates([finding("non_finite")], body, "safe")}
    assert "-skip" not in found
    assert "change_rule" in found["-rule"] and "skip_batches" not in found["-rule"]


@pytest.mark.parametrize("code", ["dead_units", "saturated_units"])
def test_safe_goes_back_to_where_units_were_alive(code: str) -> None:
    body = body_of("mlp", optimizer="adam", batch_size=4, epochs=10)
    assert any(made.is_from_the_start for made in prescribe([finding(code)], body, "safe"))


def test_what_was_counted_names_what_there_is() -> None:
    names = {name for of in (*TABLE.values(), RENEW) for name in of} | {"together"}
    for code, of in successes().items():
        assert code in TABLE
        assert set(of) <= names
        assert all(0 <= mended <= tried for mended, tried in of.values())
