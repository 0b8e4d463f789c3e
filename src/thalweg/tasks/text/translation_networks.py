"""Networks that write one sequence after reading another: a Transformer, and LSTMs with attention.

Both are asked in the same three ways: `forward` says all of an answer at once, to learn; `begin` reads the sources and
`step` says one token more of each answer, to search.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.tasks.text.blocks import Layer, begin
from thalweg.tasks.text.language_networks import remember
from thalweg.tasks.text.tokens import PADDING

#: What a search carries from token to token: tensors with a row for each answer. Those whose names begin with "source"
#: are alike for all answers to a source.
State = dict[str, Tensor]

#: Positions that the longest memories of an LSTM begin with: a sentence.
LONGEST = 32


class TransformerTranslator(nn.Module):
    """Encoder and decoder (Vaswani et al. 2017); one matrix embeds both languages and is the output layer."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(Layer(width, heads, dropout, has_source=True) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        begin(self, layers)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def _writers(self) -> list[Layer]:
        return cast("list[Layer]", list(self.decoder))

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.embedding(tokens) * math.sqrt(self.width))

    def _source_embedded(self, source: Tensor) -> Tensor:
        return self._embedded(source)

    def encoded(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Source tokens `[batch, length]` → `[batch, length, width]`, and `[batch, 1, 1, length]`, False at padding."""
        mask = (source != PADDING)[:, None, None, :]
        x = self._source_embedded(source)
        for layer in self.encoder:
            x, _ = layer(x, mask)
        return self.encoder_norm(x), mask

    def forward(self, source: Tensor, answer: Tensor) -> Any:
        """Source tokens `[batch, source length]` and the answer from its beginning `[batch, length]` → logits of what
        follows each of its tokens, `[batch, length, vocabulary]`.
        """
        return self._logits(self._written(answer, *self.encoded(source)))

    def _written(self, answer: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        x = self._embedded(answer)
        for layer in self._writers():
            x, _ = layer(x, is_causal=True, source=(layer.read(encoded), mask))
        return self.decoder_norm(x)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(x, self.embedding.weight)

    def begin(self, source: Tensor) -> State:
        """Read the sources `[batch, length]`."""
        return self._begun(*self.encoded(source))

    def _begun(self, encoded: Tensor, mask: Tensor) -> State:
        state = {"source mask": mask}
        for index, layer in enumerate(self._writers()):
            state[f"source keys {index}"], state[f"source values {index}"] = layer.read(encoded)
        return state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The last tokens `[batch]` → logits of what follows, `[batch, vocabulary]`, and the new state."""
        x, state = self._stepped(tokens, state)
        return self._logits(x[:, 0]), state

    def _stepped(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        x = self._embedded(tokens[:, None])
        state = dict(state)
        for index, layer in enumerate(self._writers()):
            before = (state[f"keys {index}"], state[f"values {index}"]) if f"keys {index}" in state else None
            source = (state[f"source keys {index}"], state[f"source values {index}"]), state["source mask"]
            x, after = layer(x, is_causal=True, memory=before, source=source)
            state[f"keys {index}"], state[f"values {index}"] = after
        return self.decoder_norm(x), state

    def attention(self, source: Tensor, answer: Tensor) -> Tensor:
        """How much each token of the answer looks at each of the source, over all layers and heads alike:
        `[batch, length, source length]`.
        """
        encoded, mask = self.encoded(source)
        x = self._embedded(answer)
        looks = []
        for layer in self._writers():
            memory = layer.read(encoded)
            looks.append(layer.looks(x, memory, mask))
            x, _ = layer(x, is_causal=True, source=(memory, mask))
        return torch.stack(looks).mean(0)


class LSTMTranslator(nn.Module):
    """LSTMs that read in both directions, one that writes, and attention between them (Luong et al. 2015, section 3.1,
    with their "general" score; without input feeding, so that an answer is learned from in one call).
    """

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.dropout = nn.Dropout(dropout)
        between = dropout if layers > 1 else 0.0
        self.forwards = nn.LSTM(width, width // 2, layers, batch_first=True, dropout=between)
        self.backwards = nn.LSTM(width, width // 2, layers, batch_first=True, dropout=between)
        self.decoder = nn.LSTM(width, width, layers, batch_first=True, dropout=between)
        self.score = nn.Linear(width, width, bias=False)
        self.joined = nn.Linear(2 * width, width)
        for recurrent in (self.forwards, self.backwards, self.decoder):
            remember(recurrent, LONGEST)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def encoded(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Source tokens `[batch, length]` → `[batch, length, width]`, a mask `[batch, length]`, False at padding, and a
        state for the writer to begin with `[batch, width]`.
        """
        mask = source != PADDING
        x = self.dropout(self.embedding(source))
        # Each row is turned round within its own length: padding stays at the end, and is read last either way.
        lengths = mask.sum(1, keepdim=True)
        along = torch.arange(source.shape[1], device=source.device)
        back = torch.where(along < lengths, lengths - 1 - along, along)[:, :, None]
        ahead, _ = self.forwards(x)
        behind, _ = self.backwards(x.gather(1, back.expand(-1, -1, x.shape[2])))
        last = (lengths - 1).clamp_min(0)[:, :, None].expand(-1, 1, ahead.shape[2])
        start = torch.cat((ahead.gather(1, last), behind.gather(1, last)), dim=2)[:, 0]
        behind = behind.gather(1, back.expand(-1, -1, behind.shape[2]))
        return self.dropout(torch.cat((ahead, behind), dim=2)), mask, start

    def _begun(self, start: Tensor) -> tuple[Tensor, Tensor]:
        hidden = start.expand(self.decoder.num_layers, *start.shape).contiguous()
        return hidden, torch.zeros_like(hidden)

    def _weights(self, hidden: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(hidden) @ encoded.transpose(1, 2) / math.sqrt(hidden.shape[-1])
        return scores.masked_fill(~mask[:, None, :], -math.inf).softmax(-1)

    def _logits(self, hidden: Tensor, encoded: Tensor, mask: Tensor) -> Tensor:
        context = self._weights(hidden, encoded, mask) @ encoded
        joined = torch.tanh(self.joined(torch.cat((hidden, context), dim=-1)))
        return F.linear(self.dropout(joined), self.embedding.weight)

    def forward(self, source: Tensor, answer: Tensor) -> Tensor:
        """Source tokens `[batch, source length]` and the answer from its beginning `[batch, length]` → logits of what
        follows each of its tokens, `[batch, length, vocabulary]`.
        """
        encoded, mask, start = self.encoded(source)
        hidden, _ = self.decoder(self.dropout(self.embedding(answer)), self._begun(start))
        return self._logits(hidden, encoded, mask)

    def begin(self, source: Tensor) -> State:
        """Read the sources `[batch, length]`."""
        encoded, mask, start = self.encoded(source)
        hidden, cell = self._begun(start)
        return {"source": encoded, "source mask": mask, "hidden": hidden.transpose(0, 1), "cell": cell.transpose(0, 1)}

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The last tokens `[batch]` → logits of what follows, `[batch, vocabulary]`, and the new state."""
        before = tuple(state[name].transpose(0, 1).contiguous() for name in ("hidden", "cell"))
        hidden, (h, c) = self.decoder(self.embedding(tokens[:, None]), before)
        state = {**state, "hidden": h.transpose(0, 1), "cell": c.transpose(0, 1)}
        return self._logits(hidden, state["source"], state["source mask"])[:, 0], state

    def attention(self, source: Tensor, answer: Tensor) -> Tensor:
        """How much each token of the answer looks at each of the source: `[batch, length, source length]`."""
        encoded, mask, start = self.encoded(source)
        hidden, _ = self.decoder(self.embedding(answer), self._begun(start))
        return self._weights(hidden, encoded, mask)


def translator(facts: dict[str, Any]) -> TransformerTranslator | LSTMTranslator:
    """The network of these facts, its weights fresh."""
    sizes = facts["vocabulary"], facts["width"], facts["layers"]
    if facts["network"] == "lstm":
        return LSTMTranslator(*sizes, facts["dropout"])
    return TransformerTranslator(*sizes, facts["heads"], facts["dropout"])
