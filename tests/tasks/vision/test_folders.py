import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from made_up_images import SHARED, SIDE, write_classes
from PIL import Image

from thalweg.tasks.task import BadData
from thalweg.tasks.vision import folders, images
from thalweg.tasks.vision.tree import Tree


def read(data, size=None, choice="refuse"):
    bad = BadData(choice)
    return folders.read(data, size, bad), bad.notes()


@pytest.fixture
def whole(tmp_path):
    """Class folders that are not parted."""
    write_classes(tmp_path / "whole", 4, seed=0)
    return tmp_path / "whole"


def test_class_folders_are_one_part_and_classes_are_in_order(whole):
    (whole / "LICENSE").write_text("beside the classes: no class")
    (whole / "dots" / ".hidden").write_text("litter")
    found, _ = read(whole)
    assert found.classes == ["columns", "dots", "rows"] and list(found.parts) == ["training"]
    part = found.parts["training"]
    assert part.images.shape == (12, 3, SIDE, SIDE) and part.images.dtype == torch.uint8
    assert part.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    pixels = np.asarray(Image.open(part.places[5])).transpose(2, 0, 1)
    assert np.array_equal(part.images[5], pixels)


def test_numbers_as_names_are_in_the_order_of_their_values(tmp_path):
    write_classes(tmp_path, 1, seed=0)
    for old, new in (("rows", "10"), ("dots", "9"), ("columns", "2")):
        (tmp_path / old).rename(tmp_path / new)
    assert read(tmp_path)[0].classes == ["2", "9", "10"]


def test_an_archive_is_read_like_the_folder_in_it(class_folders, tmp_path):
    with tarfile.open(tmp_path / "made-up.tar.gz", "w:gz") as archive:
        archive.add(class_folders, "made-up")
    folder, archive = read(class_folders)[0], read(tmp_path / "made-up.tar.gz")[0]
    assert archive.classes == folder.classes and list(archive.parts) == ["training", "test"]
    for name, part in folder.parts.items():
        assert torch.equal(archive.parts[name].images, part.images)
        assert torch.equal(archive.parts[name].labels, part.labels)


def test_a_cut_off_archive_is_one_sentence(class_folders, tmp_path):
    path = tmp_path / "made-up.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(class_folders, "made-up")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"made-up.tar.gz cannot be read as a tar archive"):
        read(path)
    path.write_text("no archive")
    with pytest.raises(ValueError, match=r"made-up.tar.gz cannot be read as a tar archive"):
        read(path)
    with pytest.raises(FileNotFoundError, match="there is no folder or archive .*nothing"):
        read(tmp_path / "nothing")


def broken(folder, case):
    """Put something bad into class folders; the place and what is said of it."""
    target = folder / "rows" / "000.png"
    if case == "cut short":
        target.write_bytes(target.read_bytes()[:200])
        return target, r"damaged \(.*\)"
    if case == "no image":
        target.write_text("no image")
        return target, "an image was expected, but the content is in no format that is known here"
    if case == "nothing":
        target.write_bytes(b"")
        return target, "an image was expected"
    if case == "another file":
        (folder / "rows" / "list.txt").write_text("000.png")
        return folder / "rows" / "list.txt", "no image file by its name"
    assert case == "empty folder"
    (folder / "cats").mkdir()
    return folder / "cats", "a class folder without images"


@pytest.mark.parametrize("case", ["cut short", "no image", "nothing", "another file", "empty folder"])
def test_bad_data_is_named_and_refused_or_skipped(whole, case):
    place, words = broken(whole, case)
    with pytest.raises(ValueError, match=f"{place}: {words}.*--on-bad-data skip"):
        read(whole)
    found, notes = read(whole, choice="skip")
    assert len(found.parts["training"]) == (12 if case in ("another file", "empty folder") else 11)
    assert found.classes == ["columns", "dots", "rows"]
    assert len(notes) == 1 and notes[0].startswith("Skipped 1: ") and str(place) in notes[0]


def test_a_name_of_the_hub_is_read_like_a_folder(class_folders, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder, hub = read(class_folders)[0], read(f"hub:{class_folders}")[0]
    assert hub.classes == folder.classes and list(hub.parts) == ["training", "test"]
    for name, part in folder.parts.items():
        assert torch.equal(hub.parts[name].labels.bincount(), part.labels.bincount())
        assert torch.equal(hub.parts[name].images.sum((0, 1)), part.images.sum((0, 1)))


def test_a_class_that_training_lacks(class_folders):
    write_classes(class_folders / "test", 2, seed=3, kinds=("rows",))
    (class_folders / "test" / "rows").rename(class_folders / "test" / "zebra")
    with pytest.raises(ValueError, match="zebra.*: class zebra, which the training part lacks"):
        read(class_folders)
    found, notes = read(class_folders, choice="skip")
    assert torch.bincount(found.parts["test"].labels).tolist() == [20, 20]
    assert notes[0].startswith("Skipped 20: class zebra")


def test_nothing_to_learn_from(tmp_path):
    (tmp_path / "only").mkdir()
    with pytest.raises(ValueError, match="only: a class folder without images"):
        read(tmp_path)
    with pytest.raises(ValueError, match="found 0 class folders with images .* at least 2 were expected: give class"):
        read(tmp_path, choice="skip")


def test_nothing_that_can_be_read(whole):
    for path in whole.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no image in .*whole can be read"):
        read(whole, choice="skip")


def save(folder, name, array, mode, count=1):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(array).convert(mode).save(folder / f"{name}{number}.png")


def test_grey_images_have_one_channel_and_among_coloured_ones_three(tmp_path):
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for name in "ab":
        save(tmp_path / name, "grey", array, "L", 2)
    found, _ = read(tmp_path)
    assert found.parts["training"].images.shape == (4, 1, 16, 16) and found.notes == []
    save(tmp_path / "a", "colour", array, "RGB")
    found, _ = read(tmp_path)
    assert found.parts["training"].images.shape == (5, 3, 16, 16)
    assert (found.parts["training"].images == torch.from_numpy(array)).all()
    assert found.notes == [
        f"4 images were grey among coloured ones and were read as colour: the first is {tmp_path}/a/grey0.png."
    ]


def test_alpha_is_laid_over_white_and_sixteen_bits_are_brought_to_eight(tmp_path):
    half = np.full((8, 8, 4), (200, 100, 0, 51), np.uint8)  # a fifth of the colour
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    Image.fromarray(half).save(tmp_path / "a" / "half.png")
    Image.fromarray(np.full((8, 8), 65535 // 5, np.uint16)).save(tmp_path / "b" / "deep.png")
    found, _ = read(tmp_path)
    assert found.parts["training"].images[:, :, 0, 0].tolist() == [[244, 224, 204], [51, 51, 51]]
    assert found.notes[:2] == [
        f"1 image had an alpha channel and was laid over white: {tmp_path}/a/half.png.",
        f"1 image had 16 bits a pixel and was read with 8: {tmp_path}/b/deep.png.",
    ]


def test_an_image_that_lies_on_its_side_is_put_upright(tmp_path):
    """EXIF orientation 6: the first row of what is stored is the right column of what was seen."""
    stored = np.zeros((4, 8, 3), np.uint8)
    stored[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    array = images.pixels(file.getvalue(), lambda image: image, str)
    assert array.shape == (8, 4, 3) and (array[:, -1] == 255).all() and (array[:, :-1] == 0).all()


@pytest.mark.parametrize(
    ("sizes", "asked", "side"),
    [
        ([(20, 20), (20, 20)], None, (20, 20)),
        ([(20, 12), (20, 12)], None, (12, 20)),  # rows, columns
        ([(20, 30), (40, 50)], None, (30, 30)),  # the median of the shorter sides
        ([(200, 300), (400, 500)], None, (64, 64)),
        ([(20, 20), (20, 20)], 10, (10, 10)),
    ],
)
def test_sizes(tmp_path, sizes, asked, side):
    for name, (width, height) in zip("ab", sizes, strict=True):
        save(tmp_path / name, "image", np.zeros((height, width), np.uint8), "L")
    found, _ = read(tmp_path, asked)
    assert tuple(found.parts["training"].images.shape[2:]) == side
    assert bool(found.notes) == (side[::-1] not in sizes)


def test_the_middle_is_kept_when_an_image_is_cut():
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 8:22] = 255
    assert (np.asarray(folders.to_size(Image.fromarray(wide), 5, 5)) == 255).all()


def write_idx(folder, name, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def idx(tmp_path):
    for part, rows in (("train", 30), ("t10k", 12)):
        write_idx(tmp_path, f"{part}-images-idx3-ubyte", np.random.default_rng(0).integers(0, 256, (rows, 8, 8)))
        write_idx(tmp_path, f"{part}-labels-idx1-ubyte", np.arange(rows) % 3 + 1)
    return tmp_path


def test_idx_files_and_the_classes_that_occur_in_them(idx):
    found, _ = read(idx)
    assert found.classes == ["1", "2", "3"] and found.parts["test"].images.shape == (12, 1, 8, 8)
    assert found.parts["training"].labels.tolist() == [row % 3 for row in range(30)]


def test_idx_labels_that_training_lacks(idx):
    write_idx(idx, "t10k-labels-idx1-ubyte", np.array([*range(1, 4)] * 3 + [1, 1, 7]))
    with pytest.raises(ValueError, match="test label 11: class 7, which the training part lacks"):
        read(idx)
    assert len(read(idx, choice="skip")[0].parts["test"]) == 11
    with pytest.raises(ValueError, match="leave --size out"):
        read(idx, size=8)


def test_of_each_class_the_same_share_is_held_out():
    part = folders.Part(
        torch.arange(100)[:, None, None, None], torch.tensor([0] * 80 + [1] * 20), [*map(str, range(100))]
    )
    rest, held = folders.hold_out(part, 0.1, 2, seed=0)
    assert torch.bincount(held.labels).tolist() == [8, 2] and len(rest) == 90
    assert sorted([*rest.images.flatten().tolist(), *held.images.flatten().tolist()]) == [*range(100)]
    assert held.places == [str(number) for number in held.images.flatten().tolist()]
    assert not torch.equal(folders.hold_out(part, 0.1, 2, seed=1)[1].images, held.images)


def test_what_lies_below_a_folder(tmp_path):
    (tmp_path / "a" / "b" / "empty").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"1")
    (tmp_path / "__MACOSX").mkdir()
    tree = Tree.of(tmp_path)
    assert tree.tops() == ["a"]
    below = tree.below("a/b")
    assert {str(path): content() for path, content in below.files.items()} == {"x": b"1"}
    assert below.tops() == ["empty"] and below.place("x") == str(tmp_path / "a" / "b" / "x")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not at hand")
def test_the_real_archive():
    found, notes = read(SHARED / "images" / "cifar10-jpeg-subset.tar.gz")
    assert {name: tuple(part.images.shape) for name, part in found.parts.items()} == {
        "training": (10000, 3, 32, 32),
        "test": (2000, 3, 32, 32),
    }
    assert len(found.classes) == 10 and found.notes == notes == []
