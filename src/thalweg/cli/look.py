"""`thalweg backprop`: the reverse sweep of a task's or script's network, before it is trained."""

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


def _backprop(asked: argparse.Namespace) -> int:
    with output_aside():
        make = found(asked.source)
        options = {flag.removeprefix("--").replace("-", "_"): value for flag, value in asked.further.items()}
        for option in options:
            if option not in make.parameters:
                raise Usage(unknown_option(option, make))
        arguments = make.make(**options).arguments
        flow = thalweg.backprop(arguments["model"], arguments["data"], arguments.get("loss"))
        if asked.plot:
            flow.plot().write_html(asked.plot)
            say(f"wrote {asked.plot}")
    if asked.json:
        print_json({"loss": flow.loss, "rows": [asdict(row) for row in flow.rows], "sentence": flow.sentence})
    else:
        print(flow.table())
    return 0
