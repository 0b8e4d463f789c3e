"""Step two: outputs, targets → loss, by name; what each expects of the outputs.

A loss says how many terms its mean is over, so that micro-batches can be put together exactly:
∇J = Σ n_m ∇J_m / Σ n_m.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.step.refusal import Refusal
from thalweg.step.targets import (
    IGNORED,
    Aligned,
    Classes,
    check_classes,
    check_ctc,
    check_finite,
    check_log_probabilities,
    check_probabilities,
    check_tensors,
    matched,
    rows,
)


@dataclass(frozen=True, slots=True)
class Loss:
    """A function of outputs and targets, with what is known about it."""

    name: str
    expects: str
    """One sentence: what the loss expects of the outputs."""
    value: Callable[[Any, Any], Tensor]
    """(output, target) → scalar: the mean over the terms, or their sum."""
    count: Callable[[Any, Any], int | Tensor]
    """(output, target) → the number of terms."""
    inspect: Callable[[Any, Any], None]
    """(output, target) → nothing, or a ValueError."""
    reduction: str = "mean"
    weighs: bool = False
    """Whether classes or terms count differently, or targets are smoothed: what is known of the plain loss's size does
    not hold."""
    source: Any = None
    """What the user gave, where that is no name."""

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss, a scalar. Nothing is read from the device.

        Raises:
            ValueError: the shapes do not belong together.
        """
        return self.value(output, target)

    def num_terms(self, output: Any, target: Any) -> int | Tensor:
        """What the mean divides by: not-ignored targets (their class weights), elements, or rows."""
        return self.count(output, target)

    def check(self, output: Any, target: Any) -> None:
        """Look at the values, once, before training.

        Raises:
            ValueError: the target or the output is not what the loss expects.
        """
        with torch.no_grad():
            self.inspect(output, target)


def resolve(loss: str | Callable[[Any, Any], Tensor]) -> Loss:
    """The loss of a name, a torch module, or a function (output, target) → scalar.

    A function is taken as a mean over the rows of the batch unless it has `reduction="sum"` (it is trained on as it is,
    and told per example), or a method
    `num_terms(output, target)` that says how many terms its mean is over. The modules of `torch.nn`
    (and `cross_entropy`, `nll_loss` of `torch.nn.functional`) are counted as they count themselves.

    Raises:
        ValueError: an unknown name, or a reduction that leaves no scalar.
        TypeError: neither a name nor callable.

    >>> resolve("mse").expects
    'values in the shape of the target'
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in _LOSSES:
            raise ValueError(unknown("loss", loss, NAMES))
        return _LOSSES[loss]()
    if isinstance(loss, type):
        raise TypeError(f"loss takes a name or a function, and {loss.__name__} is a class: write {loss.__name__}()")
    if not callable(loss):
        raise TypeError(f"loss takes a name or a function (output, target), got {_mistaken(loss)}")
    return _called(loss)


def _mistaken(given: object) -> str:
    """What stands in the place of the loss, and what was probably meant; an array is not printed."""
    if isinstance(given, list | tuple) and given and all(isinstance(word, str) for word in given):
        return f"{given!r}: metrics are given by name, metrics=[…]"
    if isinstance(given, list | tuple) or hasattr(given, "shape"):
        return f"a value of type {type(given).__name__}: data and targets go together, fit(model, (x, y), loss)"
    return f"a value of type {type(given).__name__}"


def unknown(kind: str, word: object, known: Any) -> str:
    """The sentence for a word that is not known, with the nearest one that is."""
    nearest = difflib.get_close_matches(str(word), list(known), n=1)
    guess = f" did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {word!r}:{guess} Known are: {', '.join(known)}"


# ── classification ──


def _cross_entropy() -> Loss:
    """−log softmax(z)_y, or −Σ_c y_c log softmax(z)_c."""
    return _of_classes("cross_entropy", "logits: raw scores, no softmax", F.cross_entropy, lambda output: None)


def _nll() -> Loss:
    """−z_y of log-probabilities z."""

    def value(output: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            raise ValueError(f"nll takes class indices, got probabilities {list(target.shape)}: use kl_divergence")
        return F.nll_loss(output, target)

    expects = "log-probabilities, as after a log_softmax"
    return _of_classes("nll", expects, value, lambda output: check_log_probabilities("nll", output))


def _categorical_cross_entropy() -> Loss:
    """−log p_y, or −Σ_c y_c log p_c.

    p is raised to the smallest normal number, where the loss ends (87.3 in float32) with gradient 0. Keras raises to
    1e-7, which takes the gradient from every example it is most wrong about.
    """

    def value(output: Tensor, target: Tensor) -> Tensor:
        log_p = output.clamp_min(torch.finfo(output.dtype).tiny).log()
        if target.is_floating_point():
            return -(target * log_p).sum() / _num_rows(output)
        return F.nll_loss(log_p, target)

    def check(output: Tensor) -> None:
        name = "categorical_cross_entropy: the output"
        check_probabilities(name, output, 1 if output.ndim > 1 else 0)

    return _of_classes("categorical_cross_entropy", "probabilities, as after a softmax", value, check)


def _of_classes(
    name: str, expects: str, value: Callable[[Tensor, Tensor], Tensor], check_output: Callable[[Tensor], None]
) -> Loss:
    classes = Classes()

    def count(output: Tensor, target: Tensor) -> int | Tensor:
        output, target = classes(output, target)
        return _num_rows(output) if target.is_floating_point() else (target != IGNORED).sum()

    def inspect(output: Any, target: Any) -> None:
        check_tensors(name, output, target)
        output, target = classes(output, target)
        check_classes(name, output, target)
        check_output(output)
        value(output, target)

    return Loss(name, expects, lambda output, target: value(*classes(output, target)), count, inspect)


def _num_rows(output: Tensor) -> int:
    """Distributions in an output with classes on axis 1."""
    return output.numel() // output.shape[1] if output.ndim > 1 else 1


# ── element by element ──


def _binary_cross_entropy() -> Loss:
    """−y log σ(z) − (1−y) log(1−σ(z))."""

    def check(target: Tensor) -> None:
        if target.numel() and not (bool((target >= 0).all()) and bool((target <= 1).all())):
            low, high = target.min().item(), target.max().item()
            words = f"binary_cross_entropy takes targets from 0 to 1, got values from {low:.4g} to {high:.4g}"
            raise Refusal("bad_labels", words)

    expects = "logits: raw scores, no sigmoid"
    return _of_elements("binary_cross_entropy", expects, F.binary_cross_entropy_with_logits, check)


def _of_elements(
    name: str,
    expects: str,
    value: Callable[[Tensor, Tensor], Tensor],
    check_target: Callable[[Tensor], None] = lambda target: None,
) -> Loss:
    def inspect(output: Any, target: Any) -> None:
        check_tensors(name, output, target)
        matched(output, target)
        check_target(target)

    return Loss(name, expects, lambda output, target: value(*matched(output, target)), _num_elements, inspect)


def _num_elements(output: Tensor, target: Tensor) -> int:
    return output.numel()


# ── over rows ──


def _kl_divergence() -> Loss:
    """Σ_c y_c (log y_c − z_c) of log-probabilities z, mean over rows."""

    def value(output: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(*matched(output, target), reduction="batchmean")

    def inspect(output: Any, target: Any) -> None:
        check_tensors("kl_divergence", output, target)
        if output.shape != target.shape or output.ndim < 2:
            raise Refusal(
                "wrong_shape",
                f"kl_divergence takes log-probabilities and probabilities of one shape [batch, ..., classes], got "
                f"{list(output.shape)} and {list(target.shape)}",
            )
        check_log_probabilities("kl_divergence", output)
        check_probabilities("the target", target, -1)

    return Loss("kl_divergence", "log-probabilities, as after a log_softmax", value, _num_examples, inspect)


def _ctc() -> Loss:
    """Connectionist temporal classification (Graves et al. 2006): −log of the sum over all alignments.

    Output: logits [batch, time, classes], class 0 is the blank. Target: labels [batch, length], input lengths [batch],
    label lengths [batch]. Each example's loss is divided by its label length, then the mean is over the batch, as
    torch has it; an example whose label does not fit its input counts as 0.
    """

    def value(output: Tensor, target: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        labels, input_lengths, label_lengths = target
        log_p = output.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_p, labels, input_lengths, label_lengths, zero_infinity=True)

    return Loss("ctc", "logits [batch, time, classes], class 0 is the blank", value, _num_examples, check_ctc)


def _num_examples(output: Any, target: Any) -> int:
    return rows(output)


# ── the user's own ──


def _called(loss: Any) -> Loss:
    name = getattr(loss, "__name__", type(loss).__name__)
    if name in NAMES:
        name = f"{getattr(loss, '__module__', 'user')}.{name}"
    origins = [getattr(loss, "__module__", None), *(kind.__module__ for kind in type(loss).__mro__)]
    if any(str(origin).startswith("keras.") for origin in origins):
        raise ValueError(f"a Keras loss takes (target, output): give a name instead ({', '.join(NAMES)})")
    reduction = getattr(loss, "reduction", "mean")
    if reduction not in ("mean", "sum", "batchmean"):
        raise ValueError(f"{name} has reduction={reduction!r}, which leaves no scalar: use 'mean' or 'sum'")
    reduction = "sum" if reduction == "sum" else "mean"
    # A subclass that computes something else counts in its own way: what matters is whose forward it is.
    forward = getattr(type(loss), "forward", None)
    value: Callable[[Any, Any], Tensor] = loss
    count: Callable[[Any, Any], int | Tensor] = getattr(loss, "num_terms", _num_examples)
    check: Callable[[Any, Any], object] = lambda output, target: None  # noqa: E731
    if loss is F.cross_entropy or loss is F.nll_loss or forward in (nn.CrossEntropyLoss.forward, nn.NLLLoss.forward):
        count, check = _weighted(loss)
        value = lambda output, target: loss(output, _long(target))  # noqa: E731
    elif forward in _ELEMENTWISE:
        count, check = _num_elements, matched
        value = lambda output, target: loss(*matched(output, target))  # noqa: E731
    weighs = any(getattr(loss, word, None) is not None for word in ("weight", "pos_weight"))
    weighs |= bool(getattr(loss, "label_smoothing", 0.0))
    return Loss(name, f"what {name} takes", value, count, _scalar(value, name, check), reduction, weighs, loss)


def _long(target: Tensor) -> Tensor:
    return target if target.dtype is torch.int64 or target.is_floating_point() else target.long()


def _weighted(loss: Any) -> tuple[Callable[[Tensor, Tensor], int | Tensor], Callable[[Tensor, Tensor], object]]:
    """Terms and check of torch's own losses over classes (axis 1), with their ignored index and class weights."""
    ignored = getattr(loss, "ignore_index", IGNORED)

    def count(output: Tensor, target: Tensor) -> int | Tensor:
        if target.is_floating_point():
            return _num_rows(output)
        kept = target != ignored
        weight = getattr(loss, "weight", None)
        return kept.sum() if weight is None else (weight[target.where(kept, 0)] * kept).sum()

    def check(output: Tensor, target: Tensor) -> None:
        if output.shape == target.shape or output.shape[:1] + output.shape[2:] == target.shape:
            check_classes("cross-entropy", output, target, ignored)

    return count, check


def _scalar(loss: Any, name: str, check: Callable[[Any, Any], object]) -> Callable[[Any, Any], None]:
    def inspect(output: Any, target: Any) -> None:
        check_finite(target)
        check(output, target)
        try:
            with Aligned():
                value = loss(output, target)
        except Refusal as error:
            raise Refusal(error.code, f"{name} does not fit output and target: {error}") from error
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = f"{list(output.shape)} and {list(target.shape)}" if isinstance(target, Tensor) else "this target"
            raise ValueError(f"{name} fails on the output and target {shapes}: {str(error).splitlines()[0]}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must return a scalar tensor, got {got}: take the mean or the sum")

    return inspect


_ELEMENTWISE = {
    module.forward
    for module in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCEWithLogitsLoss, nn.BCELoss)
}

_VALUES = "values in the shape of the target"

_LOSSES: dict[str, Callable[[], Loss]] = {
    "cross_entropy": _cross_entropy,
    "categorical_cross_entropy": _categorical_cross_entropy,
    "binary_cross_entropy": _binary_cross_entropy,
    "mse": lambda: _of_elements("mse", _VALUES, F.mse_loss),
    "mae": lambda: _of_elements("mae", _VALUES, F.l1_loss),
    "huber": lambda: _of_elements("huber", _VALUES, F.huber_loss),
    "nll": _nll,
    "kl_divergence": _kl_divergence,
    "ctc": _ctc,
}

NAMES = tuple(_LOSSES)
