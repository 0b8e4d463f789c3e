"""The command line, written against the public words only; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

import thalweg
from thalweg.cli import doctor, find_lr, look, runs, training, use
from thalweg.cli.usage import Parser, Usage, guess, say, split

FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143

_COMMANDS = {
    "fit": (training.add_fit, "train a task, or the model and data of a script"),
    "find-lr": (find_lr.add_find_lr, "search for the learning rate of a training"),
    "check": (look.add_check, "say what is wrong with data, loss and network before they are trained"),
    "backprop": (look.add_backprop, "show how the gradient flows back through a network, layer by layer"),
    "resume": (training.add_resume, "go on where a run left off"),
    "predict": (use.add_predict, "outputs of a run's best model for the rows of files"),
    "report": (use.add_report, "write the page of a run, also while it trains"),
    "runs": (runs.add_runs, "list the runs of a folder"),
    "export": (use.add_export, "write a run's best model for other programs"),
    "doctor": (doctor.add_doctor, "show versions, devices, compiler, disk"),
}
#: Commands whose further flags are options of the task.
_WITH_OPTIONS = ("fit", "find-lr", "check", "backprop")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1 failed; 2 wrong usage; 130 interrupted. Terminated is `SystemExit(143)`.
    """
    with _terminable():
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except Usage as error:
            say(str(error))
            return WRONG_USAGE
        except BrokenPipeError:
            _silence()
            return FAILED
        except KeyboardInterrupt:
            say("interrupted")
            return INTERRUPTED
        except (ValueError, TypeError, OSError) as error:
            say(_sentence(error))
            return FAILED
        return code


def _run(words: list[str]) -> int:
    parser = Parser(prog="thalweg", description="Train networks by gradient descent, and see how it goes.")
    parser.add_argument("--version", action="version", version=f"thalweg {thalweg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (add, meaning) in _COMMANDS.items():
        add(commands, name, meaning)
    name = words[0] if words else ""
    if not words:
        parser.print_help(sys.stderr)
        return WRONG_USAGE
    if name not in _COMMANDS and not name.startswith("-"):
        raise Usage(f"unknown command {name!r}{guess(name, _COMMANDS)}")
    own, further = split(words[1:], commands.choices[name]) if name in _COMMANDS else ([], {})
    try:
        asked = parser.parse_args([name, *own])
    except SystemExit as stop:  # --help and --version print and leave
        return int(stop.code or 0)
    if name not in _WITH_OPTIONS and further:
        flag = next(iter(further))
        raise Usage(f"unknown flag {flag}{guess(flag, commands.choices[name].flags)}")
    asked.further = further
    return int(asked.run(asked))


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM leaves with 143 by way of every `finally`; `fit` saves a last checkpoint first and raises it again."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, found)


def _silence() -> None:
    """Whoever read our output has left; Python would complain once more when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
