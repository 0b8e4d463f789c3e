from pathlib import Path
from typing import Literal, Optional

import pytest

from thalweg.run.options import from_text, hints

READ = [
    ("7", int, 7),
    ("-7", int, -7),
    ("7", float, 7.0),
    ("1e-3", float, 1e-3),
    ("7", str, "7"),
    ("7", int | str, 7),
    ("seven", int | str, "seven"),
    ("7.5", int | float, 7.5),
    ("true", bool, True),
    ("Off", bool, False),
    ("none", int | None, None),
    ("none", Optional[float], None),  # noqa: UP045
    ("None", str, "None"),
    ("big", Literal["small", "big"], "big"),
    ("3", Literal[2, 3], 3),
    ("text", dict, "text"),
]


@pytest.mark.parametrize(("text", "hint", "value"), READ)
def test_text_becomes_what_the_hint_says(text, hint, value):
    read = from_text("option", text, hint)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(("default", "value"), [(1, 5), (1.0, 5.0), ("a", "5"), (None, "5")])
def test_without_a_hint_the_default_says(default, value):
    assert from_text("option", "5", None, default) == value


def test_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_text("data", "files", Path) == tmp_path / "files"
    assert from_text("data", "files", None, Path()) == tmp_path / "files"
    assert from_text("data", "~/files", Path | str) == Path.home() / "files"


def test_names_of_the_hub_are_no_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(from_text("data", "hub:owner/name:config", Path)) == "hub:owner/name:config"
    assert from_text("data", "c:name", Path).is_absolute()


def test_what_is_no_text_passes():
    assert from_text("width", 3.5, int) == 3.5


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, "a whole number"),
        (int | None, "a whole number or none"),
        (float, "a number"),
        (bool, "true or false"),
        (Literal["a", "b"], "a or b"),
    ],
)
def test_text_that_does_not_fit_is_a_sentence(hint, expected):
    with pytest.raises(TypeError, match=f"^width takes {expected}, got '4x'$"):
        from_text("width", "4x", hint)


def test_hints_that_cannot_be_resolved_are_none():
    def make(a: "NotThere"): ...  # noqa: F821

    assert hints(make) == {}
