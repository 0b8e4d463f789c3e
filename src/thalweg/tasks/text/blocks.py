"""The parts of a Transformer (Vaswani et al. 2017), with the norm before each part (Xiong et al. 2020).

Positions are told by turning queries and keys (Su et al. 2021, "RoFormer", equation 34), which needs no table of
positions and so sets no limit on the length. All attention goes through `scaled_dot_product_attention`, with one
product for queries, keys and values together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The slowest of the angles turns once in about so many positions (RoFormer, section 3.2.2).
BASE = 10_000.0

#: Keys and values of what a layer has read so far, each `[batch, heads, length, width of a head]`.
Memory = tuple[Tensor, Tensor]


def angles(start: int, length: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[length, width / 2]` of the positions from `start` on."""
    half = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    positions = torch.arange(start, start + length, device=like.device, dtype=torch.float32)
    turned = positions[:, None] * torch.exp(half * (-math.log(BASE) / width))
    return turned.cos().to(like.dtype), turned.sin().to(like.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` `[…, length, width]`, each pair (i, i + width / 2) turned by its angle at its position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class SelfAttention(nn.Module):
    """Each position looks at others of its own sequence."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False, memory: Memory | None = None
    ) -> tuple[Tensor, Memory]:
        """Look around.

        Args:
            x: `[batch, length, width]`.
            mask: `[batch, 1, 1 or length, length]`, True where a position may be looked at.
            is_causal: no position sees a later one.
            memory: what was read before; `x` follows it, one position at a time where it is causal.

        Returns:
            `[batch, length, width]`, and the memory with these positions added.
        """
        batch, length, width = x.shape
        q, k, v = self.inputs(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        cos, sin = angles(0 if memory is None else memory[0].shape[2], length, width // self.heads, x)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        if memory is not None:
            k, v = torch.cat((memory[0], k), dim=2), torch.cat((memory[1], v), dim=2)
        is_causal = is_causal and memory is None
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        return self.dropout(self.output(seen.transpose(1, 2).reshape(batch, length, width))), (k, v)


class CrossAttention(nn.Module):
    """Each position looks at another sequence."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(width, width, bias=False)
        self.source = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def read(self, source: Tensor) -> Memory:
        """Keys and values of the source `[batch, length, width]`: the same for every position that looks at it."""
        batch, length, width = source.shape
        pair = self.source(source).view(batch, length, 2, self.heads, width // self.heads)
        k, v = pair.permute(2, 0, 3, 1, 4)
        return k, v

    def _queries(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return self.queries(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """`x` `[batch, length, width]` looks at what `read` made of the source; `mask` `[batch, 1, 1, source length]`
        is True where there is something.
        """
        seen = F.scaled_dot_product_attention(self._queries(x), *memory, attn_mask=mask)
        return self.dropout(self.output(seen.transpose(1, 2).reshape(x.shape)))

    def weights(self, x: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """How much each position looks at each of the source, all heads alike: `[batch, length, source length]`."""
        q, k = self._queries(x), memory[0]
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~mask, -math.inf).softmax(-1).mean(1)


class FeedForward(nn.Module):
    """Two layers over each position by itself, four times as wide between."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, width]` → the same shape."""
        return self.dropout(self.down(F.silu(self.up(x))))


class Layer(nn.Module):
    """Self-attention, attention to a source if there is one, and a feed-forward part, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, has_source: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.source_norm = nn.LayerNorm(width) if has_source else None
        self.source_attention = CrossAttention(width, heads, dropout) if has_source else None
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)

    def read(self, source: Tensor) -> Memory:
        """Keys and values of a source `[batch, length, width]`, for a layer that has one."""
        assert self.source_attention is not None
        return self.source_attention.read(source)

    def looks(self, x: Tensor, memory: Memory, mask: Tensor) -> Tensor:
        """How much each position of `x` looks at each of the source: `[batch, length, source length]`."""
        assert self.source_attention is not None and self.source_norm is not None
        seen, _ = self.attention(self.attention_norm(x), is_causal=True)
        return self.source_attention.weights(self.source_norm(x + seen), memory, mask)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        memory: Memory | None = None,
        source: tuple[Memory, Tensor] | None = None,
    ) -> tuple[Tensor, Memory]:
        """`x` `[batch, length, width]`; `source` is what `CrossAttention.read` made of it, and its mask. → the same
        shape, and the memory with these positions added.
        """
        seen, memory = self.attention(self.attention_norm(x), mask, is_causal, memory)
        x = x + seen
        if source is not None:
            assert self.source_attention is not None and self.source_norm is not None
            x = x + self.source_attention(self.source_norm(x), *source)
        return x + self.feed_forward(self.feed_forward_norm(x)), memory


@torch.no_grad()
def begin(model: nn.Module, depth: int) -> None:
    """First weights: normal with deviation 0.02, those that end a part smaller by √(2 depth) (Radford et al. 2019)."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        last = name.endswith(("output.weight", "down.weight"))
        nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * depth) if last else 1.0))
