"""Whether others computed on this machine while something was timed. Linux only: elsewhere nobody is seen."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

MOST = 0.1
"""Cores that others may take. Two threads that wait for each other lose far more than one more process takes."""


class Others:
    """Cores that processes other than the given ones take, on average while this is open; 0 where nobody can tell."""

    def __init__(self, own: Sequence[int]) -> None:
        self.own, self.cores = own, 0.0

    def __enter__(self) -> Others:
        self.started, self.before = time.monotonic(), self._seconds(self.own)
        return self

    def __exit__(self, *error: object) -> None:
        taken = self._seconds(self.own) - self.before
        self.cores = max(0.0, round(taken / (time.monotonic() - self.started), 3))

    @staticmethod
    def _seconds(own: Sequence[int]) -> float:
        if not Path("/proc/stat").exists():
            return 0.0
        user, nice, system, _idle, _waiting, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
        busy = user + nice + system + sum(interrupts[:2])
        return (busy - sum(map(_ticks, own))) / os.sysconf("SC_CLK_TCK")


def _ticks(process: int) -> int:
    """Of a process and of those it has waited for; none where it has ended. The name in brackets may hold spaces."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return sum(map(int, fields[11:15]))
