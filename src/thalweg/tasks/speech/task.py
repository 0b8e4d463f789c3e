"""`speech-recognition`: recordings and their words → a recogniser; recordings of single words → which word it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import thalweg
from thalweg.tasks.speech import units as pieces
from thalweg.tasks.speech.corpus import Said, find, normalised
from thalweg.tasks.speech.examples import CEPSTRA, bands_of, examples, kind_of, read
from thalweg.tasks.speech.network import build
from thalweg.tasks.speech.pictures import Pictures
from thalweg.tasks.speech.recogniser import WordErrors, language_of, recognise, scored
from thalweg.tasks.speech.sound import COEFFICIENTS, FRAMES
from thalweg.tasks.task import BadData, seeded

#: Share of the recordings to learn from that chooses the best weights.
VALIDATION = 0.1

#: Folders from which on those to learn from are parted from those held out as wholes.
FOLDERS = 10

#: Length of the utterances that an exported network takes [s].
EXPORTED = 10

#: What the language model counts, and is worth beside the sound: chosen on a validation share of AN4 (word error rate
#: 0.185; 0.286 without it).
ORDER, WEIGHT, BONUS = 6, 0.5, 1.0

#: Updates that a training is to have; passes over the data at least and at most.
UPDATES, FEWEST_EPOCHS, MOST_EPOCHS = 3000, 20, 150

NETWORKS = ("recurrent", "conformer")


def make(
    data: Path,
    network: str = "recurrent",
    units: str = "auto",
    width: int = 256,
    layers: int = 2,
    dropout: float = 0.2,
    language_model: bool = True,
    text: Path | None = None,
    order: int = ORDER,
    language_weight: float = WEIGHT,
    length_bonus: float = BONUS,
    held_out: float = 0.1,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """A recogniser for the recordings of a folder `data`: `.wav` with lists or transcripts beside, Sphinx's layout, …

    The network tells letters apart, or whole words where each recording is one of a few (`units`). A tenth of the
    recordings to learn from, drawn by the seed, chooses the best weights; `test_word_error_rate` is of the folder's
    test list, or else of a share `held_out`. Where there are ten folders or more, as of one speaker each, they are held
    out as wholes. The language model counts the last `order` units of the transcripts, and of the sentences of a file
    `text`; `language_weight` and `length_bonus` say what it is worth beside the sound.

    Raises:
        FileNotFoundError: no such folder, or no recordings in it.
        ValueError: a list is damaged, an option is not understood, or what is refused.
    """
    if network not in NETWORKS:
        raise ValueError(f"network takes {', '.join(NETWORKS)}, got {network!r}")
    if not 0 < held_out < 0.9:
        raise ValueError(f"held_out is a share above 0 and below 0.9, got {held_out}")
    bad = BadData(on_bad_data)
    found, test_part = find(Path(data), bad)
    training, validation, test = _split(found, test_part, held_out, seed)
    rate, notes = kind_of([*training, *validation, *test])
    alphabet, joint = pieces.choose([said.words for said in training], units)
    single = bool(joint) and all(" " not in said.words for said in training)
    facts: dict[str, Any] = {"network": network, "width": width, "layers": layers, "dropout": dropout}
    facts |= {"rate": rate, "coefficients": COEFFICIENTS, "units": alphabet, "joint": joint, "single": single}
    parts = [examples(part, facts, bad) for part in (training, validation, test)]
    for name, part in zip(("learn from", "choose the best weights by", "test on"), parts, strict=True):
        if not len(part):
            raise ValueError(f"{data} holds no sound recording to {name}: {'; '.join(bad.notes())}")
    facts["bands"] = bands_of(parts[0].utterances, facts) if single else None
    facts["language"] = None
    if language_model and not single:
        sentences = [*parts[0].sentences, *_sentences(text, facts, bad)]
        language = {"sentences": sentences, "order": order, "weight": language_weight, "bonus": length_bonus}
        facts["language"] = language
    with seeded(seed):
        model = build(facts)
    batch_size = 32 if single else 16
    per_epoch = math.ceil(len(parts[0]) / batch_size)
    return {
        "model": model,
        "data": parts[0].arrays(facts),
        "loss": "ctc",
        "validation_data": parts[1].arrays(facts),
        "metrics": (WordErrors(facts),),
        "batch_size": batch_size,
        "epochs": min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(UPDATES / per_epoch))),
        # CTC first learns to say nothing at all: a race over the first steps would be about that. Of three rates on AN4
        # (docs/tasks.md) the highest makes the fewest word errors on the validation part.
        "learning_rate": 1e-3 if single else 3e-3,
        "clip_norm": 5.0,
        "callbacks": [Pictures(facts, parts[2])],
        "seed": seed,
        "facts": facts,
        "notes": [*bad.notes(), *notes],
    }


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterable[dict[str, Any]]:
    """What is said in sound files (or files of cepstra, where the model was trained on them).

    Raises:
        ValueError: a file cannot be read, or is empty, silent or clipped.
    """
    fusion = language_of(facts)
    for file in files:
        path = Path(file)
        if (path.suffix == CEPSTRA) != (facts["rate"] is None):
            expected = "cepstra (.mfc)" if facts["rate"] is None else "sound"
            raise ValueError(f"{path}: the recogniser was trained on {expected}")
        try:
            utterance = read(path, facts["rate"])
        except ValueError as error:
            raise ValueError(f"{path}: the recording {error}") from error
        words, value = recognise(next(scored(model, facts, [utterance])), facts, fusion)
        answer: dict[str, Any] = {"file": str(path), "answer": words}
        yield answer | ({"probability": math.exp(value)} if facts["single"] else {"log_value": value})


def example(facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two utterances of ten seconds: an exported network takes others padded to that, with their own lengths."""
    length = EXPORTED * (FRAMES if facts["rate"] is None else facts["rate"])
    shape = (2, length, facts["coefficients"]) if facts["rate"] is None else (2, length)
    return torch.zeros(shape), torch.tensor([length, length // 2])


def _split(
    found: Sequence[Said], test: Sequence[Said] | None, held_out: float, seed: int
) -> tuple[list[Said], list[Said], list[Said]]:
    """Recordings to learn from, to choose the best weights by, and to test on, drawn by the seed."""
    groups = _groups(found)
    drawn = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    judged = 0 if test is not None else max(1, round(held_out * len(found)))
    parts: tuple[list[Said], ...] = ([], [], [])
    wanted = (len(found), max(1, round(VALIDATION * (len(found) - judged))), judged)
    for number in drawn:  # the last part is filled first
        part = next(part for part in (2, 1, 0) if len(parts[part]) < wanted[part])
        parts[part].extend(found[i] for i in groups[number])
    if not parts[0] or not parts[1]:
        raise ValueError(f"{len(found)} recordings are too few to hold some out: at least 3 were expected")
    in_order = [sorted(part, key=lambda said: said.place) for part in parts]
    return in_order[0], in_order[1], list(test) if test is not None else in_order[2]


def _groups(found: Sequence[Said]) -> list[list[int]]:
    """Recordings that must not be parted: those of one folder, of one speaker mostly, where there are many folders.

    Else what is held out would say how well voices are known that were heard before. Folders that are named after the
    words are no speakers.
    """
    folders: dict[Path, list[int]] = {}
    for number, said in enumerate(found):
        folders.setdefault(said.path.parent, []).append(number)
    if len(folders) < FOLDERS or all(said.words == normalised(said.path.parent.name) for said in found):
        return [[number] for number in range(len(found))]
    return list(folders.values())


def _sentences(text: Path | None, facts: dict[str, Any], bad: BadData) -> list[str]:
    """The lines of a text for the language model that are made of known units; the others are told of."""
    if text is None:
        return []
    try:
        lines = [normalised(line) for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{text} cannot be read as text: {error}") from error
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            pieces.encoded(line, facts)
        except ValueError as error:
            bad.add(f"{text}, line {number}", str(error))
        else:
            kept += [line] if line else []
    return kept


task = thalweg.Task(make=make, build=build, predict=predict, example=example)
