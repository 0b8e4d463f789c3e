"""Findings → what to try: each prescription a list of changes, the most promising first.

What answers which finding stands in `answers.py`; a trial decides which of them helps, if any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from thalweg.records.finding import SYMPTOMS, Finding
from thalweg.repairs import backward, network, update
from thalweg.repairs.answers import AGAIN, RENEW, SKIP, TABLE, Step
from thalweg.repairs.change import UNFIT, Body, Words
from thalweg.repairs.curvature import FollowCurvature
from thalweg.repairs.rows import SetRowsAside

#: Every kind of change, by code.
CHANGES: dict[str, Any] = {
    **update.CHANGES,
    **backward.CHANGES,
    **network.CHANGES,
    FollowCurvature.code: FollowCurvature(),
    SetRowsAside.code: SetRowsAside(),
}
LEVELS = ("safe", "full")
#: Prescriptions of a trial at most: each costs its updates.
MOST = 4
#: What has mended such a share, of so many trainings, needs no more proof than that it does no harm.
NEARLY_ALL, SEVERAL = 0.7, 8
#: What has mended no more than such a share of several is neither right by itself nor tried beside anything else.
NEARLY_NONE = 0.1


@dataclass(frozen=True, slots=True)
class Prescription:
    """Changes that are tried together; `name` says them in short."""

    name: str
    changes: tuple[tuple[str, Words | None], ...]
    is_from_the_start: bool = False
    """Whether it begins from the first good state that is still held, not from where the training stands."""
    is_asked: bool = False
    """Whether it is what the findings themselves ask for: the first that is thought of."""

    @property
    def key(self) -> str:
        """Its name where it is counted: `-` before the name of what begins from an earlier state."""
        return "-" * self.is_from_the_start + self.name

    @property
    def begins_anew(self) -> bool:
        """Whether the weights are drawn again, so that what was learned is lost."""
        return any(code == "initialise" for code, _ in self.changes)

    @property
    def touches_network(self) -> bool:
        """Whether anything but settings is changed."""
        return any(code in network.CHANGES for code, _ in self.changes)


def prescribe(findings: Sequence[Finding], body: Body, level: str, goes_back: bool = True) -> list[Prescription]:
    """What to try against findings: the most promising first, `MOST` at most.

    What the findings themselves ask for, the first candidate, is always among them; of what has mended nearly all, the
    best is tried beside that alone; what has mended next to nothing is left out where there is anything else. Without a
    good state to go back to (`goes_back`), nothing that begins there.
    """
    found = [made for made in candidates(findings, body, level) if goes_back or not made.is_from_the_start]
    found[:1] = [replace(made, is_asked=True) for made in found[:1]]
    useless = [made for made in found if hardly_mends(_first(findings), made.key)]
    if len(useless) < len(found):
        found = [made for made in found if made.is_asked or made not in useless]
    # By thirds: counts are small, and of what is about as promising the first that is thought of changes least.
    promising = sorted(found, key=lambda made: -int(3 * promise(findings, made.key)))
    sure = [made for made in promising if has_mended(findings, made.key)]
    promising = [max(sure, key=lambda made: promise(findings, made.key))] if sure else promising
    asked = [made for made in found[:1] if made not in promising[:MOST]]  # counts are of small networks
    return [*promising[: MOST - len(asked)], *asked]


def promise(findings: Sequence[Finding], key: str) -> float:
    """How often a prescription has mended what the first of the findings led to: (mended + 1) / (tried + 2).

    Counted on the clinic's tuning part by `benchmarks/clinic/order.py`; of a pair that was not tried there, over all
    findings.
    """
    counts = successes()
    mended, tried = counts.get(_first(findings), {}).get(key) or [
        sum(of[key][i] for of in counts.values() if key in of) for i in (0, 1)
    ]
    return (mended + 1) / (tried + 2)


def has_mended(findings: Sequence[Finding], key: str) -> bool:
    """Whether a prescription has mended nearly all trainings, of several, with the first of the findings, a cause."""
    code = _first(findings)
    _, tried = successes().get(code, {}).get(key, (0, 0))
    return code not in SYMPTOMS and tried >= SEVERAL and promise(findings, key) >= NEARLY_ALL


def hardly_mends(code: str, key: str) -> bool:
    """Whether a prescription has mended next to none of several trainings whose first finding was this one."""
    mended, tried = successes().get(code, {}).get(key, (0, 0))
    return tried >= SEVERAL and mended <= NEARLY_NONE * tried


def _first(findings: Sequence[Finding]) -> str:
    """The code of the first finding that is answered here."""
    return next((finding.code for finding in findings if finding.code in TABLE), "")


@cache
def successes() -> dict[str, dict[str, list[int]]]:
    """Finding → prescription → how many trainings it mended, and of how many."""
    counted: dict[str, dict[str, list[int]]] = json.loads(Path(__file__).with_name("success.json").read_text())
    return counted


def candidates(findings: Sequence[Finding], body: Body, level: str) -> list[Prescription]:
    """All that answers findings here, each once; nothing where nothing here does.

    Where several causes stand, what answers all of them at once comes first.
    """
    found: dict[tuple[Any, ...], Prescription] = {}
    answered = [finding for finding in findings if finding.code in TABLE]
    _add(found, _together(answered, body, level))
    for finding in answered:
        for name, steps in TABLE[finding.code].items():
            _add(found, _made(name, [(finding, step) for step in steps], body, level))
    if level == "full" and any(finding.code not in ("overfitting", "class_imbalance") for finding in answered):
        for name, steps in RENEW.items():
            _add(found, _made(name, bound(steps, answered), body, level))
    return list(found.values())


def bound(steps: Iterable[Step], findings: Sequence[Finding]) -> list[tuple[Finding, Step]]:
    """What is tried against any of the findings: its steps take their words from the first, but what leaves bad batches
    out from the one that is of them.
    """
    bad = next((finding for finding in findings if finding.code == "non_finite"), findings[0])
    return [(bad if step is SKIP else findings[0], step) for step in steps]


def _together(findings: Iterable[Finding], body: Body, level: str) -> Prescription | None:
    """The first prescription of each cause, in one; of changes of one kind the first counts. Symptoms count where there
    is no cause: one that stands explains them.
    """
    causes = [finding for finding in findings if finding.code not in SYMPTOMS] or list(findings)
    if len(causes) < 2:
        return None
    steps: dict[str, tuple[Finding, Step]] = {}
    for finding in causes:
        for name, of in TABLE[finding.code].items():
            if _made(name, [(finding, step) for step in of], body, level) is not None:
                for step in of:
                    steps.setdefault(step[0], (finding, step))
                break
    if {"change_rule", "set_learning_rate"} <= steps.keys():
        del steps["set_learning_rate"]
    order = sorted(steps.values(), key=lambda pair: _ORDER.index(pair[1][0]))
    return _made("together", order, body, level) if order else None


#: Structure first, then weights, then what moves them.
_ORDER = (
    "set_rows_aside", "drop_head", "unfreeze", "train_mode", "standardise_inputs", "scale_targets", "swap_activation",
    "initialise",
    "insert_norm", "insert_residual", "add_dropout", "augment_images", "weigh_classes", "perturb",
    "follow_curvature", "skip_batches", "clip_gradients",
    "set_learning_rate", "change_rule", "decay_weights", "change_batch", "reset_moments", "restart_schedule",
)  # fmt: skip


def _made(name: str, steps: Iterable[tuple[Finding, Step]], body: Body, level: str) -> Prescription | None:
    """A prescription for this body; None where the level does not allow it or nothing of it has anything to do."""
    changes: list[tuple[str, Words | None]] = []
    steps = list(steps)
    if any(step[0] in _PACE for _, step in steps) and AGAIN not in (step for _, step in steps):
        steps.append((steps[0][0], AGAIN))  # with less time before it, a training ends better at a low rate
    for finding, (code, words) in steps:
        change = CHANGES.get(code)
        if change is None or LEVELS.index(change.level) > LEVELS.index(level):
            if code in _OPTIONAL:
                continue
            return None
        given = words(finding, body) if words is not None else None
        if given is None and (words is not None or not _has_to_do(change, body)):
            if code in _OPTIONAL:
                continue
            return None
        changes.append((code, given))
    if not any(code not in _BESIDE for code, _ in changes):
        return None
    return Prescription(name.removeprefix("-"), tuple(changes), name.startswith("-"))


def _has_to_do(change: Any, body: Body) -> bool:
    """Whether there is anything for a change to do here; what cannot be looked at is not changed."""
    try:
        return change.words(body) is not None
    except UNFIT:
        return False


#: Changes that a prescription can do without, and those that are nothing by themselves.
_OPTIONAL = frozenset({
    "restart_schedule", "reset_moments", "clip_gradients", "skip_batches", "swap_activation", "standardise_inputs",
    "train_mode",
})  # fmt: skip
_BESIDE = frozenset({"restart_schedule", "reset_moments"})
#: Changes after which a training is another one, and its rate has another part to play.
_PACE = frozenset({
    "set_learning_rate", "change_rule", "initialise", "change_batch", "standardise_inputs", "scale_targets",
    "drop_head", "unfreeze", "train_mode", "swap_activation", "perturb", "follow_curvature",
})  # fmt: skip


def _add(found: dict[tuple[Any, ...], Prescription], made: Prescription | None) -> None:
    """Each only once, whatever it is called; of one name the first counts, for it is counted and kept by its name."""
    if made is not None and made.key not in {other.key for other in found.values()}:
        key = (
            made.is_from_the_start,
            tuple((code, repr(sorted((words or {}).items()))) for code, words in made.changes),
        )
        found.setdefault(key, made)
