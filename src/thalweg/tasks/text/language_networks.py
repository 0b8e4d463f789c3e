"""Networks that say, at each position of a text, what comes next: a Transformer decoder, and an LSTM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.tasks.text.blocks import Layer, Memory, begin


class TransformerLanguageModel(nn.Module):
    """A Transformer that sees what came before (Radford et al. 2019); the output layer's weights are the embedding."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Layer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        begin(self, layers)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[batch, length]` → logits of what follows each, `[batch, length, vocabulary]`."""
        x = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            x, _ = layer(x, is_causal=True)
        return self.head(self.norm(x))

    def read(self, tokens: Tensor, state: list[Memory] | None = None) -> tuple[Tensor, list[Memory]]:
        """Read on from a state; without one, from the beginning.

        Args:
            tokens: `[batch, length]`; one position at a time where there is a state.
            state: what an earlier call returned.

        Returns:
            Logits of what follows the last, `[batch, vocabulary]`, and the state.
        """
        x = self.dropout(self.embedding(tokens))
        memories = []
        for index, layer in enumerate(self.layers):
            x, memory = layer(x, is_causal=True, memory=state[index] if state is not None else None)
            memories.append(memory)
        return self.head(self.norm(x[:, -1])), memories

    def span(self, state: Any) -> int:
        """How many positions a state has read."""
        return int(state[0][0].shape[2])


class LSTMLanguageModel(nn.Module):
    """LSTM layers (Hochreiter & Schmidhuber 1997) over embedded tokens."""

    def __init__(self, vocabulary: int, width: int, layers: int, dropout: float, length: int) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.head = nn.Linear(width, vocabulary)
        remember(self.recurrent, length)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens `[batch, length]` → logits of what follows each, `[batch, length, vocabulary]`."""
        hidden, _ = self.recurrent(self.dropout(self.embedding(tokens)))
        return self.head(self.dropout(hidden))

    def read(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Read on from a state: logits of what follows the last, `[batch, vocabulary]`, and the state."""
        hidden, state = self.recurrent(self.embedding(tokens), state)
        return self.head(hidden[:, -1]), state

    def span(self, state: Any) -> int:
        """An LSTM's state has one size however much it has read."""
        return 0


@torch.no_grad()
def remember(recurrent: nn.LSTM, longest: int) -> None:
    """First weights by which an LSTM's cells keep what they read for 1 to `longest` positions (Tallec & Ollivier 2018,
    section 3): forget biases are the log of a number drawn between, input biases its opposite; the recurrent maps begin
    orthogonal (Saxe et al. 2014). So does the gradient reach back as far, where biases of 0 lose half at each position.
    """
    size = recurrent.hidden_size
    for name, parameter in recurrent.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.split(size):
                nn.init.orthogonal_(gate)
        elif "bias" in name:
            nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):
                kept = torch.empty(size).uniform_(1, max(2, longest - 1)).log()
                parameter[:size], parameter[size : 2 * size] = -kept, kept
