"""Which frames say which unit of a known sentence: the likeliest path through CTC's lattice (Viterbi)."""

from __future__ import annotations

import itertools

import numpy as np
from torch import Tensor


def align(scores: Tensor, labels: list[int]) -> list[tuple[int, int]]:
    """For each label (from 1 on) its first frame and the one after its last, in `scores` `[time, 1 + units]`.

    Raises:
        ValueError: there are fewer frames than the labels need.
    """
    log_p = scores.double().log_softmax(-1).cpu().numpy()
    states = [0]
    for label in labels:
        states += [label, 0]
    time, count = len(log_p), len(states)
    if time < needed(labels):
        raise ValueError(f"{len(labels)} units need at least {needed(labels)} frames, there are {time}")
    emitted = log_p[:, states]
    # A step back by two skips a blank, which is between two equal labels not allowed, nor from label to label's blank.
    skips = np.array([s > 1 and states[s] != 0 and states[s] != states[s - 2] for s in range(count)])
    value = np.full(count, -np.inf)
    value[:2] = emitted[0, :2]
    came = np.zeros((time, count), dtype=np.int64)
    for t in range(1, time):
        steps = np.full((3, count), -np.inf)
        steps[0] = value
        steps[1, 1:] = value[:-1]
        steps[2, 2:] = np.where(skips[2:], value[:-2], -np.inf)
        came[t] = steps.argmax(0)
        value = steps.max(0) + emitted[t]
    state = count - 1 if count == 1 or value[-1] >= value[-2] else count - 2
    path = [state]
    for t in range(time - 1, 0, -1):
        state -= came[t, state]
        path.append(state)
    places = np.array(path[::-1])
    spans = []
    for number in range(len(labels)):
        frames = np.flatnonzero(places == 2 * number + 1)
        spans.append((int(frames[0]), int(frames[-1]) + 1))
    return spans


def needed(labels: list[int]) -> int:
    """Frames that CTC needs for labels: one each, and a blank between two that are equal."""
    return len(labels) + sum(a == b for a, b in itertools.pairwise(labels))
