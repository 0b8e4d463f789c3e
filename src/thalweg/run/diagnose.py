"""What is wrong with a training, finished or running: asked of its numbers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from thalweg.diagnosis import engine
from thalweg.records.finding import Finding
from thalweg.records.history import History
from thalweg.run.run import Run

HISTORY = "history.sqlite"


def diagnose(training: Run | History | Path | str) -> list[Finding]:
    """Say what is wrong with a training and why, the likeliest cause first.

    A cause (a rate too high, inputs of an odd scale) stands before the symptoms that follow from it (a loss that
    oscillates). A healthy training has no finding above a note. A training that was mended is judged by what came after
    its last repair. It takes milliseconds, and changes nothing.

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
        return _found(training.history)
    if isinstance(training, History):
        return _found(training)
    if not isinstance(training, str | Path):
        raise TypeError(f"diagnose takes a Run, a History or a run directory, got {type(training).__name__}")
    path = Path(training)
    return _found(History.open(path / HISTORY if path.is_dir() or path.suffix == "" else path))


def _found(history: History) -> list[Finding]:
    """Since the last repair that was kept, by the steps of the whole."""
    since = max((action.step for action in history.actions if action.kept), default=0)
    found = engine.findings(history.since(since)) if since else engine.findings(history)
    return [replace(finding, step=finding.step + since) for finding in found] if since else found
