import dataclasses

import pytest

import thalweg


@pytest.mark.parametrize("name", ["language-model", "translation", "summarisation"])
def test_no_option_has_the_name_of_a_keyword_of_fit(name):
    """On the command line such a flag would be read as the keyword."""
    keywords = {setting.name for setting in dataclasses.fields(thalweg.Settings)}
    assert set(thalweg.Recipe.find(name).parameters) & keywords == {"seed"}


SIZES = [("language-model", ("width", "layers", "length")), ("translation", ("width", "layers", "longest"))]
SIZES.append(("summarisation", ("width", "layers", "longest")))


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in SIZES for name in names])
@pytest.mark.parametrize("size", [0, -1])
def test_a_size_that_is_none_is_refused_before_anything_is_read(task, name, size):
    with pytest.raises(ValueError, match=f"{name} takes a whole number from 1 on, got {size}"):
        thalweg.recipe(task, data="nowhere", **{name: size})


@pytest.mark.parametrize("task", ["language-model", "translation", "summarisation"])
def test_a_width_that_heads_cannot_share_is_refused_with_what_to_give(task, tmp_path):
    with pytest.raises(ValueError, match="width 200 cannot be shared by 3 attention heads .* give a multiple of 64"):
        thalweg.recipe(task, data=_corpus(task, tmp_path), width=200)


def test_an_lstm_takes_any_even_width(tmp_path):
    data = _corpus("translation", tmp_path)
    options = {"data": data, "network": "lstm", "layers": 1, "vocabulary": 270}
    assert thalweg.recipe("translation", width=200, **options).facts["width"] == 200
    with pytest.raises(ValueError, match="width 201 cannot be halved .* give an even number"):
        thalweg.recipe("translation", width=201, **options)


def test_a_text_is_not_its_own_summary():
    with pytest.raises(ValueError, match="text_field and summary_field are both 'text': they name two fields"):
        thalweg.recipe("summarisation", data="nowhere", text_field="text", summary_field="text")


def _corpus(task, folder):
    """A little data of a task's kind."""
    if task == "language-model":
        (folder / "text.txt").write_text("some words of a text\n" * 200)
        return folder / "text.txt"
    for ending in ("en", "de"):
        (folder / f"train.{ending}").write_text("some words\n" * 40)
    (folder / "train.jsonl").write_text('{"source": ["One.", "Two."], "target": "One."}\n' * 40)
    return folder
