"""`thalweg fit` and `thalweg resume`."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import thalweg
from thalweg.cli.flags import NAMES, OBJECTS, add_settings, flag, from_file, given, literal
from thalweg.cli.usage import Usage, guess, output_aside, print_json

if TYPE_CHECKING:
    from thalweg import Run
    from thalweg.run.recipe import MakeFunction

_CODES = {"diverged": 1, "interrupted": 130}


def add_fit(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg fit`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.", add_help=False)
    parser.add_argument("source", nargs="?", metavar="TASK | script.py:function", help="where model and data come from")
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the options of the task if given")
    parser.add_argument("--config", metavar="FILE", help="YAML with the same words; flags go before it")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_settings(parser)
    parser.set_defaults(run=_fit, parser=parser)


def add_resume(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg resume`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("directory", metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    add_settings(parser, leave_out=("run_dir", "resume"))
    parser.set_defaults(run=_resume)


def as_json(run: Run) -> dict[str, Any]:
    """A finished run as JSON holds it."""
    return {
        "metrics": dict(run.metrics),
        "verdict": asdict(run.verdict) if run.verdict else None,
        "findings": [asdict(finding) for finding in run.findings],
        "actions": [asdict(action) for action in run.actions],
        "learning_rate": run.record.decided["learning_rate"],
        "optimizer": run.record.decided.get("optimizer"),
        "seconds": run.seconds,
        "steps": run.steps,
        "epochs": run.record.epochs,
        "stopped_because": run.stopped_because,
        "notes": list(run.record.notes),
        "directory": str(run.directory),
    }


class Reporting(thalweg.Callback):
    """Writes the report when a training has ended, before its summary is printed."""

    def on_end(self, run: Run) -> None:
        """Write it where it is looked for; without room on the disk there is none, and the run is as good."""
        with contextlib.suppress(OSError):
            run.report()


def _fit(asked: argparse.Namespace) -> int:
    if asked.help:
        return _help(asked)
    if asked.source is None:
        raise Usage(f"fit needs a task ({', '.join(thalweg.task_names())}) or a script of yours, as script.py:function")
    _check(given(asked))
    with output_aside():
        make = found(asked.source)
        settings, options = _sorted(asked, make)
        try:
            recipe = make.make(**options)
        except TypeError as error:
            raise Usage(str(error)) from error
        run = recipe.fit(**settings, callbacks=[Reporting()])
    return _told(run, asked.json)


def _resume(asked: argparse.Namespace) -> int:
    changes = given(asked)
    _check(changes)
    with output_aside():
        run = thalweg.resume(asked.directory, **changes, callbacks=[Reporting()])
    return _told(run, asked.json)


def _told(run: Run, as_object: bool) -> int:
    """Print the result, choose the exit code."""
    if as_object:
        print_json({**as_json(run), "report": str(run.directory / "report.html")})
    return _CODES.get(run.stopped_because or "", 0)


def found(source: str) -> MakeFunction:
    """The make function; a script that fails (which has a cause) is no wrong usage."""
    try:
        return thalweg.Recipe.find(source)
    except (ValueError, OSError) as error:
        if error.__cause__ is not None:
            raise
        raise Usage(str(error)) from error


def unknown_option(name: str, make: MakeFunction) -> str:
    """The sentence for an option that a make function does not take."""
    return f"unknown flag {flag(name)}{guess(flag(name), [flag(word) for word in make.parameters])}"


def _sorted(asked: argparse.Namespace, make: MakeFunction) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was asked → keywords of `fit`, options of the make function; a word that both know goes to both (seed)."""
    config = from_file(asked.config) if asked.config else {}
    further = {name.removeprefix("--").replace("-", "_"): value for name, value in asked.further.items()}
    parameters = make.parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in (config | further | given(asked)).items():
        if name in NAMES:
            settings[name] = value
        if name in parameters or (takes_all and name not in NAMES):
            options[name] = value
        elif name not in NAMES:
            if not _understood(name):
                raise Usage(_unknown(name, asked.config if name not in further else None, parameters))
            settings[name] = literal(value)
    _check(settings)
    return settings, options


def _understood(name: str) -> bool:
    """Whether `fit` takes a word that is not its own: one of another library."""
    try:
        thalweg.Settings.of({name: None})
    except TypeError:
        return False
    return name not in OBJECTS


def _unknown(name: str, config: str | None, parameters: Mapping[str, Any]) -> str:
    if name in OBJECTS:
        return f"{name} takes objects: give it from Python, or return it from a script's make"
    known = [*NAMES, *parameters]
    if config is not None:
        return f"unknown word {name!r} in {config}{guess(name, known)}"
    return f"unknown flag {flag(name)}{guess(flag(name), [flag(word) for word in known])}"


def _check(settings: Mapping[str, Any]) -> None:
    """Mistakes in flags are told before anything heavy is imported."""
    try:
        thalweg.Settings.of(settings)
    except (ValueError, TypeError) as error:
        raise Usage(str(error)) from error


def _help(asked: argparse.Namespace) -> int:
    """The flags of `fit`; with a task or script, its own options and what it says about itself."""
    print(asked.parser.format_help())
    if asked.source is None:
        print(f"tasks: {', '.join(thalweg.task_names())}; `thalweg fit TASK --help` lists the options of one")
        return 0
    with output_aside():
        make = found(asked.source)
    print(f"options of {asked.source}:")
    for name, parameter in make.parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = "required" if parameter.default is parameter.empty else f"default {parameter.default}"
        print(f"  {flag(name)} {_kind(parameter)}  ({default})")
    if description := inspect.getdoc(make.function):
        print(f"\n{description}")
    return 0


def _kind(parameter: inspect.Parameter) -> str:
    """What an option takes: its type, or the words there are to choose from."""
    hint = parameter.annotation
    if hint is parameter.empty:
        return "VALUE"
    words = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    if "Literal[" in words:
        return " | ".join(re.findall(r"'([^']*)'", words))
    return words.upper()
