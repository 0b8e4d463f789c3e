"""The documentation is executed: examples, links, flags and tables are held against the code.

`python tests/test_docs.py` prints the table of settings that `docs/interface.md` must hold.
"""

from __future__ import annotations

import doctest
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import thalweg
from thalweg.cli import main

ROOT = Path(__file__).parents[1]
ROOM = ROOT / "src" / "thalweg"
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]

#: A fence, its info string and what it holds; `python skip` and every other language are shown, not run.
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

#: Folders of a machine, which no page may name.
PLACE_ON_A_MACHINE = re.compile(r"(?<![\w./~-])/(?:home|root|work|tmp|Users|usr|opt|mnt|media|var|srv|data)/")


class Block(NamedTuple):
    info: str
    body: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(found["info"].strip(), found["body"], text.count("\n", 0, found.start("body")))


def prose(page: Path) -> str:
    """A page without its fenced blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.DOTALL)


def settings_table() -> str:
    """Every keyword of `fit` as `docs/interface.md` shows it."""
    lines = ["| keyword | default | what it takes |", "|---|---|---|"]
    for setting in fields(thalweg.Settings):
        meaning, choices = setting.metadata["meaning"], setting.metadata["choices"]
        if choices:
            meaning += ": " + ", ".join(f"`{choice}`" for choice in choices)
        lines.append(f"| `{setting.name}` | `{_default(setting)}` | {meaning} |")
    return "\n".join(lines)


def _default(setting: Field[Any]) -> str:
    assert setting.default is not MISSING
    return f'"{setting.default}"' if isinstance(setting.default, str) else repr(setting.default)


def run(block: Block, page: Path, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """One block: examples with `>>>` by doctest, other code as it stands; later blocks of a page see its names."""
    name = f"{page.relative_to(ROOT)}"
    if ">>>" not in block.body:
        exec(compile("\n" * block.line + block.body, name, "exec"), names)
        return
    examples = doctest.DocTestParser().get_doctest(block.body, names, name, str(page), block.line)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    told: list[str] = []
    with capsys.disabled():  # doctest takes standard output for itself
        runner.run(examples, out=told.append, clear_globs=False)
    names.update(examples.globs)
    assert runner.failures == 0, "".join(told)


EXECUTED = [
    page for page in PAGES if any(b.info == "python" or (">>>" in b.body and b.info == "pycon") for b in blocks(page))
]


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.info in ("python", "pycon"):
            run(block, page, names, capsys)


def test_pages_have_examples() -> None:
    executed = {page.name for page in EXECUTED}
    rooms = "records tensors step gradients optim diagnosis signals repairs loop reports run tasks cli".split()  # noqa: SIM905
    assert {"README.md", "README.zh.md", "from-keras.md", *(f"{room}.md" for room in rooms)} <= executed


def test_the_seed_program_is_shown_as_it_is() -> None:
    shown = [block.body for block in blocks(ROOT / "docs" / "from-keras.md") if block.info == "python"]
    program = (ROOT / "examples" / "seed.py").read_text(encoding="utf-8")
    assert any(program.endswith(body) for body in shown)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_named_files_exist(page: Path) -> None:
    """Files in backticks: `src/thalweg/step/whole.py`, or from inside the package `step/whole.py`."""
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|png))`", prose(page)):
        assert (ROOT / name).exists() or (ROOM / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_page_names_a_place_on_a_machine(page: Path) -> None:
    found = PLACE_ON_A_MACHINE.search(page.read_text(encoding="utf-8"))
    assert found is None, f"{page.name}: {found[0] if found else ''}"


def test_the_settings_are_shown_as_they_are() -> None:
    text = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
    assert settings_table() in text, f"docs/interface.md must hold this table:\n\n{settings_table()}"
    for setting in fields(thalweg.Settings):
        assert len(re.findall(rf"^\| `{setting.name}` \|", text, re.MULTILINE)) == 1, setting.name


def test_every_public_word_has_its_place() -> None:
    text = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
    missing = [word for word in thalweg.__all__ if not re.search(rf"`{word}\b", text)]
    assert not missing


def test_every_page_is_listed() -> None:
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)\s#]+)\)", prose(index))}
    assert {page for page in PAGES if page.is_relative_to(index.parent) and page != index} <= listed


def commands() -> list[tuple[str, ...]]:
    """Each `thalweg …` that a page tells a reader to type, as words."""
    typed: set[tuple[str, ...]] = set()
    for page in PAGES:
        lines = [line for block in blocks(page) if block.info == "sh" for line in block.body.splitlines()]
        lines += re.findall(r"`(thalweg [a-z][^`]*)`", prose(page))
        for line in lines:
            if line.startswith("thalweg "):
                typed.add(tuple(line.partition(" #")[0].split()[1:]))
    return sorted(typed)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """The command is there, and so is every flag, by the command's own help; a script's options are its own."""
    task = [words[1]] if words[0] == "fit" and len(words) > 1 and words[1] in thalweg.task_names() else []
    assert main([words[0], *task, "--help"] if not words[0].startswith("-") else [words[0]]) == 0
    shown = capsys.readouterr().out
    is_script = any(".py:" in word for word in words)
    flags = [] if is_script else [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    for flag in flags:
        assert re.search(rf"{flag}\b", shown), f"thalweg {words[0]} has no {flag}"


def told(text: str) -> list[str]:
    """The opening line and the rule of what a training prints, and the names of its rows; numbers left out."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith("epoch ")]
    rows = [line if line.startswith("  rule") else line[:22].strip() for line in lines[2:]]
    return [re.sub(r"[\d.,]*\d", "#", line) for line in (lines[0], *rows)]


def test_the_readme_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "digits"]) == 0
    printed = told(capsys.readouterr().err)
    for name in ("README.md", "README.zh.md"):
        shown = next(block.body for block in blocks(ROOT / name) if block.info == "text")
        assert told(shown) == printed, name


if __name__ == "__main__":
    sys.stdout.write(settings_table() + "\n")
