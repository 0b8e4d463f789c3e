"""The walls of the house: who may import whom (docs/architecture.md), read from the code itself."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import thalweg

ROOT = Path(thalweg.__file__).parent

#: Room → rooms it may import from, and third-party packages it may use.
ROOMS: dict[str, tuple[set[str], set[str]]] = {}


def _room(name: str, rooms: str, packages: str) -> None:
    ROOMS[name] = (set(rooms.split()), set(packages.split()))


_room("records", "", "numpy")
_room("tensors", "", "torch numpy")
_room("layers", "", "torch")
_room("step", "tensors", "torch numpy")
_room("gradients", "step tensors records", "torch")
_room("optim", "gradients step tensors", "torch")
_room("signals", "gradients step tensors records", "torch")
_room("diagnosis", "records", "numpy")
_room("repairs", "layers optim gradients step tensors records", "torch")
_room("loop", "repairs diagnosis signals optim gradients step tensors records", "torch safetensors")
_room("search", "loop repairs diagnosis signals optim gradients step tensors records", "torch optuna")
_room("reports", "records", "numpy rich plotly")
_room("run", " ".join([*ROOMS]), "torch safetensors onnxscript")
_room("integrations", "", "torch")
_room(
    "tasks", "layers", "torch numpy sklearn PIL datasets jiwer pycocotools rouge_score sacrebleu soundfile tokenizers"
)
_room("cli", "tasks", "torch numpy yaml")

#: What may be imported inside a function only: heavy or optional, wanted by few calls.
DELAYED = {"rich", "plotly", "optuna", "onnxscript", "sklearn", "yaml", "keras"}
DELAYED |= {"PIL", "datasets", "jiwer", "pycocotools", "rouge_score", "sacrebleu", "soundfile", "tokenizers"}

MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name == "cli.py")


def imports(path: Path) -> list[tuple[str, bool, int]]:
    """(module, inside a function, line) of every import, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inner, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "thalweg" else [node.module]
            )
            found += [(str(name), id(node) in inner, node.lineno) for name in names]
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    rooms, packages = ROOMS[room]
    public = {f"thalweg.{word}" for word in thalweg.__all__}
    for module, inside, line in imports(path):
        top, _, rest = module.partition(".")
        where = f"{path.relative_to(ROOT)}:{line} imports {module}"
        if top == "thalweg":
            below = rest.split(".")[0]
            outside = room in ("tasks", "cli", "integrations")
            allowed = below == room or below in rooms or (outside and (not rest or module in public))
            # A picture is drawn by the room above, when it is asked for.
            plots = inside and room == "records" and below == "reports"
            assert allowed or plots, f"{where}: {room} may not"
        elif top not in sys.stdlib_module_names:
            assert top in packages, f"{where}: {room} may use {sorted(packages)}"
            delayed = top in DELAYED or (room == "cli" and top in ("torch", "numpy"))
            assert inside or not delayed or room == "reports", f"{where} at start-up: it is heavy or optional"


def test_no_cycles() -> None:
    """Within a room too, no two files need each other."""
    edges = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): {
            module for module, inside, _ in imports(path) if module.startswith("thalweg.") and not inside
        }
        for path in MODULES
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a cycle: {' → '.join([*above, module])}"
        if module in done or module not in edges:
            return
        for below in edges[module]:
            visit(below, (*above, module))
        done.add(module)

    for module in edges:
        visit(module, ())


def test_every_room_is_known() -> None:
    assert {room_of(path) for path in MODULES} <= set(ROOMS)
