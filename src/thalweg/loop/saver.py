"""When and from where checkpoints are written: small states by a thread of their own, large ones in place."""

from __future__ import annotations

import threading
from collections.abc import Callable

from thalweg.loop.checkpoint import Checkpoint, Checkpoints
from thalweg.tensors.devices import WAITING
from thalweg.tensors.named import copied, mapped, num_bytes

#: States up to this size are copied and written while training goes on; larger ones are written at once, in place,
#: so that a training never needs a second copy of a large model.
COPY_BYTES = 16 << 20
#: A thread that writes waits at least this long between two checkpoints: a network that trains an epoch in
#: milliseconds would do nothing else. What waits is replaced by what is newer.
PACE_SECONDS = 1.0


class Saver:
    """Takes the state of a training at a step and brings it to the disk."""

    def __init__(self, checkpoints: Checkpoints, before: Callable[[], bool]) -> None:
        """`before` is called ahead of each write, since a checkpoint must not be on the disk without its history; it
        returns whether it succeeded.
        """
        self.checkpoints = checkpoints
        self.before = before
        self._waiting: dict[str, Checkpoint] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def save(self, live: Checkpoint, best: bool = False) -> bool:
        """Save a state given as live tensors, which are copied or written before this returns.

        Returns:
            Whether it is on the disk already.
        """
        if num_bytes((live.model, live.state)) > COPY_BYTES:
            self.finish()
            return self._write(live, best)
        state = mapped(lambda t: t.detach().clone(), live.state)
        taken = Checkpoint(live.step, copied(live.model), state, live.best_step)
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._waiting["best" if best else "latest"] = taken
            if best:  # newer than whatever waits
                self._waiting.pop("latest", None)
            self._changed.notify()
        self._start()
        return False

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_behind, name="thalweg-saver", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Wait until everything taken is written."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._thread = None
        self._closing = False
        if self._failure is not None:
            raise self._failure

    def _write(self, checkpoint: Checkpoint, best: bool) -> bool:
        is_told = self.before()
        is_written = self.checkpoints.write(checkpoint, best)
        if not is_told:  # a full disk, on which the checkpoint may have made room
            self.before()
        return is_written

    def _write_behind(self) -> None:
        owed: Checkpoint | None = None  # the best so far, which the disk did not take
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                # The best first: a later state must never be on the disk before the best that it remembers.
                kind = "best" if "best" in self._waiting else "latest"
                checkpoint = self._waiting.pop(kind)
            try:
                with WAITING:
                    if kind == "best":
                        owed = None if self._write(checkpoint, best=True) else checkpoint
                    elif owed is None or self._write(owed, best=True):
                        owed = None
                        self._write(checkpoint, best=False)
            except BaseException as failure:  # handed to the training's thread
                self._failure = failure
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=PACE_SECONDS)
