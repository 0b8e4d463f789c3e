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
BEAMS, LENGTH_POWER = 4, 1.0


@dataclass(slots=True)
class Answers:
    """The best answer to each source: its tokens, the end not among them, and log p / length^power."""

    tokens: list[list[int]]
    scores: list[float]


@torch.no_grad()
def search(
    model: Any, source: Tensor, longest: int | Tensor, beams: int = BEAMS, power: float = LENGTH_POWER
) -> Answers:
    """Look for the best answer to each source.

    At each step every begun answer is continued by every token; the best `2 · beams` continuations hold at least
    `beams` that do not end. Those that end are kept if they are among the best so far; a source is done when its worst
    kept answer cannot be beaten any more by one that goes on at no cost, or its answers have as many tokens as they
    may. Where none has ended by then, the best begun one is the answer.

    Args:
        model: in evaluation mode, with `begin(source) -> state` and `step(tokens, state) -> logits, state`; each
            tensor of a state has a row for every answer on its first axis, and those whose names begin with "source"
            are alike for all answers to a source.
        source: tokens `[batch, length]`.
        longest: tokens of an answer at most, its end included: for all sources, or for each `[batch]`.
        beams: answers kept begun for each source.
        power: of the length, that scores are divided by.
    """
    batch, device = len(source), source.device
    limit = torch.as_tensor(longest, device=device).expand(batch)
    longest = int(limit.max())
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
        if length == 1:
            total[:, :, END] = -math.inf  # an empty answer is none
        kinds = total.shape[2]
        top, places = total.flatten(1).topk(min(2 * beams, beams * kinds), dim=1)
        parents, tokens = places // kinds, places % kinds
        ends = tokens == END
        counted = ends & (limit >= length)[:, None]
        normalised = top.masked_fill(~counted, -math.inf) / length**power
        written = begun.gather(1, parents[:, :, None].expand(-1, -1, length))[:, :, 1:]
        ended, best = _kept(ended, best, F.pad(written, (0, longest - length + 1), value=PADDING), normalised)
        scores, chosen = top.masked_fill(ends, -math.inf).topk(beams, dim=1)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        begun = torch.cat((begun.gather(1, parents[:, :, None].expand(-1, -1, length)), tokens[:, :, None]), dim=2)
        ended, best = _cut(ended, best, begun, scores / length**power, limit == length)
        if bool(((best[:, -1] >= scores[:, 0] / limit**power) | (limit <= length)).all()):
            break
        rows = (first_row + parents).flatten()
        moved = {name: part.index_select(0, rows) for name, part in state.items() if not name.startswith("source")}
        state = {**state, **moved}
    found = [[token for token in row if token != PADDING] for row in ended[:, 0].tolist()]
    return Answers(found, best[:, 0].tolist())


def _kept(ended: Tensor, best: Tensor, found: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The best of the answers that had ended and of those that end now, the best first."""
    best, chosen = torch.cat((best, scores), dim=1).topk(best.shape[1], dim=1)
    both = torch.cat((ended, found), dim=1)
    return both.gather(1, chosen[:, :, None].expand(-1, -1, ended.shape[2])), best


def _cut(ended: Tensor, best: Tensor, begun: Tensor, scores: Tensor, is_last: Tensor) -> tuple[Tensor, Tensor]:
    """Of sources that are at their last token, the best begun answer where none has ended."""
    is_cut = is_last & ~best[:, 0].isfinite()
    written = F.pad(begun[:, 0, 1:], (0, ended.shape[2] - begun.shape[2] + 1), value=PADDING)
    ended[:, 0] = torch.where(is_cut[:, None], written, ended[:, 0])
    best[:, 0] = torch.where(is_cut, scores[:, 0], best[:, 0])
    return ended, best
