"""The acoustic model: log-mel → convolution → recurrent or conformer layers → scores of the units and the blank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.tasks.speech.augment import Mask, Warp
from thalweg.tasks.speech.conformer import Conformer
from thalweg.tasks.speech.features import FromCepstra, Levelled, LogMel, Normalise, spans, within

BANDS = 40

#: The score that shuts out every unit but the blank past the end of an utterance: e⁻³⁰ is nothing beside 1.
SHUT = -30.0


class AcousticModel(nn.Module):
    """Utterances and their lengths → scores `[batch, time, units]`; unit 0 is the blank.

    `utterances` are sound `[batch, samples]` or cepstra `[batch, frames, coefficients]`, padded at the end; `lengths`
    `[batch]` says how much of each is meant. What lies behind it changes nothing: there the blank is certain, so that
    CTC over the whole width is CTC over the utterance.
    """

    def __init__(
        self, front: nn.Module, normalise: nn.Module, encoder: nn.Module, width: int, num_units: int, dropout: float
    ) -> None:
        super().__init__()
        self.front, self.normalise = front, normalise
        self.warp, self.mask = Warp(), Mask()
        self.subsample = Subsample(width)
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(width, num_units)

    def forward(self, utterances: Tensor, lengths: Tensor) -> Tensor:
        """See above."""
        x, lengths = self.front(utterances, lengths)
        x = self.mask(self.warp(self.normalise(x, lengths), lengths), lengths)
        x, lengths = self.subsample(x, lengths)
        scores = self.scores(self.dropout(self.encoder(x, lengths)))
        blank = torch.full_like(scores[:1, :1], SHUT)
        blank[..., 0] = 0
        return torch.where(within(scores, lengths) > 0, scores, blank)


class Subsample(nn.Module):
    """Two convolutions of stride 2 over time and bands: `[batch, frames, bands]` → `[batch, ⌈frames/4⌉, width]`."""

    def __init__(self, width: int, channels: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.out = nn.Linear(channels * halved(halved(BANDS)), width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The result and its lengths; frames past the end are 0 before each convolution, as its own padding is."""
        x = F.relu(self.first(x[:, None]))
        lengths = halved(lengths)
        x = F.relu(self.second(x * within(x.transpose(1, 2), lengths)[:, None]))
        return self.norm(self.out(x.transpose(1, 2).flatten(2))), halved(lengths)


class Recurrent(nn.Module):
    """Bidirectional LSTM layers `[batch, time, width]` → the same; the way back begins at each utterance's own end."""

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.forth = nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in range(layers))
        self.back = nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Each layer is added to what it was given."""
        time = torch.arange(x.shape[1], device=x.device)
        ends = lengths[:, None]
        turned = torch.where(time < ends, ends - 1 - time, time)[:, :, None]  # its own inverse
        for forth, back, norm in zip(self.forth, self.back, self.norms, strict=True):
            there, _ = forth(x)
            again, _ = back(x.gather(1, turned.expand_as(x)))
            again = again.gather(1, turned.expand_as(again))
            x = norm(x + self.dropout(torch.cat([there, again], -1)))
        return x


def halved(length: Any) -> Any:
    """What a convolution of stride 2 makes of a length, a number or a tensor of them."""
    return (length + 1) // 2


def num_frames(length: int, facts: dict[str, Any]) -> int:
    """Frames that the network gives out for an utterance of so many samples (or frames of cepstra)."""
    if facts["rate"] is not None:
        _, hop, bins = spans(facts["rate"])
        length = 1 + max(0, length - bins) // hop
    return int(halved(halved(length)))


def build(facts: dict[str, Any]) -> AcousticModel:
    """The network that the facts of a run describe, with fresh weights from torch's generator."""
    width, layers, dropout = facts["width"], facts["layers"], facts["dropout"]
    normalise = Normalise() if facts["bands"] is None else Levelled(facts["bands"]["mean"], facts["bands"]["deviation"])
    kind = Conformer if facts["network"] == "conformer" else Recurrent
    units = 1 + len(facts["units"])
    return AcousticModel(front_of(facts), normalise, kind(width, layers, dropout), width, units, dropout)


def front_of(facts: dict[str, Any]) -> LogMel | FromCepstra:
    """What makes log-mel bands of the utterances of a run."""
    if facts["rate"] is None:
        return FromCepstra(facts["coefficients"], BANDS)
    return LogMel(facts["rate"], BANDS)
