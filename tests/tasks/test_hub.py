"""Names of the hub: the same code reads a local folder in the hub's layout; no test fetches anything."""

import json

import pytest

from thalweg.tasks import hub

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_folder_in_the_layout_of_the_hub(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name, count in (("train", 3), ("test", 2)):
        lines = [json.dumps({"text": f"line {number}", "size": number}) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    found = hub.splits(f"hub:{folder}")
    assert hub.part(found, "train")["text"][:] == ["line 0", "line 1", "line 2"]
    assert len(hub.part(found, "validation")) == 2
    assert hub.column(hub.part(found, "train"), "string") == "text"
    assert hub.column(hub.part(found, "train"), "Image") is None


def test_images_by_class(tmp_path):
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "set" / "train" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "set" / "train" / label / "1.png")
    table = hub.part(hub.splits(f"hub:{tmp_path / 'set'}"), "train")
    assert (hub.column(table, "Image"), hub.column(table, "ClassLabel")) == ("image", "label")
    assert table.features["label"].names == ["cat", "dog"]


def test_what_cannot_be_had_is_one_sentence():
    with pytest.raises(ValueError, match=r"the data set nobody/nothing cannot be had from the hub: "):
        hub.splits("hub:nobody/nothing")
    with pytest.raises(ValueError, match="names no data set"):
        hub.splits("hub:")


def test_a_path_is_no_name():
    assert hub.is_hub("hub:ylecun/mnist")
    assert not hub.is_hub("data/mnist")
