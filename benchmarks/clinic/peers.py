"""The criteria of other systems, as they are published, on the same histories.

Each is a function of a history, as ours is. What a criterion needs and no history holds is stated with it, and
stood for or left out; where a system speaks of things by its own names they are given the finding code nearest in
meaning. All of what a system says counts as an alarm, as it does for its users.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from thalweg.records.finding import Finding
from thalweg.records.history import History

Floats = npt.NDArray[np.float64]
Detector = Callable[[History], list[Finding]]


class Seen:
    """A history, read as the peers read a training."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.facts: dict[str, Any] = history.facts
        self.names = set(history.names)

    def values(self, name: str) -> Floats:
        """`[values]` of a series, empty where it was not recorded."""
        return self.history.series(name)[1] if name in self.names else np.empty(0)

    def rows(self, name: str) -> dict[str, Floats]:
        """Layer -> values of `name/LAYER`, from the input to the output."""
        found = [n for n in self.history.names if n.startswith(f"{name}/")]
        order = {layer["name"]: i for i, layer in enumerate(self.facts.get("layers", ()))}
        found.sort(key=lambda n: order.get(n.partition("/")[2], len(order)))  # a stable sort: else as recorded
        return {n.partition("/")[2]: self.values(n) for n in found}

    def sizes(self) -> dict[str, int]:
        """Layer -> parameters."""
        return {layer["name"]: max(1, layer["parameters"]) for layer in self.facts.get("layers", ())}

    def rms(self, name: str) -> dict[str, Floats]:
        """Layer -> a norm by the root of its number of parameters, which stands for the mean of magnitudes."""
        sizes = self.sizes()
        return {layer: values / math.sqrt(sizes.get(layer, 1)) for layer, values in self.rows(name).items()}

    def active(self) -> dict[str, Floats]:
        """Layer -> share of outputs of a ReLU that are not zero, `[samples]`.

        No history holds it. From mean and deviation, as if what is not zero were exponential:
        share = 2 / ((deviation / mean)² + 1).
        """
        kinds = {a["name"]: a["kind"] for a in self.facts.get("activations", ())}
        means, spreads = self.rows("activation_mean"), self.rows("activation_spread")
        dead = self.rows("dead_share")  # of rectifiers alone
        found = {}
        for layer, mean in means.items():
            if layer in dead or kinds.get(layer) == "ReLU":
                with np.errstate(divide="ignore", invalid="ignore"):
                    share = 2 / ((spreads[layer] / mean) ** 2 + 1)
                found[layer] = np.where(mean == 0, 0.0, np.minimum(share, 1.0))
        return found

    @property
    def is_broken(self) -> bool:
        """NaN or Inf in loss, gradient or activation."""
        return any(
            not np.isfinite(self.values(n)).all()
            for n in self.names
            if n in ("loss", "gradient_norm", "epoch_loss") or n.startswith(("gradient_norm/", "activation_mean/"))
        )

    @property
    def accuracy(self) -> Floats:
        """Of training, an epoch each."""
        return self.values("accuracy")


def said(codes: Iterator[str]) -> list[Finding]:
    """Findings of codes, in their order, each once."""
    return [Finding(code, "warning", 0, code) for code in dict.fromkeys(codes)]


def autotrainer(history: History) -> list[Finding]:
    """AUTOTRAINER (Zhang et al. 2021), with its target accuracy 0.6; says nothing without an accuracy (regression).

    Gradient norms are those of reported steps of an epoch's last report, not of one fixed batch every third epoch.
    Exact zeros of weight gradients are not recorded: dead units stand for them (≥ 70 %). Row sums of the output count
    where the output is a softmax, for its networks all end in one; loss and output are compared by name alone.
    """
    seen = Seen(history)
    if not len(seen.accuracy):  # it may be over before the first epoch is
        return said(iter(["exploding_gradient"])) if seen.is_broken and seen.facts.get("task") != "regression" else []
    return said(_autotrainer(seen))


def _autotrainer(seen: Seen) -> Iterator[str]:
    accuracy, held = seen.accuracy, seen.values("validation_accuracy")
    best = np.nanmax(np.concatenate((accuracy, held)))
    is_slow = best < 0.6 and bool((np.diff(accuracy) < 0.01).all())
    gradients = [v for v in seen.rows("gradient_norm").values() if len(v)]
    losses = seen.values("loss")
    if len(gradients) > 1 and (best < 0.6 or is_slow):
        half = len(gradients[0]) // 3  # not before 0.3 of the training
        first, last = gradients[0][half:], gradients[-1][: len(gradients[0])][half:]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = first / last
        if ((ratio < 1e-3) & (first < 1e-4)).any():
            yield "vanishing_gradient"
        if (ratio > 70).any():
            yield "exploding_gradient"
        if any(len(v) and v[-1] >= 0.7 for v in seen.rows("dead_share").values()):
            yield "dead_units"
    if seen.is_broken or (losses >= 1e3).any():
        yield "exploding_gradient"
    peaks = [
        high - low
        for high, low in itertools.pairwise(accuracy)
        if high - low >= 0.03
    ]  # fmt: skip
    if len(peaks) >= 0.2 * len(accuracy):
        yield "oscillating_loss"
    if is_slow:
        yield "slow_convergence"
    if seen.facts.get("output_function") == "softmax" and seen.facts.get("output_row_sum_error", 0.0) > 0.1:
        yield "loss_output_mismatch"
    if (losses < 0).any():
        yield "loss_output_mismatch"
    hidden = [np.abs(v) for v in seen.rows("activation_mean").values()]
    if any((v >= 10).any() for v in hidden):
        yield "unscaled_inputs"


def deepdiagnosis(history: History) -> list[Finding]:
    """DeepDiagnosis (Wardat et al. 2022): by samples of layers, not by the first batch of each epoch.

    Zeros of ReLUs follow from mean and deviation (`Seen.active`); saturation is that of slopes, not |pre-activation|
    above 5. Output out of range is left out for classes: PyTorch's cross-entropy takes what it calls a mistake.
    """
    return said(_deepdiagnosis(Seen(history)))


def _deepdiagnosis(seen: Seen) -> Iterator[str]:
    if seen.is_broken or any((v == 0).any() for v in seen.rows("activation_mean").values()):
        yield "non_finite"
    if any(len(v) and v[-1] <= 0.3 for v in seen.active().values()):
        yield "dead_units"
    if any((v > 0.5).any() for v in seen.rows("saturated_share").values()):
        yield "saturated_units"
    weights = seen.rms("weight_norm")
    for layer, ratio in seen.rows("update_ratio").items():
        if layer in weights and (ratio * weights[layer][: len(ratio)] < 1e-7).any():
            yield "vanishing_gradient"
    rows = [*seen.rows("activation_mean").values(), *seen.rows("weight_norm").values()]
    if any(_constant(v, 5) for v in rows) or _constant(seen.accuracy, 20) or _constant(seen.values("epoch_loss"), 20):
        yield "plateau"
    target = seen.facts.get("target_std")
    if target and "output_low" in seen.names:
        span = seen.values("output_high") - seen.values("output_low")
        if (span > 10 * 4 * target).any():  # the span of labels as four of their deviations
            yield "loss_output_mismatch"


def _constant(values: Floats, times: int) -> bool:
    """The same value so many times running."""
    run = 1
    for before, after in itertools.pairwise(values):
        run = run + 1 if before == after else 1
        if run >= times:
            return True
    return False


def deeplocalize(history: History) -> list[Finding]:
    """DeepLocalize (Wardat et al. 2021): NaN, Inf or an exact zero in what layers give, weights, updates or gradients.

    A mean of zero is looked for in activations, gradient norms and update ratios, in half of the samples.
    """
    seen = Seen(history)

    def codes() -> Iterator[str]:
        if seen.is_broken:
            yield "non_finite"
        for name in ("activation_mean", "gradient_norm", "update_ratio"):
            for values in seen.rows(name).values():
                if len(values) and (values == 0).mean() >= 0.5:
                    yield "dead_units" if name == "activation_mean" else "vanishing_gradient"
        rows = [*seen.rows("activation_mean").values(), *seen.rows("weight_norm").values()]
        if any(_constant(v, 5) for v in [seen.accuracy, seen.values("epoch_loss"), *rows]):
            yield "plateau"

    return said(codes())


def umlaut(history: History) -> list[Finding]:
    """UMLAUT (Schoop et al. 2021): inputs beyond [−1, 1], rate beyond [1e-7, 0.01], one epoch of overfitting, a
    validation accuracy above 0.95 or above training's by 0.05 after three epochs, integers and NaN as inputs.

    Dropout shares are not recorded; a missing softmax is none in PyTorch: both left out.
    """
    seen = Seen(history)

    def codes() -> Iterator[str]:
        if seen.facts.get("input_max_abs", 0.0) > 1 and seen.facts.get("task") != "sequence":
            yield "unscaled_inputs"
        rates = seen.values("learning_rate")
        if (rates > 0.01).any():
            yield "learning_rate_too_high"
        if (rates < 1e-7).any():
            yield "learning_rate_too_low"
        if seen.is_broken:
            yield "non_finite"
        held, own = seen.values("validation_loss"), seen.values("epoch_loss")
        count = min(len(held), len(own))
        if ((np.diff(held[:count]) > 0) & (np.diff(own[:count]) < 0)).any():
            yield "overfitting"
        accuracy, validation = seen.accuracy, seen.values("validation_accuracy")
        count = min(len(accuracy), len(validation))
        if (validation > 0.95).any() or (validation[3:count] - accuracy[3:count] > 0.05).any():
            yield "data_leak"

    return said(codes())


def bttackler(history: History) -> list[Finding]:
    """BTTackler (Pei et al. 2024): exploding, vanishing, dying, passive loss, oscillation, no more gain; without its
    shelter for the best tenth of the trials, which is of a search.

    Medians are over reported steps, of root mean square gradients; the share of zero gradients is that of dead units.
    """
    seen = Seen(history)

    def codes() -> Iterator[str]:
        rows = [v for v in seen.rms("gradient_norm").values() if len(v)]
        middle = np.array([np.median(v[np.isfinite(v)]) if np.isfinite(v).any() else np.inf for v in rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = middle[:-1] / middle[1:]
        if (middle > 1e4).any() or (ratio > 1e3).any() or seen.is_broken:
            yield "exploding_gradient"
        if (middle < 1e-5).any() or (ratio < 1e-4).any():
            yield "vanishing_gradient"
        if any(len(v) and np.median(v) > 0.5 for v in seen.rows("dead_share").values()):
            yield "dead_units"
        losses = seen.values("epoch_loss")
        early, late = losses[: max(3, len(losses) // 4)], losses[-6:]
        if len(early) > 2 and early.std() / abs(early.mean()) < 1e-4:
            yield "slow_convergence"
        if len(losses) >= 6 and len(late) == 6:
            slope = np.polyfit(np.arange(6), late, 1)[0] if np.isfinite(late).all() else np.inf
            if slope >= 0.01 and late.std() / abs(late.mean()) > 0.2:
                yield "oscillating_loss"

    return said(codes())


def sagemaker(history: History) -> list[Finding]:
    """SageMaker Debugger's built-in rules at their default thresholds, on what is sampled instead of every 500th step.

    Magnitudes are root mean squares. PoorWeightInitialization takes the variances of layers' first weights; its second
    half, spread of gradients within a layer, is not recorded and left out, as are rules about trees and text.
    """
    seen = Seen(history)

    def codes() -> Iterator[str]:
        if any((v < 1e-7).any() for v in seen.rms("gradient_norm").values()):
            yield "vanishing_gradient"
        if seen.is_broken:
            yield "exploding_gradient"
        if any((v > 0.5).any() for v in seen.rows("dead_share").values()):
            yield "dead_units"
        if any((v > 0.5).any() for v in seen.rows("saturated_share").values()):
            yield "saturated_units"
        if any(((v > 10) | (v < 1e-8)).any() for v in seen.rows("update_ratio").values()):
            yield "learning_rate_too_high"
        first = np.array([v[0] ** 2 for v in seen.rms("weight_norm").values() if len(v)])
        if len(first) > 1 and (first.min() == 0 or first.max() / first.min() > 10):
            yield "bad_initialization"
        losses = seen.values("loss")
        if len(losses) > 11 and (losses[10:] > losses[:-10] * 0.999).any():  # ten reports, by a tenth of a per cent
            yield "slow_convergence"
        held, own = seen.values("validation_loss"), seen.values("epoch_loss")
        count = min(len(held), len(own))
        if ((held[:count] - own[:count]) / np.abs(own[:count]) > 0.1).any():
            yield "overfitting"
        shares = seen.facts.get("largest_class_share"), seen.facts.get("smallest_class_share")
        if all(shares) and shares[0] / shares[1] > 10:
            yield "class_imbalance"

    return said(codes())


def torchmortem(history: History) -> list[Finding]:
    """Torchmortem (2026): its detectors but for curvature, which its own usage never runs, and rank.

    Outputs of nearly zero follow from mean and deviation (`Seen.active`); saturation is of activations alone.
    """
    seen = Seen(history)

    def codes() -> Iterator[str]:
        rows = [v for v in seen.rows("gradient_norm").values() if len(v)]
        if len(rows) > 1:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = rows[-1][len(rows[-1]) // 2 :].mean() / rows[0][len(rows[0]) // 2 :].mean()
            if ratio > 100:
                yield "vanishing_gradient"
        if any((v > 1000).any() for v in rows) or seen.is_broken:
            yield "exploding_gradient"
        if any((v < 1e-8).mean() > 0.3 for v in rows):
            yield "plateau"
        if any(len(v) and (v < 0.5).any() for v in seen.active().values()):
            yield "dead_units"
        if any((v > 0.5).any() for v in seen.rows("saturated_share").values()):
            yield "saturated_units"
        ratios = [v for v in seen.rows("update_ratio").values() if len(v)]
        if any((v < 1e-5).any() for v in ratios):
            yield "learning_rate_too_low"
        if any((v > 0.1).any() for v in ratios):
            yield "learning_rate_too_high"
        losses = seen.values("loss")
        windows = [losses[i : i + 20] for i in range(len(losses) - 19)]
        if any(np.ptp(w) < 1e-5 * abs(w.mean()) for w in windows):
            yield "plateau"
        if any((np.diff(w) > 0).mean() >= 0.8 and w[-1] >= 1.5 * w[0] for w in windows):
            yield "diverging_loss"
        early = losses[: max(2, len(losses) // 10)]
        if (early[1:] >= 2 * early[0]).any():
            yield "oscillating_loss"
        if any(len(v) > 1 and v[0] > 0 and v[-1] / v[0] > 10 for v in seen.rows("weight_norm").values()):
            yield "exploding_gradient"
        norms = seen.values("gradient_norm")
        if len(norms) and np.isfinite(norms).all() and norms.std() > 0 and norms.mean() / norms.std() < 1:
            yield "noise_floor"

    return said(codes())


def dlcheck(history: History) -> list[Finding]:
    """DLCheck (2026): norms, update ratios, activations, input scale, and a low loss at the start as a leak.

    Zeros of ReLUs follow from mean and deviation; losses of single examples, which it calls mislabelled, are left out.
    """
    seen = Seen(history)

    def codes() -> Iterator[str]:
        rows = [v for v in seen.rows("gradient_norm").values() if len(v)]
        if seen.is_broken or any((v > 1e6).any() for v in rows):
            yield "exploding_gradient"
        if any((v < 1e-7).any() for v in rows):
            yield "vanishing_gradient"
        if any((v < 0.05).any() for v in seen.active().values()):
            yield "dead_units"
        for layer, v in seen.rows("activation_mean").items():
            if layer in seen.rows("saturated_share") and ((np.abs(v) > 0.95) | (np.abs(v) < 0.05)).any():
                yield "saturated_units"
        for v in seen.rows("update_ratio").values():
            if (v > 10).any():
                yield "learning_rate_too_high"
            if (v < 1e-8).any():
                yield "frozen_parameters"
        if abs(seen.facts.get("input_mean", 0.0)) > 10 or seen.facts.get("input_std", 0.0) > 100:
            yield "unscaled_inputs"
        if (seen.values("loss")[:10] < 0.8).any():
            yield "data_leak"
        if any(not layer.get("trainable", True) for layer in seen.facts.get("layers", ())):
            yield "frozen_parameters"

    return said(codes())


PEERS: dict[str, Detector] = {
    "AUTOTRAINER": autotrainer,
    "DeepDiagnosis": deepdiagnosis,
    "DeepLocalize": deeplocalize,
    "UMLAUT": umlaut,
    "BTTackler": bttackler,
    "SageMaker Debugger": sagemaker,
    "torchmortem": torchmortem,
    "DLCheck": dlcheck,
}
