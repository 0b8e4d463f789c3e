"""What the report shows of a translator: BLEU, attention, the best and the worst answers, length against score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import thalweg
from thalweg.tasks.text.aligned import Pair
from thalweg.tasks.text.tokens import BEGIN, END, BytePairs

#: Translations shown of the best and of the worst; tokens of a sentence whose attention is shown, at most.
SHOWN, LOOKED_AT = 5, 16

#: Words of the sources that are put together where length is drawn against score.
SPAN = 4


class TranslationReport(thalweg.Callback):
    """Every part that was held out is translated at the end of a training and scored.

    `bleu` is that of the first test part, or of the validation part where there is none; each part also has its own,
    `bleu_validation`, `bleu_test_2016_flickr`.

    Args:
        tokens: the vocabulary.
        translated: (model, tokens, texts) → (text, tokens, score) of each.
        parts: pairs by the name of their part, the validation part first.

    Raises:
        ImportError: sacrebleu is not installed.
    """

    def __init__(self, tokens: BytePairs, translated: Callable[..., Any], parts: dict[str, Sequence[Pair]]) -> None:
        _bleu()  # a package that is missing is said now, not when the training is done
        self.tokens = tokens
        self.translated = translated
        self.parts = parts

    def on_end(self, run: Any) -> None:
        """Translate, score and show; not where it was interrupted, since that takes its time."""
        if run.stopped_because == "interrupted":
            return
        mode = run.model.training
        run.model.eval()
        rows, numbers, first = [], {}, None
        for name, pairs in self.parts.items():
            answers = self.translated(run.model, self.tokens, [source for source, _ in pairs])
            texts, references = [text for text, _, _ in answers], [target for _, target in pairs]
            score, ratio, settings = corpus_bleu(texts, references)
            rows.append((name, len(pairs), round(score, 2), round(ratio, 3)))
            numbers[f"bleu_{name}"] = score
            if first is None or (first[0] == "validation" and name != "validation"):
                first = (name, score, pairs, answers)
        assert first is not None
        name, score, pairs, answers = first
        run.add_metrics(bleu=score, **numbers)
        table = thalweg.Table(("part", "sentences", "BLEU", "length ÷ reference"), rows, f"sacreBLEU, {settings}")
        words = "Beam search; scored against one reference a sentence."
        run.show(thalweg.Section("Translations", words, [table, *self._scored(name, pairs, answers)]))
        run.show(self._attention(run.model, pairs, answers))
        run.model.train(mode)

    def _scored(self, name: str, pairs: Sequence[Pair], answers: Sequence[Any]) -> list[Any]:
        """The best and the worst translations of a part, and its score by length."""
        scores = sentence_bleu([text for text, _, _ in answers], [target for _, target in pairs])
        order = sorted(range(len(pairs)), key=lambda number: -scores[number])
        columns = ("BLEU", "source", "translation", "reference")
        tables = []
        for title, numbers in (("The best", order[:SHOWN]), ("The worst", order[::-1][:SHOWN])):
            rows = [(round(scores[n], 1), pairs[n][0], answers[n][0], pairs[n][1]) for n in numbers]
            tables.append(thalweg.Table(columns, rows, f"{title} of {name}, by sentence"))
        spans: dict[int, list[int]] = {}
        for number, (source, _) in enumerate(pairs):
            spans.setdefault(len(source.split()) // SPAN, []).append(number)
        lengths, means = [], []
        for span, numbers in sorted(spans.items()):
            if len(numbers) >= min(5, len(pairs)):
                lengths.append(span * SPAN + SPAN / 2)
                texts, references = [answers[n][0] for n in numbers], [pairs[n][1] for n in numbers]
                means.append(corpus_bleu(texts, references)[0])
        curve = thalweg.Curves("Length against score", "words of the source", "BLEU", {name: (lengths, means)})
        return [*tables, curve]

    def _attention(self, model: Any, pairs: Sequence[Pair], answers: Sequence[Any]) -> thalweg.Section:
        """What a short sentence's translation looked at."""
        fitting = [n for n, (source, _) in enumerate(pairs) if len(self.tokens.encode(source)) < LOOKED_AT]
        number = max(fitting or [0], key=lambda n: min(len(answers[n][1]), LOOKED_AT))
        source = [*self.tokens.encode(pairs[number][0]), END][: 2 * LOOKED_AT]
        answer = answers[number][1][: 2 * LOOKED_AT]
        device = next(model.parameters()).device
        with torch.no_grad():
            looks = model.attention(
                torch.tensor([source], device=device), torch.tensor([[BEGIN, *answer]], device=device)
            )[0]
        matrix = thalweg.Matrix(
            "Attention",
            self.tokens.pieces([*answer, END]),
            self.tokens.pieces(source),
            [[round(value, 3) for value in row] for row in looks.tolist()],
            f"{pairs[number][0]} → {answers[number][0]}",
        )
        words = "A row is a token of the translation as it is written, a column a token of the source it looks at."
        return thalweg.Section("What a translation looks at", words, [matrix])


def corpus_bleu(texts: Sequence[str], references: Sequence[str]) -> tuple[float, float, str]:
    """BLEU of texts as sacreBLEU has it against a reference each (Post 2018), 0 to 100; their length ÷ the references';
    and sacreBLEU's signature, which names all settings.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    metric = _bleu()(effective_order=False)
    found = metric.corpus_score(list(texts), [list(references)])
    return float(found.score), float(found.sys_len / max(1, found.ref_len)), str(metric.get_signature())


def sentence_bleu(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU of each sentence by itself, 0 to 100; orders that it is too short for are left out."""
    metric = _bleu()(effective_order=True)
    return [
        float(metric.sentence_score(text, [reference]).score) for text, reference in zip(texts, references, strict=True)
    ]


def _bleu() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError('scoring translations needs the package sacrebleu: pip install "thalweg[tasks]"') from error
    return BLEU
