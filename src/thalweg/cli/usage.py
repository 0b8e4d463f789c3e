"""Wrong usage in one sentence with the nearest right word, and what all commands print by."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn


class Usage(Exception):
    """The command was wrongly put: exit code 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `Usage`, and that takes no half-written flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """Every flag, with its dashes, and what it does."""
        return dict(self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process."""
        raise Usage(f"{message} (see {self.prog} --help)")


def split(words: Sequence[str], parser: Parser) -> tuple[list[str], dict[str, str]]:
    """Words that the parser knows, and the flags that it does not with their values; a lone flag's value is "true".

    Done before argparse, which would take the value of an unknown flag for a positional word.
    """
    known: list[str] = []
    further: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not word.startswith("--") or word == "--" or flag in parser.flags:
            known.append(word)
        elif equals:
            further[flag] = value
        else:
            further[flag] = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
    return known, further


def guess(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest one, or all."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {near[0]}?" if near else f"; known are {', '.join(known) or 'none'}"


def say(text: str) -> None:
    """One line on standard error; a reader who has left is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        print(f"thalweg: {text}", file=sys.stderr)


@contextlib.contextmanager
def output_aside() -> Iterator[None]:
    """Inside, whatever is printed goes to standard error: standard output is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def print_json(value: Any) -> None:
    """One JSON object on standard output, on one line; numbers that are not finite become null."""
    print(json.dumps(_finite(value), allow_nan=False, default=str))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, two spaces between; what could steer a terminal is replaced."""
    lines = [[_printable(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
