import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from thalweg.tasks.speech.augment import Mask, Warp
from thalweg.tasks.speech.examples import bands_of
from thalweg.tasks.speech.features import FromCepstra, Levelled, LogMel, Normalise, filterbank, within
from thalweg.tasks.speech.network import build, num_frames

FACTS = {"network": "recurrent", "width": 32, "layers": 2, "dropout": 0.0, "rate": 8000, "coefficients": 13}
FACTS |= {"units": ["a", "b", "c"], "bands": None}
NETWORKS = ["recurrent", "conformer"]


def facts(network, **changes):
    return FACTS | {"network": network} | changes


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ── features ──


def test_a_tone_lies_in_its_band():
    rate, frequency = 8000, 1000
    sound = torch.sin(2 * math.pi * frequency * torch.arange(4000) / rate)[None]
    energies, frames = LogMel(rate, 40)(sound, torch.tensor([4000]))
    assert energies.shape == (1, int(frames), 40)
    middles = (filterbank(40, 129, rate).argmax(0) * rate / 256).tolist()
    loudest = int(energies[0].mean(0).argmax())
    assert abs(middles[loudest] - frequency) < 60
    louder, _ = LogMel(rate, 40)(10 * sound, torch.tensor([4000]))
    assert (louder - energies)[0, :, loudest].mean() == pytest.approx(2 * math.log(10), abs=1e-3)


def test_log_mel_equals_a_slow_twin():
    sound = draw(1, 1000)
    found, frames = LogMel(8000, 40)(sound, torch.tensor([1000]))
    window = torch.zeros(256)
    window[28:228] = torch.hann_window(200)
    filters = filterbank(40, 129, 8000)
    for frame in range(int(frames)):
        part = sound[0, 80 * frame : 80 * frame + 256] * window
        energies = torch.fft.rfft(part).abs().square() @ filters
        torch.testing.assert_close(found[0, frame], energies.clamp_min(1e-8).log(), rtol=1e-3, atol=1e-3)


def test_the_cepstra_of_a_smooth_spectrum_give_it_back():
    bands = torch.arange(40) + 0.5
    smooth = 3 + torch.cos(math.pi * bands / 40) - 0.5 * torch.cos(math.pi * 5 * bands / 40)
    cepstra = torch.stack([(smooth * torch.cos(math.pi * k * bands / 40)).mean() for k in range(13)])
    found, _ = FromCepstra(13, 40)(cepstra[None, None], torch.tensor([1]))
    torch.testing.assert_close(found[0, 0], smooth, rtol=1e-4, atol=1e-4)


def test_normalised_over_its_own_frames_alone():
    x = 5 + 3 * draw(2, 50, 40)
    lengths = torch.tensor([50, 20])
    found = Normalise()(x, lengths)
    for row, length in zip(found, lengths, strict=True):
        torch.testing.assert_close(row[:length].mean(0), torch.zeros(40), atol=1e-5, rtol=0)
        torch.testing.assert_close(row[:length].std(0, correction=0), torch.ones(40), atol=1e-4, rtol=0)
    assert not found[1, 20:].any()
    assert Normalise()(torch.full((1, 9, 40), 7.0), torch.tensor([9])).abs().max() == 0  # nothing to blow up


def test_single_words_are_levelled_by_the_training_part():
    sounds = [(0.02 * 3**number * draw(2000 + 900 * number, seed=number)).numpy() for number in range(4)]
    bands = bands_of(sounds, FACTS)
    front, levelled = LogMel(8000, 40), Levelled(**bands)
    parts = []
    for sound in sounds:
        energies, frames = front(torch.from_numpy(sound)[None], torch.tensor([len(sound)]))
        padded = F.pad(energies, (0, 0, 0, 5), value=3.0)
        found = levelled(padded, frames)[0]
        assert not found[int(frames) :].any()
        parts.append(found[: int(frames)])
        louder = front(torch.from_numpy(5 * sound)[None], torch.tensor([len(sound)]))[0]
        torch.testing.assert_close(levelled(louder, frames)[0], parts[-1], atol=1e-3, rtol=0)
    together = torch.cat(parts)
    torch.testing.assert_close(together.mean(0), torch.zeros(40), atol=1e-4, rtol=0)
    torch.testing.assert_close(together.std(0, correction=0), torch.ones(40), atol=1e-3, rtol=0)


# ── augmentation ──


def test_in_evaluation_nothing_is_warped_or_masked():
    x, lengths = draw(3, 40, 40), torch.tensor([40, 30, 20])
    assert torch.equal(Warp().eval()(x, lengths), x) and torch.equal(Mask().eval()(x, lengths), x)


def test_a_warp_keeps_ends_and_order_and_moves_the_middle():
    frames, lengths = 100, torch.tensor([100, 60])
    ramp = torch.arange(float(frames))[None, :, None].expand(2, frames, 8).clone()
    ramp[1, 60:] = 0
    torch.manual_seed(0)
    found = Warp(time=0.1, frequency=0.0)(ramp, lengths)
    for row, length in zip(found[:, :, 0], lengths.tolist(), strict=True):
        assert row[0] == 0 and row[length - 1] == pytest.approx(length - 1, abs=1e-3) and not row[length:].any()
        assert (row[1:length] >= row[: length - 1]).all()
        moved = (row[:length] - torch.arange(float(length))).abs().max()
        assert 0 < moved <= 0.1 * length


def test_bands_are_stretched():
    bands = torch.arange(40.0).expand(1, 5, 40)
    torch.manual_seed(1)
    found = Warp(time=0.0, frequency=0.2)(bands, torch.tensor([5]))[0, 0]
    stretch = found[10].item() / 10
    assert 0.8 <= stretch <= 1.2 and stretch != 1
    torch.testing.assert_close(found[:30], (bands[0, 0, :30] * stretch).clamp_max(39), atol=1e-3, rtol=0)


def test_masks_are_of_each_utterance_own_and_no_larger_than_asked_for():
    x, lengths = torch.ones(64, 100, 40), torch.tensor([100, 50] * 32)
    torch.manual_seed(0)
    kept = Mask(time=0.1, frequency=0.2, spans=2)(x, lengths)
    frames = 100 - kept.amax(2).sum(1)
    bands = 40 - kept.amax(1).sum(1)
    assert frames[::2].max() <= 22 and frames[1::2].max() <= 12 and bands.max() <= 18
    assert frames.mean() > 3 and bands.mean() > 4 and len(set(frames.tolist())) > 5


# ── the network ──


@pytest.mark.parametrize("network", NETWORKS)
def test_padding_changes_nothing(network):
    torch.manual_seed(0)
    model = build(facts(network)).eval()
    long, short = draw(8000), draw(3000, seed=1)
    alone = [model(sound[None], torch.tensor([len(sound)]))[0] for sound in (long, short)]
    padded = torch.stack([long, F.pad(short, (0, 5000), value=9.0)])
    together = model(padded, torch.tensor([8000, 3000]))
    for row, own, length in zip(together, alone, (8000, 3000), strict=True):
        count = num_frames(length, FACTS)
        assert len(own) == count
        torch.testing.assert_close(row[:count], own, atol=1e-4, rtol=1e-4)
        assert (row[count:].double().softmax(-1)[:, 0] > 1 - 1e-9).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_over_the_whole_width_is_that_over_the_utterance(network):
    torch.manual_seed(0)
    model = build(facts(network)).eval()
    scores = model(draw(2, 6000), torch.tensor([6000, 2500])).double()
    labels, counts = torch.tensor([[1, 2, 1], [3, 0, 0]]), torch.tensor([3, 1])
    log_p = scores.log_softmax(-1).transpose(0, 1)
    own = torch.tensor([num_frames(length, FACTS) for length in (6000, 2500)])
    whole = torch.full((2,), scores.shape[1])
    losses = [F.ctc_loss(log_p, labels, lengths, counts, reduction="none") for lengths in (own, whole)]
    torch.testing.assert_close(*losses, atol=1e-9, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_frame_hears_the_whole_utterance_and_nothing_else(network):
    torch.manual_seed(0)
    model = build(facts(network, rate=None)).eval()
    cepstra = draw(2, 80, 13).requires_grad_()
    model.normalise.forward = lambda x, lengths: x * within(x, lengths)  # it mixes all frames by itself
    scores = model(cepstra, torch.tensor([80, 48]))
    scores[1, 0, 1].backward()
    reached = cepstra.grad.abs().sum(2)
    assert (reached[1, :48] > 0).all() and not reached[1, 48:].any() and not reached[0].any()


def test_too_short_a_sound_is_padded():
    model = build(FACTS).eval()
    assert model(draw(1, 100), torch.tensor([100])).shape == (1, 1, 4)
    assert num_frames(100, FACTS) == 1


def test_frames_are_counted_as_the_network_makes_them():
    model = build(FACTS | {"layers": 1}).eval()
    for length in np.random.default_rng(0).integers(200, 6000, 20).tolist():
        assert model(torch.zeros(1, length), torch.tensor([length])).shape[1] == num_frames(length, FACTS)
    cepstra = build(FACTS | {"rate": None}).eval()
    for length in range(1, 20):
        found = cepstra(torch.zeros(1, length, 13), torch.tensor([length]))
        assert found.shape[1] == num_frames(length, FACTS | {"rate": None})


def test_a_conformer_needs_a_width_that_its_heads_share():
    with pytest.raises(ValueError, match="width must be a multiple of 4 for the conformer, got 30"):
        build(facts("conformer", width=30))
