import numpy as np
import pytest
from voices import beside, digits, speak, sphinx, write

from thalweg.tasks.speech.corpus import find
from thalweg.tasks.task import BadData


def test_transcripts_beside_the_sounds(tmp_path):
    said = beside(tmp_path, 5)
    found, test = find(tmp_path, BadData())
    assert [one.words for one in found] == said and test is None  # small letters, no full stop
    assert [one.path.name for one in found] == [f"{i:03}.wav" for i in range(5)]


def test_lists_of_both_parts_with_the_word_in_the_name(tmp_path):
    digits(tmp_path, takes=4, test_takes=1)
    found, test = find(tmp_path, BadData())
    assert (len(found), len(test)) == (30, 10)
    assert {one.words for one in found} == {"ab", "cd", "ba", "dab", "cad"}
    assert not {one.path for one in found} & {one.path for one in test}


def test_lists_with_words_behind_a_tab(tmp_path):
    beside(tmp_path, 2)
    (tmp_path / "train.txt").write_text("000.wav\tOne, two!\n001.wav\tIt’s three\n")
    found, test = find(tmp_path, BadData())
    assert [one.words for one in found] == ["one two", "it's three"] and test is None


def test_sphinx_layout(tmp_path):
    sphinx(tmp_path, count=4)
    found, test = find(tmp_path, BadData())
    assert len(found) == len(test) == 4 and found[0].path.suffix == ".mfc" and "train" in found[0].path.parts
    path = tmp_path / "etc" / "x_train.transcription"
    path.write_text(path.read_text().replace("(u0)", "(u1)", 1))
    with pytest.raises(ValueError, match="x_train.transcription, line 1: the line is not that of u0"):
        find(tmp_path, BadData())
    path.write_text("<s> AB </s> (u0)\n")
    with pytest.raises(ValueError, match="x_train.fileids has 4 lines and .* 1: one for one"):
        find(tmp_path, BadData())


def test_names_of_folders_are_the_words_where_nothing_else_is(tmp_path):
    draw = np.random.default_rng(0)
    for word in ("ab", "cd"):
        write(tmp_path / word / "1.wav", speak(word, draw))
    assert [one.words for one in find(tmp_path, BadData())[0]] == ["ab", "cd"]


def test_metadata_as_of_lj_speech(tmp_path):
    draw = np.random.default_rng(0)
    write(tmp_path / "wavs" / "LJ1.wav", speak("ab", draw))
    (tmp_path / "metadata.csv").write_text("LJ1|Ab, 2.|Ab, two.\nLJ2|gone|gone\n")
    bad = BadData("skip")
    assert [one.words for one in find(tmp_path, bad)[0]] == ["ab two"]
    assert "metadata.csv, line 2" in bad.notes()[0]


def without_transcript(folder):
    (folder / "001.txt").unlink()
    return "001.wav: its transcript is missing"


def unreadable(folder):
    (folder / "001.txt").write_bytes(b"caf\xe9")
    return "001.txt: the transcript cannot be read"


def empty(folder):
    (folder / "001.txt").write_text(" ?!\n")
    return "001.wav: the transcript is empty"


def gone(folder):
    (folder / "train.txt").write_text("000.wav\n002.wav\nnowhere.wav\n003.wav\n")
    return "train.txt, line 3: there is no such recording"


@pytest.mark.parametrize("spoil", [without_transcript, unreadable, empty, gone])
def test_bad_transcripts_are_refused_or_skipped_and_counted(tmp_path, spoil):
    beside(tmp_path, 4)
    sentence = spoil(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        find(tmp_path, BadData())
    bad = BadData("skip")
    assert len(find(tmp_path, bad)[0]) == 3
    assert len(bad.notes()) == 1 and bad.notes()[0].startswith("Skipped 1: ")


def test_nothing_to_learn_from(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        find(tmp_path / "nowhere", BadData())
    with pytest.raises(FileNotFoundError, match="holds no sounds"):
        find(tmp_path, BadData())
    write(tmp_path / "one.wav", speak("ab", np.random.default_rng(0)))
    with pytest.raises(ValueError, match="holds no transcripts: put NAME.txt beside each NAME.wav"):
        find(tmp_path, BadData())
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="train.txt cannot be read as text"):
        find(tmp_path, BadData())
