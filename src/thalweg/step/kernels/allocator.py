"""The C library's thresholds for giving memory back to the system, raised while training.

By default glibc maps every block above 128 kB anew and returns it when it is freed, so that each step pays thousands of
page faults for the same activations (`mallopt(3)`). Kept, they are paid once. No number changes by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

#: Parameters of `mallopt` (malloc.h): what is kept at the top of the heap, what is asked for at once, what is mapped.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_RAISED = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
#: What is set afterwards. Untouched, the first two move by themselves, up to these values as soon as a large block has
#: been freed; once set they stand still, so they are left where a process with large tensors would have them.
_LOWERED = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10}

_lock = threading.Lock()
_users = 0


def is_available() -> bool:
    """Whether this process runs on glibc, whose allocator takes these thresholds."""
    return _library() is not None


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Memory that is freed inside stays with the process; afterwards it goes back to the system."""
    global _users
    library = _library()
    if library is None:
        yield
        return
    with _lock:
        _users += 1
        _set(library, _RAISED)
    try:
        yield
    finally:
        if _lock is not None:  # as at the end of a process that has not closed its step
            with _lock:
                _users -= 1
                if not _users:
                    _set(library, _LOWERED)
                    library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for parameter, value in values.items():
        library.mallopt(parameter, value)


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such handle
        return None
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None
