import gzip

import pytest

from thalweg.tasks.tabular.table import read_table
from thalweg.tasks.task import BadData

PLAIN = "size,colour\n1.5,red\n2,blue\n"


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzipped"])
def test_columns_by_name_whatever_parts_them(tmp_path, delimiter, pack):
    path = written(tmp_path / "t.csv", pack(PLAIN.replace(",", delimiter).encode()))
    table = read_table(path, BadData())
    assert table.columns == {"size": ["1.5", "2"], "colour": ["red", "blue"]}
    assert table.place(1) == f"{path}, line 3"


HEADERS = {
    "a word above numbers": ("size,colour\n1,red\n", ["size", "colour"]),
    "no words at all": ("1,2\n3,4\n", ["1", "2"]),
    "numbers above numbers, a word above words": ("5.1,setosa\n4.9,setosa\n", ["1", "2"]),
    "no numbers at all": ("colour,taste\nred,sweet\n", ["colour", "taste"]),
    "missing cells say nothing": ("size\n\nNA\n3\n", ["size"]),
    "byte order mark and blank lines": ("\ufeffsize\n\n1\n", ["size"]),
}


@pytest.mark.parametrize("case", HEADERS)
def test_whether_the_first_line_is_a_header(tmp_path, case):
    content, names = HEADERS[case]
    assert list(read_table(written(tmp_path / "t.csv", content), BadData()).columns) == names


def test_a_header_may_be_said(tmp_path):
    path = written(tmp_path / "t.csv", "2019,2020\n3,4\n")
    assert list(read_table(path, BadData(), header="yes").columns) == ["2019", "2020"]
    path = written(tmp_path / "t.csv", "a,b\nc,d\n")
    assert len(read_table(path, BadData(), header="no")) == 2


def test_quoted_cells_hold_delimiters_and_lines(tmp_path):
    path = written(tmp_path / "t.csv", 'size,words\n1,"a, b"\n2,"two\nlines"\n3,c\n')
    table = read_table(path, BadData())
    assert table.columns["words"] == ["a, b", "two\nlines", "c"]
    assert table.place(2).endswith("line 5")


def test_ragged_rows_are_refused_or_skipped_and_counted(tmp_path):
    path = written(tmp_path / "t.csv", "a,b\n1,2\n3\n4,5,6\n7,8\n")
    with pytest.raises(
        ValueError, match=r"t.csv, line 3: a row of 1 cells where 2 were expected; .* --on-bad-data skip"
    ):
        read_table(path, BadData())
    bad = BadData("skip")
    assert read_table(path, bad).columns == {"a": ["1", "7"], "b": ["2", "8"]}
    assert [note[:10] for note in bad.notes()] == ["Skipped 1:", "Skipped 1:"]


WRONG = {
    "empty": ("", "holds no rows"),
    "a header alone": ("a,b\n", "holds no rows of data"),
    "one name twice": ("a,b,a\n1,2,3\n", "more than one column called 'a'"),
    "not text": (b"\xff\xfe\x00", "cannot be read as comma-separated text"),
    "an open quote": ('a,b\n1,"2\n', "cannot be read as comma-separated text"),
    "cut gzip": (gzip.compress(PLAIN.encode() * 100)[:40], "damaged or cut-off gzip"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_one_sentence_that_names_the_file(tmp_path, case):
    content, sentence = WRONG[case]
    path = written(tmp_path / "t.csv", content)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_table(path, BadData())
    assert str(path) in str(raised.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*t.csv"):
        read_table(tmp_path / "t.csv", BadData())
