import json
import shutil

import pytest
import torch
from made_up_images import SHARED, write_classes

import thalweg
from thalweg.cli import main
from thalweg.tasks.vision.classification import build, make, task
from thalweg.tasks.vision.folders import Part
from thalweg.tasks.vision.shown import Confusions, confusions

SHORT = {"epochs": 12, "batch_size": 32, "learning_rate": 0.003, "verbose": False}
SMALL = {"width": 8}


@pytest.fixture
def run(class_folders, tmp_path):
    made = thalweg.recipe("image-classification", data=str(class_folders), **SMALL)
    return made.fit(run_dir=tmp_path / "run", **SHORT)


def test_learns_what_chance_cannot_and_answers_shows_and_exports_it(run, class_folders, tmp_path, capsys):
    """One training, and all that can be asked of it."""
    assert run.metrics["test_accuracy"] >= 0.9, "chance is 0.33"
    x, y = make(class_folders)["callbacks"][0].part.images, make(class_folders)["callbacks"][0].part.labels
    loaded = thalweg.load(run.directory)
    outputs = thalweg.predict(loaded, x)
    assert float((outputs.argmax(1) == y).double().mean()) == pytest.approx(run.metrics["test_accuracy"])
    shutil.rmtree(class_folders / "train")  # what follows needs no training data
    files = sorted((class_folders / "test" / "rows").iterdir())[:3]
    assert main(["predict", str(run.directory), *map(str, files)]) == 0
    said = capsys.readouterr().out
    assert said.count("rows") >= 2
    answers = list(task.predict(loaded, json.loads(json.dumps(facts_of(run))), files))
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert "What is taken for what" in run.report().read_text()
    check_onnx(run, x, outputs, tmp_path)


def facts_of(run):
    return json.loads((run.directory / "facts.json").read_text())


def check_onnx(run, x, outputs, tmp_path):
    import onnxruntime

    assert main(["export", str(run.directory), str(tmp_path / "model.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (found,) = session.run(None, {session.get_inputs()[0].name: x[:7].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), outputs[:7], rtol=1e-3, atol=1e-4)


class Asked(torch.nn.Module):
    """A network that says what it was told to, whatever it sees."""

    def __init__(self, said):
        super().__init__()
        self.said = torch.nn.Parameter(torch.nn.functional.one_hot(torch.tensor(said)).float() * 4)

    def forward(self, x):
        return self.said[: len(x)]


class Shown:
    """The side of a run that a callback sees."""

    def __init__(self, model):
        self.model, self.sections, self.metrics = model, [], {}

    def show(self, section):
        self.sections.append(section)

    def add_metrics(self, **numbers):
        self.metrics |= numbers


def test_the_section_shows_what_was_confused_and_the_worst_mistakes():
    part = Part(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 2, 2]), list("abcde"))
    run = Shown(Asked([0, 1, 2, 2, 2]))
    Confusions(part, "test", ["cat", "dog", "hen"]).on_end(run)
    assert run.metrics == {"test_accuracy": pytest.approx(0.8)}
    matrix, pairs, mistakes = run.sections[0].parts
    assert matrix.values == [[1, 0, 0], [0, 1, 1], [0, 0, 2]]
    assert pairs.rows == [["dog", "hen", 1, "50.0%"]]
    assert mistakes.png.startswith(b"\x89PNG") and "worst" in mistakes.caption
    assert "hardest class is dog" in run.sections[0].words


def test_without_mistakes_no_picture_and_of_validation_no_metric():
    part = Part(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1]), list("abc"))
    run = Shown(Asked([0, 1, 1]))
    Confusions(part, "validation", ["cat", "dog"]).on_end(run)
    assert run.metrics == {} and len(run.sections[0].parts) == 2


def test_confusions_count_pairs():
    counts = confusions(torch.tensor([2, 0, 2]), torch.tensor([1, 0, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 0]]


def test_the_test_part_takes_no_part_in_training(class_folders):
    made = make(class_folders)
    assert len(made["data"][1]) == 162 and len(made["validation_data"][1]) == 18
    assert torch.bincount(made["validation_data"][1]).tolist() == [6, 6, 6]
    shown = made["callbacks"][0]
    assert shown.part_name == "test" and len(shown.part) == 60
    assert torch.equal(made["model"].pixels.mean.flatten(), made["data"][0].double().mean((0, 2, 3)).float())


def test_a_validation_folder_is_taken_as_it_is(class_folders):
    write_classes(class_folders / "val", 5, seed=2)
    made = make(class_folders)
    assert len(made["data"][1]) == 180 and len(made["validation_data"][1]) == 15


def test_weights_follow_from_the_seed_and_leave_the_global_state_alone(class_folders):
    before = torch.get_rng_state()
    one, again, other = (make(class_folders, seed=seed)["model"].last.weight for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mirror": "perhaps"}, "mirror takes auto, yes or no, got 'perhaps'"),
        ({"validation_share": 0.0}, "validation_share is a share above 0 and below 1"),
        ({"validation_share": 0.001}, "leave none for validation"),
        ({"on_bad_data": "ignore"}, "on_bad_data takes refuse or skip"),
    ],
)
def test_options_that_cannot_be(class_folders, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(class_folders, **options)


def test_the_side_decides_the_number_of_stages():
    facts = {"classes": ["a", "b"], "width": 8, "blocks": 2, "mirror": False, "shift": 1}
    for side, stages in ((8, 1), (28, 3), (32, 3), (64, 4)):
        network = build({**facts, "shape": [1, side, side]})
        assert len(network.stages) == stages
        assert network.eval()(torch.zeros(2, 1, side, side, dtype=torch.uint8)).shape == (2, 2)


def test_a_run_is_gone_on_with(class_folders, tmp_path):
    made = thalweg.recipe("image-classification", data=str(class_folders), **SMALL)
    short = made.fit(run_dir=tmp_path / "run", **{**SHORT, "epochs": 1})
    longer = thalweg.resume(short.directory, epochs=2, verbose=False)
    assert longer.steps == 2 * short.steps and "test_accuracy" in longer.metrics


def test_files_that_are_no_images_are_named(class_folders, tmp_path):
    facts = make(class_folders)["facts"]
    (tmp_path / "words.png").write_text("no image")
    with pytest.raises(ValueError, match="words.png: an image was expected"):
        next(task.predict(build(facts), facts, [tmp_path / "words.png"]))
    with pytest.raises(FileNotFoundError, match="there is no file .*none.png"):
        next(task.predict(build(facts), facts, [tmp_path / "none.png"]))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets are not at hand")
def test_real_digits_are_told_apart(tmp_path):
    """A tenth of the training that the task gives itself: benchmarks/tasks measures the whole."""
    made = thalweg.recipe("image-classification", data=str(SHARED / "images" / "mnist"))
    run = made.fit(run_dir=tmp_path / "run", steps=400, batch_size=64, learning_rate=0.003, verbose=False)
    assert run.metrics["test_accuracy"] >= 0.97
