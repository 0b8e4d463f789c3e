"""Where a run's model and data come from: an installed task, or a function in a user's script.

A recipe can be made again from what `run.json` keeps of it, which is how `resume` and `load` get a model back without
unpickling anything.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import re
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from thalweg.records import facts as kept_facts
from thalweg.records.run import RunRecord
from thalweg.records.settings import OTHER_WORDS, unknown
from thalweg.run.options import from_text, hints
from thalweg.run.script import Script

if TYPE_CHECKING:
    from torch import nn

    from thalweg.run.run import Run

GROUP = "thalweg.tasks"

#: What to do where a recipe cannot be made again.
BY_HAND = "pass model= yourself (and to resume, data= and loss=)"


@dataclass(frozen=True)
class Task:
    """An application: how its model and data are made, and how a trained model answers.

    A task, or a function in a script, may be a plain make function; this one can also do without the training data
    once it is trained. It is called like its make function.
    """

    make: Callable[..., Mapping[str, Any]]
    """Options → the keywords of `fit`, and of two more: `facts`, all that `build` and `predict` need (as JSON holds
    it), and `notes`, sentences for the user."""
    build: Callable[[dict[str, Any]], nn.Module] | None = None
    """Facts → the model that make returned, its weights fresh."""
    predict: Callable[[nn.Module, dict[str, Any], list[Path]], Iterable[Mapping[str, Any]]] | None = None
    """Trained model, facts, files → an answer each, as JSON holds it: its `answer` is what is printed."""
    example: Callable[[dict[str, Any]], Any] | None = None
    """Facts → inputs of two examples, as `export` follows them through the model; by default like those in training."""
    any_length: bool = False
    """Whether those inputs are sequences `[rows, length, …]`, of which the exported model is to take any length."""

    def __call__(self, **options: Any) -> Mapping[str, Any]:
        """What make returns."""
        return self.make(**options)

    @staticmethod
    def answers(run_dir: Path | str, files: list[Path]) -> Iterable[Mapping[str, Any]] | None:
        """What a trained run's task answers to files, made one by one; None where it has no such answers.

        Raises:
            FileNotFoundError: there is no run; ValueError: its task or weights cannot be had.
        """
        task, facts = _kept(run_dir)
        if task is None or task.predict is None:
            return None
        from thalweg.run.weights import load

        return task.predict(load(run_dir), facts, files)

    @staticmethod
    def inputs(run_dir: Path | str) -> tuple[Any, bool]:
        """Two examples' inputs of a run's task, and whether they may have any length; None for the first where it
        leaves them to what the run was trained on.
        """
        task, facts = _kept(run_dir)
        if task is None or task.example is None:
            return None, False
        return task.example(facts), task.any_length


@dataclass(frozen=True)
class Recipe:
    """The keyword arguments of `fit`, and where they came from.

    `spec` is what was asked for, `options` what its make function was given (as JSON holds it), `arguments` what that
    returned, `source` what `run.json` keeps: `{"task": name, "options": {...}}` or `{"script": absolute path,
    "function": name, "sha256": hex, "options": {...}}`. `facts` and `notes` are those of a `Task`.
    """

    spec: str
    options: dict[str, Any]
    arguments: dict[str, Any] = field(repr=False)
    source: dict[str, Any]
    facts: dict[str, Any] | None = field(default=None, repr=False)
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def find(spec: str) -> MakeFunction:
        """The make function behind a spec, not called yet: what `recipe` calls, and a command line asks for options.

        Raises:
            ValueError: no such task or function, or a script that fails when it is run.
            FileNotFoundError: no such script.
        """
        path, colon, name = spec.rpartition(":")
        if colon and name.isidentifier() and path:
            return _of_script(spec, Script.read(path), name)
        if spec.endswith(".py"):
            raise ValueError(f"{spec} lacks a function: give {spec}:make, where make is the function's name")
        return _of_task(spec)

    def fit(self, **changes: Any) -> Run:
        """Train; `changes` are further keywords of `fit` and go before what the recipe says, callbacks beside its own.

        Raises:
            ValueError, TypeError: as `fit`.
        """
        from thalweg.run.fit import start

        if "callbacks" in changes:
            changes["callbacks"] = [*listed(self.arguments.get("callbacks", ())), *listed(changes["callbacks"])]
        changed = {OTHER_WORDS.get(word, word) for word in changes}
        kept = {word: value for word, value in self.arguments.items() if OTHER_WORDS.get(word, word) not in changed}
        return start(kept | changes, self)


@dataclass(frozen=True)
class MakeFunction:
    """The function of a task or script that returns `fit`'s keyword arguments."""

    spec: str
    call: Callable[..., Any]
    origin: dict[str, Any]  # `source` without its options
    script: Script | None = None

    @property
    def task(self) -> Task:
        """What was found, also where it is a plain function."""
        return self.call if isinstance(self.call, Task) else Task(self.call)

    @property
    def function(self) -> Callable[..., Any]:
        """The make function itself, with its signature and what it says of itself."""
        return self.task.make

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """Its options by name, as its signature has them."""
        return dict(inspect.signature(self.function).parameters)

    def make(self, **options: Any) -> Recipe:
        """Call it. Options that are text are read as its type hints and defaults say.

        Raises:
            TypeError: an option it does not take, or lacks, or of the wrong kind.
            ValueError: it fails (a script: the cause is its own exception), or returns something else.
        """
        given = self._read(options)
        kept = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        try:
            json.dumps(kept, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"an option of {self.spec} is no plain value, as run.json holds them: {error}") from error
        with self.script.running(self.spec) if self.script else contextlib.nullcontext():
            arguments = self.call(**given)
        self._check(arguments)
        words = dict(arguments)
        facts, notes = words.pop("facts", None), list(words.pop("notes", ()))
        try:
            facts = facts if facts is None else json.loads(json.dumps(facts, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the facts of {self.spec} are no plain values, as JSON holds them: {error}") from error
        return Recipe(self.spec, kept, words, {**self.origin, "options": kept}, facts, notes)

    def _read(self, options: Mapping[str, Any]) -> dict[str, Any]:
        parameters, types = self.parameters, hints(self.function)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        for name in options:
            if name not in named and not open_ended:
                raise TypeError(unknown(f"option of {self.spec}", name, named or ["none"]))
        lacking = [name for name, p in named.items() if p.default is p.empty and name not in options]
        if lacking:
            flags = " ".join(f"--{name.replace('_', '-')} VALUE" for name in lacking)
            raise TypeError(f"{self.spec} needs {', '.join(lacking)}: give {flags}, or by keyword from Python")
        return {
            name: from_text(name, value, types.get(name), named[name].default if name in named else None)
            for name, value in options.items()
        }

    def _check(self, arguments: Any) -> None:
        if not isinstance(arguments, Mapping):
            expected = "a dict of fit's keywords (model, data, loss, …) was expected"
            raise ValueError(f"{self.spec} returned {type(arguments).__name__}, but {expected}")
        for word in ("model", "data"):
            if word not in arguments:
                words = [str(key) for key in arguments]
                near = difflib.get_close_matches(word, words, n=1)
                guess = f": did you mean {word} by {near[0]}?" if near else f", only {', '.join(words) or 'nothing'}"
                raise ValueError(f"{self.spec} returned no {word}{guess}")


def listed(callbacks: Any) -> list[Any]:
    """Callbacks as they are given, one or several."""
    return list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]


def task_names() -> list[str]:
    """The names of the tasks that are installed: the entry points of the group `thalweg.tasks`."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def recipe(spec: str, **options: Any) -> Recipe:
    """Make a model and data: `spec` is a task's name, or `script.py:function`.

    Raises:
        ValueError: no such task or function, a script that fails, or one that returns something else.
        TypeError: an option that is unknown, lacking or of the wrong kind.
        FileNotFoundError: no such script, or a file that a task needs.
    """
    return Recipe.find(spec).make(**options)


def recipe_of(source: Mapping[str, Any], run_directory: Path | str) -> Recipe:
    """Make the recipe of a run again from its record.

    Raises:
        ValueError: it cannot be made again; the message says what to do instead.
    """
    return maker_of(source, run_directory).make(**source.get("options", {}))


def model_of(source: Mapping[str, Any], run_directory: Path | str) -> nn.Module:
    """The model of a run with fresh weights: from its facts where its task can, else with its data.

    Raises:
        ValueError: it cannot be made again; the message says what to do instead.
    """
    found, facts = maker_of(source, run_directory), kept_facts.read(run_directory)
    if found.task.build is not None and facts is not None:
        return found.task.build(facts)
    return cast("nn.Module", found.make(**source.get("options", {})).arguments["model"])


def _kept(run_dir: Path | str) -> tuple[Task | None, dict[str, Any]]:
    """The task of a run and its facts, which may be none."""
    record, facts = RunRecord.read(run_dir), kept_facts.read(run_dir)
    if record.source is None or facts is None:
        return None, {}
    return maker_of(record.source, run_dir).task, facts


def maker_of(source: Mapping[str, Any], run_directory: Path | str) -> MakeFunction:
    """The make function of a run, by its record, which is not trusted to name what may run.

    A task is looked up among those installed. A script runs only if it is unchanged since, and lies neither in the run
    directory nor among installed packages (whose functions a forged record could call); its path is printed.

    Raises:
        ValueError: it cannot be made again; the message says what to do instead.
    """
    options = source.get("options", {})
    if not isinstance(options, dict) or not isinstance(source.get("task", source.get("script")), str):
        raise ValueError(f"the record in {run_directory} does not say where its model came from: {BY_HAND}")
    if "task" in source:
        if source["task"] not in task_names():
            raise ValueError(f"the run came from the task {source['task']!r}, which is not installed: {BY_HAND}")
        return _of_task(source["task"])
    path, name = Path(source["script"]), str(source.get("function"))
    script = _trusted(path, str(source.get("sha256")), Path(run_directory))
    print(f"running {script.path} again for its {name}", file=sys.stderr)
    found = _of_script(f"{path}:{name}", script, name)
    if not _own(found.function):
        raise ValueError(f"{name} in {path} is imported from an installed package: {BY_HAND}")
    return found


def _of_task(name: str) -> MakeFunction:
    found: dict[str, EntryPoint] = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in found:
        raise ValueError(unknown("task", name, sorted(found)) + ", or a script of yours as script.py:function")
    try:
        call = found[name].load()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the task {name} cannot be loaded ({error}): install what it needs") from error
    return MakeFunction(name, cast(Callable[..., Any], call), {"task": name})


def _of_script(spec: str, script: Script, name: str) -> MakeFunction:
    origin = {"script": str(script.path), "function": name, "sha256": script.sha256}
    return MakeFunction(spec, script.function(name), origin, script)


def _trusted(path: Path, sha256: str, run_directory: Path) -> Script:
    if not path.is_file():
        raise ValueError(f"the run's script {path} is gone: put it back, or {BY_HAND}")
    script = Script.read(path)
    if script.path.is_relative_to(run_directory.resolve()):
        raise ValueError(f"the run's script {path} lies in the run directory, from which nothing is run: {BY_HAND}")
    if _installed(script.path):
        raise ValueError(f"the run's script {path} belongs to an installed package: {BY_HAND}")
    if script.sha256 != sha256:
        raise ValueError(f"the run's script {path} has changed since: put it back as it was, or {BY_HAND}")
    return script


def _own(function: Callable[..., Any]) -> bool:
    """Whether a function is the user's: a forged record could name one that a script merely imports."""
    try:
        return not _installed(Path(inspect.getfile(function)).resolve())
    except TypeError:  # built in
        return False


def _installed(path: Path) -> bool:
    """Whether a file is part of a Python or of a package, this one's or another's."""
    here = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots = [*here, site.getusersitepackages()]
    own = any(path.is_relative_to(Path(root).resolve()) for root in roots)
    return own or any(re.fullmatch(r"(site|dist)-packages|(python|pypy)3\.\d+t?", part) for part in path.parts)
