"""What is known about a loss by its name: what task it is of, and what it takes the model's outputs for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from thalweg.step.losses import Loss

TASKS = ("classification", "binary", "regression", "sequence", "other")


@dataclass(frozen=True, slots=True)
class Kind:
    """A loss that is known."""

    name: str
    """The name `fit` has for it; its own where it has none."""
    task: str
    """One of `TASKS`."""
    takes: str
    """logits, probabilities, log_probabilities or values."""


def _kinds(names: str, *words: str) -> Iterable[tuple[str, Kind]]:
    return ((name, Kind(*words)) for name in names.split())


_F = "torch.nn.functional."
_KNOWN: dict[str, Kind] = dict(
    [
        *_kinds(f"cross_entropy CrossEntropyLoss {_F}cross_entropy", "cross_entropy", "classification", "logits"),
        *_kinds("categorical_cross_entropy", "categorical_cross_entropy", "classification", "probabilities"),
        *_kinds("nll NLLLoss nll_loss", "nll", "classification", "log_probabilities"),
        *_kinds("kl_divergence KLDivLoss kl_div", "kl_divergence", "other", "log_probabilities"),
        *_kinds("binary_cross_entropy BCEWithLogitsLoss", "binary_cross_entropy", "binary", "logits"),
        *_kinds("binary_cross_entropy_with_logits", "binary_cross_entropy", "binary", "logits"),
        *_kinds(f"BCELoss {_F}binary_cross_entropy", "bce", "binary", "probabilities"),
        *_kinds("mse MSELoss mse_loss", "mse", "regression", "values"),
        *_kinds("mae L1Loss l1_loss", "mae", "regression", "values"),
        *_kinds("huber HuberLoss huber_loss SmoothL1Loss smooth_l1_loss", "huber", "regression", "values"),
        *_kinds("ctc CTCLoss ctc_loss", "ctc", "sequence", "logits"),
    ]
)


def kind_of(loss: Loss | None) -> Kind | None:
    """What is known of a loss; None for a function of the user's own, and where the model makes its loss.

    >>> from thalweg.step.losses import resolve
    >>> kind_of(resolve("mse")).task, kind_of(resolve(lambda output, target: output.mean()))
    ('regression', None)
    """
    return _KNOWN.get(loss.name) if loss is not None else None


def class_axis(output: Tensor, target: Any) -> int | None:
    """On which axis of an output the classes are, by the targets; None where they do not say."""
    if output.ndim == 2:
        return 1
    if not isinstance(target, Tensor) or output.ndim < 2:
        return None
    if target.shape in (output.shape[:-1], output.shape):
        return output.ndim - 1
    return 1 if target.shape == output.shape[:1] + output.shape[2:] else None
