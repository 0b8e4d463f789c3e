"""Diagnosis while a training runs: when it is asked, and who is told what is new.

Asked is by counted steps and evaluations alone, in growing distances, so that a run repeats and resumes exactly and a
long one is not asked more often than a few dozen times. Nothing of it reaches the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from thalweg.diagnosis import engine
from thalweg.records.action import Action
from thalweg.records.finding import SEVERITIES, Finding
from thalweg.records.history import History

#: Steps at which diagnosis is asked first; from the last of them on each time is two fifths later than the one before.
FIRST = (20, 50, 100)
GROWTH = 1.4
#: Evaluations before which a curve of them says nothing.
EVALUATIONS = 4
#: Share of a training after which what was not learned is suspected.
EARLY = 0.1
#: What is known of the data before the first step, and whether it does harm only later: a trial can tell early, in the
#: first updates or share of the training.
SCALES, SOON, SOON_SHARE = frozenset({"unscaled_inputs", "unscaled_targets"}), FIRST[1], 0.15


class Told(Protocol):
    """Who is told of a finding."""

    def event(self, event: Finding | Action) -> None: ...  # noqa: D102


class Watching:
    """Asks for the findings of a history and tells those that are new, or graver than before."""

    def __init__(self, history: History, told: Told, on: bool = True) -> None:
        self._history = history
        self._told = told
        self._on = on
        self.since = 0
        """The update since which the training is another one: of what was before nothing is asked any more."""
        self.suspects = ""
        """The level of repair at which it is also asked what may be wrong, early on, which a trial can tell."""
        self.current: list[Finding] = []
        """What the newest answer was, likeliest cause first; what may be wrong, where it is asked for."""
        self.asked_at = -1

    def reported(self, step: int) -> None:
        """A step was reported."""
        if self._on and is_asked(step - self.since):
            self._ask(step)

    def evaluated(self, step: int) -> None:
        """An evaluation was made."""
        count = max(self._history.count("epoch_loss"), self._history.count("validation_loss"))
        if self._on and is_asked_of(count):
            self._ask(step)

    def began(self) -> None:
        """Before the first update: what the facts say."""
        if self._on:
            self._ask(0)

    def ended(self, step: int) -> None:
        """The training is over: what holds at its end is what was found, and what has passed is forgotten."""
        self._history.note({"ended_at": step})  # what was not learned by now will not be
        if self._on:
            self._history.settle(self._ask(step), step)

    def ask(self, step: int) -> None:
        """Now, whatever the step."""
        if self._on:
            self._ask(step)

    def again(self, step: int, is_evaluated: bool) -> None:
        """A run is gone on with from a step after which it was asked, perhaps: so it is now, and nobody is told."""
        count = max(self._history.count("epoch_loss"), self._history.count("validation_loss"))
        if self._on and ((step > self.since and is_asked(step - self.since)) or (is_evaluated and is_asked_of(count))):
            self._looked(step)

    def _looked(self, step: int) -> list[Finding]:
        """What is found; what stands, and what may be wrong, are kept."""
        view = self._history.since(self.since) if self.since else self._history
        found = [_later(finding, self.since) for finding in engine.findings(view)]
        self.current, self.asked_at = found, step
        if self.suspects and not any(finding.severity != "note" for finding in found):
            early = [_later(finding, self.since) for finding in engine.findings(view, EARLY)]
            if any(finding.code == "plateau" for finding in early):  # what only falls slowly may be well
                self.current = early
            elif self.suspects == "full" and FIRST[0] <= step <= self._soon():
                self.current = [replace(f, severity="warning") if f.code in SCALES else f for f in found]
        return found

    def _soon(self) -> float:
        """The update up to which scales are suspected: a race leaves a training past the first question."""
        planned = self._history.facts.get("planned_steps")
        return max(SOON, SOON_SHARE * planned) if isinstance(planned, int | float) else SOON

    def is_suspicion(self, findings: Sequence[Finding]) -> bool:
        """Whether these are of scales that have done no harm so far."""
        told = {finding.code for finding in self._history.findings if finding.severity != "note"}
        return all(finding.code in SCALES - told for finding in findings)

    def _ask(self, step: int) -> list[Finding]:
        before = {finding.code: _grade(finding) for finding in self._history.findings}
        found = self._looked(step)
        for finding in found:
            if _grade(finding) > before.get(finding.code, -1):
                self._history.found(finding, step)
                self._told.event(finding)
        return found


def _later(finding: Finding, steps: int) -> Finding:
    """A finding of a part of a history, by the steps of the whole."""
    return replace(finding, step=finding.step + steps) if steps else finding


def _grade(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def is_asked(step: int) -> bool:
    """Whether diagnosis is asked after a reported step: by its number alone.

    >>> [step for step in range(10, 400, 10) if is_asked(step)]
    [20, 50, 100, 140, 200, 280, 390]
    """
    if step <= FIRST[-1]:
        return step in FIRST
    return step % 10 == 0 and _age(step) != _age(step - 10)


def is_asked_of(count: int) -> bool:
    """Whether diagnosis is asked after so many evaluations: about twenty times in a thousand.

    >>> [count for count in range(1, 60) if is_asked_of(count)]
    [4, 6, 8, 11, 16, 22, 31, 43]
    """
    return count >= EVALUATIONS and (count == EVALUATIONS or _age(25 * count) != _age(25 * (count - 1)))


def _age(step: int) -> int:
    """How many times a step is two fifths later than the last of the first ones."""
    return math.floor(math.log(step / FIRST[-1]) / math.log(GROWTH) + 1e-9)
