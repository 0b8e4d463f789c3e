"""A search on the terminal: one live line while it runs, from its second second on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TextIO

from thalweg.reports.line import Line
from thalweg.reports.words import printable

#: Seconds that nobody needs to be told of.
QUIET = 2.0


class Progress(Line):
    """Shows how far a search is; the live line is cleared in the end. `told` is called only when a line is due."""

    def __init__(self, stream: TextIO | None = None, quiet: float = QUIET) -> None:
        super().__init__(stream)
        self._due = time.monotonic() + quiet

    def show(self, told: Callable[[], Iterable[str]]) -> None:
        """Show the parts, those to keep in a narrow window first, if it is time to."""
        if self._is_due(time.monotonic()):
            self._show([printable(part) for part in told()])

    def close(self) -> None:
        """Clear the live line."""
        self._clear()
