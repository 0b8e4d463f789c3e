"""A task keeps facts with its run: model, answers and exports come back without the training data."""

from __future__ import annotations

import json

import pytest
import torch

import thalweg
from thalweg.cli import main
from thalweg.records import facts as kept_facts
from thalweg.records import section

SCRIPT = '''
"""A line through points of a file."""
from pathlib import Path
from typing import Literal
import torch
import thalweg

def make(data: Path, width: int = 4, shape: Literal["line", "curve"] = "line", seed: int = 0):
    """Points of a file, one a line."""
    numbers = [float(line) for line in Path(data).read_text().split()]
    x = torch.tensor(numbers)[:, None]
    facts = {"width": width, "names": ["down", "up"]}
    return {
        "model": build(facts), "data": (x, (x[:, 0] > 0).long()), "loss": "cross_entropy", "epochs": 20,
        "learning_rate": 0.1, "callbacks": Shows(), "facts": facts, "notes": ["One line was skipped."],
    }

def build(facts):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, facts["width"]), torch.nn.ReLU(), torch.nn.Linear(facts["width"], 2))

def predict(model, facts, files):
    for file in files:
        for word in Path(file).read_text().split():
            with torch.no_grad():
                place = int(model(torch.tensor([[float(word)]])).argmax())
            yield {"file": str(file), "answer": f"{word} {facts['names'][place]}"}

class Shows:
    def on_end(self, run):
        run.add_metrics(bleu=33.25)
        run.show(thalweg.Section("What it says", "", [thalweg.Prose("up & down")]))

def example(facts):
    return torch.ones(2, 1)

task = thalweg.Task(make, build, predict, example)
broken = thalweg.Task(lambda: {"model": build({"width": 1}), "data": 0, "facts": {"a": {1}}})
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SCRIPT)
    (tmp_path / "points.txt").write_text("\n".join(str(n / 10) for n in range(-40, 40)))
    return tmp_path


@pytest.fixture
def run(folder):
    """A finished run of the task whose data is gone."""
    found = thalweg.recipe("mine.py:task", data="points.txt").fit(run_dir="run", verbose=False)
    (folder / "points.txt").unlink()
    return found


def test_facts_notes_metrics_and_sections_are_kept_with_the_run(run):
    assert kept_facts.read("run") == {"width": 4, "names": ["down", "up"]}
    record = thalweg.RunRecord.read("run")
    assert record.notes[0] == "One line was skipped."
    assert record.metrics["bleu"] == run.metrics["bleu"] == 33.25
    assert section.read("run") == run.sections
    for path in (run.report(), thalweg.report("run", "other.html")):
        assert "up &amp; down" in path.read_text()


def test_the_model_comes_back_without_the_data(run):
    model = thalweg.load("run")
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_it_answers_files_on_the_command_line(run, folder, capsys):
    (folder / "asked.txt").write_text("-3\n2.5\n")
    assert main(["predict", "run", "asked.txt"]) == 0
    assert capsys.readouterr().out == "-3 down\n2.5 up\n"
    assert main(["predict", "run", "asked.txt", "--output", "said.txt"]) == 0
    assert (folder / "said.txt").read_text() == "-3 down\n2.5 up\n"
    capsys.readouterr()
    assert main(["predict", "run", "asked.txt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["predictions"][0] == {"file": "asked.txt", "answer": "-3 down"}
    assert main(["predict", "run", "gone.txt"]) == 1
    assert "there is no file gone.txt" in capsys.readouterr().err


def test_its_own_example_is_what_an_export_follows(run, folder, capsys):
    pytest.importorskip("onnxscript")
    assert main(["export", "run", "model.onnx"]) == 0
    session = pytest.importorskip("onnxruntime").InferenceSession("model.onnx")
    x = torch.randn(5, 1)
    [said] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(said), run.model(x), atol=1e-5)


def test_a_resumed_run_keeps_the_callbacks_of_its_task(folder):
    thalweg.recipe("mine.py:task", data="points.txt").fit(run_dir="run", epochs=1, verbose=False)
    (folder / "run" / "sections.json").unlink()
    seen = []

    class Own:
        def on_end(self, run):
            seen.append(run.metrics["bleu"])

    thalweg.resume("run", epochs=2, callbacks=Own(), verbose=False)
    assert seen == [33.25]
    assert section.read("run")[0].title == "What it says"


def test_its_options_and_words_are_those_of_make(folder, capsys):
    assert main(["fit", "mine.py:task", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--width INT  (default 4)" in told
    assert "--shape line | curve  (default line)" in told
    assert "Points of a file, one a line." in told


def test_facts_must_be_plain(folder):
    with pytest.raises(ValueError, match=r"the facts of mine.py:broken are no plain values"):
        thalweg.recipe("mine.py:broken")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_facts_are_named(run, folder, text):
    (folder / "run" / "facts.json").write_text(text)
    with pytest.raises(ValueError, match=r"facts.json"):
        thalweg.load("run")
