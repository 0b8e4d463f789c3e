"""A user's script: run once, from the very bytes that were hashed, under a module name of its own."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Script:
    """A Python file as it was read: `content` is what runs, whatever happens to the file meanwhile."""

    path: Path
    content: bytes

    @classmethod
    def read(cls, path: Path | str) -> Script:
        """Read a script without running it.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
            guess = f"did you mean {path.with_name(near[0])}?" if near else "give the path of a Python file"
            raise FileNotFoundError(f"there is no script {path}: {guess}")
        return cls(path.resolve(), path.read_bytes())

    @property
    def sha256(self) -> str:
        """Of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def function(self, name: str) -> Callable[..., Any]:
        """Run the script and take a function from it.

        Raises:
            ValueError: it does not run to its end (the cause is its own exception), or has no such function.
        """
        module = self._run()
        function = getattr(module, name, None)
        if callable(function):
            return cast(Callable[..., Any], function)
        if function is not None:
            raise ValueError(f"{name} in {self.path} is a {type(function).__name__}, not a function")
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, own, n=1)
        guess = f"did you mean {near[0]}?" if near else f"it has {', '.join(own) or 'none'}."
        raise ValueError(f"{self.path} has no function {name}: {guess}")

    @contextlib.contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Inside, the script's folder can be imported from, and its failures become one sentence with their place."""
        folder = str(self.path.parent)
        sys.path.insert(0, folder)
        try:
            yield
        except SystemExit as error:
            advice = 'put what it does by itself under if __name__ == "__main__":'
            raise ValueError(f"{self.path} ended Python ({what} raised SystemExit): {advice}") from error
        except Exception as error:
            raise ValueError(f"{what} failed at {self._place(error)}: {_last_line(error)}") from error
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)

    def _run(self) -> ModuleType:
        # The loader is used for its names only: it would prefer a cached .pyc, whose content nobody has hashed.
        name = f"thalweg_script_{self.path.stem}_{hashlib.sha256(str(self.path).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, self.path)
        if spec is None:
            raise ValueError(f"{self.path} is no Python file: give one that ends in .py")
        module = importlib.util.module_from_spec(spec)
        found = sys.modules.get(name)
        sys.modules[name] = module  # a dataclass and a pickled class look their module up
        try:
            with self.running(self.path.name):
                exec(compile(self.content, str(self.path), "exec"), module.__dict__)
        except BaseException:
            sys.modules.pop(name)
            if found is not None:
                sys.modules[name] = found
            raise
        return module

    def _place(self, error: Exception) -> str:
        """File and line in the script where an exception came from, as deep as the script itself goes."""
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            return f"{self.path}:{error.lineno}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == str(self.path)] or frames
        return f"{own[-1].filename}:{own[-1].lineno}"


def _last_line(error: Exception) -> str:
    """What a traceback of this exception ends with."""
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1].strip()
