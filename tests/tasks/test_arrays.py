import gzip

import numpy as np
import pytest

from thalweg.tasks.arrays import read_array

X = np.array([[1.0, 2.5], [-3.0, 4e-3]], dtype=np.float32)


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), X)


@pytest.mark.parametrize("arrays", [{"anything": X}, {"x": X, "y": X[:, 0]}], ids=["only", "x"])
def test_npz_takes_the_only_array_or_x(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    np.testing.assert_array_equal(read_array(tmp_path / "x.npz"), X)


@pytest.mark.parametrize("head", ["", "height,width\n", "\ufeff"], ids=["bare", "names", "mark"])
def test_csv(tmp_path, head):
    path = written(tmp_path / "x.csv", head + "1,2.5\n\n-3,4e-3\n")
    np.testing.assert_array_equal(read_array(path), X)


def test_idx_by_its_content(tmp_path):
    path = written(tmp_path / "t10k-labels-idx1-ubyte.gz", gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])))
    assert read_array(path).tolist() == [7, 9]


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name in ("x.npy", "x.npz"):
        save = np.save if name.endswith("npy") else np.savez
        save(tmp_path / name, np.array([Trap()], dtype=object))
        with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
            read_array(tmp_path / name)


def test_a_header_that_promises_too_much_asks_for_no_memory(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"1234")
    with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
        read_array(tmp_path / "x.npy")


@pytest.mark.parametrize("place", [20, 60])
def test_a_damaged_header_is_one_sentence(tmp_path, place):
    np.save(tmp_path / "x.npy", X)
    content = bytearray((tmp_path / "x.npy").read_bytes())
    content[place : place + 5] = b"((((("
    path = written(tmp_path / "x.npy", bytes(content))
    with pytest.raises(ValueError, match="cannot be read as an array of numbers"):
        read_array(path)


WRONG = {
    "words in the middle": ("x.csv", "1,2\n3,four\n", "line 2: numbers were expected .*four"),
    "ragged": ("x.csv", "1,2\n3\n", "line 2: 2 numbers were expected as before, got 1"),
    "no rows": ("x.csv", "", "holds no rows"),
    "names alone": ("x.csv", "a,b\n", "holds no rows"),
    "not text": ("x.csv", b"\xff\xfe\x00", "cannot be read as comma-separated text"),
    "cut npy": ("x.npy", b"\x93NUMPY\x01", "cannot be read as an array"),
    "no npy": ("x.npy", b"hello", "cannot be read as an array"),
    "no npz": ("x.npz", b"PK hello", "cannot be read as an array"),
    "other": ("x.png", b"\x89PNG", "in no format that is known here: give .npy, .npz, .csv or IDX"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_read_is_one_sentence_that_names_the_file(tmp_path, case):
    name, content, sentence = WRONG[case]
    path = written(tmp_path / name, content)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_array(path)
    assert str(path) in str(raised.value)


def test_several_arrays_without_x(tmp_path):
    np.savez(tmp_path / "x.npz", a=X, b=X)
    with pytest.raises(ValueError, match="holds a, b: one array, or one called x, was expected"):
        read_array(tmp_path / "x.npz")


def test_words_and_scalars_are_no_rows_of_numbers(tmp_path):
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "scalar.npy", np.array(3.0))
    with pytest.raises(ValueError, match="numbers were expected"):
        read_array(tmp_path / "words.npy")
    with pytest.raises(ValueError, match="holds no rows"):
        read_array(tmp_path / "scalar.npy")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*nowhere.csv: give one in"):
        read_array(tmp_path / "nowhere.csv")
