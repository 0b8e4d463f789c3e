"""Sound files → samples, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

Samples = npt.NDArray[np.float32]

#: A sound that never gets louder than this share of full scale (−60 dB) is silence.
SILENT = 1e-3

#: A sound is clipped if more than this share of its samples lies at full scale and follows one that does: a loud sound
#: touches it now and then, and leaves it again.
CLIPPED, FULL_SCALE = 0.01, 0.999

#: Numbers of a frame of cepstra in Sphinx's files, frames a second in them.
COEFFICIENTS, FRAMES = 13, 100


def rate_of(path: Path) -> int:
    """Samples a second of a sound file.

    Raises:
        ValueError: it cannot be read as sound.
    """
    import soundfile

    try:
        return int(soundfile.info(str(path)).samplerate)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"cannot be read as sound ({_short(error, path)})") from error


def read_sound(path: Path, rate: int) -> Samples:
    """`[samples]` in ±1, channels averaged, brought to `rate` [samples/s].

    Raises:
        ValueError: what is wrong, in words that follow the file's name.
    """
    import soundfile

    try:
        sound, own = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise ValueError(f"cannot be read as sound ({_short(error, path)})") from error
    mono = sound.mean(1)
    if not len(mono):
        raise ValueError("is empty: it has no samples")
    if not np.isfinite(mono).all():
        raise ValueError("holds NaN or Inf")
    if np.abs(mono).max() < SILENT:
        raise ValueError("is silent")
    full = np.abs(sound) >= FULL_SCALE
    if (full[1:] & full[:-1]).mean() > CLIPPED:
        raise ValueError("is clipped: more than 1 % of its samples lie at full scale")
    return mono if own == rate else resampled(mono, int(own), rate)


def resampled(sound: Samples, own: int, rate: int) -> Samples:
    """A sound at another rate, by its spectrum: frequencies that the new rate cannot hold are cut off.

    The spectrum takes a sound for periodic; it is mirrored first, so that its ends do not jump.
    """
    mirrored = torch.from_numpy(np.concatenate([sound, sound[::-1]])).double()
    length = max(1, round(len(sound) * rate / own))
    spectrum = torch.fft.rfft(mirrored)
    kept = torch.zeros(length + 1, dtype=spectrum.dtype)
    count = min(len(spectrum), length + 1)
    kept[:count] = spectrum[:count]
    back = torch.fft.irfft(kept, 2 * length) * (2 * length / len(mirrored))
    return back[:length].float().numpy()


def read_cepstra(path: Path) -> Samples:
    """Sphinx's features `[frames, 13]`: a count as 4 bytes, then as many numbers of 4 bytes, big-endian or little.

    Raises:
        ValueError: what is wrong, in words that follow the file's name.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    for order in (">", "<"):
        values = np.frombuffer(content[4:], f"{order}f4", count=max(0, len(content) // 4 - 1))
        if len(content) >= 4 and np.frombuffer(content[:4], f"{order}i4")[0] == len(values) == len(content) / 4 - 1:
            break
    else:
        raise ValueError("is no file of cepstra: its first number is not the count of those that follow")
    if not len(values):
        raise ValueError("is empty: it has no frames")
    if len(values) % COEFFICIENTS:
        raise ValueError(f"holds {len(values)} numbers, no multiple of the {COEFFICIENTS} of a frame")
    cepstra = values.reshape(-1, COEFFICIENTS).astype(np.float32)
    if not np.isfinite(cepstra).all():
        raise ValueError("holds NaN or Inf")
    if np.ptp(cepstra[:, 0]) == 0:
        raise ValueError("is silent: its energy never changes")
    return cepstra


def _short(error: Exception, path: Path) -> str:
    """The reason without the path, which is named already."""
    return str(error).replace(str(path), "the file").strip().rstrip(".")
