"""A trained acoustic model and its language model → sentences, and how many of their words are wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from thalweg.tasks.speech.beam import Fusion, greedy, search, single
from thalweg.tasks.speech.language import LanguageModel
from thalweg.tasks.speech.network import num_frames
from thalweg.tasks.speech.units import decoded, pieces

#: Utterances that go through the network at once.
AT_ONCE = 16


def language_of(facts: dict[str, Any]) -> Fusion | None:
    """The language model that the facts of a run describe; None where it has none."""
    if facts["language"] is None:
        return None
    language = facts["language"]
    sentences = [pieces(sentence, facts) for sentence in language["sentences"]]
    model = LanguageModel(facts["units"], sentences, language["order"])
    return Fusion(model, language["weight"], language["bonus"])


def recognise(scores: Tensor, facts: dict[str, Any], fusion: Fusion | None, width: int = 16) -> tuple[str, float]:
    """The sentence for the scores of one utterance, and its value.

    The value is log p of the sentence, plus what the language model and the bonus add where there is one. Where every
    recording is one word, the likeliest one, and log p beside the other words.
    """
    if facts["single"]:
        values = single(scores).log_softmax(0)
        best = int(values.argmax())
        return facts["units"][best], float(values[best])
    found, value = search(scores, facts["units"], width, fusion)
    return decoded(found, facts), value


def scored(model: nn.Module, facts: dict[str, Any], utterances: Sequence[Any]) -> Iterator[Tensor]:
    """The scores of each utterance, an array `[samples]` or `[frames, coefficients]`: `[time, 1 + units]`."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(utterances), AT_ONCE):
            part = [torch.as_tensor(utterance) for utterance in utterances[start : start + AT_ONCE]]
            lengths = torch.tensor([len(utterance) for utterance in part])
            padded = nn.utils.rnn.pad_sequence(part, batch_first=True)
            with torch.no_grad():
                scores = model(padded.to(device), lengths.to(device)).cpu()
            for row, utterance in zip(scores, part, strict=True):
                yield row[: num_frames(len(utterance), facts)]
    finally:
        model.train(was_training)


class WordErrors:
    """Words that were put in, left out or taken for others, for each word that was said; exact over batches.

    Of the likeliest alignment, without a language model: what can be watched while a network learns.
    """

    name = "word_error_rate"
    _defaults: ClassVar = {"errors": 0, "words": 0}  # what a checkpoint keeps, as of torchmetrics' own

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.errors = self.words = 0

    def update(self, output: Tensor, target: tuple[Tensor, Tensor, Tensor]) -> None:
        """Count a batch: scores `[batch, time, 1 + units]`, and labels, input lengths, label lengths."""
        labels, _, lengths = target
        rows = zip(labels.tolist(), lengths.tolist(), strict=True)
        said = [decoded(row[:length], self.facts) for row, length in rows]
        heard = [decoded(row, self.facts) for row in greedy(output)]
        errors, words, _ = word_errors(said, heard)
        self.errors += errors
        self.words += words

    def compute(self) -> float:
        """Errors for each word."""
        return self.errors / self.words


def word_errors(said: Sequence[str], heard: Sequence[str]) -> tuple[int, int, Counter[tuple[str, str]]]:
    """Errors, words that were said, and how often one word was heard as another (`""`: left out, or put in)."""
    import jiwer

    found = jiwer.process_words(list(said), list(heard))
    confused: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis, chunks in zip(found.references, found.hypotheses, found.alignments, strict=True):
        for chunk in chunks:
            true = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            taken = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type != "equal":
                longest = max(len(true), len(taken))
                confused.update(zip(*([*row, *[""] * (longest - len(row))] for row in (true, taken)), strict=True))
    errors = found.substitutions + found.deletions + found.insertions
    return errors, found.substitutions + found.deletions + found.hits, confused
