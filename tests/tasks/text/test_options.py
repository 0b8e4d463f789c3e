import dataclasses

import pytest

import thalweg


@pytest.mark.parametrize("name", ["language-model", "translation", "summarisation"])
def test_no_option_has_the_name_of_a_keyword_of_fit(name):
    """On the command line such a flag would be read as the keyword."""
    keywords = {setting.name for setting in dataclasses.fields(thalweg.Settings)}
    assert set(thalweg.Recipe.find(name).parameters) & keywords == {"seed"}
