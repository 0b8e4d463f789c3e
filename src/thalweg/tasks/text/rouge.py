"""ROUGE (Lin 2004): how many words, pairs of words and words in the same order a summary shares with a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMES = ("rouge1", "rouge2", "rougeL")


class Rouge:
    """F1 of words (stemmed), pairs of words and the longest common subsequence, 0 to 100; the best over references.

    Raises:
        ImportError: rouge-score is not installed.
    """

    def __init__(self) -> None:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise ImportError(
                'scoring summaries needs the package rouge-score: pip install "thalweg[tasks]"'
            ) from error
        self._scorer: Any = RougeScorer(list(NAMES), use_stemmer=True)

    def scores(self, references: Sequence[str], text: str) -> tuple[float, float, float]:
        """ROUGE-1, ROUGE-2 and ROUGE-L of one text, each against the reference that suits it best."""
        found = [self._scorer.score(reference, text) for reference in references]
        best = [max(100 * score[name].fmeasure for score in found) for name in NAMES]
        return best[0], best[1], best[2]


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of words that both have in the same order.

    >>> longest_common("the cat sat down".split(), "the dog sat right down".split())
    3
    """
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for place, other in enumerate(b, start=1):
            row[place], before = (before + 1 if word == other else max(row[place], row[place - 1])), row[place]
    return row[-1]


def overlap(reference: str, text: str) -> float:
    """ROUGE-L as a number from 0 to 1, of lower-case words as they stand: what sentences are compared by in training.

    >>> overlap("We propose a model", "we propose the model")
    0.75
    """
    a, b = reference.lower().split(), text.lower().split()
    common = longest_common(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0
