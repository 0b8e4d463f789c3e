"""Trainings that fail alone, each for a reason of its own, and train when mended (benchmarks/clinic/stories.py)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "clinic"))
import stories

#: Stories that take seconds; the others are slow.
QUICK = ("deep linear network at its saddle", "XOR net in a local minimum")


def marked(story: stories.Story) -> Any:
    marks = [] if story.title in QUICK else [pytest.mark.slow]
    if story.needs is not None:
        marks.append(pytest.mark.skipif(not story.needs.exists(), reason="the demo cases are not here"))
    return pytest.param(story, id=story.title, marks=marks)


@pytest.mark.parametrize("story", [marked(story) for story in stories.STORIES])
def test_it_fails_alone_and_trains_when_it_is_mended(story: stories.Story) -> None:
    alone, mended = (stories.final(stories.told(story, repair, 0)) for repair in ("off", "full"))
    assert not alone < story.reached
    assert mended < story.reached
