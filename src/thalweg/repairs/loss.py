"""Changes where network and loss meet: outputs that the loss takes for what they are not, classes that are rare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg.repairs.change import Body, Undo, Words, names
from thalweg.repairs.passes import Pass, is_closed, look, operation, shares, unshaped
from thalweg.repairs.structure import code, put, slots
from thalweg.step.kinds import kind_of
from thalweg.step.losses import Loss, resolve
from thalweg.step.targets import IGNORED, Classes, matched
from thalweg.tensors.named import leaves

#: What ends a network, by its module and by its node in autograd's graph.
_HEADS = {nn.Softmax: "softmax", nn.LogSoftmax: "log_softmax", nn.Sigmoid: "sigmoid", nn.ReLU: "relu", nn.Tanh: "tanh"}
_NODES = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Sigmoid": "sigmoid", "Relu": "relu", "Tanh": "tanh"}
#: The numbers a head can give.
_RANGES = {"softmax": (0.0, 1.0), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, float("inf"))}
#: A loss by its name in `step/kinds.py` → what makes it.
_LOSSES: dict[str, Any] = {"bce": nn.BCELoss}
#: Outputs this near to what a head can give at most, nearly all of them, pass no gradient on.
SHUT, NEARLY_ALL = 1e-3, 0.99
#: A class is rare with less than this share of the examples of the mean class; equal ones differ by chance.
BALANCED = 0.5


@dataclass(slots=True)
class _End:
    """What ends a network: a function, and its module where it is one that can be taken out."""

    function: str
    module: str | None


def _end(body: Body, passed: Pass) -> _End:
    places = slots(body.model)
    outputs = list(leaves(passed.output))
    if len(outputs) != 1:
        return _End("", None)
    for call in reversed(passed.calls[:-1]):
        if not shares(call.output, outputs[0]):
            continue
        if type(call.module) in _HEADS:
            alone = call.module in places and passed.times(call.module) == 1
            return _End(_HEADS[type(call.module)], call.name if alone else None)
        if any(True for _ in call.module.parameters(recurse=False)):
            break
    return _End(_NODES.get(operation(unshaped(outputs[0].grad_fn)), "none"), None)


class DropHead:
    """Loss and output brought together: the head that does not belong is taken out, or the loss is another one.

    The module that ends the network gives way to nothing where the loss takes plain scores, where targets lie outside
    of what it can give, and where it is shut for all examples. Where a function ends it, or probabilities and scores
    are mixed up, the loss changes: `categorical_cross_entropy` or `nn.BCELoss` on probabilities, `cross_entropy` or
    `binary_cross_entropy` on scores. Classes learned by squared error through a softmax or sigmoid are learned by
    cross-entropy. A loss that was not given by name may have settings of its own, so it stays.
    """

    code = "drop_head"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """`head`, the module to take out, and `loss`, the one to take; either may be missing."""
        kind = kind_of(body.loss)
        if is_closed(body) or kind is None or not isinstance(body.sample[1], Tensor):
            return None
        passed = look(body)
        if not isinstance(passed.output, Tensor):
            return None
        end = _end(body, passed)
        wanted = _wanted(kind.name, end, passed.output.detach(), body.sample[1])
        if wanted is None:
            return None
        drops, loss = wanted
        if loss and body.loss is not None and body.loss.name != kind.name and kind.name != "bce":
            return None
        words: dict[str, float | str] = {}
        if drops:
            words["head"] = str(end.module)
        if loss:
            words["loss"] = loss
        return words

    def apply(self, body: Body, words: Words) -> Undo:
        """Take the head out and put the loss in."""
        put_back = None
        if "head" in words:
            head = body.model.get_submodule(str(words["head"]))
            put_back = put(body.model, {head: nn.Identity().train(head.training)})
        before = body.loss
        if "loss" in words:
            name = str(words["loss"])
            body.loss = resolve(_LOSSES[name]() if name in _LOSSES else name)

        def undo() -> None:
            body.loss = before
            if put_back is not None:
                put_back()

        return undo

    def lines(self, words: Words) -> list[str]:
        """An assignment, and the word for `fit`."""
        lines = [f"{code(str(words['head']))} = nn.Identity()"] if "head" in words else []
        if "loss" in words:
            loss = str(words["loss"])
            lines.append("loss = nn.BCELoss()" if loss == "bce" else f'loss = "{loss}"')
        return lines


def _wanted(loss: str, end: _End, output: Tensor, target: Tensor) -> tuple[bool, str] | None:
    """Whether the head goes, and which loss comes, or ""; None where all is well or nothing can be done."""
    goes = end.module is not None
    probabilities = end.function in ("softmax", "sigmoid")
    if loss in ("cross_entropy", "binary_cross_entropy"):
        if end.function not in ("softmax", "sigmoid", "relu", "tanh"):
            return None
        instead = {
            ("cross_entropy", "softmax"): "categorical_cross_entropy",
            ("binary_cross_entropy", "sigmoid"): "bce",
        }
        other = instead.get((loss, end.function))
        return (True, "") if goes else (False, other) if other else None
    if loss in ("categorical_cross_entropy", "bce"):
        if probabilities or (float(output.min()) >= 0 and float(output.max()) <= 1):
            return None
        scores = "cross_entropy" if loss == "categorical_cross_entropy" else "binary_cross_entropy"
        return (goes, scores) if end.function in ("none", "relu", "tanh") else None
    if loss == "nll":
        if end.function == "softmax" and not goes:
            return False, "categorical_cross_entropy"
        return (goes, "cross_entropy") if end.function == "none" or (goes and end.function != "log_softmax") else None
    return _of_values(loss, end, output, target) if loss in ("mse", "mae", "huber") else None


def _of_values(loss: str, end: _End, output: Tensor, target: Tensor) -> tuple[bool, str] | None:
    if end.function not in _RANGES or not target.numel():
        return None
    goes, low, high = end.module is not None, *_RANGES[end.function]
    if loss == "mse" and end.function in ("softmax", "sigmoid") and bool(((target == 0) | (target == 1)).all()):
        one_hot = target.ndim == 2 and target.shape[1] > 1 and bool((target.sum(1) == 1).all())
        if one_hot and (goes or end.function == "softmax"):
            return goes, "cross_entropy" if goes else "categorical_cross_entropy"
        if not one_hot and end.function == "sigmoid":
            return goes, "binary_cross_entropy" if goes else "bce"
        return None
    outside = float(target.min()) < low or float(target.max()) > high
    shut = ((output <= low + SHUT) | (output >= high - SHUT)).double().mean()
    return (True, "") if goes and (outside or float(shut) > NEARLY_ALL) else None


class WeighClasses:
    """Each class weighs as much as the others together would by right: n / (classes · n of the class).

    As `balanced` in King & Zeng 2001, section 4.2. For `cross_entropy` and `binary_cross_entropy` by name; the weights
    are counted over the sample. The loss is then on another scale: compare metrics, not losses.
    """

    code = "weigh_classes"
    level = "full"

    def words(self, body: Body) -> Words | None:
        """The weights of the classes, in their order; for one unit that of the ones."""
        if body.loss is None or body.loss.name not in ("cross_entropy", "binary_cross_entropy"):
            return None
        y = body.sample[1]
        if not isinstance(y, Tensor) or is_closed(body):
            return None
        if body.loss.name == "binary_cross_entropy":
            ones = float(y.double().mean())
            if not 0 < ones < 1 or min(ones, 1 - ones) > BALANCED / 2:
                return None
            return {"positive": (1 - ones) / ones}
        counts = _counts(body, y)
        if counts is None or not bool((counts > 0).all()) or float(counts.min() / counts.mean()) > BALANCED:
            return None
        return {"weights": " ".join(repr(float(w)) for w in counts.sum() / (len(counts) * counts))}

    def apply(self, body: Body, words: Words) -> Undo:
        """Put the weighted loss in the place of the other."""
        before = body.loss
        assert before is not None
        if "positive" in words:
            body.loss = _weighted_binary(before, float(words["positive"]))
        else:
            body.loss = _weighted(before, [float(w) for w in names(words["weights"])])

        def undo() -> None:
            body.loss = before

        return undo

    def lines(self, words: Words) -> list[str]:
        """The loss of torch with weights."""
        if "positive" in words:
            return [f"loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor({float(words['positive']):.4g}))"]
        weights = ", ".join(f"{float(w):.4g}" for w in names(words["weights"]))
        return [f"loss = nn.CrossEntropyLoss(weight=torch.tensor([{weights}]))"]


def _counts(body: Body, y: Tensor) -> Tensor | None:
    """Examples of each class `[classes]`, as many classes as the network has scores for."""
    if y.is_floating_point():
        if y.ndim != 2:
            return None
        return y.double().sum(0)
    output = look(body).output
    if not isinstance(output, Tensor):
        return None
    scores, _ = Classes()(output.detach(), y[: len(output)])
    labels = y[y != IGNORED].long()
    if y.shape == output.shape or not labels.numel():  # whole numbers, one-hot
        return y.double().sum(0) if y.ndim == 2 and labels.numel() else None
    return torch.bincount(labels.flatten(), minlength=scores.shape[1]).double()


class _Held:
    """Numbers of a loss, brought to where the outputs are once: a step that does so each time is not captured.

    They keep their digits, and their place while outputs are of another type.
    """

    def __init__(self, numbers: Any) -> None:
        self._numbers = torch.tensor(numbers)

    def beside(self, output: Tensor) -> Tensor:
        if self._numbers.device != output.device:
            self._numbers = self._numbers.to(output.device)
        return self._numbers.to(output.dtype)


def _weighted(loss: Loss, weights: list[float]) -> Loss:
    """Σ w_y (−log softmax(z)_y) / Σ w_y; probabilities as targets: Σ_c w_c y_c (−log softmax(z)_c) / n, as torch."""
    classes, held = Classes(), _Held(weights)

    def value(output: Any, target: Any) -> Tensor:
        output, target = classes(output, target)
        return F.cross_entropy(output, target, weight=held.beside(output))

    def count(output: Any, target: Any) -> int | Tensor:
        output, target = classes(output, target)
        if target.is_floating_point():
            return output.numel() // output.shape[1] if output.ndim > 1 else 1
        kept = target != IGNORED
        return (held.beside(output)[target.where(kept, 0)] * kept).sum()

    return replace(loss, name="CrossEntropyLoss", value=value, count=count, weighs=True)


def _weighted_binary(loss: Loss, positive: float) -> Loss:
    """−w y log σ(z) − (1−y) log(1−σ(z)), mean over elements."""
    held = _Held(positive)

    def value(output: Any, target: Any) -> Tensor:
        output, target = matched(output, target)
        return F.binary_cross_entropy_with_logits(output, target, pos_weight=held.beside(output))

    return replace(loss, name="BCEWithLogitsLoss", value=value, weighs=True)
