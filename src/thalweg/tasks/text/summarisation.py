"""Summarisation: long texts said in a sentence, by a network that writes, copies and points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import thalweg
from thalweg.tasks.task import BadData, seeded
from thalweg.tasks.text.batches import batches
from thalweg.tasks.text.beam import search
from thalweg.tasks.text.lines import json_object, read_lines
from thalweg.tasks.text.losses import IGNORED
from thalweg.tasks.text.papers import Paper, read_parts, text_of
from thalweg.tasks.text.rouge import overlap
from thalweg.tasks.text.sizes import check, heads_of
from thalweg.tasks.text.summary_networks import Summariser, SummaryLoss
from thalweg.tasks.text.summary_report import SummaryReport
from thalweg.tasks.text.tokens import BEGIN, END, PADDING, BytePairs, vocabulary_of
from thalweg.tasks.text.training import RULES

#: How much a sentence is wanted falls by e for so much less ROUGE-L.
SHARPNESS = 0.05

#: Tokens of a summary that the choice of a sentence counts as.
POINTING = 10.0

#: Tokens of a summary at most, its end included; tokens of texts summarised at once, padding included.
LONGEST, AT_ONCE = 80, 16_000


@dataclass(slots=True)
class Summary:
    """What a network makes of a text: its own words, the sentence it points at and its place, and its tokens."""

    written: str
    pointed: str
    place: int
    tokens: list[int]


def make(
    data: Path,
    answer: Literal["point", "write"] = "point",
    text_field: str = "source",
    summary_field: str = "target",
    vocabulary: int = 4000,
    width: int = 128,
    layers: int = 2,
    dropout: float = 0.2,
    longest: int = 20_000,
    on_bad_data: str = "refuse",
    seed: int = 0,
) -> dict[str, Any]:
    """Learn to summarise from JSON lines: `train.jsonl`, `val.jsonl` (or dev, valid) and `test.jsonl` of a folder.

    The fields `text_field` (a text, or a list of its sentences) and `summary_field` (a summary, or a list of them) are
    read; a text of more than `longest` characters is bad data. The network learns to write summaries, copying where it
    can, and to point at the sentence of the text that says most of its summary; `answer` is which of them `predict`
    gives, and the numbers `rouge1`, `rouge2`, `rougeL` are of. The report has both.

    Returns:
        The keyword arguments of `fit`; inputs are the text's tokens and the summary from its beginning, targets the
        summary to its end and how much each sentence is wanted.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: a file is empty or damaged, or a line is not JSON, lacks a field or is too long; or both
            fields are one, a size is none, or a width that heads cannot share.
        ImportError: a package that byte pairs or scores need is not installed.
    """
    if text_field == summary_field:
        raise ValueError(f"text_field and summary_field are both {text_field!r}: they name two fields")
    check(width=width, layers=layers, longest=longest)
    heads = heads_of(width)
    bad = BadData(on_bad_data)
    papers = read_parts(data, (text_field, summary_field), longest, bad, seed)
    tokens = BytePairs.learned((text for p in papers.train for text in (*p.sentences, *p.summaries)), vocabulary)
    facts = {
        "answer": answer,
        "source": text_field,
        "longest": longest,
        "tokens": tokens.facts(),
        "vocabulary": len(tokens),
        "width": width,
        "layers": layers,
        "heads": heads,
        "dropout": dropout,
    }
    with seeded(seed):
        model = build(facts)
    training_data, validation_data = coded(tokens, papers.train), coded(tokens, papers.validation)
    return {
        "model": model,
        "data": training_data,
        "loss": SummaryLoss(POINTING),
        "validation_data": validation_data,
        **RULES["transformer"],
        "batch_size": 32,
        "epochs": 10,
        "callbacks": [SummaryReport(tokens, summarised, facts, papers.validation, papers.test)],
        "seed": seed,
        "facts": facts,
        "notes": [*bad.notes(), *_cut(training_data, validation_data)],
    }


def coded(tokens: BytePairs, papers: Sequence[Paper]) -> tuple[Any, Any]:
    """Inputs (text, summary from its beginning) and targets (summary to its end, how much each place of the text is
    wanted); a row for each summary, of different length. A summary is cut after `LONGEST` tokens, its end included.
    """
    sources, answers, wanted = [], [], []
    for paper in papers:
        source = text_tokens(tokens, paper.sentences)
        begins = [place for place, token in enumerate(source) if token == BEGIN]
        for summary in paper.summaries:
            scores = torch.tensor([overlap(summary, sentence) for sentence in paper.sentences])
            row = torch.zeros(len(source))
            row[begins] = (scores / SHARPNESS).softmax(0)
            sources.append(source)
            # One that is cut has no end: a network is not to learn that summaries end in mid-sentence.
            answers.append([*tokens.encode(summary), END][:LONGEST])
            wanted.append(row)
    return (
        (
            thalweg.Sequences(sources, padding=PADDING),
            thalweg.Sequences([[BEGIN, *row[:-1]] for row in answers], padding=PADDING),
        ),
        (thalweg.Sequences(answers, padding=IGNORED), thalweg.Sequences(wanted, padding=0)),
    )


def _cut(*parts: tuple[Any, Any]) -> list[str]:
    """A sentence on the summaries of these parts that were too long, where there are any."""
    targets = [answers for _, (answers, _) in parts]
    count = sum(int((answers.values[answers.lengths.cumsum(0) - 1] != END).sum()) for answers in targets)
    if not count:
        return []
    total = sum(map(len, targets))
    return [
        f"{count:,} of {total:,} summaries are longer than {LONGEST - 1} tokens: what follows is cut off, in training "
        "and validation loss; scores are of whole summaries."
    ]


def text_tokens(tokens: BytePairs, sentences: Sequence[str]) -> list[int]:
    """A text as the network reads it: `BEGIN` before each sentence, `END` after the last."""
    return [token for row in tokens.encode_all(list(sentences)) for token in (BEGIN, *row)] + [END]


def build(facts: dict[str, Any]) -> nn.Module:
    """The network of these facts, its weights fresh."""
    return Summariser(facts["vocabulary"], facts["width"], facts["layers"], facts["heads"], facts["dropout"])


@torch.no_grad()
def summarised(model: Any, tokens: BytePairs, texts: Sequence[Sequence[str]]) -> list[Summary]:
    """What the network makes of each text, given as its sentences."""
    device = next(model.parameters()).device
    rows = [text_tokens(tokens, sentences) for sentences in texts]
    found: list[Summary | None] = [None] * len(rows)
    for numbers in batches([len(row) for row in rows], AT_ONCE):
        batch = thalweg.Sequences([rows[number] for number in numbers], padding=PADDING)
        source = batch.take(torch.arange(len(numbers))).to(device)
        places = model.best_sentence(source).tolist()
        written = search(model, source, longest=LONGEST)
        for number, place, answer in zip(numbers, places, written.tokens, strict=True):
            found[number] = Summary(tokens.decode(answer).strip(), texts[number][place], place, answer)
    return [summary for summary in found if summary is not None]


def predict(model: nn.Module, facts: dict[str, Any], files: list[Path]) -> Iterator[dict[str, Any]]:
    """Each line of the files is a text, or a JSON object that has one in its field; an empty line has an empty answer.

    Raises:
        ValueError: a JSON object lacks the field, or it holds no text, or one longer than any that was learned from.
    """
    tokens = vocabulary_of(facts["tokens"])
    for file in files:
        lines = read_lines(file, BadData("refuse"))
        texts = [_sentences(line or "", facts, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]
        for number, sentences in enumerate(texts, start=1):
            found = summarised(model, tokens, [sentences])[0] if sentences else Summary("", "", -1, [])
            answer = found.pointed if facts["answer"] == "point" else found.written
            yield {
                "answer": answer,
                "file": str(file),
                "line": number,
                "written": found.written,
                "pointed": found.pointed,
                "sentence": found.place + 1,
            }


def _sentences(line: str, facts: dict[str, Any], place: str) -> list[str]:
    """The sentences of a line, which is JSON where it begins with a brace; none of an empty line."""
    if not line.strip():
        return []
    value, name = line, "the line"
    if line.lstrip().startswith("{"):
        entry, fault, detail = json_object(line)
        if entry is None:
            raise ValueError(f"{place}, which begins like JSON: {fault}{detail}")
        if facts["source"] not in entry:
            raise ValueError(f"{place}: the line has no field {facts['source']!r}")
        value, name = entry[facts["source"]], f"the field {facts['source']!r}"
    # Runs of earlier versions set no limit.
    sentences, fault = text_of(value, name, facts.get("longest", math.inf))
    if fault:
        raise ValueError(f"{place}: {fault}")
    return sentences


def example(facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two texts and the beginnings of two summaries, for an export to follow through the model."""
    return torch.full((2, 16), BEGIN), torch.full((2, 8), BEGIN)


task = thalweg.Task(make=make, build=build, predict=predict, example=example, any_length=True)
