"""What a search is of, in words and digests that another process can compare with its own."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from thalweg.records.settings import Settings
from thalweg.run.choices import Chosen
from thalweg.step.batches import Batches
from thalweg.step.forward import Forward
from thalweg.step.losses import Loss
from thalweg.tensors.named import leaves

#: Rows of the data that are looked at.
ROWS = 64


def identity(forward: Forward, loss: Loss | None, chosen: Chosen, settings: Settings) -> dict[str, Any]:
    """Model, data and length of the trainings, as JSON holds them; digests are 64 hex digits."""
    named = forward.weights()
    shapes = {name: list(t.shape) for name, t in named.items()}
    limits = [f"{value} {name}" for name in ("epochs", "steps") if (value := getattr(settings, name)) is not None]
    return {
        "model": f"{type(forward.model).__name__} of {sum(t.numel() for t in named.values())} numbers",
        "layers": _digest(repr(sorted(shapes.items())).encode()),
        "first weights": _of_tensors(named[name] for name in sorted(named)),
        "data": _counted(chosen.batches),
        "first rows": _of_tensors(leaves(chosen.batches.first(ROWS))),
        "validation data": _counted(chosen.validation) if chosen.validation is not None else None,
        "first validation rows": _of_tensors(leaves(chosen.validation.first(ROWS))) if chosen.validation else None,
        "loss": loss.name if loss is not None else "the model's own",
        "batch size": chosen.decided["batch_size"],
        "length": " or ".join(limits),
        "seed": settings.seed,
    }


def _counted(batches: Batches) -> str:
    count = batches.num_examples
    if count is not None:
        return f"{count} examples"
    return "batches" if batches.per_epoch is None else f"{batches.per_epoch} batches"


def _of_tensors(tensors: Any) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(f"{t.dtype} {list(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
