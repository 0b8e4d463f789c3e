"""Two files whose lines belong together: a sentence, and its translation."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thalweg.tasks import hub
from thalweg.tasks.task import BadData
from thalweg.tasks.text.lines import find, read_lines

#: Names of the part that is held out for validation; without one, this share of the training pairs is.
VALIDATION = ("val", "valid", "validation", "dev")
HELD_OUT = 0.05

Pair = tuple[str, str]


@dataclass(slots=True)
class Parts:
    """Pairs of sentences (source, target): trained on, held out, and of each test part by its name."""

    train: list[Pair]
    validation: list[Pair]
    tests: dict[str, list[Pair]] = field(default_factory=dict)


def read_parts(folder: Path, source: str, target: str, longest: int, bad: BadData, seed: int) -> Parts:
    """The files `train.SOURCE` and `train.TARGET` of a folder, those of its validation part and of all `test*`.

    Args:
        folder: where they lie, each gzipped (`.gz`) or not.
        source: the ending that names the language to translate from.
        target: the one to translate into.
        longest: characters of a line at most.
        bad: what to do with a line that cannot be used.
        seed: draws the pairs that are held out where there is no validation part.

    Raises:
        FileNotFoundError: there is no such folder or training part.
        ValueError: a file is empty or damaged, a part has no pair that can be used, or bad data is refused.
    """
    folder = Path(folder)
    if source == target:
        raise ValueError(f"source_language and target_language are both {source!r}: they name two languages")
    if hub.is_hub(folder):
        return _of_hub(folder, source, target, longest, bad, seed)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: give one with train.{source}[.gz] and train.{target}[.gz]"
        )
    found = {stem: _files(folder, stem, source, target) for stem in _stems(folder, source, target)}
    if None in found.get("train", (None,)):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{folder} lacks train.{source}[.gz] or train.{target}[.gz]; it has {names}. "
            "Say the endings with --source-language and --target-language"
        )
    parts = {}
    for stem, (here, there) in found.items():
        if here is not None and there is not None:
            parts[stem] = read_pairs(here, there, longest, bad)
        else:
            bad.add(here or there, "the file has no partner in the other language")
    return _parts(folder, parts, seed)


def _parts(data: Path, parts: dict[str, list[Pair]], seed: int) -> Parts:
    """Which of these are trained on, held out and tested on; some pairs are held out where no part is."""
    for name, pairs in parts.items():
        if not pairs:
            raise ValueError(f"{data}: the part {name} has no pair that can be used; mend it, or take it away")
    train = parts["train"]
    total = len(train)
    validation = next((parts[name] for name in VALIDATION if name in parts), None)
    if validation is None:
        random.Random(seed).shuffle(train)
        count = max(1, int(total * HELD_OUT))
        train, validation = train[count:], train[:count]
    if not train:
        raise ValueError(f"{data} has too few pairs to train on and to hold some out: {total}")
    return Parts(train, validation, {name: parts[name] for name in sorted(parts) if name.startswith("test")})


def _of_hub(data: Path, source: str, target: str, longest: int, bad: BadData, seed: int) -> Parts:
    """The parts of a data set with a column for each language, or with one of translations into both."""
    found = hub.splits(data)
    parts: dict[str, list[Pair]] = {}
    for which in ("train", *VALIDATION, "test"):
        if which not in found:
            continue
        table = found[which]
        column = hub.column(table, "Translation")
        rows = [row or {} for row in table[column]] if column else table
        names = next((list(row) for row in rows if row), [source, target])
        if not {source, target} <= set(names):
            raise ValueError(f"{data} has no columns {source!r} and {target!r}: it has {', '.join(map(str, names))}")
        pairs = enumerate(((row.get(source), row.get(target)) for row in rows), start=1)
        parts[which] = _usable(pairs, (f"{data}, {which}",) * 2, longest, bad)
    if "train" not in parts:
        raise ValueError(f"{data} has no training part")
    return _parts(data, parts, seed)


def read_pairs(source: Path, target: Path, longest: int, bad: BadData) -> list[Pair]:
    """The lines of two files that belong together.

    Raises:
        ValueError: a file is empty or damaged, or bad data is refused: lines without a partner, empty or too long
            ones, ones that are not UTF-8.
    """
    lines, answers = read_lines(source, bad), read_lines(target, bad)
    shorter = min(len(lines), len(answers))
    more = source if len(lines) > len(answers) else target
    for number in range(shorter + 1, max(len(lines), len(answers)) + 1):
        bad.add(f"{more}, line {number}", f"the line has no partner: its other file ends at line {shorter}")
    numbered = enumerate(zip(lines, answers, strict=False), start=1)
    # What is None here could not be read, and has been told.
    return _usable(((number, pair) for number, pair in numbered if None not in pair), (source, target), longest, bad)


def _usable(
    pairs: Iterable[tuple[int, tuple[Any, Any]]], places: tuple[object, object], longest: int, bad: BadData
) -> list[Pair]:
    """The pairs both of whose sides hold something, and not too much, by their numbers; what is wrong is told."""
    found = []
    for number, (here, there) in pairs:
        pair = normalised(here), normalised(there)
        faults = [fault_of(text, longest) for text in pair]
        wrong = next((side for side in (0, 1) if faults[side]), None)
        if wrong is None:
            found.append(pair)
        else:
            bad.add(f"{places[wrong]}, line {number}", faults[wrong])
    return found


def normalised(line: object) -> str:
    """A sentence as it is learned and translated: without white space around it; what is no text is an empty one."""
    return line.strip() if isinstance(line, str) else ""


def fault_of(text: str, longest: float) -> str:
    """What is wrong with a sentence, if anything is."""
    if not text:
        return "the line is empty"
    return f"the line is longer than {longest} characters" if len(text) > longest else ""


def _stems(folder: Path, source: str, target: str) -> list[str]:
    """The parts that a folder has files of, in either language: names before the ending."""
    names = sorted(path.name.removesuffix(".gz") for path in folder.iterdir() if path.is_file())
    endings = (f".{source}", f".{target}")
    stems = [name.removesuffix(ending) for name in names for ending in endings if name.endswith(ending)]
    return [stem for stem in dict.fromkeys(stems) if stem == "train" or stem in VALIDATION or stem.startswith("test")]


def _files(folder: Path, stem: str, source: str, target: str) -> tuple[Path | None, Path | None]:
    """Both files of a part, unpacked ones before archives; None stands for one that is missing."""
    return find(folder, (f"{stem}.{source}",)), find(folder, (f"{stem}.{target}",))
