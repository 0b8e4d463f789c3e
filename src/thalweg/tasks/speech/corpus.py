"""A folder of recordings with their words → which file says what, for training and for test."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from thalweg.tasks.task import BadData

SOUNDS = (".wav", ".flac", ".ogg")


@dataclass(frozen=True)
class Said:
    """A recording and what is said in it: `words` normalised; `place` names it for a person."""

    path: Path
    words: str
    place: str


def find(folder: Path, bad: BadData) -> tuple[list[Said], list[Said] | None]:
    """The recordings to learn from, and those of a test part where the folder has one.

    Understood are, in this order: Sphinx's layout (`etc/NAME_train.fileids` with `.transcription` beside it, cepstra
    or sound elsewhere in the folder); `train.txt` (and `test.txt`) with a path in each line, followed by a tab and the
    words or not; `metadata.csv` with `id|words` and the sounds in `wavs`; any folder of sounds. Where no list has the
    words, they stand in a `.txt` beside each sound; where there is no such file at all, in the sound's name before the
    first `_`, or are the name of its folder.

    Raises:
        FileNotFoundError: there is no such folder, or nothing of this in it.
        ValueError: a list cannot be read, or what is refused.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give one with sounds and what is said in them")
    if lists := sorted(folder.glob("etc/*_train.fileids")):
        test = lists[0].with_name(lists[0].name.replace("_train.", "_test."))
        return _sphinx(folder, lists[0], bad), _sphinx(folder, test, bad) if test.is_file() else None
    if (folder / "train.txt").is_file():
        parts = [_listed(folder, folder / name, bad) for name in ("train.txt", "test.txt")]
        return parts[0] or [], parts[1]
    if (folder / "metadata.csv").is_file():
        return _metadata(folder, bad), None
    sounds = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)
    if not sounds:
        raise FileNotFoundError(f"the folder {folder} holds no sounds ({', '.join(SOUNDS)})")
    return _with_words([(path, str(path)) for path in sounds], bad), None


def normalised(words: str) -> str:
    """Words in small letters with one space between them; punctuation is no sound, but for apostrophes in a word.

    >>> normalised("It’s five –  o'clock!")
    "it's five o'clock"
    """
    plain = unicodedata.normalize("NFC", words).lower().replace("’", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in plain)
    return " ".join(word for part in kept.split() if (word := part.strip("'")))


def _sphinx(folder: Path, ids: Path, bad: BadData) -> list[Said]:
    """`fileids` and the `transcription` beside it, line by line; the files lie anywhere below the folder."""
    transcription = ids.with_suffix(".transcription")
    names, lines = _lines(ids), _lines(transcription)
    if len(names) != len(lines):
        raise ValueError(f"{ids} has {len(names)} lines and {transcription} {len(lines)}: one for one was expected")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".mfc", *SOUNDS):
            parts = path.relative_to(folder).with_suffix("").parts
            files |= {"/".join(parts[-count:]): path for count in range(1, len(parts) + 1)}
    said = []
    for number, (name, line) in enumerate(zip(names, lines, strict=True), start=1):
        text, _, tag = line.rpartition("(")
        if tag.rstrip(")") != Path(name).name:
            bad.add(f"{transcription}, line {number}", f"the line is not that of {Path(name).name}")
        elif name not in files:
            bad.add(f"{ids}, line {number}", "there is no such recording")
        else:
            text = re.sub(r"</?s>|\+\+\w+\+\+", " ", text)
            said += _said(files[name], text, f"{transcription}, line {number}", bad)
    return said


def _listed(folder: Path, list_file: Path, bad: BadData) -> list[Said] | None:
    """A list of paths, each with its words behind a tab or not; None where there is no such list."""
    if not list_file.is_file():
        return None
    said, bare = [], []
    for number, line in enumerate(_lines(list_file), start=1):
        name, tab, text = line.partition("\t")
        path, place = folder / name, f"{list_file}, line {number}"
        if not path.is_file():
            bad.add(place, "there is no such recording")
        elif tab:
            said += _said(path, text, place, bad)
        else:
            bare.append((path, place))
    return said + (_with_words(bare, bad) if bare else [])


def _metadata(folder: Path, bad: BadData) -> list[Said]:
    """Lines `id|words` or `id|words|words written out`, as of LJ Speech."""
    said = []
    for number, line in enumerate(_lines(folder / "metadata.csv"), start=1):
        name, _, text = line.partition("|")
        path = folder / "wavs" / f"{name}.wav"
        if path.is_file():
            said += _said(path, text.split("|")[-1], f"{folder / 'metadata.csv'}, line {number}", bad)
        else:
            bad.add(f"{folder / 'metadata.csv'}, line {number}", "there is no such recording")
    return said


def _with_words(sounds: list[tuple[Path, str]], bad: BadData) -> list[Said]:
    """Sounds and their places, with words from beside them, or from their names."""
    said = []
    beside = any(path.with_suffix(".txt").is_file() for path, _ in sounds)
    in_name = all("_" in path.stem for path, _ in sounds)
    in_folder = len({path.parent for path, _ in sounds}) > 1
    if not (beside or in_name or in_folder):
        raise ValueError(f"{sounds[0][0].parent} holds no transcripts: put NAME.txt beside each NAME.wav")
    for path, place in sounds:
        if beside:
            said += _beside(path, bad)
        else:
            said += _said(path, path.stem.partition("_")[0] if in_name else path.parent.name, place, bad)
    return said


def _beside(path: Path, bad: BadData) -> list[Said]:
    text = path.with_suffix(".txt")
    try:
        words = text.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        bad.add(path, "its transcript is missing: a .txt of the same name was expected")
    except (UnicodeDecodeError, OSError) as error:
        bad.add(text, f"the transcript cannot be read ({getattr(error, 'reason', None) or error})")
    else:
        return _said(path, words, str(path), bad)
    return []


def _said(path: Path, text: str, place: str, bad: BadData) -> list[Said]:
    """One recording with its words, or none where there are none."""
    if words := normalised(text):
        return [Said(path, words, place)]
    bad.add(place, "the transcript is empty")
    return []


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error
