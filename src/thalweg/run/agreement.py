"""Whether what was asked for agrees: targets with what is measured, metrics with the data, clipping with the rule."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from thalweg.loop.evaluate import BATCH_SIZE
from thalweg.loop.metrics import NAMES, Metrics
from thalweg.records.settings import Settings, unknown
from thalweg.step.batches import Batches


def check_measured(settings: Settings, metrics: Metrics, has_outputs: bool, has_validation: bool) -> None:
    """A target must be something that will be measured, and metrics need outputs to be taken of.

    Raises:
        ValueError: they are not.
    """
    if metrics.names and not has_outputs:
        raise ValueError("metrics need the model's outputs, and this model returns its loss alone; give loss= instead")
    known = ["loss", "epoch_loss", "gradient_norm", *metrics.names]
    if has_validation:
        known += [f"validation_{name}" for name in ("loss", *metrics.names)]
    for name in settings.target or {}:
        if name not in known:
            raise ValueError(_unmeasured(name, known, metrics, has_validation))


def _unmeasured(name: str, known: list[str], metrics: Metrics, has_validation: bool) -> str:
    """The sentence for a target that will not be measured: what to give, so that it is."""
    metric = name.removeprefix("validation_")
    wanted = f"metrics=[{metric!r}]" if metric in NAMES and metric not in metrics.names else ""
    if metric != name and not has_validation and metric in ("loss", *metrics.names, *NAMES):
        words = f"the target {name!r} needs held-out data: give validation_data or validation_split"
        return f"{words}, and {wanted}" if wanted else words
    if wanted:
        return f"the target {name!r} is not measured: give {wanted}"
    return f"{unknown('target', name, known)}; a metric is measured where it is named in metrics="


def check_classes(metrics: Metrics, batches: Batches) -> None:
    """Refuse to count classes where the targets are real numbers: neither whole ones nor probabilities.

    Raises:
        ValueError: a metric of classes was asked for.
    """
    if not metrics.of_classes:
        return
    y = batches.first(BATCH_SIZE)[1]
    if isinstance(y, Tensor) and y.is_floating_point() and bool((((y < 0) | (y > 1)) & (y != y.round())).any()):
        raise ValueError(f"{metrics.of_classes[0]} counts classes, and the targets are real numbers: take rmse or r2")


def check_clipping(optimizer: Optimizer, settings: Settings) -> None:
    """Refuse to clip the gradients of a rule that compares them with the loss.

    Raises:
        ValueError: clipping was asked for.
    """
    if (settings.clip_norm or settings.clip_value) is not None and not getattr(optimizer, "clips", True):
        name = settings.optimizer if isinstance(settings.optimizer, str) else type(optimizer).__name__
        raise ValueError(
            f"{name} goes no further than the loss falls, and a clipped gradient is not the loss's: leave clip_norm "
            "and clip_value out"
        )
