"""Translation: sentences of one language into those of another, learned from two aligned files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import thalweg
from thalweg.tasks.task import BadData, seeded
from thalweg.tasks.text.aligned import Pair, fault_of, normalised, read_parts
from thalweg.tasks.text.batches import batches
from thalweg.tasks.text.beam import search
from thalweg.tasks.text.lines import read_lines
from thalweg.tasks.text.losses import IGNORED, SmoothedCrossEntropy
from thalweg.tasks.text.sizes import check, heads_of
from thalweg.tasks.text.tokens import BEGIN, END, PADDING, BytePairs, vocabulary_of
from thalweg.tasks.text.training import RULES
from thalweg.tasks.text.translation_networks import translator
from thalweg.tasks.text.translation_report import TranslationReport

#: What suits each network where nothing else is asked for: width, layers, dropout.
SIZES = {"transformer": (128, 3, 0.1), "lstm": (256, 1, 0.2)}
#: Share of the probability that the loss wants spread over all tokens.
SMOOTHING = 0.1

#: Tokens translated at once, padding included.
AT_ONCE = 4000

#: Lines of a file that are answered before the next are looked at.
LINES = 100


def make(
    data: Path,
    source_language: str = "en",
    target_language: str = "de",
    network: Literal["transformer", "lstm"] = "transformer",
    vocabulary: int = 4000,
    width: int | None = None,
    layers: int | None = None,
    dropout: float | None = None,
    longest: int = 1000,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """Learn to translate from the aligned files of a folder, a sentence a line: `train.en` and `train.de`, where the
    endings are the names of the languages.

    `val.*` (or `valid`, `validation`, `dev`) is held out, else 5 % of the training pairs; each `test*` part is
    translated at the end and scored. Both languages share one vocabulary of `vocabulary` byte pairs, learned from the
    training part. Lines of more than `longest` characters are bad data.

    Returns:
        The keyword arguments of `fit`; inputs are source tokens and the answer from its beginning, targets the answer
        to its end.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: files do not align, are empty or not UTF-8, or a line is empty or too long; or a size is
            none, or a width that cannot be shared.
        ImportError: a package that byte pairs or scores need is not installed.
    """
    own_width, own_layers, own_dropout = SIZES[network]
    width = own_width if width is None else width
    layers = own_layers if layers is None else layers
    check(width=width, layers=layers, longest=longest)
    heads = _heads(network, width)
    bad = BadData(on_bad_data)
    parts = read_parts(data, source_language, target_language, longest, bad, seed)
    tokens = BytePairs.learned((text for pair in parts.train for text in pair), vocabulary)
    facts = {
        "network": network,
        "source": source_language,
        "target": target_language,
        "longest": longest,
        "tokens": tokens.facts(),
        "vocabulary": len(tokens),
        "width": width,
        "layers": layers,
        "heads": heads,
        "dropout": own_dropout if dropout is None else dropout,
    }
    with seeded(seed):
        model = build(facts)
    return {
        "model": model,
        "data": coded(tokens, parts.train),
        "loss": SmoothedCrossEntropy(SMOOTHING),
        "validation_data": coded(tokens, parts.validation),
        **RULES[network],
        "batch_size": 128,
        "epochs": 12,
        "callbacks": [TranslationReport(tokens, translated, {"validation": parts.validation, **parts.tests})],
        "seed": seed,
        "facts": facts,
        "notes": bad.notes(),
    }


def _heads(network: str, width: int) -> int:
    """How many attention heads share a width; an LSTM's attention is one, and reads a half in each direction."""
    if network != "lstm":
        return heads_of(width)
    if width % 2:
        raise ValueError(f"width {width} cannot be halved for the two directions of reading: give an even number")
    return 1


def coded(tokens: BytePairs, pairs: Sequence[Pair]) -> tuple[Any, Any]:
    """Inputs (source, answer from its beginning) and targets (answer to its end), rows of different length."""
    sources = [[*row, END] for row in tokens.encode_all([source for source, _ in pairs])]
    answers = tokens.encode_all([target for _, target in pairs])
    return (
        (
            thalweg.Sequences(sources, padding=PADDING),
            thalweg.Sequences([[BEGIN, *row] for row in answers], padding=PADDING),
        ),
        thalweg.Sequences([[*row, END] for row in answers], padding=IGNORED),
    )


def build(facts: dict[str, Any]) -> nn.Module:
    """The network of these facts, its weights fresh."""
    return translator(facts)


def translated(model: Any, tokens: BytePairs, texts: Sequence[str]) -> list[tuple[str, list[int], float]]:
    """Each text in the other language, with its tokens and its score: the mean of log p a token, roughly."""
    device = next(model.parameters()).device
    rows = [[*row, END] for row in tokens.encode_all(list(texts))]
    found: list[tuple[str, list[int], float]] = [("", [], 0.0)] * len(rows)
    for numbers in batches([len(row) for row in rows], AT_ONCE):
        batch = thalweg.Sequences([rows[number] for number in numbers], padding=PADDING)
        source = batch.take(torch.arange(len(numbers))).to(device)
        # Of its own length, so that an answer does not depend on what else is in its batch.
        longest = torch.tensor([2 * len(rows[number]) + 10 for number in numbers], device=device)
        answers = search(model, source, longest)
        for number, answer, score in zip(numbers, answers.tokens, answers.scores, strict=True):
            found[number] = (tokens.decode(answer).strip(), answer, score)
    return found


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterator[dict[str, Any]]:
    """Each line of the files is a sentence; an empty one stays empty.

    Raises:
        ValueError: a line is longer than any that was learned from.
    """
    tokens = vocabulary_of(facts["tokens"])
    for file in files:
        sentences = [normalised(line) for line in read_lines(file, BadData("refuse"))]
        for number, sentence in enumerate(sentences, start=1):
            # Runs of earlier versions set no limit.
            fault = fault_of(sentence, facts.get("longest", math.inf)) if sentence else ""
            if fault:
                raise ValueError(f"{file}, line {number}: {fault}")
        for first in range(0, len(sentences), LINES):
            piece = sentences[first : first + LINES]
            answers = iter(translated(model, tokens, [sentence for sentence in piece if sentence]))
            for number, sentence in enumerate(piece, start=first + 1):
                answer, _, score = next(answers) if sentence else ("", [], 0.0)
                yield {"answer": answer, "file": str(file), "line": number, "source": sentence, "score": score}


def example(facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two sources and the beginnings of two answers, for an export to follow through the model."""
    return torch.full((2, 8), END), torch.full((2, 8), BEGIN)


task = thalweg.Task(make=make, build=build, predict=predict, example=example, any_length=True)
