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
from thalweg.step.data import COLUMNS, Arrays, Batch, Items, Stream
from thalweg.step.kinds import Kind
from thalweg.step.sequences import Sequences
from thalweg.tensors.named import leaves
from thalweg.tensors.seeds import generator

#: Examples looked at; of a dataset whose items have to be made; for neighbours, whose cost grows with the square.
EXAMPLES, ITEMS, NEIGHBOURS = 2048, 256, 1024
#: Numbers of the examples looked at: as many as are read in a few hundredths of a second; but of so many examples.
NUMBERS, FEWEST = 1 << 22, 64
#: Numbers of the training data among which validation examples are sought; of larger data every so manieth example.
SOUGHT = 1 << 26
#: A target that is ignored by torch's losses.
IGNORED = -100
#: Numbers of a target up to which neighbours are a yardstick: a whole picture no network has to give back as well.
TARGETS = 8
#: Features above which a table of them is not looked at one by one.
FEATURES = 4096


def of_data(batches: Batches, validation: Batches | None, kind: Kind | None) -> dict[str, Any]:
    """Facts of inputs and targets, by the names of docs/signals.md; those that do not apply are left out."""
    x, y = sample(batches)
    inputs, targets = _first(x), _first(y)
    found: dict[str, Any] = {}
    expected = expected_loss(y, kind)
    if expected is not None:
        found["expected_initial_loss"] = expected
    if inputs is not None:
        found |= _of_inputs(inputs)
    if targets is not None:
        found |= _of_targets(targets, kind)
    if inputs is not None and validation is not None and isinstance(validation.data, Arrays):
        found |= _shared(batches, validation.data.x)
    if inputs is not None and targets is not None and inputs.is_floating_point():
        found |= _neighbours(inputs, targets, "num_classes" in found)
    return found


def expected_loss(target: Any, kind: Kind | None) -> float | None:
    """The loss of the best answer that does not look at its input, on these targets; None where it is not known."""
    y = _first(target)
    if y is None or kind is None or not y.numel():
        return None
    if kind.task == "classification":
        return _entropy(_shares(y))
    y = y.double()
    if kind.task == "binary":
        share = y.reshape(len(y), -1).mean(0).clamp(0, 1)
        return float(-(torch.xlogy(share, share) + torch.xlogy(1 - share, 1 - share)).mean())
    middle = y.reshape(len(y), -1)
    if kind.name == "mse":
        return float(middle.var(0, correction=0).mean())
    if kind.name == "mae":
        return float((middle - _median(middle)).abs().mean())
    if kind.name == "huber":
        return float(torch.nn.functional.huber_loss(middle, _median(middle).expand_as(middle)))
    return None


def _median(columns: Tensor) -> Tensor:
    """Of each column; computed on the CPU, since a GPU has no deterministic one."""
    return columns.cpu().median(0).values.to(columns.device)


def sample(batches: Batches, most: int = EXAMPLES) -> Batch:
    """Examples spread evenly over the data, for it may be sorted; of a stream its first batch."""
    data = batches.data
    if isinstance(data, Stream):
        return batches.first(most)
    most = min(len(data), ITEMS if isinstance(data, Items) else most)
    if isinstance(data, Arrays):
        most = min(most, max(FEWEST, NUMBERS // _size(data.x)))
    return data.take(torch.linspace(0, len(data) - 1, most).round().long())


def _first(tree: Any) -> Tensor | None:
    """The first tensor that holds anything: of several inputs, the one that is looked at."""
    return next((t for t in leaves(tree) if t.numel()), None) if tree is not None else None


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
        found["repeated_features"] = len(places) - len(_keys([flat[:, places].T]).unique())
        largest = places[std[varies].argmax()]
        found |= {
            "largest_feature_std": float(std[varies].max()),
            "median_feature_std": float(std[varies].median()),
            "smallest_feature_std": float(std[varies].min()),
            "largest_feature": int(largest),
            "largest_offset": float(mean.abs().max() / std[varies].median()),
        }
    return found


def _of_targets(y: Tensor, kind: Kind | None) -> dict[str, Any]:
    task = kind.task if kind is not None else "other"
    if task == "classification":
        is_sequence = y.ndim == (3 if y.is_floating_point() else 2)
        return _of_classes(_shares(y)) | {"labels_in_sequence": y.shape[1] if is_sequence else 1}
    if task == "binary" and y.numel() == len(y):
        share = float(y.double().mean())
        return _of_classes(torch.tensor([1 - share, share])) | {"target_mean": share}
    if not y.is_floating_point():
        return {}
    y = y.double()
    return {
        "target_mean": float(y.mean()),
        "target_std": float(y.std(correction=0)),
        "target_low": float(y.min()),
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
        "label_entropy": _entropy(shares),
    }


def _entropy(shares: Tensor) -> float:
    """In nats."""
    return float(-torch.xlogy(shares, shares).sum())


def _neighbours(x: Tensor, y: Tensor, are_classes: bool) -> dict[str, Any]:
    """How often the nearest other example has the same label, and how often that would happen by chance; by how much
    it differs in targets that are numbers.
    """
    step = math.ceil(len(x) / NEIGHBOURS)
    if not are_classes:
        nearest = _nearest(x[::step])
        if nearest is None or not y.is_floating_point() or len(y) != len(x) or y[0].numel() > TARGETS:
            return {}
        y = y[::step].reshape(len(nearest), -1).double()
        return {"neighbour_error": float((y[nearest] - y).square().mean())}
    labels = y.argmax(-1) if y.is_floating_point() and y.ndim > 1 and y.shape[-1] > 1 else y.reshape(len(y), -1)[:, 0]
    if labels.numel() != len(x) or y.numel() > y.shape[0] * max(1, y.shape[-1]):
        return {}
    nearest, labels = _nearest(x[::step]), labels[::step]
    if nearest is None:
        return {}
    agreement = float((labels[nearest] == labels).double().mean())
    shares = labels.unique(return_counts=True)[1].double() / len(labels)
    return {"neighbour_agreement": agreement, "neighbour_chance": float(shares.square().sum())}


def _nearest(x: Tensor) -> Tensor | None:
    """The nearest other example of each `[examples]`, whatever the units of its features; None of too few to tell."""
    x = x.reshape(len(x), -1).float()
    if len(x) < 32 or x.shape[1] > FEATURES:
        return None
    std = x.std(0)
    x = (x - x.mean(0)) / std.clamp_min(float(std.median())).clamp_min(
        1e-30
    )  # rims of images stay as small as they are
    distances = torch.cdist(x, x)
    distances.fill_diagonal_(math.inf)
    return distances.argmin(1)


def _shared(batches: Batches, held: Any) -> dict[str, Any]:
    """The share of validation examples that are found, equal in every number, among those of training."""
    if not isinstance(batches.data, Arrays) or batches.data.x is None or batches.data.lengths is not None:
        return {}
    shapes = [[t.shape[1:] for t in leaves(tree)] for tree in (batches.data.x, held)]
    size = _size(batches.data.x)
    if shapes[0] != shapes[1] or size < 2:
        return {}
    every = math.ceil(len(batches.data) * size / SOUGHT)
    own = [t[::every] for t in leaves(batches.data.x)]
    taken = [t[:: math.ceil(len(t) / EXAMPLES)].to(o) for t, o in zip(leaves(held), own, strict=True)]
    count = len(own[0])
    keys = _keys(own, taken)
    return {
        "shared_with_validation": min(1.0, every * float(torch.isin(keys[count:], keys[:count]).double().mean())),
        "repeated_examples": 1 - len(keys[:count].unique()) / count,
    }


def holds_repeated(x: Any) -> bool:
    """Whether two examples are the same in every number, so that they cannot be told apart."""
    tensors = list(leaves(x))
    return bool(tensors) and len({len(t) for t in tensors}) == 1 and len(_keys(tensors).unique()) < len(tensors[0])


def _size(x: Any) -> int:
    """Numbers of one example; of sequences, those of the longest."""
    sizes = [
        int(t.lengths.max()) * t.values[:1].numel() if isinstance(t, Sequences) else t[0].numel()
        for t in leaves(x, COLUMNS)
    ]
    return max(1, sum(sizes))


def _keys(*parts: list[Tensor]) -> Tensor:
    """A whole number for each example of all parts `[examples]`, the same where all numbers of two examples are.

    Some columns tell most examples apart; only those that they do not are looked at as a whole.
    """
    flat = [[t.reshape(len(t), -1) for t in part] for part in parts]
    most = max(16, NUMBERS // sum(len(part[0]) for part in flat))
    keys = torch.cat([_hashed([t[:, :: max(1, math.ceil(t.shape[1] / most))] for t in part]) for part in flat])
    if all(t.shape[1] <= most for t in flat[0]):
        return keys
    _, place, times = keys.unique(return_inverse=True, return_counts=True)
    alike = times[place] > 1
    begin = 0
    for part in flat:
        end = begin + len(part[0])
        for rows in alike[begin:end].nonzero().flatten().split(max(1, NUMBERS // sum(t.shape[1] for t in part))):
            keys[begin + rows] += _hashed([t[rows] for t in part])
        begin = end
    return keys


def _hashed(flat: list[Tensor]) -> Tensor:
    """Rows of bits times odd numbers, summed modulo 2⁶⁴: in whole numbers, so that no order of summing shows."""
    total: Any = 0
    for number, t in enumerate(flat):
        if t.is_floating_point():
            t = t.float() + 0.0  # there is one zero
            t = t.contiguous().view(torch.int32)
        factors = torch.randint(2**62, (t.shape[1],), generator=generator("keys", number)) * 2 + 1
        total = total + (t.long() * factors.to(t.device)).sum(1)
    return total  # type: ignore[no-any-return]
