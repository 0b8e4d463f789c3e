"""When to stop, held to full-length trainings: `patience="auto"`, fixed patience, and what noise leaves possible.

    python benchmarks/convergence/runs.py      # records the trainings, some minutes on one core
    python benchmarks/convergence/run.py       # scores on them, a minute; writes benchmarks/results/convergence.json

A stop is good where it comes no later than 1.3 times the step at which the full-length training was first within 1 % of
its best validation loss, and the best until then is at most 1 % above that best. "Knows the curve" is the share that a
rule would reach which knew from the start the mean of each curve and the size of its noise, but not the noise: the best
fixed step, over noise drawn anew. What the noise decides, no rule can foresee.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from runs import CACHE, HELD_OUT, TUNING, cases, file_of

from thalweg import History, StepRecord
from thalweg.diagnosis.convergence import is_due, judge
from thalweg.diagnosis.forecast import forecast

RESULTS = Path(__file__).parents[1] / "results" / "convergence.json"
LATE, LOST = 1.3, 0.01
PATIENCES = (3, 5, 10, 20)


@dataclass(frozen=True)
class Training:
    """A full-length training: its case, evaluations and rates."""

    case: tuple[str, str, str, int]
    series: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return "-".join(str(part) for part in self.case)

    @property
    def steps(self) -> np.ndarray:
        return self.series["validation_loss/steps"]

    @property
    def losses(self) -> np.ndarray:
        return self.series["validation_loss/values"]

    def judged(self, stop: int) -> str:
        """What is to be said of stopping after so many evaluations: good, late or lossy."""
        return str(judged(self.losses, self.steps, np.array([stop]))[0])


def judged(losses: np.ndarray, steps: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """good, late or lossy of each stop `[stops]`, in evaluations."""
    bar = losses.min() * (1 + LOST)
    reached = steps[int(np.argmax(losses <= bar))]
    lossy = np.minimum.accumulate(losses)[stops - 1] > bar
    late = steps[stops - 1] > LATE * reached
    return np.where(lossy, "lossy", np.where(late, "late", "good"))


def trainings(families: Sequence[str], cache: Path) -> list[Training]:
    found = []
    for case in cases(tuple(families)):
        if file_of(case, cache).exists():
            with np.load(file_of(case, cache)) as file:
                found.append(Training(case, dict(file)))
    return found


def automatic(training: Training) -> tuple[int, str]:
    """The evaluation after which `fit` would have stopped, and the verdict."""
    history, rates = History(), training.series["learning_rate/values"]
    total, reported = training.steps[-1], training.series["learning_rate/steps"]
    for count, step in enumerate(training.steps, 1):
        passed = reported <= step
        for at in reported[passed & (reported > (training.steps[count - 2] if count > 1 else 0))]:
            history.append(StepRecord(int(at), 0.0, 0.0, {"learning_rate": float(rates[reported == at][0])}))
        told = {name: float(training.series[f"{name}/values"][count - 1]) for name in ("epoch_loss", "validation_loss")}
        history.evaluate(StepRecord(int(step), count, 0.0, told))
        if count < len(training.steps) and is_due(count):
            annealing = training.case[2] == "cosine" and rates[passed][-1] > 0.05 * rates[passed].max()
            verdict = judge(history, count, annealing=annealing, remaining=float(total - step))
            if verdict.state != "improving":
                return count, verdict.state
    return len(training.steps), "end"


def patient(patience: int) -> Callable[[Training], tuple[int, str]]:
    """Stop after so many evaluations without a new best."""

    def stop(training: Training) -> tuple[int, str]:
        for count in range(1, len(training.losses) + 1):
            if count - 1 - int(training.losses[:count].argmin()) >= patience:
                return count, "patience"
        return len(training.losses), "end"

    return stop


def possible(training: Training, draws: int = 400) -> float:
    """The share of draws in which the best fixed stop is good, for the same mean and noise as the training's.

    Mean: local lines in log time, over a tenth of e-fold; noise: the residuals' local deviation.
    """
    v = training.losses
    x = np.log(np.arange(1, len(v) + 1) + 1.0)
    kernel = np.exp(-0.5 * ((x[:, None] - x) / 0.06) ** 2)
    mean = np.empty_like(v)
    for i, weights in enumerate(np.sqrt(kernel)):
        line = np.stack([np.ones_like(x), x - x[i]], 1)
        mean[i] = np.linalg.lstsq(line * weights[:, None], v * weights, rcond=None)[0][0]
    noise = np.sqrt(kernel @ (v - mean) ** 2 / kernel.sum(1))
    rng, stops = np.random.default_rng(0), np.arange(1, len(v) + 1)
    drawn = mean + noise * rng.standard_normal((draws, len(v)))
    return float(max(np.mean([judged(d, training.steps, stops) == "good" for d in drawn], axis=0)))


def covered(training: Training, share: float = 0.9) -> tuple[int, int]:
    """Evaluations that lay in the forecast's band, and of how many: half as many ahead as were seen, at four moments.

    Of trainings at a constant rate, whose clock is that of the steps.
    """
    inside = count = 0
    if training.case[2] == "constant":
        for part in (0.2, 0.3, 0.45, 0.6):
            seen = max(10, round(part * len(training.losses)))
            ahead = np.arange(seen + 1, min(len(training.losses), round(1.5 * seen)) + 1)
            low, high = forecast(np.arange(1.0, seen + 1), training.losses[:seen], ahead.astype(float)).band(share)
            values = training.losses[ahead - 1]
            inside, count = inside + int(((low <= values) & (values <= high)).sum()), count + len(ahead)
    return inside, count


def scored(found: list[Training], rule: Callable[[Training], tuple[int, str]]) -> dict[str, float]:
    """Shares of good, late and lossy stops, and the share of the full-length steps that were made."""
    stops = [rule(training)[0] for training in found]
    words = [training.judged(stop) for training, stop in zip(found, stops, strict=True)]
    made = np.mean([t.steps[stop - 1] / t.steps[-1] for t, stop in zip(found, stops, strict=True)])
    extra = [t.losses[:stop].min() / t.losses.min() - 1 for t, stop in zip(found, stops, strict=True)]
    row = {word: words.count(word) / len(words) for word in ("good", "late", "lossy")}
    return {
        **row,
        "steps": float(made),
        "median_loss": float(np.median(extra)),
        "p90_loss": float(np.quantile(extra, 0.9)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--runs", action="store_true", help="print each training")
    options = parser.parse_args()
    rules = {'patience="auto"': automatic, **{f"patience={n}": patient(n) for n in PATIENCES}, "never": patient(10**9)}
    results: dict[str, dict[str, object]] = {}
    for part, families in (("tuning", TUNING), ("held out", HELD_OUT)):
        found = trainings(families, options.cache)
        table = {name: scored(found, rule) for name, rule in rules.items()}
        bound = float(np.mean([possible(training) for training in found]))
        hits = np.sum([covered(training) for training in found], axis=0)
        results[part] = {"runs": len(found), "rules": table, "knows the curve": bound, "band": float(hits[0] / hits[1])}
        print(f"\n{part}: {len(found)} trainings")
        print(f"{'':16} {'good':>6} {'late':>6} {'lossy':>6} {'steps':>6} {'median':>8} {'90 %':>8}")
        for name, row in table.items():
            shares = " ".join(f"{row[word]:6.2f}" for word in ("good", "late", "lossy", "steps"))
            print(f"{name:16} {shares} {row['median_loss']:8.1%} {row['p90_loss']:8.1%}")
        print(f"{'knows the curve':16} {bound:6.2f}")
        print(f"a forecast's 90 % band held {hits[0] / hits[1]:.0%} of {hits[1]} values to come")
        for training in found if options.runs else ():
            stop, why = automatic(training)
            reached = int(np.argmax(training.losses <= training.losses.min() * (1 + LOST))) + 1
            how = f"first within 1 % at {reached:3}, stopped at {stop:3} ({why})"
            print(f"  {training.name:34} {how}: {training.judged(stop)}")
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
