"""Texts beside their summaries, a JSON object a line."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thalweg.tasks import hub
from thalweg.tasks.task import BadData
from thalweg.tasks.text.lines import find, read_json_lines

#: Names of the part that is held out for validation; without one, this share of the training part is.
VALIDATION = ("val", "valid", "validation", "dev")
HELD_OUT = 0.1

#: A sentence ends with one of these before white space and what can begin another.
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[A-Z0-9])")


@dataclass(slots=True)
class Paper:
    """Sentences, and one or more summaries of them."""

    sentences: list[str]
    summaries: list[str]


@dataclass(slots=True)
class Papers:
    """Those trained on, those held out, and those of the test part, which may be none."""

    train: list[Paper]
    validation: list[Paper]
    test: list[Paper] = field(default_factory=list)


def read_parts(data: Path, fields: tuple[str, str], longest: int, bad: BadData, seed: int) -> Papers:
    """The files `train.jsonl`, `val.jsonl` (or dev, valid, validation) and `test.jsonl` of a folder, gzipped or not; or
    one such file, a part of which is held out.

    Args:
        data: the folder, or the file.
        fields: the names of the text and of its summary.
        longest: characters of a text at most.
        bad: what to do with a line that cannot be used.
        seed: draws what is held out where there is no validation part.

    Raises:
        FileNotFoundError: there is no such folder, file or training part.
        ValueError: a file is empty or damaged, or bad data is refused.
    """
    data = Path(data)
    if hub.is_hub(data):
        return _of_hub(data, fields, longest, bad, seed)
    if not data.is_dir():
        train = read_papers(data, fields, longest, bad)
        return Papers(*_held_out(data, train, seed))
    files = {name: find(data, (f"{name}.jsonl",)) for name in ("train", "test", *VALIDATION)}
    if files["train"] is None:
        raise FileNotFoundError(f"{data} lacks train.jsonl[.gz]: a JSON object a line was expected")
    parts = {name: read_papers(path, fields, longest, bad) for name, path in files.items() if path is not None}
    validation = next((parts[name] for name in VALIDATION if name in parts), None)
    train, validation = (parts["train"], validation) if validation else _held_out(data, parts["train"], seed)
    return Papers(train, validation, parts.get("test", []))


def read_papers(path: Path, fields: tuple[str, str], longest: int, bad: BadData) -> list[Paper]:
    """The papers of a file.

    Raises:
        FileNotFoundError: there is no such file; ValueError: it is empty or damaged, holds nothing of use, or bad data
            is refused: a line that is no JSON object, lacks a field, holds nothing in it or is too long.
    """
    return _usable(read_json_lines(path, bad), str(path), fields, longest, bad)


def _usable(
    entries: Iterable[tuple[int, dict[str, Any]]], place: str, fields: tuple[str, str], longest: int, bad: BadData
) -> list[Paper]:
    papers = []
    for number, entry in entries:
        paper, fault = _paper(entry, fields, longest)
        if paper is None:
            bad.add(f"{place}, line {number}", fault)
        else:
            papers.append(paper)
    if not papers:
        raise ValueError(f"{place} holds no line that can be used")
    return papers


def _of_hub(data: Path, fields: tuple[str, str], longest: int, bad: BadData, seed: int) -> Papers:
    """The parts of a data set with a column for each field."""
    found = hub.splits(data)
    parts = {
        which: _usable(enumerate(found[which], start=1), f"{data}, {which}", fields, longest, bad)
        for which in ("train", *VALIDATION, "test")
        if which in found
    }
    if "train" not in parts:
        raise ValueError(f"{data} has no training part")
    train, validation = parts["train"], next((parts[name] for name in VALIDATION if name in parts), None)
    train, validation = (train, validation) if validation else _held_out(data, train, seed)
    return Papers(train, validation, parts.get("test", []))


def _paper(entry: dict[str, Any], fields: tuple[str, str], longest: int) -> tuple[Paper | None, str]:
    """A line as a paper, or what is wrong with it."""
    for name in fields:
        if name not in entry:
            return None, f"the line has no field {name!r}"
    text, summary = (f"the field {name!r}" for name in fields)
    sentences, fault = text_of(entry[fields[0]], text, longest)
    summaries, other_fault = _texts(entry[fields[1]], summary)
    fault = fault or other_fault
    return (None, fault) if fault else (Paper(sentences, summaries), "")


def text_of(value: object, name: str, longest: float) -> tuple[list[str], str]:
    """The sentences of a text, given as one or as a list of them, as they are learned and summarised; and what is wrong
    with it, by its name.
    """
    texts, fault = _texts(value, name)
    if isinstance(value, str):
        texts = [sentence for text in texts for sentence in sentences_of(text)]
    if sum(map(len, texts)) > longest:
        fault = f"{name} is longer than {longest} characters"
    return texts, fault


def _texts(value: object, name: str) -> tuple[list[str], str]:
    """A text or a list of them as a list, words a single space apart; and what is wrong with it."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        return [], f"{name} is neither a text nor a list of texts"
    texts = [" ".join(text.split()) for text in value if text.strip()]
    return texts, "" if texts else f"{name} is empty"


def sentences_of(text: str) -> list[str]:
    """A text cut into its sentences, roughly.

    >>> sentences_of("We propose X. It works (cf. Fig. 2). Does it? Yes.")
    ['We propose X.', 'It works (cf.', 'Fig.', '2).', 'Does it?', 'Yes.']
    """
    return [sentence for sentence in SENTENCE_END.split(text.strip()) if sentence]


def _held_out(data: Path, train: list[Paper], seed: int) -> tuple[list[Paper], list[Paper]]:
    if len(train) < 2:
        raise ValueError(f"{data} holds too little to train on and to hold some out: one text")
    train = list(train)
    random.Random(seed).shuffle(train)
    count = max(1, int(len(train) * HELD_OUT))
    return train[count:], train[:count]
