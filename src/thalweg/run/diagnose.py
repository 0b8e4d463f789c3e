"""What is wrong with a training, finished or running: asked of its numbers alone."""

from __future__ import annotations

from pathlib import Path

from thalweg.diagnosis import engine
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.run.run import Run

HISTORY = "history.sqlite"


def diagnose(training: Run | History | Path | str) -> list[Finding]:
    """Say what is wrong with a training and why, the likeliest cause first.

    A cause (a rate too high, inputs of an odd scale) stands before the symptoms that follow from it (a loss that
    oscillates). A healthy training has no finding above a note. It takes milliseconds, and changes nothing.

    Args:
        training: what `fit` returned, a run directory (which may still be training), or a `History`.

    Raises:
        FileNotFoundError: the directory holds no history.
        ValueError: the history is damaged.
        TypeError: it is none of these.

    >>> from thalweg import History, StepRecord
    >>> history = History()
    >>> for step in range(1, 21):
    ...     history.append(StepRecord(step, 0.1 * step, 0.0, {"loss": 2.0**step}))
    >>> [(finding.code, finding.severity) for finding in diagnose(history)]
    [('learning_rate_too_high', 'critical'), ('diverging_loss', 'critical')]
    """
    if isinstance(training, Run):
        return engine.findings(training.history)
    if isinstance(training, History):
        return engine.findings(training)
    if not isinstance(training, str | Path):
        raise TypeError(f"diagnose takes a Run, a History or a run directory, got {type(training).__name__}")
    path = Path(training)
    return engine.findings(History.open(path / HISTORY if path.is_dir() or path.suffix == "" else path))
