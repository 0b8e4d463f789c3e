"""Options of a make function as they come from a command line: text → what its signature asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text.lower()]


def _path(text: str) -> Path:
    if text.startswith("hub:"):  # a data set's name, which a task takes in place of a folder
        return Path(text)
    return Path(text).expanduser().absolute()  # a run may be resumed from another folder


#: What text can become, and its name in a sentence; where several are allowed, the first that fits is taken.
_READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    bool: (_boolean, "true or false"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    Path: (_path, "a path"),
    str: (str, "a word"),
}


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The type hints of a function's parameters; none where they name what cannot be resolved."""
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):
        return {}


def from_text(name: str, value: Any, hint: Any, default: Any = None) -> Any:
    """Read the text of one option; what is no text passes, as does text for a kind that is not known here.

    Without a type hint the default's own type is taken; without either, text stays text.

    >>> from_text("width", "32", int | None), from_text("width", "none", int | None), from_text("flip", "no", bool)
    (32, None, False)

    Raises:
        TypeError: the text is not of the kind that is asked for.
    """
    if not isinstance(value, str):
        return value
    kinds = _kinds(hint, default)
    if NoneType in kinds and value.lower() == "none":
        return None
    words = {str(word): word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}
    if value in words:
        return words[value]
    readers = [reader for kind, reader in _READERS.items() if kind in kinds]
    for read, _ in readers:
        try:
            return read(value)
        except ValueError:
            continue
    if not readers and not words:
        return value
    expected = [*(kind for _, kind in readers), *words, *(["none"] if NoneType in kinds else [])]
    raise TypeError(f"{name} takes {' or '.join(expected)}, got {value!r}")


def _kinds(hint: Any, default: Any) -> tuple[Any, ...]:
    if hint is None:
        if default is None or default is inspect.Parameter.empty:
            return ()
        return (Path if isinstance(default, Path) else type(default),)
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
