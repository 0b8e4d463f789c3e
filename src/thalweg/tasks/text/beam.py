"""Beam search: the likeliest answers, several begun ones kept for each source, all sources at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from thalweg.tasks.text.tokens import BEGIN, END, PADDING

#: Answers that are kept begun, and the power of the length that a score is divided by (Wu et al. 2016, section 7, in
#: its simplest form): without it, short answers win.
BEAMS, LENGTH_POWER = 4, 0.8


@dataclass(slots=True)
class Answers:
    """The best answer to each source: its tokens, the end not among them, and log p / length^power."""

    tokens: list[list[int]]
    scores: list[float]


@torch.no_grad()
def search(model: Any, source: Tensor, longest: int, beams: int = BEAMS, power: float = LENGTH_POWER) -> Answers:
    """Look for the best answer to each source.

    At each step every begun answer is continued by every token; the best `2 · beams` continuations hold at least
    `beams` that do not end. Those that end are kept if they are among the best so far; a source is done when its worst
    kept answer cannot be beaten any more by one that goes on at no cost.

    Args:
        model: in evaluation mode, with `begin(source) -> state` and `step(tokens, state) -> logits, state`; each
            tensor of a state has a row for every answer on its first axis, and those whose names begin with "source"
            are alike for all answers to a source.
        source: tokens `[batch, length]`.
        longest: tokens of an answer at most, its end included.
        beams: answers kept begun for each source.
        power: of the length, that scores are divided by.
    """
    batch, device = len(source), source.device
    state = {name: part.repeat_interleave(beams, 0) for name, part in model.begin(source).items()}
    begun = torch.full((batch, beams, 1), BEGIN, device=device)
    scores = torch.full((batch, beams), -math.inf, device=device)
    scores[:, 0] = 0.0  # all beams begin alike: only one counts
    ended = torch.full((batch, beams, longest), PADDING, device=device)
    best = torch.full((batch, beams), -math.inf, device=device)
    first_row = torch.arange(batch, device=device)[:, None] * beams
    for length in range(1, longest + 1):
        logits, state = model.step(begun[:, :, -1].flatten(), state)
        total = scores[:, :, None] + F.log_softmax(logits.float(), dim=-1).view(batch, beams, -1)
        kinds = total.shape[2]
        top, places = total.flatten(1).topk(min(2 * beams, beams * kinds), dim=1)
        parents, tokens = places // kinds, places % kinds
        ends = tokens == END
        normalised = top.masked_fill(~ends, -math.inf) / length**power
        written = begun.gather(1, parents[:, :, None].expand(-1, -1, length))[:, :, 1:]
        ended, best = _kept(ended, best, F.pad(written, (0, longest - length + 1), value=PADDING), normalised)
        scores, chosen = top.masked_fill(ends, -math.inf).topk(beams, dim=1)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        begun = torch.cat((begun.gather(1, parents[:, :, None].expand(-1, -1, length)), tokens[:, :, None]), dim=2)
        if bool((best[:, -1] >= scores[:, 0] / longest**power).all()):
            break
        rows = (first_row + parents).flatten()
        moved = {name: part.index_select(0, rows) for name, part in state.items() if not name.startswith("source")}
        state = {**state, **moved}
    return _read(ended, best, begun, scores / longest**power)


def _kept(ended: Tensor, best: Tensor, found: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the answers that had ended and of those that end now, the best first."""
    best, chosen = torch.cat((best, scores), dim=1).topk(best.shape[1], dim=1)
    both = torch.cat((ended, found), dim=1)
    return both.gather(1, chosen[:, :, None].expand(-1, -1, ended.shape[2])), best


def _read(ended: Tensor, best: Tensor, begun: Tensor, scores: Tensor) -> Answers:
    """The best answer of each source; where none has ended, the best begun one."""
    tokens, found = [], []
    for row in range(len(best)):
        if math.isfinite(float(best[row, 0])):
            tokens.append([token for token in ended[row, 0].tolist() if token != PADDING])
            found.append(float(best[row, 0]))
        else:
            tokens.append(begun[row, 0, 1:].tolist())
            found.append(float(scores[row, 0]))
    return Answers(tokens, found)
