"""Scores of the units over time → the likeliest sentence, with or without a language model.

Prefix search (Graves & Jaitly 2014, algorithm 1; Hannun et al. 2014): all alignments of one sentence count together.
A sentence s is valued log p(s | sound) + `weight` · log p(s | language) + `bonus` · |s|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.tasks.speech.language import EDGE, LanguageModel

LOWEST = float("-inf")

#: Units of a frame below this log-probability are not tried: together they are less than 1 % of it.
LEAST = math.log(1e-3)


@dataclass(frozen=True)
class Fusion:
    """A language model, what it counts beside the sound, and what each unit is given for being said."""

    model: LanguageModel
    weight: float
    bonus: float


class _Hypothesis:
    """What was said so far: log p of its alignments that end in a blank, and of those that end in its last unit."""

    __slots__ = ("blank", "history", "language", "unit")

    def __init__(self, language: float, history: tuple[str, ...]) -> None:
        self.blank = self.unit = LOWEST
        self.language = language  # what the language model and the bonus add
        self.history = history


def search(scores: Tensor, units: list[str], width: int = 16, fusion: Fusion | None = None) -> tuple[list[int], float]:
    """The best sentence for `scores` `[time, 1 + units]` (logits; 0 is the blank): its units' numbers (from 1 on), and
    its value.
    """
    log_p = scores.double().log_softmax(-1).cpu().numpy()
    first = _Hypothesis(0.0, fusion.model.start() if fusion else ())
    first.blank = 0.0
    beam: dict[tuple[int, ...], _Hypothesis] = {(): first}
    for frame in log_p:
        beam = _best(_extended(beam, frame, units, fusion), width)
    ended = {said: _value(found) + _end(found, fusion) for said, found in beam.items()}
    best = max(ended, key=lambda said: ended[said])
    return list(best), ended[best]


def single(scores: Tensor) -> Tensor:
    """The log-probability of each unit as the one and only thing that was said, `[units]`, over all alignments."""
    time, count = len(scores), scores.shape[1] - 1
    log_p = scores.double().log_softmax(-1)[:, None].expand(time, count, 1 + count)
    labels, ones = torch.arange(1, 1 + count)[:, None], torch.ones(count, dtype=torch.int64)
    return -F.ctc_loss(log_p, labels, time * ones, ones, reduction="none")


def greedy(scores: Tensor) -> list[list[int]]:
    """The likeliest alignment of each utterance `[batch, time, units]` as units' numbers: no language model."""
    best = scores.argmax(-1)
    changed = torch.ones_like(best, dtype=torch.bool)
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    kept = changed & (best > 0)
    return [row[keep].tolist() for row, keep in zip(best.cpu(), kept.cpu(), strict=True)]


def _extended(
    beam: dict[tuple[int, ...], _Hypothesis], frame: npt.NDArray[Any], units: list[str], fusion: Fusion | None
) -> dict[tuple[int, ...], _Hypothesis]:
    """Every hypothesis, and every longer one that this frame may make of it."""
    likely = [int(unit) for unit in np.flatnonzero(frame > LEAST) if unit]
    found: dict[tuple[int, ...], _Hypothesis] = {}
    for said, old in beam.items():
        both = _sum(old.blank, old.unit)
        same = found.get(said)
        if same is None:
            same = found[said] = _Hypothesis(old.language, old.history)
        same.blank = _sum(same.blank, both + frame[0])
        if said:
            same.unit = _sum(same.unit, old.unit + frame[said[-1]])
        for unit in likely:
            longer = (*said, unit)
            new = found.get(longer)
            if new is None:
                new = found[longer] = _longer(old, units[unit - 1], fusion)
            before = old.blank if said and said[-1] == unit else both  # a unit twice needs a blank between
            new.unit = _sum(new.unit, before + frame[unit])
    return found


def _longer(old: _Hypothesis, unit: str, fusion: Fusion | None) -> _Hypothesis:
    if fusion is None:
        return _Hypothesis(0.0, ())
    gain = fusion.weight * fusion.model.after(old.history, unit) + fusion.bonus
    return _Hypothesis(old.language + gain, fusion.model.next(old.history, unit))


def _best(found: dict[tuple[int, ...], _Hypothesis], width: int) -> dict[tuple[int, ...], _Hypothesis]:
    if len(found) <= width:
        return found
    return dict(sorted(found.items(), key=lambda pair: -_value(pair[1]))[:width])


def _value(found: _Hypothesis) -> float:
    return _sum(found.blank, found.unit) + found.language


def _end(found: _Hypothesis, fusion: Fusion | None) -> float:
    return fusion.weight * fusion.model.after(found.history, EDGE) if fusion else 0.0


def _sum(a: float, b: float) -> float:
    """log(eᵃ + eᵇ)."""
    if a < b:
        a, b = b, a
    return a if b == LOWEST else a + math.log1p(math.exp(b - a))
