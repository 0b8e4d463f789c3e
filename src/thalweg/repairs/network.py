"""Every change of the network, its loss and its scales, by code."""

from __future__ import annotations

from thalweg.repairs.blocks import InsertNorm, InsertResidual
from thalweg.repairs.change import Change
from thalweg.repairs.data import ScaleTargets, StandardiseInputs
from thalweg.repairs.fold import fold
from thalweg.repairs.forward import AddDropout, AugmentImages, SwapActivation
from thalweg.repairs.initialise import Initialise
from thalweg.repairs.loss import DropHead, WeighClasses
from thalweg.repairs.modes import TrainMode, Unfreeze

__all__ = ["CHANGES", "fold"]

_ALL: tuple[Change, ...] = (
    Initialise(),
    SwapActivation(),
    InsertNorm(),
    InsertResidual(),
    AddDropout(),
    AugmentImages(),
    Unfreeze(),
    TrainMode(),
    DropHead(),
    WeighClasses(),
    StandardiseInputs(),
    ScaleTargets(),
)
CHANGES: dict[str, Change] = {change.code: change for change in _ALL}
"""Code → change."""
STRUCTURES = frozenset(CHANGES) - {"initialise", "weigh_classes"}
"""Changes after which the model has other modules; the others leave a model that the weights alone make again."""
