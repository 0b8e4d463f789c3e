"""Each training pass hears every utterance a little differently: warped in time and pitch, with parts masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.tasks.speech.features import within


class Warp(nn.Module):
    """Each utterance drawn out at some places and hurried at others; its bands stretched as by another vocal tract.

    Time: a random point between the first and the last quarter moves by up to `time` of the length, both sides follow
    linearly (SpecAugment, Park et al. 2019, section 2; lengths stay). Frequency: band j reads band j · a with a from
    1 ± `frequency` (vocal tract length perturbation, Jaitly & Hinton 2013).
    """

    def __init__(self, time: float = 0.08, frequency: float = 0.1) -> None:
        super().__init__()
        self.time, self.frequency = time, frequency

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`x` `[batch, frames, bands]`; in evaluation as it is."""
        if not self.training:
            return x
        return self._frequency(self._time(x, lengths))

    def _time(self, x: Tensor, lengths: Tensor) -> Tensor:
        batch, frames, bands = x.shape
        last = (lengths - 1).clamp_min(1).to(x.dtype)[:, None]
        draw = torch.rand(2, batch, 1, dtype=x.dtype, device=x.device)
        source = last * (0.25 + 0.5 * draw[0])
        goal = source + last * self.time * (2 * draw[1] - 1)
        place = torch.arange(frames, dtype=x.dtype, device=x.device).expand(batch, frames)
        before = place * source / goal
        after = source + (place - goal) * (last - source) / (last - goal)
        place = torch.where(place < goal, before, after).clamp_min(0).minimum(last)
        low = place.floor()
        share = (place - low)[:, :, None]
        index = low.long()[:, :, None].expand(batch, frames, bands)
        above = (index + 1).clamp_max(frames - 1)
        return (x.gather(1, index) * (1 - share) + x.gather(1, above) * share) * within(x, lengths)

    def _frequency(self, x: Tensor) -> Tensor:
        bands = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)
        stretch = 1 + self.frequency * (2 * torch.rand(len(x), 1, 1, dtype=x.dtype, device=x.device) - 1)
        place = (bands * stretch).clamp_max(x.shape[2] - 1)  # [batch, 1, bands]
        weights = (1 - (place - bands[:, None]).abs()).clamp_min(0)  # [batch, from, to]
        return x @ weights


class Mask(nn.Module):
    """A few spans of frames and of bands set to 0, which is their mean (SpecAugment, Park et al. 2019, section 2).

    Spans are up to `time` of an utterance's frames and `frequency` of the bands, `spans` of each kind.
    """

    def __init__(self, time: float = 0.1, frequency: float = 0.2, spans: int = 2) -> None:
        super().__init__()
        self.time, self.frequency, self.spans = time, frequency, spans

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`x` `[batch, frames, bands]`; in evaluation as it is."""
        if not self.training:
            return x
        frames, bands = torch.arange(x.shape[1], device=x.device), torch.arange(x.shape[2], device=x.device)
        width = torch.full_like(lengths, x.shape[2])
        return (
            x * self._kept(frames, lengths, self.time)[:, :, None] * self._kept(bands, width, self.frequency)[:, None]
        )

    def _kept(self, places: Tensor, lengths: Tensor, share: float) -> Tensor:
        """0 inside of the spans, else 1: `[batch, places]`."""
        draw = torch.rand(2, self.spans, len(lengths), 1, device=places.device)
        long = lengths.to(draw.dtype)[:, None]
        width = draw[0] * share * long
        start = draw[1] * (long - width)
        masked = (places >= start) & (places < start + width)  # [spans, batch, places]
        return (~masked.any(0)).to(torch.get_default_dtype())
