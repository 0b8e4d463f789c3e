import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from thalweg import recipe
from thalweg.tasks.mnist import make


def write(folder, name, array, pack=bytes):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    (folder / name).write_bytes(pack(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part, rows in (("train", 30), ("t10k", 12)):
        write(tmp_path, f"{part}-images-idx3-ubyte", generator.integers(0, 256, (rows, 28, 28)))
        write(tmp_path, f"{part}-labels-idx1-ubyte", np.arange(rows) % 10)
    return tmp_path


def test_the_test_set_is_the_validation_data(folder):
    made = make(folder)
    assert made["data"][0].shape == (30, 28, 28) and made["data"][0].dtype == torch.uint8
    assert made["validation_data"][0].shape == (12, 28, 28)
    assert made["data"][1].tolist() == [label % 10 for label in range(30)]
    assert made["model"](made["data"][0]).shape == (30, 10)


def test_gzipped_and_dotted_names_are_found_and_plain_files_go_first(folder):
    plain = make(folder)["data"][0]
    name = "train-images-idx3-ubyte"
    write(folder, name + ".gz", np.zeros((30, 28, 28)), gzip.compress)
    assert torch.equal(make(folder)["data"][0], plain)
    (folder / name).unlink()
    assert make(folder)["data"][0].sum() == 0
    (folder / (name + ".gz")).rename(folder / "train-images.idx3-ubyte.gz")
    assert make(folder)["data"][0].sum() == 0


def test_more_classes_than_ten_widen_the_output(folder):
    write(folder, "train-labels-idx1-ubyte", np.arange(30))
    assert make(folder)["model"][-1].out_features == 30


def test_trains_from_the_folder_and_is_made_again(folder, tmp_path):
    import thalweg

    run = recipe("mnist", data=str(folder)).fit(run_dir=tmp_path / "run", epochs=1, verbose=False)
    assert run.record.source == {"task": "mnist", "options": {"data": str(folder)}}
    x = make(folder)["validation_data"][0]
    assert torch.equal(thalweg.predict(thalweg.load(run.directory), x), thalweg.predict(run.model, x))


def broken(folder, case):
    images, labels = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    if case == "file":
        (folder / images).unlink()
        return FileNotFoundError, "lacks the training images: a file train-images-idx3-ubyte.* was expected"
    if case == "counts":
        write(folder, labels, np.zeros(11))
        return ValueError, "t10k-images-idx3-ubyte holds 12 images but .*t10k-labels-idx1-ubyte holds 11 labels"
    if case == "axes":
        write(folder, labels, np.zeros((12, 2)))
        return ValueError, "t10k-labels-idx1-ubyte holds an array of 2 axes and type uint8, but 1"
    if case == "cut":
        (folder / images).write_bytes((folder / images).read_bytes()[:-1])
        return ValueError, "train-images-idx3-ubyte should hold 23520 bytes"
    if case == "none":
        write(folder, "t10k-images-idx3-ubyte", np.zeros((0, 28, 28)))
        write(folder, labels, np.zeros(0))
        return ValueError, "t10k-images-idx3-ubyte holds no images"
    assert case == "sizes"
    write(folder, "t10k-images-idx3-ubyte", np.zeros((12, 8, 8)))
    return ValueError, "must be of one size, but are 28×28 and 8×8"


@pytest.mark.parametrize("case", ["file", "counts", "axes", "cut", "none", "sizes"])
def test_what_is_wrong_with_the_files_is_one_sentence(folder, case):
    kind, sentence = broken(folder, case)
    with pytest.raises(kind, match=sentence):
        make(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere: give one with train-images"):
        make(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.skipif("THALWEG_MNIST" not in os.environ, reason="THALWEG_MNIST names no folder with the real files")
@pytest.mark.parametrize("seed", range(3))
def test_the_real_files_reach_their_accuracy(tmp_path, seed):
    made = recipe("mnist", data=Path(os.environ["THALWEG_MNIST"]), seed=seed)
    run = made.fit(run_dir=tmp_path / "run", verbose=False)
    assert run.metrics["validation_accuracy"] >= 0.935
