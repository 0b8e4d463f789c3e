import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import thalweg
from thalweg.tasks.tabular.network import build
from thalweg.tasks.tabular.scores import CrossEntropy, RootMeanSquaredError, SquaredError, accuracy
from thalweg.tasks.tabular.task import make, predict
from thalweg.tasks.tabular.trees import boosted_trees

DATA = Path(thalweg.__file__).parents[3] / "shared" / "data" / "tabular"
SMALL = {"width": 32, "layers": 2, "members": 2}


def written(path, rows, names=("a", "b", "colour", "noise", "y")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def invented(count, seed=0, classes=False):
    """y depends on a wave of a, on b, and on a colour; a tenth of b is missing, where it counts as 0."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        a, b, noise = draw.uniform(-2, 2), draw.normal(), draw.normal()
        colour = draw.choice(["red", "green", "blue"])
        hole = draw.random() < 0.1
        y = 100 + 10 * (2 * np.sin(2 * a) + (0 if hole else b) + {"red": 0, "green": 1, "blue": 3}[colour])
        rows.append([f"{a:.5f}", "" if hole else f"{b:.5f}", colour, f"{noise:.5f}", f"{y:.4f}"])
    if classes:
        middle = np.median([float(row[-1]) for row in rows])
        for row in rows:
            row[-1] = "high" if float(row[-1]) > middle else "low"
    return rows


@pytest.fixture
def table(tmp_path):
    return written(tmp_path / "t.csv", invented(1200))


def trained(folder, path, **options):
    recipe = thalweg.recipe("tabular", data=str(path), target_column="y", **SMALL, **options)
    return recipe.fit(run_dir=folder / "run", epochs=12, learning_rate=0.005, verbose=False)


def test_a_number_is_learned_from_numbers_categories_and_holes(table, tmp_path):
    run = trained(tmp_path, table)
    spread = np.std([float(row[-1]) for row in invented(1200)])
    assert run.metrics["test_rmse"] < 0.3 * spread  # a straight line leaves three quarters of it
    assert run.metrics["validation_rmse"] < 0.3 * spread
    assert 0.05 * spread < run.metrics["test_rmse_of_boosted_trees"] < 0.3 * spread
    held_out = [section.title for section in run.sections]
    assert held_out == ["Residuals", "Importance of the columns"]
    ranked = [row[0] for row in run.sections[1].parts[0].rows]
    assert ranked[0] == "a" and ranked[-1] == "noise"
    page = Path(run.report()).read_text()
    assert "Importance of the columns" in page and "Residuals" in page


def test_classes_are_learned_and_answered(tmp_path):
    run = trained(tmp_path, written(tmp_path / "t.csv", invented(1200, classes=True)))
    assert run.metrics["test_accuracy"] > 0.85 and run.metrics["validation_accuracy"] > 0.85
    assert run.metrics["test_accuracy_of_boosted_trees"] > 0.85
    assert [section.title for section in run.sections] == ["Confusions", "Importance of the columns"]
    fresh = invented(200, seed=7, classes=True)
    answers = list(thalweg.Task.answers(run.directory, [written(tmp_path / "new.csv", fresh)]))
    assert sum(a["answer"] == row[-1] for a, row in zip(answers, fresh, strict=True)) > 160
    assert all(0.5 <= answer["probability"] <= 1 for answer in answers)


def test_a_run_answers_without_its_training_data(table, tmp_path):
    run = trained(tmp_path, table)
    rows = invented(50, seed=5)
    table.unlink()
    file = written(tmp_path / "new.csv", [row[:-1] for row in rows], ("a", "b", "colour", "noise"))
    answers = list(thalweg.Task.answers(run.directory, [file]))
    errors = [answer["answer"] - float(row[-1]) for answer, row in zip(answers, rows, strict=True)]
    assert np.sqrt(np.mean(np.square(errors))) < 6
    assert answers[3]["line"] == 5 and json.dumps(answers)
    written(file, [row[1:-1] for row in rows], ("b", "colour", "noise"))
    with pytest.raises(ValueError, match="new.csv lacks the column 'a'"):
        list(thalweg.Task.answers(run.directory, [file]))


class Interrupted(thalweg.Callback):
    """Presses Ctrl-C after the second epoch."""

    def on_validate(self, run, record):
        if record.epoch >= 2:
            signal.raise_signal(signal.SIGINT)


def test_goes_on_exactly_where_it_was_stopped(table, tmp_path):
    settings = {"epochs": 4, "learning_rate": 0.005, "plan": "eager", "verbose": False}
    recipe = lambda: thalweg.recipe("tabular", data=str(table), target_column="y", **SMALL)  # noqa: E731
    whole = recipe().fit(run_dir=tmp_path / "whole", **settings)
    begun = recipe().fit(run_dir=tmp_path / "parts", **settings, callbacks=[Interrupted()])
    assert begun.stopped_because == "interrupted" and begun.steps < whole.steps
    parts = thalweg.resume(tmp_path / "parts", verbose=False)
    assert whole.metrics == parts.metrics
    for one, other in zip(whole.model.state_dict().values(), parts.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_network_goes_to_onnx(table, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    made = make(table, "y", **SMALL)
    model, x = made["model"].eval(), made["data"][0]
    thalweg.export(model, tmp_path / "t.onnx", example=tuple(part[:2] for part in x))
    session = onnxruntime.InferenceSession(tmp_path / "t.onnx")
    few = tuple(part[:7] for part in x)
    found = session.run(None, {i.name: part.numpy() for i, part in zip(session.get_inputs(), few, strict=True)})[0]
    np.testing.assert_allclose(found, model(*few).detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize("kept", [("a", "b", "y"), ("colour", "y")], ids=["numbers", "categories"])
def test_columns_of_one_kind_alone(tmp_path, kept):
    names = ("a", "b", "colour", "noise", "y")
    rows = [[row[names.index(name)] for name in kept] for row in invented(300)]
    run = trained(tmp_path, written(tmp_path / "t.csv", rows, kept))
    spread = np.std([float(row[-1]) for row in rows])
    assert run.metrics["test_rmse"] < 0.9 * spread and len(run.sections) == 2


def test_rows_are_in_one_part_only_and_facts_come_from_training(table):
    made = make(table, "y", **SMALL, seed=3)
    judged = made["callbacks"][0].judged
    parts = [made["data"], made["validation_data"], judged]
    assert [len(y) for _, y in parts] == [864, 96, 240]
    rows = [{tuple(row) for row in x[0].tolist()} for x, _ in parts]
    assert not (rows[0] & rows[1] or rows[0] & rows[2] or rows[1] & rows[2])
    assert made["facts"]["centre"] == pytest.approx(made["data"][1].double().mean().item(), rel=1e-6)
    assert abs(made["data"][0][0][:, 1].median()) < 1e-6  # a noise column without holes: the median of training
    again, other = make(table, "y", **SMALL, seed=3), make(table, "y", **SMALL, seed=4)
    assert torch.equal(made["data"][1], again["data"][1]) and not torch.equal(made["data"][1], other["data"][1])
    assert torch.equal(made["model"].last.weight, again["model"].last.weight)


def test_a_folder_brings_its_own_test_part(tmp_path):
    written(tmp_path / "train.csv", invented(100))
    written(tmp_path / "test.csv", invented(30, seed=1))
    made = make(tmp_path, "y", **SMALL)
    assert len(made["data"][1]) == 90 and len(made["callbacks"][0].judged[1]) == 30
    (tmp_path / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match="lacks train.csv"):
        make(tmp_path, "y")


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    written(tmp_path / "set" / "train.csv", invented(100))
    written(tmp_path / "set" / "test.csv", invented(30, seed=1))
    made = make(f"hub:{tmp_path / 'set'}", "y", **SMALL)
    plain = make(tmp_path / "set", "y", **SMALL)
    assert made["facts"]["columns"] == plain["facts"]["columns"]
    assert torch.equal(made["data"][1], plain["data"][1])
    assert len(made["callbacks"][0].judged[1]) == 30


def test_kinds_of_targets(tmp_path):
    rows = [[str(i), str(i % 5), str(i * 0.5), ["no", "yes"][i % 2]] for i in range(60)]
    path = written(tmp_path / "t.csv", rows, ("i", "five", "half", "word"))
    assert make(path, "five", **SMALL)["facts"]["classes"] == ["0", "1", "2", "3", "4"]
    assert make(path, "five", kind="regression", **SMALL)["facts"]["classes"] == []
    assert make(path, "half", **SMALL)["facts"]["classes"] == []
    assert make(path, "word", **SMALL)["facts"]["classes"] == ["no", "yes"]
    with pytest.raises(ValueError, match="the target 'word' holds words"):
        make(path, "word", kind="regression")
    with pytest.raises(ValueError, match="kind takes auto, regression, classification"):
        make(path, "word", kind="regresion")


BAD_TARGETS = {
    "no such column": ("z", lambda rows: rows, "has no column 'z'"),
    "nearly one": ("colours", lambda rows: rows, "has no column 'colours': did you mean 'colour'"),
    "constant": ("y", lambda rows: [[*row[:-1], "5"] for row in rows], "'y' is '5' in every row"),
    "missing everywhere": ("y", lambda rows: [[*row[:-1], ""] for row in rows], "line 2: the target 'y' is missing"),
    "missing once": ("y", lambda rows: [[*rows[0][:-1], "NA"], *rows[1:]], "line 2: the target 'y' is missing"),
    "a word": ("y", lambda rows: [*rows[:9], [*rows[9][:-1], "much"], *rows[10:]], "line 11: the target 'much' is no"),
    "too few": ("y", lambda rows: rows[:3], "3 rows are too few"),
}


@pytest.mark.parametrize("case", BAD_TARGETS)
def test_what_is_wrong_with_the_target_is_one_sentence(tmp_path, case):
    target, change, sentence = BAD_TARGETS[case]
    path = written(tmp_path / "t.csv", change(invented(60)))
    with pytest.raises(ValueError, match=sentence):
        make(path, target)


def test_bad_rows_are_skipped_and_told(tmp_path):
    rows = invented(60)
    rows[4][-1], rows[5][-1], rows[6][0] = "", "much", "far"
    path = written(tmp_path / "t.csv", [*rows, ["1"]])
    made = make(path, "y", on_bad_data="skip", **SMALL)
    held = made["callbacks"][0].judged[1]
    assert len(made["data"][1]) + len(made["validation_data"][1]) + len(held) == 57
    told = " ".join(made["notes"])
    assert all(f"line {line}" in told for line in (6, 7, 8, 62)) and len(made["notes"]) == 4


def test_trees_see_what_is_missing_and_that_categories_have_no_order():
    draw = np.random.default_rng(0)
    hole, level = torch.tensor(draw.random(600) < 0.5), torch.tensor(draw.integers(0, 8, 600))
    y = 10.0 * hole + torch.tensor([0.0, 3, 1, 2, 0, 3, 1, 2])[level]
    x = (torch.zeros(600, 1), hole.float()[:, None], level[:, None])
    facts = {"columns": [{"kind": "number"}, {"kind": "category", "levels": list("abcdef")}], "classes": []}
    parts = [(tuple(part[rows] for part in x), y[rows]) for rows in (slice(0, 250), slice(250, 500), slice(500, 600))]
    found = boosted_trees(parts[:2], parts[2], facts)
    assert (found - parts[2][1]).abs().max() < 0.2


# ── loss, metrics, network ──


def test_loss_and_metrics_know_of_members():
    output, y = torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.tensor([2.0, 3.0])
    assert SquaredError(2.0)(output, y) == pytest.approx((1 + 1 + 4 + 4) / 4 / 4)
    assert SquaredError(2.0)(output.mean(1), y) == pytest.approx((0 + 4) / 2 / 4)
    metric = RootMeanSquaredError()
    metric.update(output, y)
    metric.update(torch.tensor([0.0]), torch.tensor([1.0]))
    assert metric.compute() == pytest.approx(((0 + 4 + 1) / 3) ** 0.5)
    scores, labels = torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = -scores.log_softmax(-1)[torch.arange(5), :, labels].mean()
    assert CrossEntropy()(scores, labels) == pytest.approx(expected.item())
    likeliest = scores.softmax(-1).mean(1).argmax(1)
    assert accuracy(scores, labels) == pytest.approx((likeliest == labels).double().mean().item())
    assert accuracy(scores[:, 0], scores[:, 0].argmax(1)) == 1


def test_answers_are_the_mean_of_the_members(table):
    made = make(table, "y", **SMALL, dropout=0.0)
    model, x = made["model"], tuple(part[:9] for part in made["data"][0])
    apart, together = model.train()(*x), model.eval()(*x)
    assert apart.shape == (9, 2) and torch.allclose(apart.mean(1), together)
    assert (apart[:, 0] - apart[:, 1]).abs().min() > 0
    state = {name: torch.zeros_like(value) for name, value in model.last.state_dict().items()}
    model.last.load_state_dict(state)
    assert model(*x)[0].item() == pytest.approx(made["facts"]["centre"])  # in the target's own unit


def test_facts_alone_build_the_network(table):
    made = make(table, "y", **SMALL)
    again = build(json.loads(json.dumps(made["facts"])))
    again.load_state_dict(made["model"].state_dict())
    x = made["data"][0]
    assert torch.equal(again.eval()(*x), made["model"].eval()(*x))


def test_predict_refuses_a_word_among_numbers(table, tmp_path):
    made = make(table, "y", **SMALL)
    rows = invented(4)
    rows[2][0] = "far"
    with pytest.raises(ValueError, match="new.csv, line 4: 'far' stands in the column 'a'"):
        list(predict(made["model"], made["facts"], [written(tmp_path / "new.csv", rows)]))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real tables are not here")
def test_the_real_tables_are_read():
    made = make(DATA / "california-housing.csv.gz", "median_house_value")
    kinds = [column["kind"] for column in made["facts"]["columns"]]
    assert kinds == ["number"] * 8 + ["category"] and not made["notes"]
    assert [column["name"] for column in made["facts"]["columns"] if column.get("missing")] == ["total_bedrooms"]
    wine = make(DATA / "winequality-red.csv", "12")
    assert wine["facts"]["classes"] == ["3", "4", "5", "6", "7", "8"] and len(wine["facts"]["columns"]) == 11
