"""`fit`'s keywords as flags and in a YAML file: both are read from `Settings`."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import thalweg
from thalweg.cli.usage import Parser, Usage

#: Keywords that hold objects, which no flag can.
OBJECTS = ("validation_data", "callbacks")

#: Keywords whose type says nothing about their text.
_KINDS = {"learning_rate": "float | str"}

_SETTINGS = {setting.name: setting for setting in fields(thalweg.Settings) if setting.name not in OBJECTS}

NAMES = tuple(_SETTINGS)


def add_settings(parser: Parser, leave_out: Collection[str] = ()) -> None:
    """A flag for each keyword; only those that are given appear in what is parsed."""
    group = parser.add_argument_group("keywords of fit")
    for name in _SETTINGS:
        if name in leave_out:
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": meaning_of(name), "dest": name}
        if _kinds(name) == {"bool"}:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": lambda text, name=name: from_text(name, text), "metavar": "VALUE"}
        group.add_argument(flag(name), **options)


def meaning_of(name: str) -> str:
    """What a keyword of `fit` means, for a parser's help."""
    words: str = _SETTINGS[name].metadata["meaning"].replace("%", "%%")
    choices = _SETTINGS[name].metadata["choices"]
    return f"{words} ({', '.join(choices)})" if choices else words


def given(parsed: argparse.Namespace) -> dict[str, Any]:
    """The keywords that were given as flags."""
    return {name: value for name, value in vars(parsed).items() if name in _SETTINGS}


def flag(name: str) -> str:
    """`time_budget` → `--time-budget`."""
    return f"--{name.replace('_', '-')}"


def from_text(name: str, text: str) -> Any:
    """The value of a keyword as it is written in a flag.

    Raises:
        Usage: the text is not of the keyword's kind.
    """
    kinds = _kinds(name)
    if name == "metrics":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if text.lower() == "none" and "None" in kinds:
        return None
    if any(kind.startswith("Mapping") for kind in kinds):
        return pairs(name, text, numbers=name == "target")
    if "bool" in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind, read in (("int", int), ("float", float)):
        if kind in kinds:
            try:
                return read(text)
            except ValueError:
                continue
    if kinds & {"str", "Any"}:
        return text
    expected = "a whole number" if "int" in kinds else "a number"
    raise Usage(f"{flag(name)} takes {expected}{' or none' if 'None' in kinds else ''}, got {text!r}")


def from_file(path: str) -> dict[str, Any]:
    """The words of a YAML file, with dashes or underscores; text is read as in a flag.

    Raises:
        Usage: there is no such file, or it holds no keywords with values.
    """
    import yaml

    try:
        words = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Usage(f"there is no file {path}: --config takes a YAML file with keywords of fit") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Usage(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if words is None:
        return {}
    if not isinstance(words, Mapping):
        raise Usage(f"{path} holds a {type(words).__name__}, but keywords with values were expected, as in epochs: 20")
    return {name: _plain(name, value) for name, value in ((str(k).replace("-", "_"), v) for k, v in words.items())}


def literal(text: Any) -> Any:
    """Text as Python would read it, with true, false and none in any case; other text and no text stay as they are."""
    if not isinstance(text, str):
        return text
    plain = {"true": True, "false": False, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _plain(name: str, value: Any) -> Any:
    if name not in _SETTINGS:
        return value
    if value is False and "off" in _SETTINGS[name].metadata["choices"]:  # YAML 1.1 reads a bare off as false
        return "off"
    return from_text(name, value) if isinstance(value, str) else value


def _kinds(name: str) -> set[str]:
    return {kind.strip() for kind in _KINDS.get(name, str(_SETTINGS[name].type)).split("|")}


def pairs(name: str, text: str, numbers: bool) -> dict[str, Any]:
    """NAME=VALUE[,NAME=VALUE]; a comma inside a value, as in betas=(0.9,0.99), does not end it."""
    pairs: dict[str, Any] = {}
    for pair in re.split(r",(?=[^,=()\[\]]+=)", text):
        word, equals, value = (part.strip() for part in pair.partition("="))
        if not (word and equals and value):
            raise Usage(f"{flag(name)} takes NAME=VALUE[,NAME=VALUE], got {text!r}")
        try:
            pairs[word] = float(value) if numbers else literal(value)
        except ValueError as error:
            raise Usage(f"{flag(name)} takes numbers, got {pair!r}") from error
    return pairs
