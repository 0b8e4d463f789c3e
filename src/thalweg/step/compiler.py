"""A recorded step → a shared library, made by torch's Inductor in a process of its own.

A process of its own, since compiling takes seconds of Python and of a C++ compiler while training goes on, and since
nothing that goes wrong there can then hurt the training. What was made is kept in the user's cache directory under a
name that follows from the program, torch's version, the processor and the number of threads: the next training of the
same model finds it ready.
"""

from __future__ import annotations

import contextlib
import copyreg
import hashlib
import json
import operator
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate, map_arg

from thalweg.step.kernels import operators, products

#: Part of every name in the cache: raise it where the same program would be compiled to something else.
FORMAT = 1
#: What the process runs. (Not `-m`: what is pickled would be of this module there, and of `__main__` here.)
_PROGRAM = "import sys; from thalweg.step.compiler import main; main(sys.argv[1])"
#: A process that has not ended by then is given up [s].
TIMEOUT = 900.0
#: Programs after which torch's headers are compiled ahead: it takes 16 s, and saves 5 of each program that follows.
HEADERS_AFTER = 3
#: Politeness of the process towards the training that it serves.
NICENESS = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """What a program takes at one place."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, t: Tensor) -> Shape:
        """That of a tensor."""
        return cls(tuple(t.shape), t.stride(), t.dtype)

    def empty(self) -> Tensor:
        """A tensor of this shape; its memory is never touched."""
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype)


class CompileFailed(RuntimeError):
    """No library came of a program; the message says why in one sentence."""


class Compilation:
    """One program on its way to a library."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes] | None, folder: str | None) -> None:
        self.path = path
        self._process = process
        self._folder = folder
        self._started = time.monotonic()

    @classmethod
    def start(
        cls, graph: GraphModule, arguments: Sequence[Tensor], threads: int, choices: Mapping[str, str] | None = None
    ) -> Compilation:
        """Begin, or find it made already. `choices` are the ways of its products where they are known beforehand.

        Raises:
            CompileFailed: there is no C++ compiler here, or no place to keep what it makes, or no process to be had.
        """
        shapes = [Shape.of(t) for t in arguments]
        path = _cached(graph, shapes, threads, choices)
        if path.with_suffix(".json").exists() and path.exists():
            return cls(path, None, None)
        if not has_compiler():
            raise CompileFailed("there is no C++ compiler (install g++ or clang++, or set CXX)")
        folder = None
        try:
            folder = tempfile.mkdtemp(prefix="thalweg-")
            with open(Path(folder) / "request", "wb") as file:
                _Pickler(file).dump((_written(graph), shapes, threads, choices, str(path)))
            return cls(path, _process(folder), folder)
        except (OSError, pickle.PicklingError, AttributeError, TypeError) as error:  # the last two: of pickle as well
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise CompileFailed(f"it could not be handed to another process ({error})") from error

    @property
    def was_ready(self) -> bool:
        """Whether it had been made before."""
        return self._process is None

    def is_done(self) -> bool:
        """Whether it has ended, well or not; returns at once."""
        if self._process is None or self._process.poll() is not None:
            return True
        return time.monotonic() - self._started > TIMEOUT

    def result(self) -> tuple[Path, dict[str, Any]]:
        """The library and what is known of it: `choices` by product, `seconds` it took. Waits for the end.

        Raises:
            CompileFailed: nothing came of it.
        """
        try:
            if self._process is not None:
                self._process.wait(max(0.0, TIMEOUT - (time.monotonic() - self._started)))
            return self.path, json.loads(self.path.with_suffix(".json").read_text())
        except subprocess.TimeoutExpired:
            raise CompileFailed(f"compiling it took more than {TIMEOUT:.0f} s") from None
        except (OSError, ValueError):
            raise CompileFailed(f"it could not be compiled ({self._last_words()})") from None
        finally:
            self.stop()

    def stop(self) -> None:
        """End it and clear up behind it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _last_words(self) -> str:
        try:
            lines = (Path(self._folder or "") / "log").read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        said = [line.strip() for line in lines if "Error" in line or "error:" in line] or lines
        return said[-1][:160] if said else f"the process ended with {self._process.returncode if self._process else 0}"


def _process(folder: str) -> subprocess.Popen[bytes]:
    """What compiles the request in a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    environment.pop("PYTHONWARNINGS", None)
    with open(Path(folder) / "log", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(folder) / "request")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder,
            start_new_session=True,  # Ctrl-C in a terminal is for the training, which may go on
        )  # fmt: skip


def has_compiler() -> bool:
    """Whether a C++ compiler is at hand."""
    return products.cxx() is not None


def cache_directory() -> Path:
    """Where libraries are kept, for this user alone: what lies there is loaded as code.

    Raises:
        CompileFailed: it belongs to somebody else, or cannot be made.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(base) / "thalweg" / "programs"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except (OSError, RuntimeError) as error:
        raise CompileFailed(f"there is no cache directory to keep it in ({error})") from error
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        raise CompileFailed(f"others may write to {directory}; make it yours alone (chmod 700)")
    return directory


def small_library() -> Path:
    """The file of the small product kernel, on which programs that use it depend."""
    return cache_directory() / f"small-{_hash((operators.KERNEL, products.FLAGS, _processor()))}.so"


def _cached(graph: GraphModule, shapes: list[Shape], threads: int, choices: Mapping[str, str] | None) -> Path:
    """The file a program's library has: by all that decides what it will be."""
    pinned = sorted(choices.items()) if choices is not None else None
    ours = (operators.SOURCE, operators.KERNEL)
    what = (FORMAT, graph.code, shapes, threads, pinned, torch.__version__, _processor(), ours)
    return cache_directory() / f"{_hash(what)}.so"


def _hash(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:32]


def remember(step: str, library: Path) -> None:
    """Note which library was taken for what `step` says in words: the next training of it knows so before it records
    its own.
    """
    with contextlib.suppress(CompileFailed, OSError):
        if step:
            _put(_mark(step), library.name.encode())


def is_remembered(step: str) -> bool:
    """Whether a compiled step was taken for such a one before and is still there: it most likely fits."""
    try:
        return bool(step) and (cache_directory() / _mark(step).read_text()).is_file()
    except (CompileFailed, OSError, ValueError):
        return False


def forget(step: str) -> None:
    """It did not fit."""
    with contextlib.suppress(CompileFailed, OSError):
        _mark(step).unlink(missing_ok=True)


def _mark(step: str) -> Path:
    return cache_directory() / f"taken-{_hash((FORMAT, step, torch.__version__, _processor()))}"


def _processor() -> str:
    """The processor by what it can do: a library uses all of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "|".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


# ── the process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def main(request: str) -> None:
    """Compile what a request holds, which the process that trains has written a moment ago."""
    _die_with_parent()
    os.nice(NICENESS)
    started = time.perf_counter()
    with open(request, "rb") as file:
        written, shapes, threads, choices, target = pickle.load(file)
    graph = _read(written)
    torch.set_num_threads(threads)
    arguments = [shape.empty() for shape in shapes]
    _fill_in(graph, shapes)
    small = small_library()
    if not small.exists():
        products.compile_small(small)
    if choices is None:
        choices = products.chosen(graph, small)
    products.replace(graph, choices)
    made = _compiled(graph, arguments, threads, Path(request).parent)
    known = json.dumps({"choices": choices, "seconds": round(time.perf_counter() - started, 2)})
    path = Path(target)
    _put(path, Path(made).read_bytes())
    _put(path.with_suffix(".json"), known.encode())  # the last: where it is, the library is


def _put(path: Path, content: bytes) -> None:
    """Write a file in one step for whoever looks on."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, path)


def _of_torch(name: str) -> Any:
    return getattr(torch, name)


def _as_word(value: Any) -> tuple[Any, ...]:
    return _of_torch, (str(value).removeprefix("torch."),)


class _Pickler(pickle.Pickler):
    """Writes words of torch's as such. Without it `torch.preserve_format` becomes the attribute `torch` of the first
    module in this process that has one, which the other process would import: a part of the user's program.
    """

    dispatch_table = copyreg.dispatch_table | dict.fromkeys((torch.memory_format, torch.layout), _as_word)


@dataclass(frozen=True, slots=True)
class _Result:
    """Of an operation, by its name; stands for it among the arguments of another."""

    name: str


def _result(node: Node) -> Any:
    return _Result(node.name)


def _written(graph: GraphModule) -> list[tuple[Any, ...]]:
    """A graph as plain values, a row for each node. (Pickled, a graph is run again where it is read, and what takes no
    tensor, as `torch.arange`, becomes a constant there.)
    """
    rows = []
    for node in graph.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), _result)
        rows.append((node.op, node.name, str(node.target), args, kwargs))
    return rows


def _read(rows: list[tuple[Any, ...]]) -> GraphModule:
    """The graph that was written."""
    operators.sources()  # ours are known from here on
    graph, nodes = Graph(), {}
    for op, name, target, args, kwargs in rows:
        args, kwargs = map_aggregate((args, kwargs), lambda a: nodes[a.name] if isinstance(a, _Result) else a)
        function = _operation(target) if op == "call_function" else target
        nodes[name] = graph.create_node(op, function, args, dict(kwargs), name=name)
    return GraphModule({}, graph)


def _operation(name: str) -> Any:
    """An operator by its full name, as "aten.mm.default"; or one of Python's on what an operator returned."""
    if "." not in name or name.startswith("<"):
        return operator.getitem
    namespace, word, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), word), overload)


def _fill_in(graph: GraphModule, shapes: Sequence[Shape]) -> None:
    """Note on each operation what it gives: pickling has dropped it."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    mode = FakeTensorMode()
    with mode:
        fakes = [shape.empty() for shape in shapes]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)


def _compiled(graph: GraphModule, arguments: list[Tensor], threads: int, folder: Path) -> str:
    import torch._inductor.compile_fx  # which brings what `torch._inductor` alone does not

    for node in graph.graph.nodes:
        node.meta.clear()
    options = {
        "fallback_random": True,  # the masks of dropout are those of the step that it replaces
        "cpp.threads": threads,
        "aot_inductor.output_path": str(folder / "step.so"),
        "aot_inductor.custom_ops_to_c_shims": operators.sources(),
        "aot_inductor.precompile_headers": len(list(cache_directory().glob("*.json"))) >= HEADERS_AFTER,
        "compile_threads": 1,
    }
    with torch.no_grad():
        made = torch._inductor.aot_compile(graph, tuple(arguments), options=options)
    assert isinstance(made, str)
    return made


def _die_with_parent() -> None:
    """Where the training is killed, what compiles for it goes too (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
