import pytest

from thalweg.tasks.task import BadData


def test_bad_data_is_refused_by_place_and_reason():
    with pytest.raises(ValueError, match=r"a.png: the image is cut short; mend it, or leave such out with --on-bad"):
        BadData().add("a.png", "the image is cut short")


def test_bad_data_is_skipped_counted_and_named():
    bad = BadData("skip")
    for number in range(5):
        bad.add(f"{number}.png", "the image is cut short")
    bad.add("a.xml, line 3", "the box has no area")
    assert bad.notes() == [
        "Skipped 5: the image is cut short (0.png, 1.png, 2.png and 2 more).",
        "Skipped 1: the box has no area (a.xml, line 3).",
    ]
    assert bad.counts["the image is cut short"] == 5


def test_no_other_choice():
    with pytest.raises(ValueError, match="on_bad_data takes refuse or skip, got 'ignore'"):
        BadData("ignore")
