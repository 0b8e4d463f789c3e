"""Data sets by name: the same code reads a local folder in the hub's layout; no test fetches anything."""

import json
from pathlib import Path

import pytest

from thalweg.run.options import from_text
from thalweg.tasks.task import BadData
from thalweg.tasks.text import aligned, language_model, papers

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(tmp_path, **parts):
    folder = tmp_path / "set"
    folder.mkdir()
    for part, rows in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(f"hub:{folder}")


def test_a_name_stays_a_name():
    assert from_text("data", "hub:owner/name", Path) == Path("hub:owner/name")
    assert from_text("data", "name", Path).is_absolute()


def test_a_text(tmp_path):
    data = write(tmp_path, train=[{"text": "some words"}] * 20, validation=[{"text": "other words"}] * 4)
    made = language_model.make(data, length=8)
    assert made["facts"]["tokens"]["characters"] == "".join(sorted(set("some words\n")))
    assert made["validation_data"][0].shape == (6, 8)  # 47 characters


def test_translations_in_two_columns_or_one(tmp_path):
    pairs = [{"en": f"word {n}", "de": f"wort {n}"} for n in range(30)]
    data = write(tmp_path, train=[*pairs, {"en": "", "de": "leer"}], test=pairs[:3])
    with pytest.raises(ValueError, match="train, line 31: the line is empty"):
        aligned.read_parts(data, "en", "de", 100, BadData(), 0)
    parts = aligned.read_parts(data, "en", "de", 100, BadData("skip"), 0)
    assert len(parts.train) == 29 and {(a[:4], b[:4]) for a, b in parts.train} == {("word", "wort")}
    assert len(parts.validation) == 1 and len(parts.tests["test"]) == 3  # held out of the 30, not the test part
    with pytest.raises(ValueError, match="has no columns 'en' and 'fr': it has en, de"):
        aligned.read_parts(data, "en", "fr", 100, BadData("skip"), 0)
    with pytest.raises(ValueError, match="they name two languages"):
        aligned.read_parts(data, "en", "en", 100, BadData(), 0)


def test_summaries(tmp_path):
    rows = [{"document": "One. Two. Three.", "summary": "One."}] * 20
    data = write(tmp_path, train=rows)
    parts = papers.read_parts(data, ("document", "summary"), 100, BadData(), 0)
    assert (len(parts.train), len(parts.validation), parts.test) == (18, 2, [])
    assert parts.train[0] == papers.Paper(["One.", "Two.", "Three."], ["One."])
    with pytest.raises(ValueError, match="train, line 1: the line has no field 'source'"):
        papers.read_parts(data, ("source", "summary"), 100, BadData(), 0)


def test_a_missing_text_is_bad_data(tmp_path):
    data = write(tmp_path, train=[{"text": "some words"}] * 20 + [{"text": None}])
    with pytest.raises(ValueError, match="train, line 21: the entry holds no text"):
        language_model.make(data, length=8)
    made = language_model.make(data, length=8, on_bad_data="skip")
    assert made["notes"] == [f"Skipped 1: the entry holds no text ({data}, train, line 21)."]


def test_pairs_of_a_hub_follow_the_rules_of_files(tmp_path):
    pairs = [{"en": f" word {n} ", "de": f"wort {n}\n"} for n in range(30)]
    data = write(tmp_path, train=[*pairs, {"en": "none", "de": None}], validation=pairs[:1])
    with pytest.raises(ValueError, match="train, line 31: the line is empty"):
        aligned.read_parts(data, "en", "de", 100, BadData(), 0)
    parts = aligned.read_parts(data, "en", "de", 100, BadData("skip"), 0)
    assert len(parts.train) == 30 and parts.validation == [("word 0", "wort 0")]


def test_a_column_of_translations_may_lack_one(tmp_path, monkeypatch):
    kinds = datasets.Features({"translation": datasets.Translation(["en", "de"])})
    rows = [{"translation": {"en": "a", "de": "x"}}] * 3 + [{"translation": None}]
    found = {"train": datasets.Dataset.from_list(rows, features=kinds)}
    monkeypatch.setattr(aligned.hub, "splits", lambda data: found)
    with pytest.raises(ValueError, match="train, line 4: the line is empty"):
        aligned.read_parts(Path("hub:some/set"), "en", "de", 100, BadData(), 0)
