import json

import numpy as np
import pytest

from thalweg.records import section
from thalweg.records.section import PNG, Curves, Matrix, Picture, Prose, Section, Table

ALL = Section(
    "What it confuses",
    "Rows are what was there.",
    [
        Table(["word", "count"], [["a", 1.5], ["b", 2]], "two of them"),
        Picture(PNG + b"\x00\xff", "a picture", 64),
        Curves("recall", "recall", "precision", {"cats": ([0.0, 1.0], [1.0, 0.5])}, points=True),
        Matrix("confusions", ["a", "b"], ["a", "b"], [[1, 0], [2, 3]], "counts"),
        Prose("To be,\n  or not", monospace=True),
    ],
)


def test_sections_come_back_from_the_run_directory_as_they_were(tmp_path):
    section.write(tmp_path, [ALL])
    [back] = section.read(tmp_path)
    assert (back.title, back.words) == (ALL.title, ALL.words)
    assert back.parts[0] == ALL.parts[0]
    assert back.parts[1] == ALL.parts[1]
    assert back.parts[3:] == list(ALL.parts[3:])
    assert {name: tuple(map(list, line)) for name, line in back.parts[2].lines.items()} == {"cats": ([0, 1], [1, 0.5])}
    assert [path.name for path in tmp_path.iterdir()] == ["sections.json"]


def test_numbers_of_numpy_are_kept_and_objects_refused(tmp_path):
    matrix = Matrix("m", ["a"], ["b"], np.ones((1, 1), np.float32))
    section.write(tmp_path, [Section("t", "", [matrix])])
    assert section.read(tmp_path)[0].parts[0].values == [[1.0]]
    with pytest.raises(TypeError, match="words and numbers, not a object"):
        section.write(tmp_path, [Section("t", "", [Table(["a"], [[object()]])])])
    assert section.read(tmp_path)[0].title == "t"  # the older ones are still whole


def test_a_run_without_sections_has_none(tmp_path):
    assert section.read(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '[{"title": "t", "words": "", "parts": [{"kind": "script"}]}]',
     '[{"title": "t", "words": "", "parts": [{"kind": "picture", "png": "PHN2Zz4=", "caption": ""}]}]',
     '[{"title": "t", "words": "", "parts": [{"kind": "picture", "png": "?", "caption": ""}]}]'],
)  # fmt: skip
def test_a_damaged_or_forged_file_is_refused(tmp_path, text):
    (tmp_path / "sections.json").write_text(text)
    with pytest.raises(ValueError, match=r"sections.json cannot be read as sections of a report"):
        section.read(tmp_path)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="PNG"):
        Picture(b"<svg>", "no picture")
    with pytest.raises(ValueError, match="1 names of rows and 2 of columns"):
        Matrix("m", ["a"], ["b", "c"], [[1]])
    with pytest.raises(ValueError, match="'l' of 'c' has 2 values of x and 1 of y"):
        Curves("c", "x", "y", {"l": ([1, 2], [1])})


def test_the_file_is_plain_json(tmp_path):
    section.write(tmp_path, [ALL])
    assert json.loads((tmp_path / "sections.json").read_text())[0]["parts"][4]["text"] == "To be,\n  or not"
