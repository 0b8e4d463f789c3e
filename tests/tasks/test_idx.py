import gzip
import struct

import numpy as np
import pytest

from thalweg.tasks.idx import is_idx, read_idx


def idx(array, code=0x08, shape=None):
    shape = array.shape if shape is None else shape
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_what_was_written(tmp_path, pack):
    path = tmp_path / "file-without-suffix"
    path.write_bytes(pack(idx(IMAGES)))
    read = read_idx(path)
    assert is_idx(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, IMAGES)


@pytest.mark.parametrize(("code", "dtype"), [(0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_reads_every_type_in_the_order_of_this_machine(tmp_path, code, dtype):
    path = tmp_path / "x.idx"
    array = np.array([-100, 0, 77], dtype=dtype)
    path.write_bytes(idx(array, code))
    read = read_idx(path)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    assert read.tolist() == [-100, 0, 77]


DAMAGED = {
    "not idx": (
        b"\x89PNG and more",
        "is not an IDX file: 00 00 08 or the like was expected at its start, got 89 50 4e 47",
    ),
    "empty": (b"", "is not an IDX file: .* got nothing"),
    "no axes": (bytes([0, 0, 8, 3, 0, 0]), "promises 3 axes"),
    "cut": (idx(IMAGES)[:-5], r"should hold 24 bytes \(2 × 3 × 4 numbers\) after its header, but holds 19"),
    "longer": (idx(IMAGES) + b"!", "but holds more"),
    "cut gzip": (gzip.compress(idx(IMAGES))[:-12], "damaged or cut-off gzip"),
    "false gzip": (b"\x1f\x8b nothing of the kind", "damaged or cut-off gzip"),
    "flipped bit": (bytes([*gzip.compress(idx(IMAGES))[:-8], 0, 0, 0, 0, 40, 0, 0, 0]), "damaged or cut-off gzip"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_sentence_that_names_the_file(tmp_path, name):
    content, sentence = DAMAGED[name]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as raised:
        read_idx(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_header_that_promises_too_much_asks_for_no_memory(tmp_path, pack):
    path = tmp_path / "bomb"
    path.write_bytes(pack(idx(IMAGES, shape=(2**32 - 1, 2**32 - 1, 28))))
    with pytest.raises(ValueError, match="cut short: its header promises"):
        read_idx(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_idx(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"1,2,3\n", b"\x1f\x8b broken", b"\0\0\x07\x01"])
def test_other_files_are_not_taken_for_idx(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert not is_idx(path)
