"""A network that writes a summary word by word, copying where it can, and points at the sentence that says it best."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.tasks.text.losses import IGNORED
from thalweg.tasks.text.tokens import BEGIN, PADDING
from thalweg.tasks.text.translation_networks import State, TransformerTranslator

#: Sentences whose place is told apart; those after it are all last.
PLACES = 16

#: Of what a token's vote is made of, this share is dropped while training (Srivastava et al. 2014): a few texts are
#: learned by heart by their votes long before the words of their summaries are.
DROPPED = 0.5


class Summariser(TransformerTranslator):
    """Encoder and decoder with a pointer (See et al. 2017, section 2.2), and a score for each sentence.

    A token of the summary is generated, or copied from the text:  p(w) = g · p_vocabulary(w) + (1 − g) · Σ a_i over the
    places i of the text that hold w. Each sentence of the text begins with the token `BEGIN`. What the encoder makes of
    each token is a vote on how well its sentence would do as a summary: Σ votes / √(tokens of the sentence). So a few
    texts are enough to learn that a word such as "propose" speaks for its sentence.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__(vocabulary, width, layers, heads, dropout)
        self.place = nn.Embedding(PLACES, width)
        self.pointer_queries = nn.Linear(width, width, bias=False)
        self.pointer_keys = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 1)
        self.sentence = nn.Linear(width, 1)
        self.dropped = nn.Dropout(DROPPED)
        nn.init.normal_(self.place.weight, std=0.02)

    def _source_embedded(self, source: Tensor) -> Tensor:
        places = (source == BEGIN).cumsum(1).sub(1).clamp(0, PLACES - 1)
        return self._embedded(source) + self.place(places)

    def forward(self, source: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Read the text, say the summary and score the sentences.

        Args:
            source: `[batch, source length]`, each sentence from `BEGIN` on.
            answer: the summary from its beginning `[batch, length]`.

        Returns:
            log p of what follows each token of the answer `[batch, length, vocabulary]`, and log p of each place of the
            source to begin the sentence that is pointed at `[batch, source length]`.
        """
        encoded, mask = self.encoded(source)
        x = self._written(answer, encoded, mask)
        return self._log_p(x, source, self.pointer_keys(encoded), mask), self._sentences(encoded, source)

    def _sentences(self, encoded: Tensor, source: Tensor) -> Tensor:
        is_real = (source != PADDING).to(encoded.dtype)
        sentence = (source == BEGIN).cumsum(1).sub(1).clamp_min(0)
        votes = self.sentence(self.dropped(encoded)).squeeze(-1) * is_real
        total = torch.zeros_like(votes).scatter_add(1, sentence, votes)
        count = torch.zeros_like(votes).scatter_add(1, sentence, is_real)
        scores = (total / count.clamp_min(1).sqrt()).gather(1, sentence)
        return scores.masked_fill(source != BEGIN, torch.finfo(scores.dtype).min).log_softmax(-1)

    def _looks(self, x: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        scores = self.pointer_queries(x) @ keys.transpose(1, 2) / math.sqrt(x.shape[-1])
        return scores.masked_fill(~mask[:, 0], -math.inf).softmax(-1)

    def _log_p(self, x: Tensor, source: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        p = self._logits(x).softmax(-1) * gate
        places = source[:, None, :].expand(-1, x.shape[1], -1)
        p = p.scatter_add(2, places, (1 - gate) * self._looks(x, keys, mask))
        return p.clamp_min(torch.finfo(p.dtype).tiny).log()

    def best_sentence(self, source: Tensor) -> Tensor:
        """Which sentence is pointed at `[batch]`, counted from 0."""
        encoded, _ = self.encoded(source)
        first = self._sentences(encoded, source).argmax(1, keepdim=True)
        return (source == BEGIN).cumsum(1).gather(1, first).squeeze(1) - 1

    def begin(self, source: Tensor) -> State:
        """Read the texts `[batch, length]`."""
        encoded, mask = self.encoded(source)
        return {**self._begun(encoded, mask), "source tokens": source, "source pointer": self.pointer_keys(encoded)}

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The last tokens `[batch]` → log p of what follows, `[batch, vocabulary]`, and the new state."""
        x, state = self._stepped(tokens, state)
        log_p = self._log_p(x, state["source tokens"], state["source pointer"], state["source mask"])
        return log_p[:, 0], state

    def attention(self, source: Tensor, answer: Tensor) -> Tensor:
        """Where each token of the answer would be copied from: `[batch, length, source length]`."""
        encoded, mask = self.encoded(source)
        return self._looks(self._written(answer, encoded, mask), self.pointer_keys(encoded), mask)


class SummaryLoss:
    """−log p of the tokens of the summary, and of the sentence to point at −Σ q_k log p_k, which counts as `weight`
    tokens: the mean over tokens.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """Of log p `[batch, length, tokens]` and `[batch, source length]`, targets `[batch, length]` and the wanted q
        `[batch, source length]` → a scalar.
        """
        (log_p, sentences), (tokens, wanted) = output, target
        written = F.nll_loss(log_p.flatten(0, 1), tokens.flatten(), ignore_index=IGNORED, reduction="sum")
        # Where nothing is wanted, log p may be the lowest number there is: 0 of it is to be 0.
        pointed = -(wanted * sentences.where(wanted > 0, 0.0)).sum()
        return (written + self.weight * pointed) / self.num_terms(output, target)

    def num_terms(self, output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
        """How many tokens the summaries have."""
        return (target[0] != IGNORED).sum()
