"""Models of language: what comes next in a text, character by character or in byte pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg
from thalweg.tasks.task import BadData, seeded
from thalweg.tasks.text.language_networks import LSTMLanguageModel, TransformerLanguageModel
from thalweg.tasks.text.language_report import LanguageReport
from thalweg.tasks.text.lines import read_lines
from thalweg.tasks.text.losses import IGNORED
from thalweg.tasks.text.sampling import continued
from thalweg.tasks.text.sizes import check, heads_of
from thalweg.tasks.text.texts import read_parts
from thalweg.tasks.text.tokens import BytePairs, Characters, Vocabulary, vocabulary_of
from thalweg.tasks.text.training import RULES

#: What suits each network where nothing else is asked for: width, layers, dropout.
SIZES = {"transformer": (128, 4, 0.0), "lstm": (384, 1, 0.1)}


def make(
    data: Path,
    network: Literal["transformer", "lstm"] = "transformer",
    vocabulary: int = 0,
    width: int | None = None,
    layers: int | None = None,
    length: int = 128,
    dropout: float | None = None,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """Learn a text: the first nine tenths of the file `data` are trained on, the rest is held out. A name of the hub,
    `hub:OWNER/NAME`, will do as well: its first column of text, and its validation part if it has one.

    The loss is in nats a token: a character, or one of `vocabulary` byte pairs where that is not 0. The text is cut
    into windows of `length` tokens; those trained on begin every half window, so that each token is met with much
    before it and with little.

    Returns:
        The keyword arguments of `fit`; inputs and targets `[windows, length]`, each target the token that follows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, too short for a window, or not UTF-8; or a size is none, or a width that heads cannot
            share.
    """
    own_width, own_layers, own_dropout = SIZES[network]
    width = own_width if width is None else width
    layers = own_layers if layers is None else layers
    check(width=width, layers=layers, length=length)
    bad = BadData(on_bad_data)
    train, held_out = read_parts(data, bad)
    tokens: Vocabulary = (
        BytePairs.learned(train.splitlines(keepends=True), vocabulary) if vocabulary else Characters(train)
    )
    facts = {
        "network": network,
        "tokens": tokens.facts(),
        "vocabulary": len(tokens),
        "width": width,
        "layers": layers,
        "dropout": own_dropout if dropout is None else dropout,
        "length": length,
        "prompt": train[: train.find("\n") + 1 or 20][:80],
    }
    coded, coded_held_out = (torch.tensor(tokens.encode(part)) for part in (train, held_out))
    if len(coded) <= length or len(coded_held_out) < 2:
        raise ValueError(f"{data} is too short: {len(coded)} tokens to train on, and a window takes {length}")
    held_out_windows = windows(coded_held_out, length)
    with seeded(seed):
        model = build(facts)
    return {
        "model": model,
        "data": overlapping(coded, length, step=max(1, length // 2)),
        "loss": "cross_entropy",
        "validation_data": held_out_windows,
        **RULES[network],
        "batch_size": 32,
        "epochs": 4,
        "callbacks": [LanguageReport(tokens, facts, held_out, held_out_windows)],
        "seed": seed,
        "facts": facts,
        "notes": bad.notes(),
    }


def overlapping(tokens: Tensor, length: int, step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets `[windows, length]`, a window every `step` tokens: views of the one text."""
    return tokens[:-1].unfold(0, length, step), tokens[1:].unfold(0, length, step)


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets `[windows, length]`, one after the other: each token but the first is a target once; a
    last one that is short is filled up with targets that are not counted.
    """
    missing = -(len(tokens) - 1) % length
    x, y = F.pad(tokens[:-1], (0, missing)), F.pad(tokens[1:], (0, missing), value=IGNORED)
    return x.view(-1, length), y.view(-1, length)


def build(facts: dict[str, Any]) -> nn.Module:
    """The network of these facts, its weights fresh.

    Raises:
        ValueError: the width cannot be shared by its heads.
    """
    sizes = facts["vocabulary"], facts["width"], facts["layers"]
    if facts["network"] == "lstm":
        return LSTMLanguageModel(*sizes, facts["dropout"], facts["length"])
    return TransformerLanguageModel(*sizes, heads_of(facts["width"]), facts["dropout"], facts["length"])


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterator[dict[str, Any]]:
    """Each line of the files is a prompt, which is continued; an empty line has an empty answer."""
    tokens = vocabulary_of(facts["tokens"])
    for file in files:
        for number, line in enumerate(read_lines(file, BadData("refuse")), start=1):
            answer = line + continued(model, tokens, [line], seed=number)[0] if line else ""
            yield {"answer": answer, "file": str(file), "line": number, "prompt": line}


def example(facts: dict[str, Any]) -> Tensor:
    """Two windows, for an export to follow through the model."""
    return torch.zeros(2, facts["length"], dtype=torch.int64)


task = thalweg.Task(make=make, build=build, predict=predict, example=example, any_length=True)
