"""One line of a terminal that is rewritten while something runs; elsewhere a plain line now and then."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from thalweg.reports.words import width_of

#: Seconds between two looks of the live line, and between two plain lines where there is no terminal.
LIVE, PLAIN = 0.2, 10.0


class Line:
    """Shows parts on `stream`, standard error by default.

    On a terminal one line is rewritten at most five times a second; elsewhere a plain line comes at most every ten
    seconds. There is no thread: whoever shows asks whether it is time. A stream that has gone away (a closed session)
    silences the line and never stops what is shown.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = is_terminal(self._stream)
        self._every = LIVE if self._live else PLAIN
        self._due = 0.0
        self._drawn = False

    def _is_due(self, now: float) -> bool:
        """Whether it is time to show something; the next time is a while later."""
        if now < self._due:
            return False
        self._due = now + self._every
        return True

    def _show(self, parts: Sequence[str]) -> None:
        """Rewrite the line, with the parts to keep in a narrow window first."""
        if self._live:
            self._write(f"\r{_fitting(parts, self._columns() - 1)}\x1b[K")
            self._drawn = True
        else:
            self._write(f"{', '.join(parts)}\n")

    def _clear(self) -> None:
        """Make room where the line was."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # closed: nobody is looking any more
            self._live = False
            self._every = self._due = math.inf

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose lines can be rewritten."""
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _fitting(parts: Sequence[str], columns: int) -> str:
    """As many of the parts as a line of `columns` takes."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if width_of(longer) > columns:
            break
        line = longer
    return line
