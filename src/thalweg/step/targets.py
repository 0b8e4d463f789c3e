"""What a target must be for an output: shapes brought together at each call, values checked once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from thalweg.step.refusal import Refusal

IGNORED = -100
"""Index targets of this value count for nothing, as in `torch.nn.functional.cross_entropy`."""

_SUM_TOLERANCE = 1e-2
"""How far probabilities may sum from one: half precision rounds a softmax over 1000 classes by about this much."""


class Classes:
    """Brings outputs and targets of a classification into torch's form: classes on axis 1, or flat rows.

    Index targets: classes are on the last axis where `target.shape == output.shape[:-1]`, else on axis 1. Targets of
    the output's own shape are class probabilities (integers: one-hot); beyond two dimensions their class axis is the
    one on which they sum to one, which is read from the first such target and kept.
    """

    __slots__ = ("soft_axis",)

    def __init__(self) -> None:
        self.soft_axis: int | None = None

    def __call__(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Align.

        Returns:
            Scores [rows, classes] or [n, classes, ...], and int64 indices [rows] or [n, ...] or probabilities of the
            scores' shape and dtype.

        Raises:
            ValueError: the shapes do not belong together, or floats stand where indices are expected.
        """
        scores, labels = output.shape, target.shape
        if labels == scores[:-1]:
            if target.dtype is not torch.int64:
                target = _indices(output, target)
            return (output, target) if len(scores) <= 2 else (output.flatten(0, -2), target.flatten())
        if labels == scores:
            return self._soft(output, target)
        if len(scores) > 2 and labels == scores[:1] + scores[2:]:
            return output, _indices(output, target)
        if len(scores) == 2 and labels == (scores[0], 1):
            return output, _indices(output, target).squeeze(1)
        raise Refusal(
            "wrong_shape",
            f"the target's shape {list(labels)} does not fit the output's {list(scores)}: expected class indices "
            f"{list(scores[:-1])}, or class probabilities {list(scores)}",
        )

    def _soft(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if target.dtype is not output.dtype:
            target = target.to(output.dtype)
        if output.ndim > 2:
            if self.soft_axis is None:
                self.soft_axis = _probability_axis(target)
            if self.soft_axis == -1:
                return output.flatten(0, -2), target.flatten(0, -2)
        return output, target


def matched(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Target in the shape and dtype of the output; [n] and [n, 1] are the same thing.

    Raises:
        ValueError: the shapes differ, so that torch would broadcast.
    """
    if target.shape != output.shape:
        scores, values = output.shape, target.shape
        if {len(scores), len(values)} != {1, 2} or scores[0] != values[0] or output.numel() != target.numel():
            raise Refusal(
                "wrong_shape",
                f"the target's shape {list(values)} does not fit the output's {list(scores)}: they must be equal",
            )
        target = target.reshape(scores)
    return output, target if target.dtype is output.dtype else target.to(output.dtype)


#: Functions whose result does not show that shapes were broadcast.
_ELEMENTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy")


class Aligned(TorchFunctionMode):
    """Inside, [n, 1] and [n] are not brought together to [n, n]: each output would meet every target."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch does, or a ValueError."""
        shapes = sorted((tuple(a.shape) for a in args[:2] if isinstance(a, Tensor)), key=len)
        is_odd = len(shapes) == 2 and len(shapes[0]) == 1 and shapes[1] == (shapes[0][0], 1) and shapes[0][0] > 1
        if is_odd and getattr(func, "__name__", "") in _ELEMENTWISE:
            raise self._refusal(shapes[0][0])
        result = func(*args, **(kwargs or {}))
        if is_odd and isinstance(result, Tensor) and result.shape == shapes[0] * 2:
            raise self._refusal(shapes[0][0])
        return result

    def _refusal(self, n: int) -> Refusal:
        words = f"it takes [{n}] and [{n}, 1] together to [{n}, {n}], so that each output meets every target"
        return Refusal("wrong_shape", f"{words}; give targets the outputs' shape, y[:, None]")


def rows(output: Any) -> int:
    """How many examples an output holds: the length of the first axis of its (first) tensor."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output.shape[0] if output.ndim else 1


def check_tensors(loss: str, output: Any, target: Any) -> None:
    """Refuse outputs and targets that are no tensors, and targets with NaN or Inf."""
    for name, value in (("output", output), ("target", target)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{loss} takes one tensor as {name}, got {type(value).__name__}")
    check_finite(target)


def check_finite(target: Any) -> None:
    """Refuse NaN and Inf in a target (a tensor, or tensors in tuples, lists and dicts)."""
    if isinstance(target, Tensor):
        if target.is_floating_point() and not bool((finite := target.isfinite()).all()):
            place = _first(~finite)
            raise Refusal(
                "non_finite",
                f"the target holds {target[tuple(place)].item()} at position {_at(place)}: remove or mend it",
            )
    elif isinstance(target, tuple | list | dict):
        for part in target.values() if isinstance(target, dict) else target:
            check_finite(part)


def check_classes(loss: str, output: Tensor, target: Tensor, ignored: int = IGNORED) -> None:
    """Refuse labels out of range and probabilities that are none. `output` and `target` are aligned (`Classes`)."""
    axis = 1 if output.ndim > 1 else 0
    num_classes = output.shape[axis]
    if num_classes < 2:
        raise Refusal(
            "loss_output_mismatch",
            f"{loss} needs an output of at least two classes, got {list(output.shape)}: use binary_cross_entropy "
            "for one unit",
        )
    if target.is_floating_point():
        check_probabilities("the target", target, axis)
        return
    wrong = ((target < 0) | (target >= num_classes)) & (target != ignored)
    if bool(wrong.any()):
        place = _first(wrong)
        label = target[tuple(place)].item()
        raise Refusal(
            "bad_labels",
            f"label {label} at position {_at(place)} is out of range: the output has {num_classes} "
            f"classes, so labels run from 0 to {num_classes - 1} ({ignored} is ignored)",
        )


def check_probabilities(name: str, p: Tensor, axis: int) -> None:
    """Refuse negative values and sums that are not one."""
    code = "bad_labels" if name == "the target" else "loss_output_mismatch"
    if bool((negative := p < 0).any()):
        place = _first(negative)
        raise Refusal(code, f"{name} must be probabilities, got {p[tuple(place)].item():.4g} at position {_at(place)}")
    total = p.sum(axis)
    if bool((off := ~((total - 1).abs() <= _SUM_TOLERANCE)).any()):
        place = _first(off)
        raise Refusal(
            code,
            f"{name} must be probabilities that sum to one over the classes, got a sum of "
            f"{total[tuple(place)].item():.4g} at position {_at(place)}",
        )


def check_log_probabilities(loss: str, output: Tensor) -> None:
    """Refuse outputs above zero."""
    if output.numel() and (largest := output.max().item()) > 1e-4:  # log_softmax itself rounds to a little above 0
        raise Refusal(
            "loss_output_mismatch",
            f"{loss} expects log-probabilities, none above 0, but the output reaches {largest:.4g}: "
            "end the model with log_softmax, or use cross_entropy",
        )


def check_ctc(output: Any, target: Any) -> None:
    """Refuse lengths outside the tensors, labels that are no classes, and a batch in which nothing can be aligned."""
    if not isinstance(target, tuple | list) or len(target) != 3:
        raise ValueError("ctc takes a target (labels, input_lengths, label_lengths)")
    for part in target:
        check_tensors("ctc", output, part)
    labels, input_lengths, label_lengths = target
    if output.ndim != 3 or labels.ndim != 2 or labels.shape[0] != output.shape[0]:
        raise ValueError(
            f"ctc takes an output [batch, time, classes] and labels [batch, length], got {list(output.shape)} and "
            f"{list(labels.shape)}"
        )
    batch, time, num_classes = output.shape
    for name, lengths, longest in (("input", input_lengths, time), ("label", label_lengths, labels.shape[1])):
        if lengths.shape != (batch,) or lengths.is_floating_point():
            raise ValueError(f"ctc takes whole {name} lengths [{batch}], got {lengths.dtype} {list(lengths.shape)}")
        if batch and not (int(lengths.min()) >= 0 and int(lengths.max()) <= longest):
            low, high = int(lengths.min()), int(lengths.max())
            raise Refusal("bad_labels", f"ctc: {name} lengths run from 0 to {longest} here, got {low} to {high}")
    if batch and not bool((label_lengths.to(input_lengths.device) <= input_lengths).any()):
        raise ValueError(
            f"ctc: every label is longer than its input (output {list(output.shape)}): none can be aligned"
        )
    inside = torch.arange(labels.shape[1], device=labels.device) < label_lengths.to(labels.device).unsqueeze(1)
    wrong = labels[inside & ((labels < 1) | (labels >= num_classes))]
    if wrong.numel():
        raise Refusal(
            "bad_labels", f"ctc: labels run from 1 to {num_classes - 1} (0 is the blank), got {wrong[0].item()}"
        )


def _indices(output: Tensor, target: Tensor) -> Tensor:
    if target.is_floating_point() or target.is_complex():
        dtype = str(target.dtype).removeprefix("torch.")
        raise Refusal(
            "bad_labels",
            f"the target {list(target.shape)} for the output {list(output.shape)} must be class indices, got {dtype}: "
            "convert the labels to integers, or give class probabilities of the output's shape",
        )
    return target if target.dtype is torch.int64 else target.long()


def _probability_axis(target: Tensor) -> int:
    """The axis, last or 1, on which the target sums to one."""
    for axis in (-1, 1):
        if bool(((target.sum(axis) - 1).abs() <= _SUM_TOLERANCE).all()):
            return axis
    words = f"class probabilities {list(target.shape)} must sum to one on the last axis or on axis 1"
    raise Refusal("bad_labels", words)


def _first(wrong: Tensor) -> list[int]:
    return wrong.nonzero()[0].tolist()


def _at(place: list[int]) -> int | list[int]:
    return place[0] if len(place) == 1 else place
