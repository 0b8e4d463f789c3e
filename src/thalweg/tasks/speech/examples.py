"""Recordings with their words → utterances and labels, as the network and its loss take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import thalweg
from thalweg.tasks.speech.align import needed
from thalweg.tasks.speech.corpus import Said
from thalweg.tasks.speech.features import level
from thalweg.tasks.speech.network import BANDS, front_of, num_frames
from thalweg.tasks.speech.sound import Samples, rate_of, read_cepstra, read_sound
from thalweg.tasks.speech.units import encoded
from thalweg.tasks.task import BadData

CEPSTRA = ".mfc"

#: Least deviation of a band: one without sound is not blown up.
LEAST = 0.3


@dataclass
class Examples:
    """Utterances, arrays `[samples]` or `[frames, coefficients]`; labels from 1 on; sentences; places of a person."""

    utterances: list[Samples] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.utterances)

    def arrays(self, facts: dict[str, Any]) -> Any:
        """(utterances, lengths) and (labels, input lengths, label lengths), as `fit` takes x and y."""
        lengths = torch.tensor([len(utterance) for utterance in self.utterances])
        frames = torch.tensor([num_frames(len(utterance), facts) for utterance in self.utterances])
        counts = torch.tensor([len(row) for row in self.labels])
        x = (thalweg.Sequences(self.utterances), lengths)
        return x, (thalweg.Sequences(self.labels), frames, counts)


def kind_of(recordings: Sequence[Said]) -> tuple[int | None, list[str]]:
    """Samples a second of most of the recordings, None where they are cepstra; and what is to be said of the others.

    Raises:
        ValueError: sounds and cepstra are mixed.
    """
    cepstra = [said.path.suffix == CEPSTRA for said in recordings]
    if all(cepstra):
        return None, []
    if any(cepstra):
        raise ValueError(f"{recordings[0].path.parent} and its like hold sounds and cepstra: one of them was expected")
    rates: Counter[int] = Counter()
    first: dict[int, Path] = {}
    for said in recordings:
        try:
            rate = rate_of(said.path)
        except ValueError:
            continue  # told of where it is read
        rates[rate] += 1
        first.setdefault(rate, said.path)
    if not rates:
        raise ValueError(f"{recordings[0].path}: none of the recordings can be read as sound")
    usual = rates.most_common(1)[0][0]
    notes = [
        f"Resampled {count:,} from {rate:,} to {usual:,} samples a second (the first is {first[rate]})."
        for rate, count in sorted(rates.items())
        if rate != usual
    ]
    return usual, notes


def read(path: Path, rate: int | None) -> Samples:
    """One recording, as sound at `rate` or as cepstra.

    Raises:
        ValueError: what is wrong, in words that follow the file's name.
    """
    return read_cepstra(path) if rate is None else read_sound(path, rate)


def examples(recordings: Sequence[Said], facts: dict[str, Any], bad: BadData) -> Examples:
    """Read the recordings; what cannot be used is refused or skipped as `bad` says."""
    found = Examples()
    for said in recordings:
        try:
            labels = encoded(said.words, facts)
        except ValueError as error:
            bad.add(said.place, str(error))
            continue
        try:
            utterance = read(said.path, facts["rate"])
        except ValueError as error:
            bad.add(said.path, f"the recording {error}")
            continue
        if num_frames(len(utterance), facts) < needed(labels):
            bad.add(said.path, "the recording is too short for its transcript")
            continue
        found.utterances.append(utterance)
        found.labels.append(labels)
        found.sentences.append(said.words)
        found.places.append(said.path.name)
    return found


def bands_of(utterances: Sequence[Samples], facts: dict[str, Any]) -> dict[str, list[float]]:
    """Mean and deviation of each log-mel band over all frames, after each utterance's own level is taken off."""
    front, total, squares, count = front_of(facts), torch.zeros(BANDS), torch.zeros(BANDS), 0
    total, squares = total.double(), squares.double()
    for utterance in utterances:
        energies, frames = front(torch.as_tensor(utterance)[None], torch.tensor([len(utterance)]))
        x = level(energies, frames)[0, : int(frames)].double()
        total, squares, count = total + x.sum(0), squares + x.square().sum(0), count + len(x)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(LEAST)
    return {"mean": mean.tolist(), "deviation": deviation.tolist()}
