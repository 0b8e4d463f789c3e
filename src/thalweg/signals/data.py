"""What the data of a training is like: scale of inputs and targets, classes, neighbours.

Facts, told once, from at most `EXAMPLES` examples spread evenly over the data; nothing is drawn. The nearest neighbour
of an example, and whether it has the same label, is what can be known of labels without a model: it errs at most twice
as often as anything can (Cover and Hart 1967).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg.step.batches import Batches
from thalweg.step.data import Arrays, Batch, Items, Stream
from thalweg.step.kinds import Kind
from thalweg.tensors.named import leaves

#: Examples looked at; of a dataset whose items have to be made; for neighbours, whose cost grows with the square.
EXAMPLES, ITEMS, NEIGHBOURS = 2048, 256, 1024
#: A target that is ignored by torch's losses.
IGNORED = -100
#: Features above which a table of them is not looked at one by one.
FEATURES = 4096


def of_data(batches: Batches, validation: Batches | None, kind: Kind | None) -> dict[str, Any]:
    """Facts of inputs and targets, by the names of docs/signals.md; those that do not apply are left out."""
    x, y = sample(batches)
    inputs, targets = _first(x), _first(y)
    found: dict[str, Any] = {}
    if inputs is not None:
        found |= _of_inputs(inputs)
    if targets is not None:
        found |= _of_targets(targets, kind)
    if inputs is not None and validation is not None and isinstance(validation.data, Arrays):
        found |= _shared(batches, _first(validation.data.x))
    if inputs is not None and targets is not None and "num_classes" in found and inputs.is_floating_point():
        found |= _neighbours(inputs, targets)
    return found


def sample(batches: Batches) -> Batch:
    """Examples spread evenly over the data; of a stream its first batch."""
    data = batches.data
    if isinstance(data, Stream):
        return batches.first(EXAMPLES)
    most = min(len(data), ITEMS if isinstance(data, Items) else EXAMPLES)
    return data.take(torch.linspace(0, len(data) - 1, most).round().long())


def _first(tree: Any) -> Tensor | None:
    """The first tensor: of several inputs, the one that is looked at."""
    return next(iter(leaves(tree)), None) if tree is not None else None


def _of_inputs(x: Tensor) -> dict[str, Any]:
    flat = x.reshape(len(x), -1)
    found: dict[str, Any] = {"input_is_integer": not x.is_floating_point(), "num_features": flat.shape[1]}
    if not x.is_floating_point():
        return found
    flat = flat.double()
    found |= {
        "input_mean": float(flat.mean()),
        "input_std": float(flat.std(correction=0)),
        "input_max_abs": float(flat.abs().max()),
    }
    if x.ndim == 2 and len(flat) > 1 and flat.shape[1] <= FEATURES:
        found |= _of_features(flat)
    return found


def _of_features(flat: Tensor) -> dict[str, Any]:
    """Columns beside each other: of tables, where they may be in units of their own."""
    std, mean = flat.std(0, correction=0), flat.mean(0)
    varies = std > 1e-12 * flat.abs().amax(0).clamp_min(1e-300)
    found: dict[str, Any] = {"constant_features": int((~varies).sum())}
    if varies.any():
        places = varies.nonzero().flatten()
        largest = places[std[varies].argmax()]
        found |= {
            "largest_feature_std": float(std[varies].max()),
            "smallest_feature_std": float(std[varies].min()),
            "largest_feature": int(largest),
            "largest_offset": float((mean[varies].abs() / std[varies]).max()),
        }
    return found


def _of_targets(y: Tensor, kind: Kind | None) -> dict[str, Any]:
    task = kind.task if kind is not None else "other"
    if task == "classification":
        return _of_classes(_shares(y))
    if task == "binary" and y.numel() == len(y):
        share = float(y.double().mean())
        return _of_classes(torch.tensor([1 - share, share])) | {"target_mean": share}
    if not y.is_floating_point():
        return {}
    y = y.double()
    return {
        "target_mean": float(y.mean()),
        "target_std": float(y.std(correction=0)),
        "target_max_abs": float(y.abs().max()),
    }


def _shares(y: Tensor) -> Tensor:
    """Shares of the classes `[classes]`: of indices, or of rows of probabilities."""
    if y.is_floating_point() and y.ndim > 1:
        return y.double().flatten(0, -2).mean(0)
    labels = y.flatten().long()
    labels = labels[labels != IGNORED]
    return torch.bincount(labels.clamp_min(0)).double() / max(1, len(labels))


def _of_classes(shares: Tensor) -> dict[str, Any]:
    there = shares[shares > 0]
    return {
        "num_classes": len(shares),
        "largest_class_share": float(shares.max()),
        "smallest_class_share": float(there.min()) if len(there) else 0.0,
        "label_entropy": float(-(there * there.log()).sum()),
    }


def _neighbours(x: Tensor, y: Tensor) -> dict[str, Any]:
    """How often the nearest other example has the same label, and how often that would happen by chance."""
    labels = y.argmax(-1) if y.is_floating_point() and y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y), -1)[:, 0]
    if labels.numel() != len(x) or y.numel() > y.shape[0] * max(1, y.shape[-1]):
        return {}
    step = math.ceil(len(x) / NEIGHBOURS)
    x, labels = x[::step].reshape(len(x[::step]), -1).float(), labels[::step]
    if len(x) < 32 or x.shape[1] > FEATURES:
        return {}
    distances = torch.cdist(x, x)
    distances.fill_diagonal_(math.inf)
    agreement = float((labels[distances.argmin(1)] == labels).double().mean())
    shares = labels.unique(return_counts=True)[1].double() / len(labels)
    return {"neighbour_agreement": agreement, "neighbour_chance": float(shares.square().sum())}


def _shared(batches: Batches, held: Tensor | None) -> dict[str, Any]:
    """The share of validation examples that are found, equal in every number, among those of training."""
    if held is None or not isinstance(batches.data, Arrays):
        return {}
    own = _first(batches.data.x)
    if own is None or own.shape[1:] != held.shape[1:] or own[0].numel() < 2:
        return {}
    step = math.ceil(len(held) / EXAMPLES)
    keys = {row.tobytes() for row in _rows(own)}
    taken = _rows(held[::step])
    return {"shared_with_validation": sum(row.tobytes() in keys for row in taken) / len(taken)}


def _rows(x: Tensor) -> Any:
    """Sums that tell rows apart, `[examples, 3]` as numpy: cheap keys, equal where rows are."""
    flat = x.reshape(len(x), -1).double()
    ramp = torch.linspace(1, 2, flat.shape[1], dtype=torch.float64, device=flat.device)
    return torch.stack([flat @ ramp, flat @ ramp.square(), flat @ ramp.sin()], 1).cpu().numpy()
