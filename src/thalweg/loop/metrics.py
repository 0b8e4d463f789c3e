"""Outputs, targets → the numbers a person asks for, averaged over examples.

Sums stay on the device until `compute`: counting a batch never waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from thalweg.loop.failures import first_line
from thalweg.records.settings import instead, shown, unknown
from thalweg.step.losses import resolve
from thalweg.step.refusal import Refusal
from thalweg.step.targets import IGNORED, Aligned, Classes, matched, rows

_LOWER = ("loss", "error", "mae", "mse", "perplexity", "entropy", "divergence", "distance")
_LOGIT_LOSSES = ("binary_cross_entropy", "BCEWithLogitsLoss", "binary_cross_entropy_with_logits")


class Metric(Protocol):
    """One number over many batches."""

    def reset(self) -> None:
        """Forget what was counted."""

    def update(self, output: Any, target: Any) -> None:
        """Count a batch."""

    def compute(self) -> float:
        """The number; NaN where nothing was counted."""

    def counted(self) -> dict[str, Any]:
        """What was counted so far."""

    def recount(self, counted: dict[str, Any]) -> None:
        """Go on from what was counted."""


class Metrics:
    """Several metrics at once, by name."""

    def __init__(self, metrics: dict[str, Metric]) -> None:
        self._metrics = metrics

    @property
    def names(self) -> list[str]:
        """Names in the order asked for."""
        return list(self._metrics)

    @property
    def of_classes(self) -> list[str]:
        """Names of those that count classes which are right."""
        return [name for name, metric in self._metrics.items() if isinstance(metric, _Accuracy)]

    def reset(self) -> None:
        """Forget what was counted."""
        for metric in self._metrics.values():
            metric.reset()

    def update(self, output: Any, target: Any) -> None:
        """Count a batch. Nothing is read from the device.

        Raises:
            ValueError: a metric cannot be taken of these shapes.
        """
        if self._metrics:
            with torch.no_grad():
                for metric in self._metrics.values():
                    metric.update(output, target)

    def check(self, output: Any, target: Any) -> None:
        """Count a batch on trial; nothing of it stays.

        Raises:
            ValueError: a metric cannot be taken of it, or gives more than one number; it is named.
        """
        for name, metric in self._metrics.items():
            try:
                with torch.no_grad(), Aligned():
                    metric.update(output, target)
            except Exception as error:  # whatever a metric of the user's raises
                code = error.code if isinstance(error, Refusal) else "wrong_shape"
                words = f"the metric {name!r} fails on outputs and targets: {first_line(error)}"
                raise Refusal(code, words) from error
            finally:
                metric.reset()

    def compute(self) -> dict[str, float]:
        """Every metric over all that was counted since `reset`."""
        return {name: metric.compute() for name, metric in self._metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far, by metric: tensors and numbers."""
        return {name: metric.counted() for name, metric in self._metrics.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a state; a metric that it does not know starts anew."""
        for name, metric in self._metrics.items():
            metric.reset()
            if name in state:
                metric.recount(state[name])


def resolve_metrics(metrics: Any, loss_name: str | None = None) -> Metrics:
    """Metrics by name, as callables (output, target) → a mean over examples, or torchmetrics objects.

    Args:
        metrics: one, or several. An object is called by its `name`, else by its class.
        loss_name: name of the training's loss; it says what the outputs are (logits or probabilities).

    Raises:
        ValueError: an unknown name, or one name twice.
        TypeError: something that is no metric.

    >>> resolve_metrics(["accuracy", "perplexity"], "cross_entropy").names
    ['accuracy', 'perplexity']
    """
    if isinstance(metrics, str) or callable(metrics) or not isinstance(metrics, Iterable):
        metrics = [metrics]
    found: dict[str, Metric] = {}
    for metric in metrics:
        name, counted = _resolve(metric, loss_name or "")
        if name in found:
            raise ValueError(f"the metric {name!r} is asked for twice")
        found[name] = counted
    return Metrics(found)


def higher_is_better(name: str) -> bool:
    """Whether a larger value of a metric is the better one: not for losses, errors, distances and perplexity.

    >>> higher_is_better("validation_accuracy"), higher_is_better("word_error_rate")
    (True, False)
    """
    name = name.lower().removeprefix("validation_")
    return not any(word in name for word in _LOWER)


def _resolve(metric: Any, loss_name: str) -> tuple[str, Metric]:
    if isinstance(metric, str):
        if metric not in _METRICS:
            raise ValueError(unknown("metric", metric, list(_METRICS)))
        return metric, _METRICS[metric](loss_name)
    if isinstance(metric, type):
        raise TypeError(f"a metric is a name, a function or an object, and this is a class: {instead(metric)}")
    if all(callable(getattr(metric, method, None)) for method in ("update", "compute", "reset")):
        return getattr(metric, "name", type(metric).__name__), _Stateful(metric)
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), _Called(metric)
    raise TypeError(f"a metric is a name, a function (output, target) or a torchmetrics object, got {shown(metric)}")


class _Mean:
    """A sum and a number of terms, both on the device."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0
        self.terms: Tensor | int = 0

    def add(self, total: Tensor | float, terms: Tensor | int) -> None:
        self.total = self.total + (_wide(total) if isinstance(total, Tensor) and total.is_floating_point() else total)
        self.terms = self.terms + terms

    def compute(self) -> float:
        terms = float(self.terms)
        return float(self.total) / terms if terms else float("nan")

    def counted(self) -> dict[str, Any]:
        return {"total": self.total, "terms": self.terms}

    def recount(self, counted: dict[str, Any]) -> None:
        self.total, self.terms = counted["total"], counted["terms"]


class _Accuracy(_Mean):
    """Share of targets that are among the `top` highest scores; of units on the right side, where outputs are units."""

    def __init__(self, loss_name: str, top: int = 1) -> None:
        super().__init__()
        self.top = top
        self.is_binary = "binary" in loss_name or loss_name.startswith("BCE")
        self.threshold = 0.0 if loss_name in _LOGIT_LOSSES else 0.5
        self.classes = Classes()

    def update(self, output: Tensor, target: Tensor) -> None:
        if self.is_binary or output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1):
            output, target = matched(output, target)
            right = (output > self.threshold) == (target > 0.5)
            self.add(right.sum(), right.numel())
            return
        scores, labels = self.classes(output, target)
        if labels.is_floating_point():
            labels = labels.argmax(1)
        kept = labels != IGNORED
        if self.top == 1:
            right = scores.argmax(1) == labels
        else:
            best = scores.topk(min(self.top, scores.shape[1]), 1).indices
            right = (best == labels.unsqueeze(1)).any(1)
        # No class has the index of an ignored target, so right is already within kept.
        self.add(right.sum(), kept.sum())


class _Error(_Mean):
    """Mean absolute error, or root mean squared error, over elements."""

    def __init__(self, is_squared: bool) -> None:
        super().__init__()
        self.is_squared = is_squared

    def update(self, output: Tensor, target: Tensor) -> None:
        output, target = matched(output, target)
        error = _wide(output) - _wide(target)
        self.add((error.square() if self.is_squared else error.abs()).sum(), error.numel())

    def compute(self) -> float:
        mean = super().compute()
        return mean**0.5 if self.is_squared else mean


class _R2:
    """1 − Σ(y − ŷ)² / Σ(y − ȳ)² for each column (last axis), then the mean over columns.

    A column that does not vary has 1 if it is met exactly, else 0 (as scikit-learn's `r2_score`). Targets are shifted
    by the first one seen, so that a large mean costs no digits.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.shift: Tensor | None = None
        self.sums: Tensor | float = 0.0
        self.terms = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        output, target = matched(output, target)
        columns = output.shape[-1] if output.ndim > 1 else 1
        z, y = _wide(output).reshape(-1, columns), _wide(target).reshape(-1, columns)
        if self.shift is None and len(y):
            self.shift = y[:1].clone()
        y, error = y - (0 if self.shift is None else self.shift), y - z
        self.sums = self.sums + torch.stack((error.square().sum(0), y.sum(0), y.square().sum(0)))
        self.terms += len(y)

    def compute(self) -> float:
        if not self.terms:
            return float("nan")
        assert isinstance(self.sums, Tensor)
        residual, total, squares = self.sums
        spread = squares - total.square() / self.terms
        exact = (residual == 0).to(spread)
        return float(torch.where(spread > 0, 1 - residual / spread.where(spread > 0, 1), exact).mean())

    def counted(self) -> dict[str, Any]:
        return {"shift": self.shift, "sums": self.sums, "terms": self.terms}

    def recount(self, counted: dict[str, Any]) -> None:
        self.shift, self.sums, self.terms = counted["shift"], counted["sums"], counted["terms"]


class _Perplexity(_Mean):
    """exp of the mean cross-entropy per target, of logits or of what the loss takes."""

    def __init__(self, loss_name: str) -> None:
        super().__init__()
        self.loss = resolve(loss_name if loss_name in ("categorical_cross_entropy", "nll") else "cross_entropy")

    def update(self, output: Tensor, target: Tensor) -> None:
        terms = self.loss.num_terms(output, target)
        mean = _wide(self.loss(output, target))
        if isinstance(terms, Tensor):  # where every target is ignored the mean is of nothing, and no number
            mean = mean.where(terms > 0, 0)
        self.add(mean * terms, terms)

    def compute(self) -> float:
        return float(torch.tensor(super().compute(), dtype=torch.float64).exp())


class _Called(_Mean):
    """A function (output, target) → mean over examples."""

    def __init__(self, function: Callable[[Any, Any], Tensor | float]) -> None:
        super().__init__()
        self.function = function

    def update(self, output: Any, target: Any) -> None:
        terms, value = rows(output), self.function(output, target)
        if isinstance(value, Tensor) and value.ndim:
            raise ValueError(f"it must return one number, it returned shape {list(value.shape)}; average over it")
        self.add(value * terms, terms)


class _Stateful:
    """An object with update, compute and reset, as in torchmetrics."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric
        self.is_empty = True

    def reset(self) -> None:
        self.metric.reset()
        self.is_empty = True

    def update(self, output: Any, target: Any) -> None:
        if self.is_empty and isinstance(output, Tensor) and hasattr(self.metric, "to"):
            self.metric.to(output.device)
        self.is_empty = False
        self.metric.update(output, target)

    def compute(self) -> float:
        return float("nan") if self.is_empty else float(self.metric.compute())

    def counted(self) -> dict[str, Any]:
        """The sums that torchmetrics keeps as attributes, named in `_defaults`; of other objects nothing is known."""
        names = getattr(self.metric, "_defaults", {})
        return {"is_empty": self.is_empty, "sums": {name: getattr(self.metric, name) for name in names}}

    def recount(self, counted: dict[str, Any]) -> None:
        self.is_empty = counted["is_empty"]
        for name, value in counted["sums"].items():
            setattr(self.metric, name, value)
        if not self.is_empty and hasattr(self.metric, "_update_count"):
            self.metric._update_count += 1  # else it warns that nothing was counted


def _wide(value: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)


_METRICS: dict[str, Callable[[str], Metric]] = {
    "accuracy": _Accuracy,
    "top5": lambda loss_name: _Accuracy(loss_name, top=5),
    "mae": lambda loss_name: _Error(is_squared=False),
    "rmse": lambda loss_name: _Error(is_squared=True),
    "r2": lambda loss_name: _R2(),
    "perplexity": _Perplexity,
}

NAMES = tuple(_METRICS)
