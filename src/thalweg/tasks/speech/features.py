"""Sound or cepstra → log-mel energies, as layers: a trained network takes what the files hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Length of a window and distance between two [s], the usual ones (Davis & Mermelstein 1980, section II).
WINDOW, HOP = 0.025, 0.010

#: The least energy: sound is in ±1, so this lies below the noise of 16 bits. It is no summand, since the exporter to
#: ONNX leaves out so small a one.
FLOOR = 1e-8


def mel(frequency: float) -> float:
    """Hertz → mel, 2595 log₁₀(1 + f / 700) (O'Shaughnessy 1987, p. 150)."""
    return 2595 * math.log10(1 + frequency / 700)


def filterbank(num_bands: int, num_bins: int, rate: int, lowest: float = 60.0) -> Tensor:
    """Triangles that are evenly spaced in mel: `[bins, bands]`, from `lowest` [Hz] to half of `rate` [samples/s]."""
    edges = torch.linspace(mel(lowest), mel(rate / 2), num_bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (edges / 2595) - 1)
    bins = torch.linspace(0, rate / 2, num_bins, dtype=torch.float64)[:, None]
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return torch.minimum(rising, falling).clamp_min(0).float()


class LogMel(nn.Module):
    """Sound `[batch, samples]` in ±1 and its lengths `[batch]` → log-mel `[batch, frames, bands]`, frames `[batch]`."""

    window: Tensor  # [window]
    filters: Tensor  # [bins, bands]

    def __init__(self, rate: int, num_bands: int) -> None:
        super().__init__()
        self.size, self.hop, self.bins = spans(rate)
        self.register_buffer("window", torch.hann_window(self.size), persistent=False)
        self.register_buffer("filters", filterbank(num_bands, self.bins // 2 + 1, rate), persistent=False)

    def forward(self, sound: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """A sound that is shorter than one window is followed by silence up to one."""
        sound = F.pad(sound, (0, max(0, self.bins - sound.shape[1])))
        spectrum = torch.stft(
            sound, self.bins, self.hop, self.size, self.window, center=False, return_complex=True
        ).transpose(1, 2)
        energies = spectrum.real.square() + spectrum.imag.square()
        frames = 1 + (lengths - self.bins).clamp_min(0) // self.hop
        return (energies @ self.filters).clamp_min(FLOOR).log(), frames


def spans(rate: int) -> tuple[int, int, int]:
    """Samples of a window, from one window to the next, and that a spectrum is taken of (a power of two)."""
    size = round(WINDOW * rate)
    return size, round(HOP * rate), int(2 ** math.ceil(math.log2(size)))


class FromCepstra(nn.Module):
    """Cepstra `[batch, frames, coefficients]` → the smoothed log-mel they were made of `[batch, frames, bands]`.

    The inverse of cₖ = Σⱼ mⱼ cos(πk(j + ½)/n) / n, with the coefficients that are lacking taken as zero: bands are
    what can be masked and shifted, and what the network's convolutions share weights over.
    """

    inverse: Tensor  # [coefficients, bands]

    def __init__(self, num_coefficients: int, num_bands: int) -> None:
        super().__init__()
        order = torch.arange(num_coefficients, dtype=torch.float64)[:, None]
        place = torch.arange(num_bands, dtype=torch.float64) + 0.5
        inverse = 2 * torch.cos(math.pi * order * place / num_bands)
        inverse[0] = 1
        self.register_buffer("inverse", inverse.float(), persistent=False)

    def forward(self, cepstra: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames stay what they were."""
        return cepstra @ self.inverse, lengths


class Normalise(nn.Module):
    """Each band of each utterance to mean 0 and deviation 1 over its own frames; what lies past the end is 0.

    The mean of a log spectrum is the channel (microphone, room), which says nothing about the words
    (Viikki & Laurila 1998). `least` bounds the deviation from below: a band without sound is not blown up.
    """

    def __init__(self, least: float = 0.3) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`x` `[batch, frames, bands]`."""
        inside = within(x, lengths)
        count = lengths.clamp_min(1).to(x.dtype)[:, None, None]
        x = x * inside
        x = (x - x.sum(1, keepdim=True) / count) * inside
        deviation = (x.square().sum(1, keepdim=True) / count).sqrt()
        return x / deviation.clamp_min(self.least)


class Levelled(nn.Module):
    """Each band to mean 0 and deviation 1 over the training part, after each utterance's own level is taken off.

    What `Normalise` takes for the channel is, in a recording of one word, what its vowel sounds like: of spoken digits
    held out for validation it has 91 % right after 14 epochs, this 98 %.
    """

    mean: Tensor  # [bands]
    deviation: Tensor  # [bands]

    def __init__(self, mean: list[float], deviation: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`x` `[batch, frames, bands]`."""
        return (level(x, lengths) - self.mean) / self.deviation * within(x, lengths)


def level(x: Tensor, lengths: Tensor) -> Tensor:
    """`x` `[batch, frames, bands]` less each utterance's mean over its frames and all bands; past the end 0."""
    inside = within(x, lengths)
    count = x.shape[2] * lengths.clamp_min(1).to(x.dtype)
    return (x - ((x * inside).sum((1, 2)) / count)[:, None, None]) * inside


def within(x: Tensor, lengths: Tensor) -> Tensor:
    """1 for frames of `x` `[batch, frames, …]` within `lengths` `[batch]`, 0 behind them: `[batch, frames, 1]`."""
    frames = torch.arange(x.shape[1], device=x.device)
    return (frames < lengths[:, None]).to(x.dtype)[:, :, None]
