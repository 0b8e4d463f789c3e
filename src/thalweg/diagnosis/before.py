"""What can be said before the first update: the facts of data, loss, output and model, read by the files beside."""

from __future__ import annotations

from thalweg.diagnosis import data, pairing, start
from thalweg.records.finding import Finding
from thalweg.records.history import History


def findings(history: History) -> list[Finding]:
    """What the facts of a history say; suspicions, which many sound trainings give rise to, are notes."""
    return [*pairing.findings(history), *start.findings(history), *data.findings(history)]
