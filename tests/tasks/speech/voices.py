"""Made-up speech: each letter is a chord of its own, words are parted by a breath, speakers differ in pitch."""

import itertools
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
CHORDS = {"a": (400, 1400), "b": (700, 2600), "c": (1100, 3300), "d": (1800, 500)}
WORDS = ("ab", "cd", "ba", "dab", "cad")


def speak(sentence, draw, rate=RATE):
    """Samples `[…]` in ±1 of letters of a tenth of a second or so, in a little noise."""
    pitch, parts = draw.uniform(0.95, 1.05), []
    for letter in f" {sentence} ":
        time = np.arange(round(rate * draw.uniform(0.09, 0.13))) / rate
        tones = [np.sin(2 * np.pi * pitch * tone * time + draw.uniform(0, 6)) for tone in CHORDS.get(letter, ())]
        parts.append(0.2 * np.hanning(len(time)) * sum(tones) if tones else np.zeros(len(time)))
    sound = np.concatenate(parts)
    return (sound + draw.normal(0, 0.005, len(sound))).astype(np.float32)


def write(path: Path, sound, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype="PCM_16")
    return path


def sentences(count, draw, longest=3):
    return [" ".join(draw.choice(WORDS, draw.integers(1, longest + 1))) for _ in range(count)]


def beside(folder: Path, count, seed=0, longest=3):
    """A folder of `.wav` beside `.txt`; the sentences."""
    draw = np.random.default_rng(seed)
    said = sentences(count, draw, longest)
    for number, sentence in enumerate(said):
        path = write(folder / f"{number:03}.wav", speak(sentence, draw))
        path.with_suffix(".txt").write_text(sentence.capitalize() + ".\n")
    return said


def digits(folder: Path, takes=12, test_takes=3, seed=0):
    """The layout of spoken digits: `recordings/WORD_SPEAKER_TAKE.wav`, and lists of both parts."""
    draw = np.random.default_rng(seed)
    lists = {"train.txt": range(test_takes, takes), "test.txt": range(test_takes)}
    for name, chosen in lists.items():
        lines = []
        for word, speaker, take in itertools.product(WORDS, ("ann", "bob"), chosen):
            lines.append(f"recordings/{word}_{speaker}_{take}.wav")
            write(folder / lines[-1], speak(word, draw))
        (folder / name).write_text("\n".join(lines) + "\n")


def sphinx(folder: Path, count=12, seed=0):
    """Sphinx's layout, with cepstra that say nothing."""
    draw = np.random.default_rng(seed)
    (folder / "etc").mkdir(parents=True)
    for part in ("train", "test"):
        names = [f"{part}/ann/u{number}" for number in range(count)]
        said = sentences(count, draw)
        for name, sentence in zip(names, said, strict=True):
            cepstra(folder / "feat" / f"{name}.mfc", draw.normal(size=(12 * (len(sentence) + 2), 13)))
        (folder / "etc" / f"x_{part}.fileids").write_text("\n".join(names) + "\n")
        lines = [f"{s.upper()} ({name.rpartition('/')[2]})" for s, name in zip(said, names, strict=True)]
        (folder / "etc" / f"x_{part}.transcription").write_text("\n".join(lines) + "\n")


def cepstra(path: Path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.array([values.size], ">i4").tobytes() + values.astype(">f4").tobytes())
    return path
