import numpy as np
import pytest
import soundfile

from thalweg.tasks.speech.sound import rate_of, read_cepstra, read_sound, resampled

RATE = 8000
TIME = np.arange(4000) / RATE
TONE = (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)


def saved(path, sound, rate=RATE):
    soundfile.write(path, sound, rate, subtype="FLOAT")
    return path


def test_channels_are_averaged(tmp_path):
    path = saved(tmp_path / "a.wav", np.stack([TONE, 0 * TONE], 1))
    np.testing.assert_allclose(read_sound(path, RATE), TONE / 2, atol=1e-6)
    assert rate_of(path) == RATE


@pytest.mark.parametrize("own", [16000, 11025, 8001, 4000])
def test_a_tone_at_another_rate_is_the_same_tone(own):
    given = (0.5 * np.sin(2 * np.pi * 440 * np.arange(own) / own)).astype(np.float32)
    found = resampled(given, own, RATE)
    assert len(found) == RATE
    np.testing.assert_allclose(found[200:3800], TONE[200:3800], atol=5e-3)


def test_what_the_new_rate_cannot_hold_is_cut_off():
    high = np.sin(2 * np.pi * 6000 * np.arange(8000) / 16000).astype(np.float32)
    assert np.abs(resampled(high, 16000, RATE)[200:-200]).max() < 0.01  # else a mirror image at 2,000 Hz


WRONG = {
    "empty": (TONE[:0], "is empty"),
    "silent": (TONE * 1e-4, "is silent"),
    "clipped": ((4 * TONE).clip(-1, 1), "is clipped"),
    "not finite": (np.where(TIME > 0.3, np.nan, TONE).astype(np.float32), "holds NaN or Inf"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_sound_is_said(tmp_path, case):
    sound, sentence = WRONG[case]
    with pytest.raises(ValueError, match=sentence):
        read_sound(saved(tmp_path / "a.wav", sound), RATE)


def test_a_loud_sound_that_touches_full_scale_is_not_clipped(tmp_path):
    loud = TONE * 2
    assert (np.abs(loud) > 0.999).any()
    assert len(read_sound(saved(tmp_path / "a.wav", loud), RATE)) == 4000


def test_what_is_no_sound(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF and then nothing")
    for read in (rate_of, lambda path: read_sound(path, RATE)):
        with pytest.raises(ValueError, match="cannot be read as sound"):
            read(tmp_path / "a.wav")


def packed(values, count=None, order=">"):
    values = np.asarray(values)
    return (
        np.array([values.size if count is None else count], f"{order}i4").tobytes()
        + values.astype(f"{order}f4").tobytes()
    )


@pytest.mark.parametrize("order", [">", "<"])
def test_cepstra_in_either_order_of_bytes(tmp_path, order):
    values = np.arange(39.0).reshape(3, 13)
    (tmp_path / "a.mfc").write_bytes(packed(values, order=order))
    np.testing.assert_array_equal(read_cepstra(tmp_path / "a.mfc"), values)


WRONG_CEPSTRA = {
    "cut": (packed(np.ones(39), 52), "its first number is not the count"),
    "nothing": (b"", "its first number is not the count"),
    "no frames": (packed(np.ones(0)), "is empty"),
    "part of a frame": (packed(np.ones(14)), "no multiple of the 13"),
    "not finite": (packed(np.full(26, np.nan)), "holds NaN or Inf"),
    "silent": (packed(np.ones(39)), "is silent"),
}


@pytest.mark.parametrize("case", WRONG_CEPSTRA)
def test_what_is_wrong_with_cepstra_is_said(tmp_path, case):
    content, sentence = WRONG_CEPSTRA[case]
    (tmp_path / "a.mfc").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_cepstra(tmp_path / "a.mfc")
