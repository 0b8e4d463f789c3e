"""`thalweg find-lr`: a search for the learning rate of a task's or script's training."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import thalweg
from thalweg.cli.flags import flag, from_text, meaning_of, pairs
from thalweg.cli.training import found
from thalweg.cli.usage import Usage, guess, output_aside, print_json, say

if TYPE_CHECKING:
    from thalweg import LearningRate
    from thalweg.run.recipe import MakeFunction

#: Keywords of `find_lr` that are no keywords of `fit`, with the kind of number or text and what they mean.
_OWN: dict[str, tuple[Callable[..., Any], str]] = {
    "method": (str, "auto (the race), halving, grid, random, range; tpe and asha with Optuna"),
    "low": (float, "lowest rate; default: the rule's own"),
    "high": (float, "highest rate"),
    "trials": (int, "rates of a grid, or trials"),
    "budget": (float, "at most so many trainings"),
    "also": (pairs, "further options to search: weight_decay=(1e-4,0.3),momentum=[0.8,0.9]"),
    "storage": (str, "file that keeps the trials; several shells with the same one share the work"),
}
#: Those that both have; a task or script may set them.
_SHARED = ("optimizer", "batch_size", "epochs", "steps", "validation_split", "seed", "device", "verbose")
_OF_DATA = ("validation_data",)
#: What only the rule can say to be right; a task or script may bring it.
_OF_RULE = ("low", "high", "also")


def add_find_lr(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg find-lr`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("source", metavar="TASK | script.py:function", help="where model and data come from")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--picture", metavar="FILE", help="write loss against rate, as .html or .svg")
    group = parser.add_argument_group("keywords of find_lr")
    for word, (_, words) in _OWN.items():
        group.add_argument(flag(word), dest=word, metavar="VALUE", default=argparse.SUPPRESS, help=words)
    for word in _SHARED:
        group.add_argument(flag(word), dest=word, metavar="VALUE", default=argparse.SUPPRESS, help=meaning_of(word))
    parser.set_defaults(run=_find_lr)


def _find_lr(asked: argparse.Namespace) -> int:
    given = _read(vars(asked))
    _check({word: value for word, value in given.items() if "optimizer" in given or word not in _OF_RULE})
    if asked.picture and not asked.picture.lower().endswith((".html", ".svg")):
        raise Usage(f"--picture takes a file that ends in .html or .svg, got {asked.picture!r}")
    with output_aside():
        make = found(asked.source)
        options = _options(asked.further, given, make)
        arguments = make.make(**options).arguments
        taken = {word: arguments[word] for word in (*_SHARED, *_OF_DATA) if word in arguments}
        words = taken | given
        _check(words)
        result = thalweg.find_lr(arguments["model"], arguments["data"], arguments.get("loss"), **words)
        if asked.picture:
            say(f"wrote {result.picture(asked.picture)}")
    if asked.json:
        print_json(as_json(result))
    else:
        print(result.sentence)
    return 0


def as_json(result: LearningRate) -> dict[str, Any]:
    """A result as JSON holds it."""
    return {
        "learning_rate": result.value,
        "interval": list(result.interval),
        "curve": [list(point) for point in result.curve],
        "cost": result.cost,
        "method": result.method,
        "options": dict(result.options),
        "sentence": result.sentence,
        "trials": [asdict(trial) for trial in result.trials],
    }


def _read(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that were given, as they are written in flags."""
    words: dict[str, Any] = {}
    for word, text in flags.items():
        if word in _OWN:
            words[word] = _own(word, text)
        elif word in _SHARED:
            words[word] = from_text(word, text)
    return words


def _check(given: Mapping[str, Any]) -> None:
    """Mistakes in flags are told before anything is made."""
    try:
        thalweg.Settings.of({word: value for word, value in given.items() if word not in _OWN})
        thalweg.Search(**{word: value for word, value in given.items() if word in (*_OWN, "optimizer", "seed")})
    except (ValueError, TypeError) as error:
        raise Usage(str(error)) from error


def _own(word: str, text: str) -> Any:
    kind = _OWN[word][0]
    if kind is pairs:
        return pairs(word, text, numbers=False)
    try:
        return kind(text)
    except ValueError as error:
        expected = "a whole number" if kind is int else "a number"
        raise Usage(f"{flag(word)} takes {expected}, got {text!r}") from error


def _options(further: Mapping[str, str], given: Mapping[str, Any], make: MakeFunction) -> dict[str, Any]:
    """Options of the make function; a word that both know, as seed, goes to both."""
    options: dict[str, Any] = {word: value for word, value in given.items() if word in make.parameters}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in make.parameters.values())
    for name, value in further.items():
        word = name.removeprefix("--").replace("-", "_")
        if word not in make.parameters and not takes_all:
            known = [flag(known) for known in (*_OWN, *_SHARED, *make.parameters)]
            raise Usage(f"unknown flag {name}{guess(name, known)}")
        options[word] = value
    return options
