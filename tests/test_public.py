"""The words users see are frozen: a change here is a change of the contract."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import thalweg

WORDS = """
    Action Backprop Callback Curves FastStep Finding GradientCheck History Landscape LearningRate Matrix Picture
    Plan Prose Recipe Run RunRecord Search Section Sequences Settings StepRecord Table Task Trajectory Verdict Watch
    __version__ backprop check check_gradients diagnose evaluate export fast_step find_lr fit landscape load predict
    recipe report resume save task_names watch
""".split()  # noqa: SIM905


def test_the_public_words() -> None:
    assert sorted(thalweg.__all__) == sorted(WORDS)
    assert dir(thalweg) == sorted(WORDS)


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_there_and_says_what_it_is(word: str) -> None:
    value = getattr(thalweg, word)
    assert word == "__version__" or value.__doc__


def test_a_word_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="fitt"):
        _ = thalweg.fitt


def test_the_words_of_gradients_are_no_modules() -> None:
    import thalweg.gradients as room

    modules = {module.name for module in pkgutil.iter_modules(room.__path__)}
    assert not modules & set(room.__all__)
    assert all(getattr(room, word).__doc__ for word in room.__all__)


def test_rooms_with_words_of_their_own() -> None:
    code = "import thalweg; print(thalweg.optim.KFAC.__name__, thalweg.gradients.spectrum.__name__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["KFAC", "spectrum"]


def loaded(statement: str) -> set[str]:
    """The top-level packages that a statement brings in, in a process of its own."""
    code = f"{statement}\nimport sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_costs_nothing() -> None:
    assert not loaded("import thalweg") & {"torch", "numpy", "rich", "plotly", "sklearn", "keras"}


def test_settings_and_records_need_no_torch() -> None:
    assert not loaded("import thalweg; thalweg.Settings; thalweg.History; thalweg.RunRecord") & {"torch", "plotly"}


def test_fit_brings_in_torch_and_nothing_that_it_does_not_use() -> None:
    assert not loaded("import thalweg; thalweg.fit; thalweg.resume") & {"plotly", "sklearn", "keras", "onnx", "rich"}


def test_no_room_bears_the_name_of_a_word() -> None:
    """Importing it would take the word's place."""
    rooms = {module.name for module in pkgutil.iter_modules(thalweg.__path__)}
    assert not rooms & set(WORDS)
