"""Where a training stands, and whether nothing more is to be expected: diagnosis asked with what the loop knows."""

from __future__ import annotations

from thalweg.diagnosis import curvature
from thalweg.diagnosis.convergence import is_due, judge
from thalweg.loop.memory import untouched
from thalweg.loop.setup import Limits, Setup, Standing
from thalweg.records.history import History
from thalweg.records.verdict import Verdict
from thalweg.signals.curvature import looked

#: Verdict → why a training stops on it.
_STOPS = {"converged": "converged", "stuck": "patience", "overfitting": "patience", "diverged": "diverged"}


class Judging:
    """Passes the verdict on a setup that is to be trained up to its limits."""

    def __init__(self, setup: Setup, limits: Limits) -> None:
        self._setup = setup
        self._limits = limits

    def verdict(self, at: Standing) -> Verdict:
        """Where it stands, from the numbers so far; of one that was mended, from those since."""
        setup, history = self._setup, self._seen(at)
        watched = "validation_loss" if setup.validation is not None else "epoch_loss"
        annealing = setup.anneals and not _annealed(history)
        earlier = setup.history.count(watched) - history.count(watched)
        return judge(history, at.passes(setup.batches.per_epoch), watched, annealing, self._remaining(at), earlier)

    def _seen(self, at: Standing) -> History:
        """What counts: another training, and maybe another loss, was before a repair."""
        return self._setup.history.since(at.mended_at) if at.mended else self._setup.history

    def looked_into(self, verdict: Verdict, at: Standing) -> Verdict:
        """The verdict after a look at the curvature, where diagnosis asks for one."""
        setup = self._setup
        if not setup.looks or not curvature.asks(setup.history, verdict, at.step):
            return verdict
        with untouched(setup.batches):
            facts = looked(setup.step.forward, setup.batches, setup.step.loss, at.step)
        if facts is None:
            return verdict
        setup.history.note(facts)
        return self.verdict(at)

    def reason_to_stop(self, at: Standing) -> str | None:
        """Asked after an evaluation: by the verdict, or after so many of them without a better one."""
        patience, history = self._limits.patience, self._seen(at)
        watched = "validation_loss" if self._setup.validation is not None else "epoch_loss"
        if patience is None or not history.count(watched):
            return None
        series = history.series(watched)[1]
        if isinstance(patience, int):
            return "patience" if len(series) - 1 - int(series.argmin()) >= patience else None
        if not is_due(len(series)):
            return None
        verdict = self.verdict(at)
        if verdict.state in ("stuck", "converged"):
            verdict = self.looked_into(verdict, at)
            if verdict.cause == "slow_convergence":  # it comes down, and may come down faster yet
                return None
        return _STOPS.get(verdict.state)

    def _remaining(self, at: Standing) -> float | None:
        """Updates that are planned yet; None where none is, or all are made."""
        limits, per_epoch = self._limits, self._setup.batches.per_epoch
        ends = [limits.steps] if limits.steps is not None else []
        if limits.epochs is not None and per_epoch:
            ends.append(limits.epochs * per_epoch)
        return min(ends) - at.step if ends and min(ends) > at.step else None


def _annealed(history: History) -> bool:
    """Whether the learning rate has come down to a twentieth of its peak."""
    if not history.count("learning_rate"):
        return False
    rates = history.series("learning_rate")[1]
    return bool(rates[-1] <= 0.05 * rates.max())
