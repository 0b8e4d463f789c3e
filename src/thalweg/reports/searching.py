"""A search on the terminal: one live line while it runs, from its second second on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from thalweg.reports.terminal import LIVE, PLAIN, fitting, is_terminal
from thalweg.reports.words import printable

#: Seconds that nobody needs to be told of.
QUIET = 2.0


class Progress:
    """Shows how far a search is on `stream`, standard error by default.

    On a terminal one line is rewritten at most five times a second, and cleared in the end; elsewhere a plain line
    comes at most every ten seconds. `told` is called only when a line is due.
    """

    def __init__(self, stream: TextIO | None = None, quiet: float = QUIET) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = is_terminal(self._stream)
        self._due = time.monotonic() + quiet
        self._drawn = False

    def show(self, told: Callable[[], Sequence[str]]) -> None:
        """Show the parts, those to keep in a narrow window first, if it is time to."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (LIVE if self._live else PLAIN)
        parts = [printable(part) for part in told()]
        if self._live:
            self._write(f"\r{fitting(parts, self._columns() - 1)}\x1b[K")
            self._drawn = True
        else:
            self._write(f"{', '.join(parts)}\n")

    def close(self) -> None:
        """Clear the live line."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # closed: nobody is looking any more
            self._due = float("inf")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80
