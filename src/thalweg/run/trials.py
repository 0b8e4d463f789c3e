"""Which of several prescriptions is kept, if any: each beside a control, and the likeliest for longer."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from thalweg.loop.failures import first_line
from thalweg.loop.train import Training
from thalweg.records.finding import SYMPTOMS, Finding
from thalweg.repairs import trial
from thalweg.repairs.answers import TABLE
from thalweg.repairs.change import UNFIT, Body
from thalweg.repairs.prescriptions import Prescription, hardly_mends, has_mended
from thalweg.run.arms import Arms
from thalweg.run.choices import Chosen
from thalweg.run.telling import Telling

#: Confidence of a cause that is surely there.
SURE = 0.8
#: Prescriptions that are tried for longer, at most.
LONGER = 2


@dataclass(frozen=True, slots=True)
class Compared:
    """What a trial measured: where all begin, the control, and for each arm the control in its terms and itself."""

    before: trial.Measured
    control: trial.Measured
    own: list[trial.Measured]
    others: list[trial.Measured]
    trivial: float
    """The loss of one answer for all; infinite where that is not known."""

    def best(self) -> int | None:
        """The arm that is kept because it is better."""
        return trial.best(self.own, self.others, self.before, self.trivial, self.control)

    def harmless(self) -> list[int]:
        """The arms that are no worse, where the control has learned nothing."""
        return [i for i in trial.harmless(self.control, self.others, self.trivial) if self.own[i] is self.control]


class Trials:
    """Trials where a training stands, which they leave as it was."""

    def __init__(self, training: Training, chosen: Chosen, body: Body, telling: Telling, planned: int | None) -> None:
        """`planned` updates make the whole training, as far as that is known."""
        self.training = training
        self._planned = planned
        self.chosen = chosen
        self.body = body
        self._telling = telling

    def best_of(
        self, tried: list[Prescription], updates: int, right: Collection[str] = (), longer: bool = True
    ) -> int | None:
        """The number of the prescription that did best, of those that did better than none; else None.

        Those named in `right` are kept, too, where nothing is learned and they do no harm. Where none did better, the
        likeliest are tried for `longer`.
        """
        self._telling.search(f"trying {len(tried)} repairs over {updates} updates each")
        arms, seen = list(range(len(tried))), self._tried(tried, updates)
        longer = longer and self.training.at.step > 0 and not self.training.must_stop
        if longer and seen is not None and seen.best() is None:
            likely, longest = self._likely(tried, seen, updates)
            if longest > updates:
                arms, seen = likely, self._tried([tried[i] for i in likely], longest)
        if seen is None:
            return None
        taken = seen.best()
        if taken is None:  # where nothing is learned, nothing is lost by going back, and what was thrown out is mended
            may = [i for i in seen.harmless() if tried[arms[i]].key in right]
            taken = next(iter(sorted(may, key=lambda i: not tried[arms[i]].is_from_the_start)), None)
        return None if taken is None or self.training.must_stop else arms[taken]

    def _likely(self, tried: list[Prescription], seen: Compared, updates: int) -> tuple[list[int], int]:
        """What is tried for longer, and over how many updates, where none did better over `updates`.

        Of what is as good as any so far, or goes back and is slow to show: the most promising and what was asked for;
        over as many updates as the training has had, or a few times more than before.
        """
        at = self.training.at
        longer = min(max(at.step, 5 * updates), trial.LONGEST)
        good = trial.as_good(seen.own, seen.others)
        likely = [i for i, made in enumerate(tried) if i in good or made.begins_anew or made.is_from_the_start]
        likely = sorted(likely, key=lambda i: i != likely[0] and not tried[i].is_asked)[:LONGER]
        longest = trial.longest(at.tried_steps, 1 + len(likely), self._planned, longer)
        if longest < min(longer, 3 * updates):
            likely = likely[:1]
            longest = trial.longest(at.tried_steps, 1 + len(likely), self._planned, longer)
        return likely, longest

    def _tried(self, tried: list[Prescription], updates: int) -> Compared | None:
        """What a trial measures; None where none can be made: that ends no training that would go on without."""
        try:
            return self._compared(tried, updates)
        except UNFIT as error:
            self._telling.warn(f"Repairs cannot be tried on this training: {first_line(error)}.")
            return None

    def _compared(self, tried: list[Prescription], updates: int) -> Compared:
        """Arms with a prescription each beside one without; fewer of them once it is interrupted."""
        training = self.training
        arms = Arms(training, self.chosen, self.body, updates)
        before, control = arms.before(), arms.control()
        own, others = [], []
        for prescription in tried:
            if training.must_stop:
                break
            try:
                others.append(arms.treated(prescription))
                own.append(arms.in_terms_of(prescription) or control)
            except UNFIT:
                # What cannot be done to this network is no repair of it.
                others, own = [*others[: len(own)], trial.Measured((math.inf,) * len(control.losses))], [*own, control]
        if not training.must_stop:
            training.at.tried_steps += trial.cost(1 + len(tried), updates)
        return Compared(before, control, own, others, self._trivial())

    def _trivial(self) -> float:
        """The loss of one answer for all; infinite where it is not known in the terms of the loss in use."""
        told = self.training.setup.history.facts.get("expected_initial_loss")
        is_mean = self.body.loss is not None and self.body.loss.reduction == "mean"
        return float(told) if is_mean and isinstance(told, int | float) and told > 0 else math.inf


def right(findings: list[Finding], tried: list[Prescription]) -> set[str]:
    """Keys of prescriptions that are right by themselves: by what was counted, or for a cause that is surely there,
    unless they were counted to mend next to nothing with it; and what answers all causes together.
    """
    sure = [f.code for f in findings if f.confidence >= SURE and f.severity != "note" and f.code in TABLE]
    causes = [code for code in sure if code not in SYMPTOMS]
    answers = {key for code in causes for key in TABLE[code] if not hardly_mends(code, key)}
    answers |= {"together"} if causes else set()
    return {made.key for made in tried if made.key in answers or has_mended(findings, made.key)}
