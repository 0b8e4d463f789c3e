"""Which steps are reported and which are sampled: by the number of the step alone, so that a run repeats and resumes.

What is dear is taken at sampled steps: once in a hundred, and at three before the first hundred is full, for there most
goes wrong and short trainings have no later ones.
"""

from __future__ import annotations

#: Every step is reported up to the first of these, then one in so many.
REPORT_FIRST, REPORT_EVERY = 20, 10
#: Sampled are these steps, then one in so many.
EARLY, EVERY = (10, 20, 50), 100


def is_reported(step: int) -> bool:
    """Whether a step is reported.

    >>> [step for step in range(1, 61) if is_reported(step)][17:]
    [18, 19, 20, 30, 40, 50, 60]
    """
    return step <= REPORT_FIRST or step % REPORT_EVERY == 0


def is_sampled(step: int) -> bool:
    """Whether a step is sampled.

    >>> [step for step in range(1, 301) if is_sampled(step)]
    [10, 20, 50, 100, 200, 300]
    """
    return step % EVERY == 0 or step in EARLY


def is_awaited(step: int) -> bool:
    """Whether the next step is sampled, so that the update of this one has to be known then."""
    return is_sampled(step + 1)
