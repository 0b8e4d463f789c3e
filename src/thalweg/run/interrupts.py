"""Ctrl-C and SIGTERM end a training after its current step, with a last checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Interruptible(Protocol):
    """What looks at `interrupt` between two updates."""

    interrupt: bool


@contextmanager
def interruptible(training: Interruptible) -> Iterator[None]:
    """Inside, the first signal asks the training to stop; a second Ctrl-C raises `KeyboardInterrupt` at once.

    After Ctrl-C `fit` returns its run, `stopped_because` "interrupted"; after SIGTERM the signal is raised again when
    all is saved, for whoever handled it before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        training.interrupt = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGTERM in received:
        signal.raise_signal(signal.SIGTERM)
