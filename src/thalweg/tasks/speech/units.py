"""Sentences ↔ what the network tells apart: letters, or whole words where each recording is one of a few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

#: Recordings of one word each are told apart word by word, up to so many different ones.
WORDS = 100

KINDS = ("auto", "letters", "words")


def choose(sentences: Sequence[str], kind: str) -> tuple[list[str], str]:
    """The units of these sentences, in order, and what joins them: nothing for letters, a space for words.

    Raises:
        ValueError: another kind than these.
    """
    if kind not in KINDS:
        raise ValueError(f"units takes {', '.join(KINDS)}, got {kind!r}")
    words = {word for sentence in sentences for word in sentence.split()}
    single = all(" " not in sentence for sentence in sentences)
    if kind == "words" or (kind == "auto" and single and len(words) <= WORDS):
        return sorted(words), " "
    return sorted(set("".join(sentences))), ""


def pieces(sentence: str, facts: dict[str, Any]) -> list[str]:
    """A sentence as units."""
    return sentence.split() if facts["joint"] else list(sentence)


def encoded(sentence: str, facts: dict[str, Any]) -> list[int]:
    """A sentence as the numbers of its units, from 1 on.

    Raises:
        ValueError: what was never seen in training, in words that follow the sentence's place.
    """
    places = {unit: 1 + number for number, unit in enumerate(facts["units"])}
    found = pieces(sentence, facts)
    if unknown := sorted({unit for unit in found if unit not in places}):
        kind = "words" if facts["joint"] else "letters"
        raise ValueError(f"the transcript has {kind} that training never saw: {' '.join(unknown)}")
    return [places[unit] for unit in found]


def decoded(numbers: Iterable[int], facts: dict[str, Any]) -> str:
    """The sentence of numbers of units, with single spaces."""
    return " ".join(facts["joint"].join(facts["units"][number - 1] for number in numbers).split())
