"""What the report shows of a summariser: ROUGE beside what needs no learning, best and worst, where it points."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

import thalweg
from thalweg.tasks.text.papers import Paper
from thalweg.tasks.text.rouge import NAMES, Rouge
from thalweg.tasks.text.summary_networks import PLACES
from thalweg.tasks.text.tokens import BEGIN, END, BytePairs

#: Summaries shown of the best and of the worst; tokens of the text whose copying is shown, at most.
SHOWN, LOOKED_AT = 4, 40

#: Words of the summary that are put together where length is drawn against score.
SPAN = 5

Scores = tuple[float, float, float]


class SummaryReport(thalweg.Callback):
    """The held-out parts are summarised at the end of a training and scored.

    `rouge1`, `rouge2` and `rougeL` are of the answer that was asked for, on the test part, or on the validation part
    where there is none; `rougeL_written`, `rougeL_pointed` and `lead1_rougeL` are beside them, the last of taking the
    first sentence.

    Args:
        tokens: the vocabulary.
        summarised: (model, tokens, texts) → a summary of each.
        facts: those of the task.
        validation: texts that were held out.
        test: those of the test part; it may be empty.

    Raises:
        ImportError: rouge-score is not installed.
    """

    def __init__(
        self,
        tokens: BytePairs,
        summarised: Callable[..., Any],
        facts: dict[str, Any],
        validation: Sequence[Paper],
        test: Sequence[Paper],
    ) -> None:
        self.tokens = tokens
        self.summarised = summarised
        self.facts = facts
        self.rouge = Rouge()  # a package that is missing is said now, not when the training is done
        self.parts = {"validation": validation, **({"test": test} if test else {})}

    def on_end(self, run: Any) -> None:
        """Summarise, score and show; not where it was interrupted, since that takes its time."""
        if run.stopped_because == "interrupted":
            return
        mode = run.model.training
        run.model.eval()
        tables = []
        for name, papers in self.parts.items():
            found = self.summarised(run.model, self.tokens, [paper.sentences for paper in papers])
            scores = self._scores(papers, found)
            rows: list[tuple[str | float, ...]] = [
                (way, *(round(_mean(each, k), 2) for k in range(3))) for way, each in scores.items()
            ]
            columns = ("summary", "ROUGE-1", "ROUGE-2", "ROUGE-L")
            caption = f"{name}, {len(papers)} texts: F1 with stems, the best over references"
            tables.append(thalweg.Table(columns, rows, caption))
        own = scores["pointed at" if self.facts["answer"] == "point" else "written"]
        numbers = {name: _mean(own, place) for place, name in enumerate(NAMES)}
        ways = {"rougeL_written": "written", "rougeL_pointed": "pointed at", "lead1_rougeL": "first sentence"}
        run.add_metrics(**numbers, **{name: _mean(scores[way], 2) for name, way in ways.items()})
        words = "The network's own words and the sentence it points at, beside what needs no learning."
        run.show(thalweg.Section("Summaries", words, [*tables, *self._shown(papers, found, own)]))
        run.show(self._pointing(papers, found))
        run.show(self._copying(run.model, papers, found))
        run.model.train(mode)

    def _scores(self, papers: Sequence[Paper], found: Sequence[Any]) -> dict[str, list[Scores]]:
        """ROUGE of each text's summary, made in each way."""
        draw = random.Random(0)
        of_sentences = [[self.rouge.scores(paper.summaries, text) for text in paper.sentences] for paper in papers]
        rows = list(zip(papers, found, of_sentences, strict=True))
        return {
            "written": [self.rouge.scores(paper.summaries, summary.written) for paper, summary, _ in rows],
            "pointed at": [each[summary.place] for _, summary, each in rows],
            "first sentence": [each[0] for *_, each in rows],
            "random sentence": [draw.choice(each) for *_, each in rows],
            "best sentence (oracle)": [max(each, key=lambda score: score[2]) for *_, each in rows],
        }

    def _shown(self, papers: Sequence[Paper], found: Sequence[Any], scores: Sequence[Scores]) -> list[Any]:
        """The best and the worst summaries, and the score by length."""
        order = sorted(range(len(papers)), key=lambda number: -scores[number][2])
        columns = ("ROUGE-L", "pointed at", "written", "reference")
        parts: list[Any] = []
        for title, numbers in (("The best", order[:SHOWN]), ("The worst", order[::-1][:SHOWN])):
            rows = [
                (round(scores[n][2], 1), found[n].pointed, found[n].written, papers[n].summaries[0]) for n in numbers
            ]
            parts.append(thalweg.Table(columns, rows, title))
        spans: dict[int, list[float]] = {}
        for paper, score in zip(papers, scores, strict=True):
            spans.setdefault(len(paper.summaries[0].split()) // SPAN, []).append(score[2])
        lengths = [span * SPAN + SPAN / 2 for span in sorted(spans)]
        means = [sum(spans[span]) / len(spans[span]) for span in sorted(spans)]
        lines = {"mean": (lengths, means)}
        return [*parts, thalweg.Curves("Length against score", "words of the reference", "ROUGE-L", lines)]

    def _pointing(self, papers: Sequence[Paper], found: Sequence[Any]) -> thalweg.Section:
        """How often each place of a text is pointed at, and how often it would have been best."""
        best = [
            _first_best([self.rouge.scores(paper.summaries, sentence)[2] for sentence in paper.sentences])
            for paper in papers
        ]
        places = list(range(PLACES))
        lines = {
            name: ([place + 1 for place in places], [100 * chosen.count(place) / len(chosen) for place in places])
            for name, chosen in (("pointed at", [summary.place for summary in found]), ("best", best))
        }
        words = "Which sentence of a text the network points at, and which has the highest ROUGE-L."
        curves = thalweg.Curves("Where it points", "sentence", "% of texts", lines)
        return thalweg.Section("Where it points", words, [curves])

    def _copying(self, model: Any, papers: Sequence[Paper], found: Sequence[Any]) -> thalweg.Section:
        """Where the words of one written summary were copied from: of the text with the shortest beginning."""
        number = min(range(len(papers)), key=lambda n: sum(map(len, papers[n].sentences)))
        source = [token for row in self.tokens.encode_all(papers[number].sentences) for token in (BEGIN, *row)]
        answer = found[number].tokens[:LOOKED_AT]
        device = next(model.parameters()).device
        with torch.no_grad():
            looks = model.attention(
                torch.tensor([[*source, END]], device=device), torch.tensor([[BEGIN, *answer]], device=device)
            )[0]
        matrix = thalweg.Matrix(
            "Where words are copied from",
            self.tokens.pieces([*answer, END]),
            self.tokens.pieces(source[:LOOKED_AT]),
            [[round(value, 3) for value in row[: len(source[:LOOKED_AT])]] for row in looks.tolist()],
            found[number].written,
        )
        words = "A row is a token of the summary as it is written, a column a token of the beginning of the text."
        return thalweg.Section("What is copied", words, [matrix])


def _first_best(scores: Sequence[float]) -> int:
    return scores.index(max(scores))


def _mean(scores: Sequence[Scores], place: int) -> float:
    return sum(score[place] for score in scores) / len(scores)
