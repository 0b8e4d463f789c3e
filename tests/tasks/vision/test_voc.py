import tarfile

import pytest
from made_up_images import SHARED, annotation, write_voc

from thalweg.tasks.task import BadData
from thalweg.tasks.vision import voc


def read(data, choice="refuse"):
    bad = BadData(choice)
    return voc.read(data, bad), bad.notes()


@pytest.fixture
def folder(tmp_path):
    write_voc(tmp_path / "shapes", {"train": 3, "val": 2, "test": 1})
    return tmp_path / "shapes"


def write(folder, objects, name="train00", size=(128, 96)):
    (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, size, objects))
    return folder / "Annotations" / f"{name}.xml"


def test_parts_boxes_and_names(folder):
    write(folder, [("disc", (10, 20, 30, 50)), ("square", (0, 0, 128, 96))])
    found, _ = read(folder)
    assert {part: len(ones) for part, ones in found.parts.items()} == {"training": 3, "validation": 2, "test": 1}
    one = found.parts["training"][0]
    assert (one.name, one.size) == ("train00", (128, 96))
    assert [(thing.name, thing.box, thing.line) for thing in one.objects] == [
        ("disc", (10, 20, 30, 50), 4),
        ("square", (0, 0, 128, 96), 8),
    ]
    assert found.notes == []


def test_an_archive_with_folders_above_is_read_alike(folder, tmp_path):
    with tarfile.open(tmp_path / "voc.tar.gz", "w:gz") as archive:
        archive.add(folder, "VOCdevkit/VOC2007")
    found, _ = read(tmp_path / "voc.tar.gz")
    assert [one.objects for one in found.parts["test"]] == [one.objects for one in read(folder)[0].parts["test"]]
    assert found.parts["test"][0].read() == (folder / "JPEGImages" / "test00.png").read_bytes()


@pytest.mark.parametrize(
    ("lists", "parts"),
    [
        (("train", "val", "test"), {"training": 3, "validation": 2, "test": 1}),
        (("train", "test"), {"training": 3, "test": 1}),
        (("test",), {"training": 5, "test": 1}),
        ((), {"training": 6}),
    ],
)
def test_lists_that_are_missing(folder, lists, parts):
    for name in {"train", "val", "test"} - set(lists):
        (folder / "ImageSets" / "Main" / f"{name}.txt").unlink()
    assert {part: len(ones) for part, ones in read(folder)[0].parts.items()} == parts


def test_trainval_stands_for_both(folder):
    main = folder / "ImageSets" / "Main"
    (main / "trainval.txt").write_text((main / "train.txt").read_text() + (main / "val.txt").read_text())
    (main / "train.txt").unlink()
    assert {part: len(ones) for part, ones in read(folder)[0].parts.items()} == {"training": 5, "test": 1}


def test_boxes_without_area_do_no_harm_and_are_counted(folder):
    place = write(folder, [("disc", (10, 20, 10, 50)), ("disc", (10, 20, 30, 50)), ("disc", (40, 60, 50, 55))])
    found, notes = read(folder)
    assert [thing.box for thing in found.parts["training"][0].objects] == [(10, 20, 30, 50)]
    assert found.notes == [f"Boxes without area were left out: 2 ({place}, line 4, {place}, line 12)."]
    assert notes == []


def test_boxes_over_the_border_are_cut_off_and_named(folder):
    place = write(folder, [("disc", (-5, 20, 30, 50)), ("disc", (100, 90, 140, 99))])
    found, _ = read(folder)
    assert [thing.box for thing in found.parts["training"][0].objects] == [(0, 20, 30, 50), (100, 90, 128, 96)]
    assert found.notes == [
        f"Boxes that reached over the border of their image were cut off there: 2 ({place}, line 4, {place}, line 8)."
    ]


def broken(folder, case):
    """Something bad, where it is said to be, and in which words."""
    xml, image = folder / "Annotations" / "train00.xml", folder / "JPEGImages" / "train00.png"
    if case == "outside":
        write(folder, [("disc", (1, 2, 3, 4)), ("disc", (130, 20, 140, 50))])
        return f"{xml}, line 8", "a box outside of its image"
    if case == "no number":
        xml.write_text(annotation("train00", (128, 96), [("disc", (1, 2, 3, 4))]).replace("<xmax>3", "<xmax>three"))
        return f"{xml}, line 4", "a box that lacks a number for one of xmin, ymin, xmax, ymax"
    if case == "no corner":
        xml.write_text(annotation("train00", (128, 96), [("disc", (1, 2, 3, 4))]).replace("<ymin>2</ymin>", ""))
        return f"{xml}, line 4", "a box that lacks a number"
    if case == "not finite":
        xml.write_text(annotation("train00", (128, 96), [("disc", (1, 2, 3, 4))]).replace("<xmax>3", "<xmax>nan"))
        return f"{xml}, line 4", "a box with a corner that is no finite number"
    if case == "no name":
        write(folder, [("", (1, 2, 3, 4))])
        return f"{xml}, line 4", "an object without a name"
    if case == "cut short":
        xml.write_text(xml.read_text()[:-30])
        return str(xml), r"an annotation that cannot be read \(.*line"
    if case == "another size":
        write(folder, [("disc", (1, 2, 3, 4))], size=(64, 96))
        return str(xml), "says 64 × 96 pixels, but its image has 128 × 96"
    if case == "no image":
        image.unlink()
        return str(xml), "no image train00.png in"
    if case == "damaged image":
        image.write_bytes(b"no image")
        return str(image), "an image was expected"
    assert case == "list"
    (folder / "ImageSets" / "Main" / "train.txt").write_text("train00\ntrain01\nnothing\ntrain02\n")
    return f"{folder / 'ImageSets' / 'Main' / 'train.txt'}, line 3", "no annotation nothing.xml"


CASES = {
    "outside": 3, "no number": 3, "no corner": 3, "not finite": 3, "no name": 3, "list": 3,
    "cut short": 2, "another size": 2, "no image": 2, "damaged image": 2,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_data_is_named_and_refused_or_skipped(folder, case):
    place, words = broken(folder, case)
    with pytest.raises(ValueError, match=f"{place}: {words}.*--on-bad-data skip"):
        read(folder)
    found, notes = read(folder, "skip")
    assert len(found.parts["training"]) == CASES[case]
    assert len(notes) == 1 and notes[0].startswith("Skipped 1: ") and place in notes[0]


def test_parts_of_objects_and_what_is_difficult(folder):
    text = annotation("train00", (128, 96), [("disc", (1, 2, 30, 40))])
    part = "<part><name>rim</name><bndbox><xmin>9</xmin></bndbox></part><difficult>1</difficult></object>"
    (folder / "Annotations" / "train00.xml").write_text(text.replace("</object>", part))
    (thing,) = read(folder)[0].parts["training"][0].objects
    assert (thing.name, thing.box, thing.difficult) == ("disc", (1, 2, 30, 40), True)


def test_other_layouts(tmp_path):
    with pytest.raises(ValueError, match="holds no folder Annotations: a folder with Annotations/"):
        read(tmp_path)
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(ValueError, match=r"Annotations holds no .xml file"):
        read(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder or archive"):
        read(tmp_path / "nowhere")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not at hand")
def test_the_blood_cells():
    found, _ = read(SHARED / "detection" / "bccd-voc.tar.gz")
    assert {part: len(ones) for part, ones in found.parts.items()} == {"training": 205, "validation": 87, "test": 72}
    assert sum(len(one.objects) for ones in found.parts.values() for one in ones) == 4888 - 2
    (note,) = found.notes
    assert note.startswith("Boxes without area were left out: 2 ") and "00338" in note and "00343" in note
