"""Sizes of networks that a user may ask for, checked before anything is read."""

from __future__ import annotations

#: Width of an attention head: few and wide ones cost least on a CPU.
HEAD = 64


def check(**sizes: int) -> None:
    """See that each size is one.

    Raises:
        ValueError: one is less than 1.

    >>> check(width=128, layers=0)
    Traceback (most recent call last):
    ...
    ValueError: layers takes a whole number from 1 on, got 0
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} takes a whole number from 1 on, got {size}")


def heads_of(width: int) -> int:
    """How many attention heads share a width.

    Raises:
        ValueError: they cannot share it.

    >>> heads_of(128), heads_of(32)
    (2, 1)
    """
    heads = max(1, width // HEAD)
    if width % (2 * heads):
        raise ValueError(
            f"width {width} cannot be shared by {heads} attention heads of even width: give a multiple of {HEAD}, "
            "or a smaller even number"
        )
    return heads
