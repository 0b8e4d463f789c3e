"""`thalweg check`, `thalweg backprop`: a task's or script's network looked at before it is trained."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import thalweg
from thalweg.cli.training import found, unknown_option
from thalweg.cli.usage import Usage, output_aside, print_json, say


def add_backprop(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg backprop`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("source", metavar="TASK | script.py:function", help="where model and data come from")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object")
    parser.add_argument("--plot", metavar="FILE.html", help="write the picture as a page")
    parser.set_defaults(run=_backprop)


def add_check(commands: Any, name: str, meaning: str) -> None:
    """Declare `thalweg check`."""
    parser = commands.add_parser(name, help=meaning, description=f"{meaning.capitalize()}.")
    parser.add_argument("source", metavar="TASK | script.py:function", help="where model and data come from")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON list")
    parser.set_defaults(run=_check)


def _check(asked: argparse.Namespace) -> int:
    with output_aside():
        given = _arguments(asked)
        words = {word: given[word] for word in ("validation_data", "batch_size") if word in given}
        findings = thalweg.check(given["model"], given["data"], given.get("loss"), **words)
    if asked.json:
        print_json([asdict(finding) for finding in findings])
    elif not findings:
        print("Nothing was found.")
    for finding in findings if not asked.json else ():
        print(f"{finding.severity}: {finding.sentence}\n    {finding.advice}")
    return 0


def _arguments(asked: argparse.Namespace) -> Any:
    """The keywords of `fit` that a task or a script's function makes."""
    make = found(asked.source)
    options = {flag.removeprefix("--").replace("-", "_"): value for flag, value in asked.further.items()}
    for option in options:
        if option not in make.parameters:
            raise Usage(unknown_option(option, make))
    return make.make(**options).arguments


def _backprop(asked: argparse.Namespace) -> int:
    with output_aside():
        arguments = _arguments(asked)
        flow = thalweg.backprop(arguments["model"], arguments["data"], arguments.get("loss"))
        if asked.plot:
            flow.plot().write_html(asked.plot)
            say(f"wrote {asked.plot}")
    if asked.json:
        print_json({"loss": flow.loss, "rows": [asdict(row) for row in flow.rows], "sentence": flow.sentence})
    else:
        print(flow.table())
    return 0
