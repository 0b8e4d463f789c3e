"""Two files whose lines belong together: a sentence, and its translation."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from thalweg.tasks import hub
from thalweg.tasks.task import BadData
from thalweg.tasks.text.lines import read_lines

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
        ValueError: a file is empty or damaged, or bad data is refused.
    """
    folder = Path(folder)
    if source == target:
        raise ValueError(f"source and target are both {source!r}: they name two languages")
    if hub.is_hub(folder):
        return _of_hub(folder, source, target, longest, bad, seed)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: give one with train.{source}[.gz] and train.{target}[.gz]"
        )
    found = {stem: _files(folder, stem, source, target) for stem in _stems(folder, source)}
    parts = {stem: read_pairs(*files, longest, bad) for stem, files in found.items() if files is not None}
    if "train" not in parts:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{folder} lacks train.{source}[.gz] or train.{target}[.gz]; it has {there}. "
            "Say the endings with --source and --target"
        )
    train = parts["train"]
    validation = next((parts[name] for name in VALIDATION if name in parts), None)
    tests = {stem: pairs for stem, pairs in sorted(parts.items()) if stem.startswith("test")}
    return _parts(folder, train, validation, tests, seed)


def _parts(
    folder: Path, train: list[Pair], validation: list[Pair] | None, tests: dict[str, list[Pair]], seed: int
) -> Parts:
    """With a part held out where there is none."""
    total = len(train)
    if validation is None:
        random.Random(seed).shuffle(train)
        count = max(1, int(total * HELD_OUT))
        train, validation = train[count:], train[:count]
    if not train or not validation:
        raise ValueError(f"{folder} has too few pairs to train on and to hold some out: {total}")
    return Parts(train, validation, tests)


def _of_hub(data: Path, source: str, target: str, longest: int, bad: BadData, seed: int) -> Parts:
    """The parts of a data set with a column for each language, or with one of translations into both."""
    found = hub.splits(data)
    parts: dict[str, list[Pair]] = {}
    for which in ("train", *VALIDATION, "test"):
        if which not in found:
            continue
        table = found[which]
        column = hub.column(table, "Translation")
        rows = table[column] if column else table
        if len(rows) and not {source, target} <= set(rows[0]):
            raise ValueError(f"{data} has no columns {source!r} and {target!r}: it has {', '.join(map(str, rows[0]))}")
        pairs = enumerate(((row[source], row[target]) for row in rows), start=1)
        places = (f"{data}, {which}",) * 2
        parts[which] = [pair for number, pair in pairs if _is_whole(pair, places, number, longest, bad)]
    if "train" not in parts:
        raise ValueError(f"{data} has no training part")
    validation = next((parts[name] for name in VALIDATION if name in parts), None)
    return _parts(data, parts["train"], validation, {name: parts[name] for name in ("test",) if name in parts}, seed)


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
    pairs = []
    for number, (line, answer) in enumerate(zip(lines, answers, strict=False), start=1):
        if line is None or answer is None:
            continue
        if _is_whole((line, answer), (str(source), str(target)), number, longest, bad):
            pairs.append((line.strip(), answer.strip()))
    return pairs


def _is_whole(pair: Pair, places: tuple[str, str], number: int, longest: int, bad: BadData) -> bool:
    """Whether both sides of a pair hold something, and not too much; what is wrong is told."""
    for place, text in zip(places, pair, strict=True):
        if not text.strip():
            bad.add(f"{place}, line {number}", "the line is empty")
            return False
        if len(text) > longest:
            bad.add(f"{place}, line {number}", f"the line is longer than {longest} characters")
            return False
    return True


def _stems(folder: Path, source: str) -> list[str]:
    """The parts that a folder has files of: names before the ending."""
    names = sorted(path.name.removesuffix(".gz") for path in folder.iterdir() if path.is_file())
    stems = [name.removesuffix(f".{source}") for name in names if name.endswith(f".{source}")]
    return [stem for stem in dict.fromkeys(stems) if stem == "train" or stem in VALIDATION or stem.startswith("test")]


def _files(folder: Path, stem: str, source: str, target: str) -> tuple[Path, Path] | None:
    """Both files of a part, unpacked ones before archives; None where one is missing."""
    both = []
    for ending in (source, target):
        there = [path for path in (folder / f"{stem}.{ending}", folder / f"{stem}.{ending}.gz") if path.is_file()]
        if not there:
            return None
        both.append(there[0])
    return both[0], both[1]
