import importlib.metadata
import json

import pytest
import torch

import thalweg
from thalweg.run.recipe import recipe, recipe_of, task_names

SCRIPT = """
from pathlib import Path
import torch

def make(width: int = 3, folder: Path = Path("."), flip: bool = False):
    x = torch.linspace(-1, 1, 32)[:, None]
    model = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Linear(width, 1))
    return {"model": model, "data": (x, x), "loss": "mse", "epochs": 2, "learning_rate": 0.5, "patience": None}

def needs(data, *, size): ...
def anything(**options):
    return {"model": options, "data": 0}
def a_list():
    return [1]
def no_model():
    return {"modle": 1, "data": 2}
def no_data():
    return {"model": 1, "loss": "mse"}
def fails():
    return torch.zeros(2) @ torch.zeros(3)
def exits():
    raise SystemExit(2)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SCRIPT)
    return path


def test_the_tasks_that_are_installed():
    assert task_names() == [
        "digits", "image-classification", "language-model", "mnist", "object-detection", "speech-recognition",
        "summarisation", "tabular", "translation",
    ]  # fmt: skip


def test_a_script_is_called_with_text_read_by_its_hints(script):
    made = recipe(f"{script}:make", width="5", flip="yes")
    assert made.arguments["model"][0].out_features == 5
    assert made.options == {"width": 5, "flip": True}
    assert made.source["script"] == str(script)
    assert made.source["function"] == "make"
    assert len(made.source["sha256"]) == 64
    assert made.source["options"] == made.options


def test_the_source_is_json_and_holds_absolute_paths(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = recipe("mine.py:make", folder="sub").source
    assert json.loads(json.dumps(source)) == source
    assert source["script"] == str(script)
    assert source["options"] == {"folder": str(tmp_path / "sub")}


def test_any_option_goes_to_a_function_that_takes_any(script):
    assert recipe(f"{script}:anything", a="1", b=2).arguments["model"] == {"a": "1", "b": 2}


def test_a_task_is_looked_up_among_the_installed():
    made = recipe("digits", seed="4")
    assert made.source == {"task": "digits", "options": {"seed": 4}}
    assert made.arguments["seed"] == 4


WRONG = [
    ("make", {"widht": 3}, TypeError, r"unknown option of .*mine.py:make 'widht': did you mean 'width'\?"),
    ("make", {"width": "x"}, TypeError, "width takes a whole number, got 'x'"),
    ("make", {"width": object()}, TypeError, "is no plain value, as run.json holds them"),
    ("make", {"width": float("nan")}, TypeError, "is no plain value"),
    ("needs", {"data": 1}, TypeError, "mine.py:needs needs size: give --size VALUE"),
    ("a_list", {}, ValueError, "returned list, but a dict of fit's keywords"),
    ("no_model", {}, ValueError, r"returned no model: did you mean model by modle\?"),
    ("no_data", {}, ValueError, "returned no data, only model, loss"),
    ("fails", {}, ValueError, r"mine.py:fails failed at .*mine.py:20: RuntimeError: inconsistent tensor size"),
    ("exits", {}, ValueError, "mine.py:exits raised SystemExit"),
    ("mke", {}, ValueError, "has no function mke: did you mean make"),
]


@pytest.mark.parametrize(("function", "options", "kind", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence(script, function, options, kind, sentence):
    with pytest.raises(kind, match=sentence) as raised:
        recipe(f"{script}:{function}", **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "kind", "sentence"),
    [
        (
            "digts",
            ValueError,
            "unknown task 'digts': did you mean 'digits'.*or a script of yours as script.py:function",
        ),
        ("mine.py", ValueError, "mine.py lacks a function: give mine.py:make"),
        ("nowhere.py:make", FileNotFoundError, "there is no script nowhere.py"),
    ],
)
def test_a_spec_that_names_nothing(spec, kind, sentence):
    with pytest.raises(kind, match=sentence):
        recipe(spec)


def test_a_task_that_cannot_be_loaded(monkeypatch):
    entry = importlib.metadata.EntryPoint("broken", "no_such_package:make", "thalweg.tasks")
    monkeypatch.setattr("thalweg.run.recipe.entry_points", lambda group: (entry,))
    with pytest.raises(ValueError, match="the task broken cannot be loaded .*no_such_package"):
        recipe("broken")


def test_fit_takes_changes_before_what_the_recipe_says(script, tmp_path):
    run = recipe(f"{script}:make").fit(epochs=1, lr=0.25, run_dir=tmp_path / "run", verbose=False)
    assert run.record.epochs == 1
    assert run.learning_rate == 0.25
    assert run.record.source["function"] == "make"


# ── made again from a record ─────────────────────────────────────────────────────────────────────────────────────


def test_a_script_is_run_again_and_its_path_is_told(script, tmp_path, capsys):
    source = recipe(f"{script}:make", width=4).source
    capsys.readouterr()
    again = recipe_of(source, tmp_path / "run")
    assert again.source == source
    assert again.arguments["model"][0].out_features == 4
    printed = capsys.readouterr()
    assert str(script) in printed.err
    assert printed.out == ""


def test_a_task_is_made_again_by_its_name(tmp_path):
    source = {"task": "digits", "options": {"seed": 2}}
    assert recipe_of(source, tmp_path).source == source


def test_a_run_is_loaded_and_resumed_through_its_recipe(script, tmp_path):
    run = recipe(f"{script}:make", width=2).fit(run_dir=tmp_path / "run", verbose=False)
    x = torch.ones(1, 1)
    assert torch.equal(thalweg.load(run.directory)(x), run.model(x))
    assert thalweg.resume(run.directory, epochs=3, verbose=False).record.epochs == 3


def forged(case, script, tmp_path):
    """A record that must not be followed, and what the refusal says."""
    marked = tmp_path / "ran"
    trap = f"open({str(marked)!r}, 'w').close()\n" + SCRIPT
    source = recipe(f"{script}:make").source
    run = tmp_path / "run"
    run.mkdir()
    if case == "changed":
        script.write_text(trap)
        return source, "has changed since"
    if case == "gone":
        script.unlink()
        return source, "is gone"
    if case == "inside":
        (run / "mine.py").write_text(trap)
        return recipe_source(run / "mine.py"), "lies in the run directory"
    if case == "link":
        (run / "mine.py").write_text(trap)
        (tmp_path / "link.py").symlink_to(run / "mine.py")
        return {**recipe_source(run / "mine.py"), "script": str(tmp_path / "link.py")}, "lies in the run directory"
    if case == "library":
        return {**recipe_source(importlib.metadata.__file__), "function": "version"}, "belongs to an installed package"
    if case == "other python":
        (tmp_path / "lib" / "python3.9").mkdir(parents=True)
        (tmp_path / "lib" / "python3.9" / "mine.py").write_text(trap)
        return recipe_source(tmp_path / "lib" / "python3.9" / "mine.py"), "belongs to an installed package"
    if case == "imported":
        script.write_text(SCRIPT + "from subprocess import getoutput\n")
        command = {"cmd": f"touch {marked}"}
        return {**recipe_source(script), "function": "getoutput", "options": command}, "from an installed package"
    if case == "built in":
        script.write_text(SCRIPT + "from os import system\n")
        command = {"command": f"touch {marked}"}
        return {**recipe_source(script), "function": "system", "options": command}, "from an installed package"
    if case == "task":
        return {"task": "gone", "options": {}}, "the task 'gone', which is not installed"
    assert case == "empty"
    return {"options": {}}, "does not say where its model came from"


def recipe_source(path):
    from thalweg.run.script import Script

    script = Script.read(path)
    return {"script": str(script.path), "function": "make", "sha256": script.sha256, "options": {}}


@pytest.mark.parametrize(
    "case",
    ["changed", "gone", "inside", "link", "library", "other python", "imported", "built in", "task", "empty"],
)
def test_a_record_is_not_trusted_to_name_what_runs(case, script, tmp_path):
    source, sentence = forged(case, script, tmp_path)
    with pytest.raises(ValueError, match=sentence) as raised:
        recipe_of(source, tmp_path / "run")
    assert "pass model= yourself (and to resume, data= and loss=)" in str(raised.value)
    assert not (tmp_path / "ran").exists()
